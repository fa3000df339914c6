"""Where the visual tokens of an image come from; known from sizes alone, before any pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tokens of one image: ``tiles`` grids of ``grid`` cells, and which cell each token shows.

    Args:
        tiles: how many times the tower runs for this image (thumbnail included).
        grid: rows and columns of cells in a tile; all tiles have the same.
        source: (n,) int64, the cell of each token as ``(tile * rows + row) * columns + column``;
            -1 for a token that shows no cell (the end of a row, a class token).
        tile_grid: rows and columns in which the tiles other than the thumbnail lie; None: unknown.
        thumbnail: index of the tile that shows the whole image, None where there is no such tile.
    """

    tiles: int
    grid: tuple[int, int]
    source: Tensor
    tile_grid: tuple[int, int] | None = (1, 1)
    thumbnail: int | None = None

    @property
    def cells(self) -> int:
        """Cells of a tile."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Tokens of the image."""
        return len(self.source)

    @property
    def available(self) -> Tensor:
        """(tiles, cells) bool, which have a token; the others are padding that is cut away."""
        found = torch.zeros(self.tiles * self.cells, dtype=torch.bool)
        found[self.source[self.source >= 0]] = True
        return found.view(self.tiles, self.cells)

    @property
    def capacity(self) -> tuple[int, ...]:
        """Tokens of each tile."""
        return tuple(int(n) for n in self.available.sum(-1))

    @property
    def others(self) -> int:
        """Tokens that show no cell."""
        return int((self.source < 0).sum())

    def spread(self, features: Tensor) -> Tensor:
        """(n, D) of tokens -> (tiles, cells, D), zeros where a cell has no token."""
        found = features.new_zeros(self.tiles * self.cells, features.shape[-1])
        shown = self.source >= 0
        found[self.source[shown]] = features[shown]
        return found.view(self.tiles, self.cells, -1)

    def kept(self, cells: Tensor, *, keep_others: bool = True) -> Tensor:
        """(k,) ascending indices of tokens whose cell is in ``cells`` (tiles, cells) bool."""
        source = self.source.to(cells.device)
        shown = cells.flatten()[source.clamp(min=0)]
        return torch.where(source < 0, keep_others, shown).nonzero().flatten()

    def boxes(self, index: Tensor) -> Tensor:
        """(k, 4) left, top, right, bottom of tokens (k,) in the picture, in [0, 1].

        The picture is what the processor made of the image, without the padding of its tiles. NaN
        for a token that shows no cell, or whose tile lies nobody knows where.
        """
        rows, columns = self.grid
        at = self.source[index.cpu()]
        tile, row, column = at // self.cells, at // columns % rows, at % columns
        boxes = torch.stack([column, row, column + 1, row + 1], -1).double()
        whole = boxes / torch.tensor([columns, rows, columns, rows])
        if self.thumbnail is None:  # frames, each of the whole picture
            found, is_known = whole, torch.ones_like(at, dtype=torch.bool)
        else:
            is_known = tile == self.thumbnail
            found = whole
            # A picture can be so narrow that nothing but its thumbnail is left.
            if self.tile_grid is not None and bool((tile[at >= 0] != self.thumbnail).any()):
                number = tile - (tile > self.thumbnail).long()
                place = torch.stack([number % self.tile_grid[1], number // self.tile_grid[1]], -1)
                low, size = self._window(self.tile_grid)
                inside = boxes + (place * torch.tensor([columns, rows])).repeat(1, 2)
                inside = (inside - low.repeat(2)) / size.repeat(2)
                found = torch.where(is_known[:, None], whole, inside)
                is_known = torch.ones_like(is_known)
        return found.masked_fill(~(is_known & (at >= 0))[:, None], torch.nan).float()

    def _window(self, tile_grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Over all tiles but the thumbnail: first column and row with tokens, and how many."""
        (down, across), (rows, columns) = tile_grid, self.grid
        others = [i for i in range(self.tiles) if i != self.thumbnail]
        seen = self.available[others].view(down, across, rows, columns).transpose(1, 2)
        where = seen.reshape(down * rows, across * columns).nonzero().double().flip(1)
        return where.amin(0), where.amax(0) + 1 - where.amin(0)
