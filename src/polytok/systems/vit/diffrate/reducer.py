"""Pruning and merging in one block, by the attention of the class token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.reducers import Merge, Reducer, Schedule, Scores, Select, TokenMap, TokenState
from polytok.reducers.maps import Backend
from polytok.reducers.matching import cosine


@dataclass(frozen=True, kw_only=True)
class DiffRate(Reducer):
    """Sort patches by the class token's attention; drop the last, merge the next into the first.

    A merged token goes to the kept one that is most like it (cosine of the residual stream). The
    new feature is the plain mean of all of them, and the size it adds is its own times that cosine.

    Args:
        prune, merge: tokens left by the two steps, one count per block with the class token, as
            published; both or none.
        prune_share: without lists, the share of the removed patches that is dropped.
        is_discounted: sizes are multiplied by the cosine; negative ones count as 0.
        backend: ``onehot`` merges by a matrix product.
    """

    needs_cls: ClassVar[bool] = True
    tracks_size: ClassVar[bool] = True
    prune: tuple[int, ...] = ()
    merge: tuple[int, ...] = ()
    prune_share: float = 0.5
    is_discounted: bool = True
    backend: Backend = "scatter"

    def __post_init__(self) -> None:
        if len(self.prune) != len(self.merge):
            raise ConfigError(
                f"prune has {len(self.prune)} counts and merge {len(self.merge)}; they go together"
            )
        if not 0 <= self.prune_share <= 1:
            raise ConfigError(f"prune_share={self.prune_share} is not within [0, 1]")
        if min((*self.prune, *self.merge), default=2) < 2:
            raise ConfigError("counts include the class token, so each must be at least 2")

    def check(self, depth: int) -> None:
        if self.prune and len(self.prune) != depth:
            raise ConfigError(
                f"prune and merge have {len(self.prune)} counts and the model {depth} blocks; "
                "give one for each block"
            )

    def choose(self, state: TokenState, scores: Scores, keep: int) -> TokenMap:
        selected = Select(
            scores.class_row().topk(self._selected(state, keep)).indices, state.patches
        )
        if selected.count == keep:
            return selected
        x = selected.apply(scores.features()).detach()
        return selected.then(self.merged(x, keep))

    def merged(self, x: Tensor, keep: int) -> Merge:
        """Merge sorted tokens (B, n, C) from place ``keep`` on into those before."""
        alike, nearest = cosine(x[:, keep:], x[:, :keep]).max(2)
        first = torch.arange(keep, device=x.device).expand(x.shape[0], -1)
        discount = torch.cat([torch.ones_like(first), alike.clamp(min=0)], 1)
        return Merge(
            torch.cat([first, nearest], 1),
            first,
            discount=discount if self.is_discounted else None,
            backend=self.backend,
        )

    def _selected(self, state: TokenState, keep: int) -> int:
        """Patches that are left when the others have been dropped."""
        if self.prune:
            return max(min(self.prune[state.layer] - 1, state.patches), keep)
        return self.pruned(state.patches, keep)

    def pruned(self, patches: int, keep: int) -> int:
        """Patches left by the first of the steps from ``patches`` to ``keep``, without lists."""
        return patches - round((patches - keep) * self.prune_share)

    def layers(self, depth: int) -> tuple[int, ...]:
        return tuple(range(1, depth))

    def schedule(self, depth: int) -> Schedule:
        if not self.merge:
            return Schedule.ratios(0.7, super().layers(depth))
        counts = [min(pair) for pair in zip(self.prune, self.merge, strict=True)]
        return Schedule.counts(counts, prefix=1)

    def macs(self, length: int, keep: int, dim: int) -> int:
        return length * dim + (length - keep) * keep * dim


PRESETS = {
    "diffrate": DiffRate(),
    "diffrate-deit-tiny-0.8": DiffRate(
        prune=(197, 197, 196, 186, 166, 147, 117, 103, 92, 80, 74, 3),
        merge=(197, 196, 190, 172, 154, 125, 107, 96, 84, 78, 70, 3),
    ),
}
