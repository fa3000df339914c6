"""Which cells are kept, given scores and a count per tile; and what the others leave behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from polytok.core.errors import ConfigError
from polytok.reducers.maps import Merge, TokenMap
from polytok.reducers.scores import spaced

Features = Callable[[], Tensor]
"""Makes the features of all cells, (tiles, cells, D), zeros where there is no token."""

SelectRule = Callable[[Tensor, Tensor, Sequence[int], Features], Tensor]
"""(scores (tiles, cells), candidates (tiles, cells) bool, counts, features) -> kept, bool."""

MergeRule = Callable[[Tensor, Tensor], TokenMap]
"""(features (n, D), kept indices (k,)) -> where every token goes, for one sample."""


def top(scores: Tensor, candidates: Tensor, counts: Sequence[int], features: Features) -> Tensor:
    """The best of each tile, (tiles, cells) bool; of equals the first."""
    masked = scores.masked_fill(~candidates.to(scores.device), -torch.inf)
    rank = masked.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    return rank < torch.tensor(counts, device=scores.device)[:, None]


def evenly(scores: Tensor, candidates: Tensor, counts: Sequence[int], features: Features) -> Tensor:
    """Equal steps through each tile, (tiles, cells) bool, whatever the scores."""
    kept = torch.zeros_like(candidates)
    for tile, count in enumerate(counts):
        where = candidates[tile].nonzero().flatten()
        kept[tile, where[spaced(count, len(where))]] = True
    return kept.to(scores.device)


@dataclass(frozen=True)
class Diverse:
    """Part of each tile's tokens by score, the others one by one, each least like all taken so far.

    The idea of VisPruner (arXiv 2412.01818, version 2): likeness is the cosine of features, of
    the nearest token that was taken.

    Args:
        share: of the tokens that are taken for being unlike, rounded down; at least one token of a
            tile is taken by its score.

    Raises:
        ConfigError: ``share`` is outside [0, 1].
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"diverse={self.share} is not within [0, 1]")

    def __call__(
        self, scores: Tensor, candidates: Tensor, counts: Sequence[int], features: Features
    ) -> Tensor:
        best = [max(n - int(self.share * n), min(n, 1)) for n in counts]
        kept = top(scores, candidates, best, features)
        unit = F.normalize(features().float(), dim=-1)
        for tile, (count, first) in enumerate(zip(counts, best, strict=True)):
            if count == first:
                continue
            likeness = (unit[tile] @ unit[tile][kept[tile]].T).amax(-1)
            for _ in range(count - first):
                taken = kept[tile] | ~candidates[tile].to(kept.device)
                new = int(likeness.masked_fill(taken, torch.inf).argmin())
                kept[tile, new] = True
                likeness = torch.maximum(likeness, unit[tile] @ unit[tile, new])
        return kept


def average_into_nearest(features: Tensor, kept: Tensor) -> TokenMap:
    """Every kept token (k,) of (n, D) becomes the mean of itself and the dropped ones most like it.

    Likeness is the cosine of features; as the last step of LLaVA-PruMerge, without its weights.
    """
    unit = F.normalize(features.float(), dim=-1)
    nearest = (unit @ unit[kept].T).argmax(-1)
    nearest[kept] = torch.arange(len(kept), device=kept.device)
    return Merge(nearest[None], kept[None])
