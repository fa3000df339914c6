"""Which cells are kept, given scores and a count per tile; and what the others leave behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polytok.reducers.maps import Merge, TokenMap
from polytok.reducers.scores import spaced

SelectRule = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""(scores (tiles, cells), candidates (tiles, cells) bool, counts) -> kept (tiles, cells) bool."""

MergeRule = Callable[[Tensor, Tensor], TokenMap]
"""(features (n, D), kept indices (k,)) -> where every token goes, for one sample."""


def top(
    scores: Tensor,
    candidates: Tensor,
    counts: Sequence[int],
) -> Tensor:
    """The best of each tile, (tiles, cells) bool; of equals the first."""
    masked = scores.masked_fill(~candidates.to(scores.device), -torch.inf)
    rank = masked.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < torch.tensor(counts, device=scores.device)[:, None]


def evenly(
    scores: Tensor,
    candidates: Tensor,
    counts: Sequence[int],
) -> Tensor:
    """Equal steps through each tile, (tiles, cells) bool, whatever the scores."""
    kept = torch.zeros_like(candidates)
    for tile, count in enumerate(counts):
        where = candidates[tile].nonzero().flatten()
        kept[tile, where[spaced(count, len(where))]] = True
    return kept.to(scores.device)


def average_into_nearest(features: Tensor, kept: Tensor) -> TokenMap:
    """Every kept token (k,) of (n, D) becomes the mean of itself and the dropped ones most like it.

    Likeness is the cosine of features; as the last step of LLaVA-PruMerge, without its weights.
    """
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    nearest = (unit @ unit[kept].T).argmax(-1)
    nearest[kept] = torch.arange(len(kept), device=kept.device)
    return Merge(nearest[None], kept[None])
