from __future__ import annotations

import numpy as np
import pytest

from polytok.core.errors import PolytokError
from polytok.metrics.bootstrap import bootstrap_difference, bootstrap_mean


def test_interval_matches_the_normal_one_for_many_values() -> None:
    values = np.random.default_rng(0).normal(3, 2, 1000)
    got = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(1000)
    assert got.mean == values.mean()
    assert got.low == pytest.approx(got.mean - half, abs=0.1 * half)
    assert got.high == pytest.approx(got.mean + half, abs=0.1 * half)
    assert bootstrap_mean(values, confidence=0.5).high < got.high


def test_it_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        got = bootstrap_mean(rng.exponential(1, 80), draws=400)
        hits += got.low <= 1 <= got.high
    assert 175 <= hits <= 198


def test_pairing_finds_a_small_steady_difference() -> None:
    rng = np.random.default_rng(2)
    base = rng.uniform(0, 1, 100)
    better = base + rng.normal(0.01, 0.005, 100)
    assert bootstrap_difference(better, base).excludes_zero
    assert not bootstrap_difference(better, rng.permutation(base)).excludes_zero
    assert bootstrap_difference(base, better).high < 0


def test_seed_decides_and_one_value_has_no_width() -> None:
    values = np.arange(10.0)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)
    one = bootstrap_mean([0.5])
    assert (one.low, one.mean, one.high, one.count) == (0.5, 0.5, 0.5, 1)
    assert str(one) == "0.500 [0.500, 0.500]"


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(PolytokError, match="finite"):
        bootstrap_mean([])
    with pytest.raises(PolytokError, match="finite"):
        bootstrap_mean([1.0, np.nan])
    with pytest.raises(PolytokError, match="confidence=1"):
        bootstrap_mean([1.0], confidence=1)
    with pytest.raises(PolytokError, match="unpaired"):
        bootstrap_difference([1.0], [1.0, 2.0])
