"""What the methods for VLMs promise, on a tower that has learned the glyph canvas."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from polytok.data.glyphs import GlyphCanvas

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tower() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("_glyph_tower")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def trained(tower: ModuleType) -> Any:
    """About 90 seconds on one thread."""
    model, exact = tower.train(GlyphCanvas(), seed=0)
    assert exact > 0.95  # below that no difference between scores counts
    return model


def test_scores_find_the_glyphs(tower: ModuleType, trained: Any) -> None:
    found = tower.recall(trained, GlyphCanvas(), keep=8, seed=0)
    several, last = found["class row, sum over layers"], found["class row, last layer"]
    assert several >= 0.95
    assert last < several - 0.2
    assert found["random"] == pytest.approx(0.125, abs=0.03)
    assert found["norm of the feature"] == pytest.approx(0.125, abs=0.1)


def test_what_is_kept_says_as_much_as_all(tower: ModuleType, trained: Any) -> None:
    found = tower.probe(trained, GlyphCanvas(), keep=8, seed=0)
    # All 64 tokens say about as much as the eight best; eight drawn ones say far less.
    assert found["class row"] > found["random"] + 0.15
    assert found["class row"] > found["all"] - 0.1
