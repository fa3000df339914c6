"""Names of files that are hard to print, or that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_names_that_cannot_be_shown_end_no_batch(model: Path, box: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a küche 椅子.glb", "b.glb"):
        (folder / name).write_bytes(box.read_bytes())
    arguments = ["encode", str(folder), "-o", str(out), "--model", str(model)]
    done = subprocess.run(
        [sys.executable, "-m", "polytok", *arguments],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"a k\xfcche \u6905\u5b50.ptk: " in done.stdout
    assert sorted(p.name for p in out.iterdir()) == ["a küche 椅子.ptk", "b.ptk"]
