"""The ladder on one ball: rungs in their order, each search ends below its start."""

from __future__ import annotations

import importlib
from itertools import pairwise

import pytest
import trimesh

RUNGS = (
    "code, surface at zero",
    "code",
    "means",
    "searched code",
    "searched latents",
    "searched planes",
    "searched planes and head",
)


def test_the_more_a_search_may_choose_the_less_is_lost(
    monkeypatch: pytest.MonkeyPatch, ball: trimesh.Trimesh
) -> None:
    bench = importlib.import_module("shape_ladder")
    monkeypatch.setattr(bench, "GRID", 48)
    rows = bench.ladder_rows(bench._results.shapes("val")[0], "vat-512b-small", effort=1, steps=100)
    assert tuple(row["rung"] for row in rows) == RUNGS
    losses = {row["rung"]: row["loss"] for row in rows}
    assert losses["searched code"] < losses["code"]
    # So few steps end within the noise of a draw of queries.
    assert all(losses[b] < losses[a] + 0.01 for a, b in pairwise(("means", *RUNGS[4:]))), losses
    assert losses[RUNGS[-1]] < losses["means"] - 0.01, losses
    found = {row["rung"]: (row["query_iou"], row["f_002"]) for row in rows}
    assert all(0.5 < iou <= 1 and f > 0.8 for iou, f in found.values()), found
