"""HiRED: one budget of visual tokens for a high-resolution image, spread by content over tiles.

"HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution
Vision-Language Models" (arXiv 2408.10945; official code: hasanar1f/HiRED, MIT, no weights of its
own). A share ``alpha`` of the budget goes to the thumbnail. Where an early layer of the thumbnail
has attention says how much each tile gets; a late layer says which tokens stay in each.

The official code cuts the thumbnail's map into runs of rows instead of quarters, and loses what
integer truncation and full tiles leave over: ``partition='rows'`` and ``exact_total=False`` do
the same; by default areas are areas and the whole budget is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.reducers.vlm import AttentionScore, Layout, Plan, Reduction, Tap, VisualTokens
from polytok.reducers.vlm.budgets import spill
from polytok.reducers.vlm.hosts.base import Positions, Tower

Partition = Literal["area", "rows"]


@dataclass(frozen=True, kw_only=True)
class TileBudget:
    """``int(tiles * cells * rate)`` tokens per image, by content.

    Args:
        early: scores the thumbnail's cells for content.
        exact_total: use the whole budget, so that the count follows from sizes alone. Else what
            truncation leaves over is lost, and padding that the model cuts away competes too, as
            in the official code; :meth:`count` is then the most it can be.
    """

    rate: float
    alpha: float
    partition: Partition
    exact_total: bool
    early: AttentionScore

    def split(self, layout: Layout) -> tuple[int, int]:
        """Tokens of the thumbnail, and of all tiles together."""
        if layout.tile_grid is None or (layout.tiles > 1 and layout.thumbnail is None):
            raise ConfigError(
                "hired needs a thumbnail and a known grid of tiles; "
                "use fastervlm with total=... for this model"
            )
        cells = layout.cells
        if self.rate == 1:
            return cells, (layout.tiles - 1) * cells
        total = int(layout.tiles * cells * self.rate)
        if layout.tiles == 1 and self.exact_total:
            return min(total, cells), 0
        full = min(int(total * self.alpha), cells)
        # Without marked cells the thumbnail says nothing about the tiles.
        marked = int(cells * (1 - self.alpha))
        return full, min(total - full, (layout.tiles - 1) * cells) if marked else 0

    @property
    def is_exact(self) -> bool:
        return self.exact_total or self.rate == 1

    def count(self, layout: Layout) -> int:
        first = layout.thumbnail or 0
        room = layout.capacity
        full, rest = self.split(layout)
        return min(full, room[first]) + min(rest, sum(room) - room[first])

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return self.early.taps(tower)

    def candidates(self, layout: Layout) -> Tensor:
        found = layout.available
        return found if self.is_exact else torch.ones_like(found)

    def allocate(self, tokens: VisualTokens, image: int) -> tuple[int, ...]:
        layout = tokens.layouts[image]
        if self.rate == 1:
            return layout.capacity
        first = layout.thumbnail or 0
        full, rest = self.split(layout)
        content = self.content(self.early(tokens)[image][first], layout)
        shares = [n * rest / max(sum(content), 1) for n in content][: layout.tiles - 1]
        counts = [min(int(share), layout.cells) for share in shares]
        if self.exact_total:
            counts = self._completed(shares, rest, layout, first)
            full = min(full, layout.capacity[first])
        counts.insert(first, full)
        return tuple(counts)

    def _completed(self, shares: list[float], rest: int, layout: Layout, first: int) -> list[int]:
        """All of ``rest``: what truncation leaves goes where it cut most, then where is room."""
        counts = list(map(int, shares))
        order = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
        if order:
            counts[order[0]] += rest - sum(counts)
        room = [n for i, n in enumerate(layout.capacity) if i != first]
        return list(spill(counts, room, order))

    def content(self, early: Tensor, layout: Layout) -> list[int]:
        """Marked cells of the thumbnail that lie in each tile, row by row of tiles."""
        down, across = layout.tile_grid or (1, 1)
        rows, columns = layout.grid
        marked = early.topk(int(layout.cells * (1 - self.alpha))).indices
        if self.partition == "rows":
            tile = marked * (down * across) // layout.cells
        else:
            row, column = marked // columns, marked % columns
            tile = row * down // rows * across + column * across // columns
        return [int(n) for n in tile.bincount(minlength=down * across)]


@dataclass(frozen=True, kw_only=True)
class HiREDConfig:
    """The paper's numbers.

    Args:
        rate: kept fraction of all tokens of an image, newlines not counted.
        alpha: share of the budget for the thumbnail.
        partition: how the thumbnail is cut into tiles; ``rows`` is the official code's.
        exact_total: use the whole budget; False is the official code's.
        early, late: layers that say where content is, and which tokens stay (None: the one whose
            output becomes the tokens).
        positions, protect_newlines: as :class:`FasterVLMConfig`.

    Raises:
        ConfigError: ``rate`` outside (0, 1] or ``alpha`` outside [0, 1].
    """

    rate: float = 0.2
    alpha: float = 0.5
    partition: Partition = "area"
    exact_total: bool = True
    early: int = 0
    late: int | None = None
    positions: Positions | None = None
    protect_newlines: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1 or not 0 <= self.alpha <= 1:
            raise ConfigError(f"rate={self.rate} must be in (0, 1], alpha={self.alpha} in [0, 1]")

    def plan(self) -> Plan:
        """The plan; the model is checked when it is applied."""
        budget = TileBudget(
            rate=self.rate,
            alpha=self.alpha,
            partition=self.partition,
            exact_total=self.exact_total,
            early=AttentionScore(layers=(self.early,)),
        )
        late = AttentionScore(layers=None if self.late is None else (self.late,))
        return Plan(
            name="hired",
            visual=Reduction(
                score=late,
                budget=budget,
                positions=self.positions,
                protect_others=self.protect_newlines,
            ),
        )


CONFIG = HiREDConfig

PRESETS = {
    "hired-20": HiREDConfig(rate=0.2),
    "hired-40": HiREDConfig(rate=0.4),
    "hired-20-published": HiREDConfig(rate=0.2, partition="rows", exact_total=False),
}
"""Kept per cent of all tokens; ``published`` is as the official code does it."""
