"""Glyph canvas: a few cells of a picture hold glyphs, the others hold noise of the same energy.

A task that shows which patches a model should look at: the label is the set of glyphs that are
there, and only their cells say anything about it. How bright or how long a patch is says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.core.seeding import torch_rng

CELLS = 8
"""Cells a side."""


@dataclass(frozen=True)
class Glyphs:
    """A batch of canvases.

    Args:
        image: (B, 1, CELLS * side, CELLS * side) with mean 0.
        label: (B, classes) bool, the glyphs that are there.
        informative: (B, CELLS * CELLS) bool, the cells that hold one, in row-major order.
    """

    image: Tensor
    label: Tensor
    informative: Tensor


@dataclass(frozen=True, kw_only=True)
class GlyphCanvas:
    """Draws canvases.

    Args:
        classes: different glyphs. side: pixels a side of a cell.
        most: glyphs on a canvas, from 1 on.
        contrast: between the two levels of a glyph. noise: standard deviation of an empty cell; a
            glyph has noise on top that makes its energy the same.
        seed: of the glyphs themselves.

    Raises:
        ConfigError: a glyph alone has more energy than an empty cell.
    """

    classes: int = 10
    side: int = 8
    most: int = 3
    contrast: float = 0.9
    noise: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.contrast > 2 * self.noise:
            raise ConfigError(
                f"contrast={self.contrast} must be at most twice noise={self.noise}, or a glyph "
                "could be told from noise by its energy"
            )

    @property
    def prototypes(self) -> Tensor:
        """(classes, side, side); half of the pixels are at contrast / 2, half at its negative."""
        rng = torch_rng(self.seed, "glyphs")
        pixels = self.side**2
        order = torch.rand(self.classes, pixels, generator=rng).argsort(-1)
        levels = torch.where(order < pixels // 2, -0.5, 0.5) * self.contrast
        return levels.view(self.classes, self.side, self.side)

    def draw(self, count: int, rng: torch.Generator) -> Glyphs:
        """So many canvases; all glyphs on one differ."""
        cells = CELLS**2
        place = torch.rand(count, cells, generator=rng).argsort(-1)[:, : self.most]
        kind = torch.rand(count, self.classes, generator=rng).argsort(-1)[:, : self.most]
        how_many = torch.randint(1, self.most + 1, (count, 1), generator=rng)
        is_there = torch.arange(self.most) < how_many
        informative = torch.zeros(count, cells, dtype=torch.bool).scatter(1, place, is_there)
        label = torch.zeros(count, self.classes, dtype=torch.bool).scatter(1, kind, is_there)
        picture = self._cells(informative, place, kind, rng)
        grid = picture.view(count, CELLS, CELLS, self.side, self.side).transpose(2, 3)
        return Glyphs(
            grid.reshape(count, 1, CELLS * self.side, CELLS * self.side), label, informative
        )

    def _cells(
        self, informative: Tensor, place: Tensor, kind: Tensor, rng: torch.Generator
    ) -> Tensor:
        """(B, cells, side, side): noise, and glyphs with what noise they can have."""
        count, cells = informative.shape
        noise = torch.randn(count, cells, self.side, self.side, generator=rng)
        glyph = torch.zeros(count, cells, self.side, self.side)
        index = place[..., None, None].expand(-1, -1, self.side, self.side)
        glyph = glyph.scatter(1, index, self.prototypes[kind])
        left = (self.noise**2 - self.contrast**2 / 4) ** 0.5
        shown = informative[..., None, None]
        return torch.where(shown, glyph + left * noise, self.noise * noise)
