"""LLaVA 1.5 and its like: one square picture, a class token that is cropped, an MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polytok.core.errors import ConfigError, SignalError
from polytok.reducers.vlm.hosts import base
from polytok.reducers.vlm.hosts.base import Inputs, Positions, Tower
from polytok.reducers.vlm.hosts.release import release_of
from polytok.reducers.vlm.layout import Layout


def clip_tower(model: Any) -> Tower:
    """The tower of models that pick a hidden state by ``vision_feature_layer``."""
    module = base.core_of(model).vision_tower
    layers = base.layers_of(module)
    chosen = model.config.vision_feature_layer
    last = base.layer_index(chosen if isinstance(chosen, int) else chosen[-1], len(layers))
    return Tower(module, layers, tuple(range(len(layers))), last, base.prefix_of(module))


def class_tokens(model: Any, prefix: int) -> int:
    """How many of the tower's class tokens the model keeps among the visual tokens."""
    return prefix if model.config.vision_feature_select_strategy == "full" else 0


class Llava:
    """``LlavaForConditionalGeneration``."""

    name = "llava"
    pixels: tuple[str, ...] = ("pixel_values",)
    positions: Positions = "contiguous"

    def tower(self, model: Any) -> Tower:
        return clip_tower(model)

    def layouts(self, model: Any, inputs: Inputs) -> list[Layout]:
        """One tile per picture."""
        if inputs.get("image_sizes") is not None:
            raise SignalError(
                "pictures of any size (image_sizes, as Pixtral takes them) are not supported; "
                "use a model with a square tower"
            )
        pixels = base.required(inputs, "pixel_values")
        config = model.config.vision_config
        if not hasattr(config, "image_size"):
            raise ConfigError(f"a {config.model_type} tower has no fixed picture size")
        grid = base.grid_of(config)
        first = class_tokens(model, self.tower(model).prefix)
        source = torch.cat([torch.full((first,), -1), torch.arange(grid[0] * grid[1])])
        return [Layout(tiles=1, grid=grid, source=source) for _ in range(len(pixels))]

    def encode(self, model: Any, inputs: Inputs) -> Any:
        pixels = base.required(inputs, "pixel_values")
        return release_of(model).image_features(base.core_of(model), pixels)

    def pool(
        self, model: Any, inputs: Inputs, rows: Sequence[Tensor], layouts: Sequence[Layout]
    ) -> list[Tensor]:
        return base.split_rows(rows, [x.tiles for x in layouts], self.tower(model).prefix)

    def rewrap(self, features: Sequence[Tensor]) -> Any:
        return list(features)

    def position_ids(self, model: Any, inputs: Inputs, mask: Tensor) -> Tensor:
        return base.text_positions(mask)
