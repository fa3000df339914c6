"""Names of files that are hard to print, or that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.commands import run


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


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_an_empty_name_is_not_the_current_folder(
    command: str,
    box: Path,
    code: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    assert run(command, box if command == "encode" else code, "", "-o", "out") == 2
    assert capfd.readouterr().err == (
        "error: an input is ''; known: names of files, globs and folders\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_newline_in_a_name_does_not_break_a_line(
    model: Path, box: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad, out = tmp_path / "a\nb.glb", tmp_path / "c\nd.glb", tmp_path / "out"
    good.write_bytes(box.read_bytes())
    bad.write_bytes(b"no mesh")
    assert run("encode", bad, "-o", out, "--model", model) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and r"c\nd.glb" in error
    assert run("encode", good, bad, "-o", out, "--model", model) == 2
    shown = capfd.readouterr()
    assert shown.out.count("\n") == 1 and r"a\nb.ptk" in shown.out
    failed, total = shown.err.splitlines()
    assert failed.startswith("failed: ") and failed.count(r"c\nd.glb") == 1
    assert total == "error: encoding failed for 1 of 2 inputs"
    assert run("info", out / "a\nb.ptk", "--model", model) == 0
    assert r"a\nb.ptk" in capfd.readouterr().out.splitlines()[0]
