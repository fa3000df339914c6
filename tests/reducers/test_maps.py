"""Token maps against dense matrices, alone, behind a prefix and chained."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytok.reducers import Fuse, Merge, Mix, Select, TokenMap
from polytok.reducers.matching import merge_halves

BATCH, COUNT, DIM = 3, 9, 5


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(count: int = COUNT) -> Tensor:
    return torch.randn(BATCH, count, DIM, generator=rng(1), dtype=torch.float64)


def kept(count: int, total: int = COUNT) -> Tensor:
    return torch.rand(BATCH, total, generator=rng(2)).topk(count).indices


def merged(total: int = COUNT, weights: Tensor | None = None, **options: object) -> Merge:
    score = torch.randn(BATCH, total // 2, total - total // 2, generator=rng(3))
    return merge_halves(score, 2, 1, weights=weights, **options)


def every_map() -> dict[str, TokenMap]:
    weights = torch.rand(BATCH, COUNT, generator=rng(4), dtype=torch.float64)
    return {
        "select": Select(kept(4), COUNT),
        "fuse": Fuse(kept(4), weights, COUNT),
        "merge": merged(),
        "merge weighted": merged(weights=weights + 0.1),
        "merge onehot": merged(weights=weights + 0.1, backend="onehot"),
        "mix": Mix(torch.rand(BATCH, 4, COUNT, generator=rng(5), dtype=torch.float64)),
        "chain": Select(kept(7), COUNT).then(merged(7)),
    }


def dense(chosen: TokenMap, total: int = COUNT) -> Tensor:
    """(B, m, n): the map of features as a matrix, by its effect on unit vectors."""
    units = torch.eye(total, dtype=torch.float64).expand(BATCH, -1, -1)
    return chosen.apply(units)


@pytest.mark.parametrize("name", every_map())
def test_apply_is_linear_and_count_is_told(name: str) -> None:
    chosen = every_map()[name]
    x = features()
    assert chosen.num_inputs == COUNT
    assert chosen.apply(x).shape == (BATCH, chosen.count, DIM)
    torch.testing.assert_close(chosen.apply(x), dense(chosen) @ x)


@pytest.mark.parametrize("name", every_map())
def test_a_prefix_stays_first_and_exact(name: str) -> None:
    chosen = every_map()[name]
    prefix, x = torch.randn(BATCH, 2, DIM, dtype=torch.float64), features()
    behind = chosen.behind(2)
    both = behind.apply(torch.cat([prefix, x], 1))
    assert torch.equal(both[:, :2], prefix)
    torch.testing.assert_close(both[:, 2:], chosen.apply(x))
    assert (behind.num_inputs, behind.count) == (COUNT + 2, chosen.count + 2)
    shifted = torch.where(chosen.group() < 0, -1, chosen.group() + 2)
    assert torch.equal(behind.group()[:, 2:], shifted)
    assert torch.equal(behind.anchor()[:, 2:], chosen.anchor() + 2)
    assert behind.group()[:, :2].tolist() == [[0, 1]] * BATCH


@pytest.mark.parametrize("name", every_map())
def test_nothing_is_lost_but_what_is_dropped(name: str) -> None:
    chosen = every_map()[name]
    size = torch.rand(BATCH, COUNT, generator=rng(6), dtype=torch.float64) + 0.5
    gone = (chosen.group() < 0) * size
    torch.testing.assert_close(chosen.total(size).sum(1) + gone.sum(1), size.sum(1))


@pytest.mark.parametrize("name", ["select", "fuse", "merge", "merge onehot", "chain"])
def test_the_anchor_is_one_of_the_group(name: str) -> None:
    chosen = every_map()[name]
    back = chosen.group().gather(1, chosen.anchor())
    assert torch.equal(back, torch.arange(chosen.count).expand(BATCH, -1))


@pytest.mark.parametrize("name", ["select", "fuse", "merge", "chain"])
def test_expanding_gives_every_token_its_groups_row(name: str) -> None:
    chosen = every_map()[name]
    y, rest = features(chosen.count), torch.full((BATCH, COUNT, DIM), 9.0, dtype=torch.float64)
    rows = chosen.expand(y, rest)
    for b in range(BATCH):
        for token, group in enumerate(chosen.group()[b].tolist()):
            assert torch.equal(rows[b, token], rest[b, token] if group < 0 else y[b, group])
    assert (chosen.expand(y)[chosen.group() < 0] == 0).all()


def test_fusing_by_hand() -> None:
    x = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    weights = torch.tensor([[0.5, 0.25, 0.125, 0.0625]])
    fused = Fuse(torch.tensor([[0, 2]]), weights, 4).apply(x)
    # 0.25 * 2 + 0.0625 * 8, not divided by the sum of the weights.
    assert fused.flatten().tolist() == [1.0, 4.0, 1.0]


def test_merging_by_hand() -> None:
    x = torch.tensor([[[1.0], [2.0], [4.0]]])
    index = torch.tensor([[0, 1]])
    assign = torch.tensor([[0, 1, 0]])
    assert Merge(assign, index).apply(x).flatten().tolist() == [2.5, 2.0]
    weighted = Merge(assign, index, weights=torch.tensor([[3.0, 1.0, 1.0]]))
    assert weighted.apply(x).flatten().tolist() == [1.75, 2.0]
    discounted = Merge(assign, index, discount=torch.tensor([[1.0, 1.0, 0.5]]))
    assert discounted.total(torch.ones(1, 3)).tolist() == [[1.5, 1.0]]


def test_backends_agree() -> None:
    weights = torch.rand(BATCH, COUNT, generator=rng(4)) + 0.1
    x = features().float()
    one, other = (merged(weights=weights, backend=b).apply(x) for b in ("scatter", "onehot"))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 25), st.data())
def test_halves_merge_into_exact_counts(total: int, data: st.DataObject) -> None:
    n_a = total // 2
    into_b = data.draw(st.integers(0, n_a))
    into_a = data.draw(st.integers(0, n_a - into_b if into_b < n_a else 0))
    score = torch.randn(2, n_a, total - n_a, generator=rng(total))
    chosen = merge_halves(score, into_b, into_a)
    assert chosen.count == total - into_b - into_a
    sizes = chosen.total(torch.ones(2, total))
    assert (sizes >= 1).all() and sizes.sum(1).tolist() == [total] * 2
    # New tokens are in the order of what is left of a, then of b.
    left_a = chosen.anchor()[:, : n_a - into_b]
    assert ((left_a % 2) == 1).all() and (left_a.diff(dim=1) > 0).all()
    left_b = chosen.anchor()[:, n_a - into_b :]
    assert ((left_b % 2) == 0).all() and (left_b.diff(dim=1) > 0).all()


def test_the_best_pairs_merge() -> None:
    score = torch.tensor([[[0.1, 0.9, 0.2], [0.3, 0.4, 0.8]]])  # a: 1, 3; b: 0, 2, 4
    assert merge_halves(score, 1).group().tolist() == [[1, 2, 2, 0, 3]]
    # Back: of what is left, (3, 4) fits best.
    assert merge_halves(score, 1, 1).group().tolist() == [[1, 2, 2, 0, 0]]


def test_autocast_rounds_no_map() -> None:
    x = features().float()
    maps = [merged(), merged(backend="onehot"), Mix(torch.rand(BATCH, 4, COUNT, generator=rng(5)))]
    for chosen in maps:
        size = torch.rand(BATCH, COUNT, generator=rng(6))
        plain = chosen.apply(x), chosen.total(size)
        with torch.autocast("cpu", torch.bfloat16):
            found = chosen.apply(x), chosen.total(size)
        for one, other in zip(found, plain, strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)
