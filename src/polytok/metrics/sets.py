"""How well a set of samples stands for a set of real shapes, by distances of point clouds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from polytok.core.errors import PolytokError

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """Scores of a set of samples against as many references (Yang et al. 2019, PointFlow).

    Args:
        mmd: mean over references of the distance to the nearest sample, lower is better.
        coverage: share of references that are the nearest one of some sample, higher is better.
        nna: leave-one-out accuracy of a nearest-neighbour classifier that tells samples from
            references; 0.5 is best.
    """

    mmd: float
    coverage: float
    nna: float

    def as_dict(self) -> dict[str, float]:
        """The scores by name."""
        return asdict(self)


def chamfer_matrix(clouds: ArrayLike, others: ArrayLike | None = None) -> Array:
    """Chamfer distances (n, m) of clouds (n, P, 3) to others (m, P, 3), or among themselves.

    Half the sum of the mean distances from each cloud's points to the other's nearest point, not
    squared.

    Raises:
        PolytokError: a cloud is empty or not finite.
    """
    mine = _checked(clouds)
    theirs = mine if others is None else _checked(others)
    trees = [cKDTree(cloud) for cloud in mine]
    other_trees = trees if others is None else [cKDTree(cloud) for cloud in theirs]
    out = np.zeros((len(mine), len(theirs)))
    for i, cloud in enumerate(mine):
        for j in range(i + 1 if others is None else 0, len(theirs)):
            there = other_trees[j].query(cloud)[0].mean()
            back = trees[i].query(theirs[j])[0].mean()
            out[i, j] = (there + back) / 2
    return out + out.T if others is None else out


def set_scores(across: ArrayLike, samples: ArrayLike, references: ArrayLike) -> SetScores:
    """Score samples by their distances to references (n, m), among themselves and among those.

    Raises:
        PolytokError: the matrices do not fit, or a set has fewer than two members.
    """
    cross, own, real = (np.asarray(m, np.float64) for m in (across, samples, references))
    n, m = cross.shape if cross.ndim == 2 else (0, 0)
    if min(n, m) < 2 or own.shape != (n, n) or real.shape != (m, m):
        shapes = [np.shape(x) for x in (across, samples, references)]
        raise PolytokError(f"distances (n, m), (n, n), (m, m) are needed, n, m >= 2, got {shapes}")
    own, real = own.copy(), real.copy()
    np.fill_diagonal(own, np.inf)
    np.fill_diagonal(real, np.inf)
    # A tie goes to the real ones, for either side: it never flatters.
    right = (own.min(1) < cross.min(1)).sum() + (real.min(1) <= cross.min(0)).sum()
    return SetScores(
        mmd=float(cross.min(0).mean()),
        coverage=len(np.unique(cross.argmin(1))) / m,
        nna=float(right / (n + m)),
    )


def _checked(clouds: ArrayLike) -> Sequence[Array]:
    found = np.asarray(clouds, np.float64)
    if found.ndim != 3 or found.shape[2] != 3 or not found.size or not np.isfinite(found).all():
        raise PolytokError(f"finite clouds (n, P, 3) are needed, got {found.shape}")
    return list(found)
