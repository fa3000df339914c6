"""V-IoU of prefixes: against balls whose overlap is known."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from polytok.signals.mesh import Frame

STRETCH = np.array([1.0, 2.0, 4.0])


class Balls:
    """A code of k scales decodes to a ball of k thirds of the radius of the shape."""

    spec = SimpleNamespace(levels=(8, 8, 8))

    def encode(self, signal: trimesh.Trimesh, *, effort: int, seed: int) -> SimpleNamespace:
        assert effort == 0
        self.normalised = Frame.of(signal)
        return SimpleNamespace(prefix=lambda *, levels: levels)

    def frame(self, codes: SimpleNamespace) -> Frame:
        # Of a code that is stretched: what field() is asked about lies in this frame.
        return Frame(self.normalised.centre, self.normalised.scale, STRETCH)

    def field(self, levels: int) -> object:
        def logits(points: Tensor) -> Tensor:
            plain = points / torch.from_numpy(STRETCH).float()
            return 0.98 * levels / 3 - plain.norm(dim=-1)

        return logits


def test_rows_hold_the_overlap_of_every_prefix(ball: trimesh.Trimesh) -> None:
    bench = importlib.import_module("shape_prefixes")
    [row] = bench.prefix_rows(bench._results.shapes("val")[0], "any", codec=Balls())
    assert (row["split"], row["shape"], row["faces"]) == ("val", "made/ball.glb", len(ball.faces))
    assert row["v_iou"] == pytest.approx([1 / 27, 8 / 27, 1], abs=0.02)
