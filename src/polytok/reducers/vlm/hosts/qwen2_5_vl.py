"""Qwen2.5-VL: pictures of any size, windowed attention, 2x2 patches merged, 3-D positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polytok.core.errors import SignalError
from polytok.reducers.vlm.hosts import base
from polytok.reducers.vlm.hosts.base import Inputs, Positions, Tower
from polytok.reducers.vlm.hosts.release import release_of
from polytok.reducers.vlm.layout import Layout


class Qwen2_5VL:  # noqa: N801 (the family's name)
    """``Qwen2_5_VLForConditionalGeneration``, images only."""

    name = "qwen2_5_vl"
    pixels: tuple[str, ...] = ("pixel_values", "image_grid_thw")
    positions: Positions = "keep"

    def tower(self, model: Any) -> Tower:
        """Only the blocks with global attention score; windows compare nothing across them."""
        module = base.core_of(model).visual
        scored = tuple(sorted(module.fullatt_block_indexes))
        return Tower(module, module.blocks, scored, scored[-1], 0)

    def layouts(self, model: Any, inputs: Inputs) -> list[Layout]:
        if inputs.get("pixel_values_videos") is not None:
            raise SignalError("videos are not reduced; pass the frames as images instead")
        side = base.core_of(model).visual.spatial_merge_size
        found = []
        for frames, height, width in base.required(inputs, "image_grid_thw").tolist():
            grid = (height // side, width // side)
            source = torch.arange(frames * grid[0] * grid[1])
            found.append(Layout(tiles=frames, grid=grid, source=source))
        return found

    def encode(self, model: Any, inputs: Inputs) -> Any:
        pixels = base.required(inputs, "pixel_values")
        grids = base.required(inputs, "image_grid_thw")
        return release_of(model).image_features(base.core_of(model), pixels, grids)

    def pool(
        self, model: Any, inputs: Inputs, rows: Sequence[Tensor], layouts: Sequence[Layout]
    ) -> list[Tensor]:
        """The tower runs permuted by window in groups of merged patches: average, put back."""
        tower = base.core_of(model).visual
        order = release_of(model).window_order(tower, inputs["image_grid_thw"])
        line = torch.cat(list(rows), dim=-1)[0]
        merged = line.unflatten(-1, (-1, tower.spatial_merge_unit)).mean(-1)[:, order.argsort()]
        parts = merged.split([x.tokens for x in layouts], dim=-1)
        return [
            part.unflatten(-1, (x.tiles, x.cells)).transpose(0, 1)
            for part, x in zip(parts, layouts, strict=True)
        ]

    def rewrap(self, features: Sequence[Tensor]) -> Any:
        return tuple(features)

    def position_ids(self, model: Any, inputs: Inputs, mask: Tensor) -> Tensor:
        """(3, B, n): time, row and column."""
        return release_of(model).grid_positions(base.core_of(model), inputs, mask)
