"""Data folders that benchmarks read, made of analytic shapes."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

import pytest
import trimesh

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def ball(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> trimesh.Trimesh:
    """A ball of radius 3, the one shape of ``val``; benchmarks can be imported."""
    (tmp_path / "shapes").mkdir()
    made = trimesh.creation.icosphere(subdivisions=3, radius=3)
    with ZipFile(tmp_path / "shapes" / "val.zip", "w") as archive:
        archive.writestr("made/ball.glb", made.export(file_type="glb"))
        archive.writestr("metadata.jsonl", json.dumps({"file": "made/ball.glb", "pack": "made"}))
    monkeypatch.setenv("POLYTOK_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return made
