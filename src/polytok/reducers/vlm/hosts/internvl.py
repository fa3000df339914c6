"""InternVL: tiles with the thumbnail last; four patches become one token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from polytok.core.errors import SignalError
from polytok.reducers.vlm.hosts import base
from polytok.reducers.vlm.hosts.base import Inputs, Positions, Tower
from polytok.reducers.vlm.hosts.llava import clip_tower
from polytok.reducers.vlm.hosts.release import release_of
from polytok.reducers.vlm.layout import Layout


class InternVL:
    """``InternVLForConditionalGeneration``; runs of placeholders say which tiles make one image."""

    name = "internvl"
    pixels: tuple[str, ...] = ("pixel_values",)
    positions: Positions = "contiguous"

    def tower(self, model: Any) -> Tower:
        return clip_tower(model)

    def layouts(self, model: Any, inputs: Inputs) -> list[Layout]:
        """How tiles lie is not among the inputs, so images of several tiles have no tile grid."""
        config = model.config
        rows, columns = (
            int(n * config.downsample_ratio) for n in base.grid_of(config.vision_config)
        )
        cells = rows * columns
        found = []
        for ids in base.required(inputs, "input_ids").tolist():
            for is_image, run in groupby(ids, lambda token: token == config.image_token_id):
                count = len(list(run)) if is_image else 0
                if count % cells:
                    raise SignalError(
                        f"a run of {count} image tokens is no multiple of the {cells} of a tile; "
                        "pass the input_ids that the processor returned"
                    )
                if count:
                    found.append(self._layout(count // cells, (rows, columns)))
        return found

    def _layout(self, tiles: int, grid: tuple[int, int]) -> Layout:
        return Layout(
            tiles=tiles,
            grid=grid,
            source=torch.arange(tiles * grid[0] * grid[1]),
            tile_grid=(1, 1) if tiles == 1 else None,
            thumbnail=tiles - 1,
        )

    def encode(self, model: Any, inputs: Inputs) -> Any:
        """Features as a list, one tensor (n_i, D) per image."""
        pixels = base.required(inputs, "pixel_values")
        found = release_of(model).image_features(base.core_of(model), pixels)
        tiles = [x.tiles for x in self.layouts(model, inputs)]
        if sum(tiles) != len(pixels):
            raise SignalError(
                f"{sum(tiles)} tiles of image tokens for {len(pixels)} tiles of pixels; "
                "pass the input_ids that the processor returned"
            )
        found.pooler_output = [x.flatten(0, 1) for x in found.pooler_output.split(tiles)]
        return found

    def pool(
        self, model: Any, inputs: Inputs, rows: Sequence[Tensor], layouts: Sequence[Layout]
    ) -> list[Tensor]:
        """Patches are averaged by the model's own shuffle, so a score means the same patches."""
        ratio = model.config.downsample_ratio
        height, width = base.grid_of(model.config.vision_config)
        found = []
        for row in base.split_rows(rows, [x.tiles for x in layouts], self.tower(model).prefix):
            pictures = row.reshape(-1, height, width, 1)
            merged = base.core_of(model).pixel_shuffle(pictures, scale_factor=ratio).mean(-1)
            found.append(merged.reshape(*row.shape[:2], -1))
        return found

    def rewrap(self, features: Sequence[Tensor]) -> Any:
        """One row per image, so that beams copy the right ones; one row in all where ragged."""
        if len({len(x) for x in features}) == 1:
            return torch.stack(list(features))
        return torch.cat(list(features))[None]

    def position_ids(self, model: Any, inputs: Inputs, mask: Tensor) -> Tensor:
        return base.text_positions(mask)
