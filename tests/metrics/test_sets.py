from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from polytok.core.errors import PolytokError
from polytok.metrics import chamfer_matrix, set_scores


def clouds(count: int, centre: float, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 1, 3)) + centre + 0.1 * rng.normal(size=(count, 30, 3))


def test_chamfer_is_what_brute_force_says() -> None:
    one, two = clouds(3, 0.0, 0), clouds(4, 1.0, 1)
    apart = np.linalg.norm(one[:, None, :, None] - two[None, :, None], axis=-1)
    wanted = (apart.min(3).mean(2) + apart.min(2).mean(2)) / 2
    assert np.allclose(chamfer_matrix(one, two), wanted)
    assert np.allclose(chamfer_matrix(one), chamfer_matrix(one, one))


def test_equal_sets_cannot_be_told_apart_and_far_ones_can() -> None:
    one, two, far = clouds(200, 0.0, 0), clouds(200, 0.0, 1), clouds(200, 30.0, 2)
    # The centres alone: distances are then exact enough, and quick.
    one, two, far = (c[:, :1] for c in (one, two, far))
    same = set_scores(chamfer_matrix(one, two), chamfer_matrix(one), chamfer_matrix(two))
    assert same.nna == pytest.approx(0.5, abs=0.08) and same.coverage > 0.4
    apart = set_scores(chamfer_matrix(far, two), chamfer_matrix(far), chamfer_matrix(two))
    assert apart.nna == 1.0 and apart.coverage < 0.1 and apart.mmd > 40


def test_a_perfect_copy_covers_all_at_no_distance() -> None:
    one = chamfer_matrix(clouds(20, 0.0, 0))
    scores = set_scores(one, one, one)
    # Every copy's nearest is its original: the classifier is always wrong.
    assert (scores.mmd, scores.coverage, scores.nna) == (0.0, 1.0, 0.0)


def test_a_set_of_one_shape_covers_little() -> None:
    one, two = clouds(1, 0.0, 0).repeat(20, 0), clouds(20, 0.0, 1)
    scores = set_scores(chamfer_matrix(one, two), chamfer_matrix(one), chamfer_matrix(two))
    assert scores.coverage == 1 / 20


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PolytokError, match=r"\(n, m\), \(n, n\), \(m, m\)"):
        set_scores(np.zeros((3, 2)), np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(PolytokError, match="finite clouds"):
        chamfer_matrix(np.full((1, 2, 3), np.nan))
