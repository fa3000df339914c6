"""The ladder on one ball: rungs in their order, each search ends below its start."""

from __future__ import annotations

import importlib
import json
from itertools import pairwise
from pathlib import Path
from zipfile import ZipFile

import pytest
import trimesh

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
RUNGS = (
    "code",
    "means",
    "searched code",
    "searched latents",
    "searched planes",
    "searched planes and head",
)


def test_the_more_a_search_may_choose_the_less_is_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shapes").mkdir()
    with ZipFile(tmp_path / "shapes" / "val.zip", "w") as archive:
        ball = trimesh.creation.icosphere(subdivisions=3, radius=3)
        archive.writestr("made/ball.glb", ball.export(file_type="glb"))
        archive.writestr("metadata.jsonl", json.dumps({"file": "made/ball.glb", "pack": "made"}))
    monkeypatch.setenv("POLYTOK_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("shape_ladder")
    monkeypatch.setattr(bench, "GRID", 48)
    rows = bench.ladder_rows(bench._results.shapes("val")[0], "vat-512b-small", effort=1, steps=40)
    assert tuple(row["rung"] for row in rows) == RUNGS
    losses = {row["rung"]: row["loss"] for row in rows}
    assert losses["searched code"] < losses["code"]
    # So few steps end within the noise of a draw of queries.
    assert all(losses[b] < losses[a] + 0.01 for a, b in pairwise(("means", *RUNGS[3:]))), losses
    assert losses[RUNGS[-1]] < losses["means"] - 0.01, losses
    assert all(0.5 < row["near_iou"] <= 1 and row["f_002"] > 0.8 for row in rows)
