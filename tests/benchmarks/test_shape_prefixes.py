"""V-IoU of prefixes: against balls whose overlap is known."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import trimesh
from torch import Tensor

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


class Balls:
    """A code of k scales decodes to a ball of k thirds of the radius of the shape."""

    spec = SimpleNamespace(levels=(8, 8, 8))

    def encode(self, signal: trimesh.Trimesh, *, effort: int, seed: int) -> SimpleNamespace:
        assert effort == 0
        return SimpleNamespace(prefix=lambda *, levels: levels)

    def field(self, levels: int) -> object:
        def logits(points: Tensor) -> Tensor:
            return 0.98 * levels / 3 - points.norm(dim=-1)

        return logits


def test_rows_hold_the_overlap_of_every_prefix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shapes").mkdir()
    with ZipFile(tmp_path / "shapes" / "val.zip", "w") as archive:
        ball = trimesh.creation.icosphere(subdivisions=4, radius=3)
        archive.writestr("made/ball.glb", ball.export(file_type="glb"))
        archive.writestr("metadata.jsonl", json.dumps({"file": "made/ball.glb", "pack": "made"}))
    monkeypatch.setenv("POLYTOK_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = importlib.import_module("shape_prefixes")
    [row] = bench.prefix_rows(bench._results.shapes("val")[0], "any", codec=Balls())
    assert (row["split"], row["shape"], row["faces"]) == ("val", "made/ball.glb", len(ball.faces))
    assert row["v_iou"] == pytest.approx([1 / 27, 8 / 27, 1], abs=0.02)
