"""Specs and codes that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from polytok.core.contracts import Codes, Level, TokenizerSpec

SLOTS = (1, 4, 9, 16, 25, 36, 49, 64, 100)


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., TokenizerSpec]:
    """Return a function that makes a shape spec from (vocab, count) pairs."""

    def make(pairs: Sequence[tuple[int, int | None]], **changes: object) -> TokenizerSpec:
        values: dict[str, object] = {
            "modality": "shape",
            "output": "field",
            "prefix": "levels",
            "levels": tuple(Level(vocab=v, count=n) for v, n in pairs),
        }
        return TokenizerSpec(**{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def make_codes() -> Callable[..., Codes]:
    """Return a function that draws a code of a spec; ``skew`` > 1 prefers small ids."""

    def make(spec: TokenizerSpec, seed: int = 0, skew: float = 1.0) -> Codes:
        rng = np.random.default_rng(seed)
        ids = [
            (lv.vocab * rng.random((1, lv.count or 0)) ** skew).astype(np.int64)
            for lv in spec.levels
        ]
        centre = rng.normal(size=(1, 3)).astype(np.float32)
        return Codes(
            indices=tuple(map(torch.from_numpy, ids)),
            meta={
                "centre": torch.from_numpy(centre),
                "scale": torch.tensor([float(np.exp(rng.normal()))], dtype=torch.float32),
            },
        )

    return make


@pytest.fixture(scope="session")
def preset(make_spec: Callable[..., TokenizerSpec]) -> TokenizerSpec:
    """The levels of a 512-byte shape code: 304 ids of 12 bits."""
    return make_spec([(4096, n) for n in SLOTS])


@pytest.fixture(scope="session")
def preset_histograms(preset: TokenizerSpec) -> list[np.ndarray]:
    """Counts of ids drawn with ``skew=6``; most ids were never seen."""
    rng = np.random.default_rng(7)
    return [
        np.bincount((lv.vocab * rng.random(5000) ** 6).astype(int), minlength=lv.vocab)
        for lv in preset.levels
    ]
