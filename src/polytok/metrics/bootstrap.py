"""Intervals of means over shapes, by the paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from polytok.core.errors import PolytokError
from polytok.core.seeding import numpy_rng

_BLOCK = 256


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that holds it with the given confidence.

    Args:
        mean: of the values as given.
        low, high: percentiles of the resampled means.
        count: number of values.
        confidence: share of resampled means inside, 0.95 by default.
    """

    mean: float
    low: float
    high: float
    count: int
    confidence: float = 0.95

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference with this interval counts as one."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(
    values: ArrayLike, *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Bound the mean of ``values`` by resampling them with replacement.

    Args:
        values: (n,) one finite number per shape, n >= 1.
        confidence: between 0 and 1.
        draws: number of resamples.
        seed: of the resampling; the same seed resamples the same shapes.

    Raises:
        PolytokError: no values, values that are not finite, or an argument outside its range.

    Source: Efron & Tibshirani 1993, percentile interval.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data) or not np.isfinite(data).all():
        raise PolytokError(f"need a list of finite values, got shape {data.shape}")
    if not 0 < confidence < 1 or draws < 1:
        raise PolytokError(f"confidence={confidence}, draws={draws}: need 0..1 and >= 1")
    rng = numpy_rng(seed, "bootstrap")
    means = np.concatenate(
        [
            data[rng.integers(len(data), size=(min(_BLOCK, draws - start), len(data)))].mean(axis=1)
            for start in range(0, draws, _BLOCK)
        ]
    )
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(data.mean()), float(low), float(high), len(data), confidence)


def bootstrap_difference(
    values: Sequence[float] | ArrayLike,
    others: Sequence[float] | ArrayLike,
    *,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bound the mean of ``values - others``, paired: item i of both belongs to one shape.

    Raises:
        PolytokError: the two differ in length, or as for :func:`bootstrap_mean`.
    """
    left, right = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if left.shape != right.shape:
        raise PolytokError(f"unpaired values: {left.shape} against {right.shape}")
    return bootstrap_mean(left - right, confidence=confidence, draws=draws, seed=seed)
