"""Pairing tokens for merges: who goes into whom. Matching itself has no gradient.

Legend: B batch, n tokens, in two halves: a (odd places) and b (even places). Behind one class
token these are the alternating halves of published methods.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from polytok.reducers.maps import Backend, Merge


def halves(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places (n_a,) and (n_b,) of the two halves; b has the odd one."""
    places = torch.arange(count, device=device)
    return places[1::2], places[::2]


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of every pair, (B, n, C) and (B, m, C) -> (B, n, m), in float32."""
    return F.normalize(x.float(), dim=-1) @ F.normalize(y.float(), dim=-1).transpose(1, 2)


@torch.no_grad()
def merge_halves(
    score: Tensor,
    into_b: int,
    into_a: int = 0,
    *,
    weights: Tensor | None = None,
    backend: Backend = "scatter",
) -> Merge:
    """The merge of ``into_b`` tokens of a into their best of b, then ``into_a`` the other way.

    The second pass uses the same scores; only tokens of a that are left take part. New tokens are
    what is left of a, then what is left of b, each in order.

    Args:
        score: (B, n_a, n_b) how well a pair fits. weights: (B, n) of the means.
    """
    count = score.shape[1] + score.shape[2]
    a, b = (half.expand(score.shape[0], -1) for half in halves(count, score.device))
    best, partner_of_a = score.max(2)
    gone_a = _marked(best, into_b)
    left = score.masked_fill(gone_a[..., None], float("-inf"))
    best, partner_of_b = left.max(1)
    gone_b = _marked(best, into_a)

    rank_a, rank_b = (~gone_a).cumsum(1) - 1, (~gone_b).cumsum(1) - 1
    of_b = torch.where(gone_b, rank_a.gather(1, partner_of_b), rank_b + score.shape[1] - into_b)
    of_a = torch.where(gone_a, of_b.gather(1, partner_of_a), rank_a)
    assign = torch.zeros(score.shape[0], count, dtype=torch.int64, device=score.device)
    assign = assign.scatter(1, a, of_a).scatter(1, b, of_b)
    index = torch.cat([_left(a, gone_a, into_b), _left(b, gone_b, into_a)], 1)
    return Merge(assign, index, weights=weights, backend=backend)


def _marked(best: Tensor, count: int) -> Tensor:
    """(B, n) bool: the ``count`` best."""
    empty = torch.zeros_like(best, dtype=torch.bool)
    return empty.scatter(1, best.topk(count, 1).indices, True)


def _left(places: Tensor, gone: Tensor, count: int) -> Tensor:
    """(B, n - count): the places that are not gone, in order; exactly ``count`` are."""
    last = places.shape[1]
    order = torch.where(gone, last, torch.arange(last, device=places.device))
    kept = order.sort(1).values[:, : last - count]
    return places.gather(1, kept)
