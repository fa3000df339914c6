"""ToMe against a plain loop over pairs, written from the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import polytok
from polytok.reducers import Scores, TokenState
from polytok.reducers.families import FAMILIES
from polytok.systems.classics.tome import ToMe
from reducers.models import image, tiny_deit

DEIT = next(f for f in FAMILIES if f.name == "DeiT")
B, H, T, D = 2, 3, 12, 6


def matched(keys: Tensor, r: int) -> set[frozenset[int]]:
    """Groups of more than one token; keys (T, d) with the class token first, which stays alone."""
    unit = F.normalize(keys, dim=-1)
    edges = []
    for i in range(2, len(keys), 2):
        alike = {j: float(unit[i] @ unit[j]) for j in range(1, len(keys), 2)}
        best = max(alike, key=alike.__getitem__)
        edges.append((alike[best], i, best))
    groups: dict[int, set[int]] = {}
    for _, i, j in sorted(edges, reverse=True)[:r]:
        groups.setdefault(j, {j}).add(i)
    return {frozenset(g) for g in groups.values()}


@pytest.mark.parametrize("length", [T, T + 1])
@pytest.mark.parametrize("r", [0, 1, 3, 5])
def test_the_partition_is_the_papers(length: int, r: int) -> None:
    rng = torch.Generator().manual_seed(r)
    q, k = (torch.randn(B, H, length, D, generator=rng) for _ in "qk")
    x = torch.randn(B, length, 4, generator=rng)
    state = TokenState(num_patches=length - 1, prefix=1)
    chosen = ToMe().choose(state, Scores(x, q, k, D**-0.5), length - 1 - r).behind(1)
    for b in range(B):
        group = chosen.group()[b]
        found = {
            frozenset((group == g).nonzero().flatten().tolist())
            for g in group.unique().tolist()
            if (group == g).sum() > 1
        }
        assert found == matched(k[b].mean(0), r)


def test_merged_features_are_means_by_size() -> None:
    size = torch.tensor([[1.0, 1.0, 2.0, 1.0, 5.0]])
    k = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.0], [0.0, 1.0], [0.0, -1.0]])
    x = torch.arange(5.0)[None, :, None]
    state = TokenState(num_patches=4, prefix=1, size=size)
    chosen = ToMe().choose(state, Scores(x, k[None, None], k[None, None], 1.0), 3).behind(1)
    # Tokens 2 and 1 are most alike; sizes 2 and 1.
    assert chosen.apply(x)[0, 2].item() == pytest.approx((2 * 2 + 1) / 3)
    assert chosen.total(size).tolist() == [[1.0, 5.0, 3.0, 1.0]]


@torch.no_grad()
def test_identical_patches_merge_without_changing_the_class_token() -> None:
    """Proportional attention makes a token of size 2 do what two equal tokens did."""
    model = tiny_deit(pos_embed="none")
    half = torch.randn(1, 3, 4, 16, 2, 1, 16).expand(-1, -1, -1, -1, -1, 2, -1)
    x = half.reshape(1, 3, 64, 64)
    plain = model(x)
    polytok.reduce(model, "tome", counts={1: 8})
    torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_published_default_removes_eight_in_every_block() -> None:
    model = tiny_deit()
    polytok.reduce(model, "tome", r=2)
    tokens = polytok.reducers.trace(model, image(DEIT)).tokens
    assert tokens == (17, 15, 13, 11, 9)
    assert ToMe().schedule(12).resolve(196, 12, least=ToMe().least)[-1] == 100
