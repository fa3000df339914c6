"""How well attention explains: against gradients, against human rationales, and how sharp it is.

Everything is per example over valid words (B, T); an example where a number is undefined is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polytok.core.errors import PolytokError


def attention_entropy(attention: Tensor, mask: Tensor, *, is_normalised: bool = False) -> Tensor:
    """Entropy (B,) in nats of attention (B, T); normalised by log of the number of words: 0..1."""
    _check(attention, attention, mask)
    entropy = -torch.special.xlogy(attention, attention).masked_fill(~mask, 0).sum(-1)
    return entropy / mask.sum(-1).log() if is_normalised else entropy


def pearson(left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
    """Pearson correlation (B,) over the valid words of two importances (B, T)."""
    _check(left, right, mask)
    count = mask.sum(-1, keepdim=True)

    def centred(values: Tensor) -> Tensor:
        values = values.double().masked_fill(~mask, 0)
        return (values - values.sum(-1, keepdim=True) / count).masked_fill(~mask, 0)

    x, y = centred(left), centred(right)
    spread = x.square().sum(-1).sqrt() * y.square().sum(-1).sqrt()
    return (x * y).sum(-1) / spread.masked_fill(_constant(left, mask) | _constant(right, mask), 0)


def kendall_tau(left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
    """Kendall's tau-b (B,) over the valid words of two importances (B, T)."""
    _check(left, right, mask)
    both = mask[..., :, None] & mask[..., None, :]

    def order(values: Tensor) -> Tensor:
        signs = (values[..., :, None] - values[..., None, :]).sign()
        return signs.double().masked_fill(~both, 0)

    x, y = order(left), order(right)
    untied = (x.square().sum((-1, -2)) * y.square().sum((-1, -2))).sqrt()
    return (x * y).sum((-1, -2)) / untied


def average_precision(scores: Tensor, rationale: Tensor, mask: Tensor) -> Tensor:
    """Area (B,) under the precision-recall curve of words ranked by scores (B, T).

    Args:
        rationale: bool (B, T), the words that people marked. Words of equal score enter together.

    Source: ERASER (arXiv 1911.03429), token-level AUPRC of soft scores; the area is the sum of
    precision times the gain in recall.
    """
    _check(scores, rationale, mask)
    marked = (rationale & mask).double()
    # Word k enters with all words that score at least as much.
    entered = (scores[..., None, :] >= scores[..., :, None]) & mask[..., None, :]
    hits = (entered * marked[..., None, :]).sum(-1)
    precision = hits / entered.sum(-1).clamp(min=1)
    return (precision * marked).sum(-1) / marked.sum(-1)


def top_f1(scores: Tensor, rationale: Tensor, mask: Tensor, *, share: float) -> Tensor:
    """F1 (B,) of the ``share`` of words (at least one) that score highest, ties to the first.

    Args:
        rationale: bool (B, T), the words that people marked.
        share: in (0, 1], as ERASER takes the mean share of marked words of a data set.
    """
    _check(scores, rationale, mask)
    if not 0 < share <= 1:
        raise PolytokError(f"share={share} is not within (0, 1]")
    count = (share * mask.sum(-1)).round().clamp(min=1)
    order = scores.masked_fill(~mask, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    chosen = (order.argsort(-1) < count[..., None]) & mask
    marked = rationale & mask
    total = chosen.sum(-1) + marked.sum(-1)
    return 2 * (chosen & marked).sum(-1) / total.masked_fill(~marked.any(-1), 0)


def _constant(values: Tensor, mask: Tensor) -> Tensor:
    low = values.masked_fill(~mask, torch.inf).amin(-1)
    return low >= values.masked_fill(~mask, -torch.inf).amax(-1)


def _check(left: Tensor, right: Tensor, mask: Tensor) -> None:
    if not left.shape == right.shape == mask.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (left, right, mask))
        raise PolytokError(f"sizes do not match: {shapes}")
    if not bool(mask.any(-1).all()):
        raise PolytokError("an example has no valid words")
    for values in (left, right):
        if not bool(values.isfinite()[mask].all()):
            raise PolytokError("a value of a valid word is not finite")
