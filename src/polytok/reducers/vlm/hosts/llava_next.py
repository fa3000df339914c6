"""LLaVA-NeXT: a thumbnail and a grid of tiles, unpadded, with a newline token after each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polytok.reducers.vlm.hosts import base
from polytok.reducers.vlm.hosts.base import Inputs, Positions, Tower
from polytok.reducers.vlm.hosts.llava import class_tokens, clip_tower
from polytok.reducers.vlm.hosts.release import release_of
from polytok.reducers.vlm.layout import Layout


class LlavaNext:
    """``LlavaNextForConditionalGeneration``."""

    name = "llava_next"
    pixels: tuple[str, ...] = ("pixel_values", "image_sizes")
    positions: Positions = "contiguous"

    def tower(self, model: Any) -> Tower:
        return clip_tower(model)

    def layouts(self, model: Any, inputs: Inputs) -> list[Layout]:
        """Cell ids go through the model's own packer, so every case of unpadding is its own."""
        from transformers.models.llava_next import modeling_llava_next as modeling

        config = model.config
        size, grid = config.vision_config.image_size, base.grid_of(config.vision_config)
        first = class_tokens(model, self.tower(model).prefix)
        found = []
        for shape in base.required(inputs, "image_sizes"):
            places = modeling.get_anyres_image_grid_shape(shape, config.image_grid_pinpoints, size)
            tiles = 1 + places[0] * places[1]
            cells = grid[0] * grid[1]
            # Floats carry ids exactly up to 2^24; an image has a few thousand cells.
            ids = torch.arange(tiles * cells, dtype=torch.float32).view(tiles, cells)
            ids = torch.cat([ids.new_full((tiles, first), -1.0), ids], 1)[..., None]
            packed, _ = base.core_of(model).pack_image_features(
                [ids],
                shape[None],
                vision_feature_select_strategy=config.vision_feature_select_strategy,
                image_newline=torch.full((1,), -1.0),
            )
            source = packed[0][:, 0].round().long()
            found.append(
                Layout(tiles=tiles, grid=grid, source=source, tile_grid=places, thumbnail=0)
            )
        return found

    def encode(self, model: Any, inputs: Inputs) -> Any:
        pixels, sizes = base.required(inputs, "pixel_values"), base.required(inputs, "image_sizes")
        return release_of(model).image_features(base.core_of(model), pixels, sizes)

    def pool(
        self, model: Any, inputs: Inputs, rows: Sequence[Tensor], layouts: Sequence[Layout]
    ) -> list[Tensor]:
        return base.split_rows(rows, [x.tiles for x in layouts], self.tower(model).prefix)

    def rewrap(self, features: Sequence[Tensor]) -> Any:
        return list(features)

    def position_ids(self, model: Any, inputs: Inputs, mask: Tensor) -> Tensor:
        return base.text_positions(mask)
