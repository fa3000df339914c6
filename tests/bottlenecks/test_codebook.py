"""Nearest codes, k-means and the sums over processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from polytok.bottlenecks import codebook
from polytok.bottlenecks.codebook import (
    gather_over_ranks,
    kmeans,
    largest_product,
    nearest,
    sum_over_ranks,
)
from polytok.core.errors import PolytokError

# Up to 64, a multiple of 64, and one that is none: each takes another way.
SIZES = (33, 100, 128)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("chunk", [1, 100, 1 << 19])
@pytest.mark.parametrize("shape", [(500, 7), (3, 11, 7), (1, 7)])
def test_nearest_equals_brute_force_in_chunks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, chunk: int, shape: tuple[int, ...], count: int
) -> None:
    monkeypatch.setattr(codebook, "CHUNK", chunk)
    vectors, codes = torch.randn(shape), torch.randn(count, shape[-1])
    ids = nearest(vectors, codes)
    squares = (vectors.double().unsqueeze(-2) - codes.double()).square().sum(-1)
    assert ids.dtype == torch.int64
    assert ids.shape == shape[:-1]
    assert torch.equal(ids, squares.argmin(-1))


def test_nearest_at_the_edges() -> None:
    assert nearest(torch.empty(0, 4, 3), torch.randn(5, 3)).shape == (0, 4)
    assert nearest(torch.randn(4, 3), torch.randn(1, 3)).tolist() == [0] * 4
    assert nearest(torch.tensor([[0.2]]), torch.tensor([[0.0], [1.0]])).tolist() == [0]
    twins = torch.tensor([[1.0, 0.0], [1.0, 0.0], [9.0, 9.0]])
    assert nearest(torch.randn(6, 2) * 0.1, twins).tolist() == [0] * 6


@pytest.mark.parametrize("count", SIZES)
def test_of_equal_codes_the_first_is_nearest(count: int) -> None:
    codes = torch.randn(count, 3).round()
    # The same codes again from the middle on, so that ties lie within blocks and across them.
    half = (count + 1) // 2
    codes[half:] = codes[: count - half].clone()
    codes[1] = codes[0]
    vectors = torch.randn(200, 3).round()
    scores = vectors @ codes.T - codes.square().sum(-1) / 2  # exact: all are halves
    first = (scores == scores.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(nearest(vectors, codes), first)
    assert torch.equal(nearest(codes[:2], codes), first.new_zeros(2))
    assert int(first.max()) < half


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("find", [nearest, largest_product])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_an_infinite_channel_has_a_code_of_the_vocabulary(
    value: float, sign: int, find: Callable[[Tensor, Tensor], Tensor], count: int
) -> None:
    codes, vectors = torch.randn(count, 5), torch.randn(9, 5)
    codes[:, 2] = sign * codes[:, 2].abs()
    codes[40:, 2] *= -1
    vectors[:, 2] = value
    ids = find(vectors, codes)
    assert bool(((ids >= 0) & (ids < count)).all())
    # The first code on that side.
    assert ids.tolist() == [40 if value * sign < 0 and count > 40 else 0] * 9


def test_nearest_works_in_fp32_whatever_comes_in() -> None:
    vectors, codes = torch.randn(50, 8), torch.randn(20, 8)
    half = vectors.bfloat16()
    assert torch.equal(nearest(half, codes), nearest(half.float(), codes))


def test_a_code_is_its_own_nearest() -> None:
    codes = torch.randn(64, 5)
    assert torch.equal(nearest(codes, codes), torch.arange(64))


def test_kmeans_finds_separated_clusters_exactly() -> None:
    places = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = places.repeat_interleave(50, 0) + 0.1 * torch.randn(200, 2)
    means = torch.stack([points[i * 50 : (i + 1) * 50].mean(0) for i in range(4)])
    # Lloyd's algorithm may stop in a local optimum; the best of several starts may not.
    runs = [kmeans(points, 4, rng=torch.Generator().manual_seed(s)) for s in range(8)]
    best = min(runs, key=lambda c: float((points - c[nearest(points, c)]).square().sum()))
    torch.testing.assert_close(best[nearest(means, best)], means, atol=1e-4, rtol=0)


def test_kmeans_centres_are_the_means_of_their_points() -> None:
    points = torch.randn(400, 3)
    centres = kmeans(points, 8, rng=torch.Generator().manual_seed(0), iterations=100)
    ids = nearest(points, centres)
    means = torch.stack([points[ids == k].mean(0) for k in range(8)])
    torch.testing.assert_close(centres, means, atol=1e-4, rtol=1e-4)


def test_kmeans_never_gets_worse_and_repeats_itself() -> None:
    points = torch.randn(300, 2)

    def error(iterations: int) -> float:
        rng = torch.Generator().manual_seed(3)
        centres = kmeans(points, 12, rng=rng, iterations=iterations)
        return float((points - centres[nearest(points, centres)]).square().sum())

    errors = [error(n) for n in (0, 1, 2, 5, 10)]
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(errors))
    assert error(10) == errors[-1]


@pytest.mark.parametrize("count", [1, 7])
def test_kmeans_with_fewer_points_than_centres(count: int) -> None:
    points = torch.randn(count, 4)
    before = points.clone()
    centres = kmeans(points, 20, rng=torch.Generator().manual_seed(0))
    assert centres.shape == (20, 4)
    assert bool(centres.isfinite().all())
    assert torch.equal(points, before)
    # Every point has a centre close to it.
    reach = (points[:, None] - centres).norm(dim=-1).amin(1)
    assert float(reach.max()) < 0.2


def test_kmeans_of_nothing_is_refused() -> None:
    with pytest.raises(PolytokError, match="20 codes cannot start from no vector"):
        kmeans(torch.zeros(0, 4), 20, rng=torch.Generator().manual_seed(0))


def test_kmeans_leaves_no_centre_empty_where_points_are_many() -> None:
    points = torch.cat([torch.zeros(500, 2), torch.randn(60, 2) + 5])
    centres = kmeans(points, 16, rng=torch.Generator().manual_seed(1), iterations=30)
    used = nearest(points, centres).unique()
    assert len(used) >= 14


@pytest.mark.parametrize(("sides", "fewest"), [((4, 16), 60), ((16, 16), 215)])
def test_kmeans_starts_in_nearly_all_of_separated_clusters(
    sides: tuple[int, int], fewest: int
) -> None:
    places = torch.cartesian_prod(*(torch.arange(float(side)) for side in sides))
    points = places.repeat_interleave(40, 0) + 0.05 * torch.randn(40 * len(places), 2)
    centres = kmeans(points, len(places), rng=torch.Generator().manual_seed(0))
    # Rows drawn alike find 1 - 1/e of the clusters.
    assert len(nearest(centres, places).unique()) >= fewest


def test_kmeans_of_equal_points_has_equal_centres() -> None:
    centres = kmeans(torch.ones(100, 3), 80, rng=torch.Generator().manual_seed(0))
    assert torch.equal(centres, torch.ones(80, 3))


def test_a_single_process_neither_sums_nor_gathers() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert sum_over_ranks(x) is x
    assert gather_over_ranks(x) is x
