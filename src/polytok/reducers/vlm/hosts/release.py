"""What releases of transformers do in ways of their own, whatever the family.

Reduced inputs are those of the whole prompt with ``mm_encoder_outputs`` in place of pixels, and
with ``position_ids`` where positions are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from inspect import signature
from typing import Any, Protocol

from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers.vlm.hosts.base import required
from polytok.reducers.vlm.hosts.hf4 import Transformers4

Call = dict[str, Any]
Rewrite = Callable[[Call], Call]


class Release(Protocol):
    """Answers that differ between releases."""

    def check_prepared(self) -> None:
        """Refuse to hand out reduced inputs where models cannot take them by themselves."""

    def image_features(self, core: Any, *pixels: Tensor) -> Any:
        """Run the tower and the projector: an output, ``pooler_output`` the features per image."""

    def window_order(self, tower: Any, grids: Tensor) -> Tensor:
        """(n,) int64, the tokens of grids (images, 3) as a tower with windows lines them up."""

    def grid_positions(self, core: Any, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        """(3, B, n) time, row and column of a prompt with ``image_grid_thw``."""

    def split(self, model: Any, reduced: Call) -> tuple[Call, Rewrite | None]:
        """Reduced inputs as ``generate`` takes them, and what must be done to each of its calls."""


class Transformers5:
    """Since 5.23, models take features in place of pixels and go on from kept positions."""

    def check_prepared(self) -> None: ...

    def image_features(self, core: Any, *pixels: Tensor) -> Any:
        return core.get_image_features(*pixels, return_dict=True)

    def window_order(self, tower: Any, grids: Tensor) -> Tensor:
        order: Tensor = import_hf("transformers.vision_utils").get_vision_window_index(
            grids,
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )[0]
        return order

    def grid_positions(self, core: Any, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        positions: Tensor = core.get_rope_index(
            required(inputs, "input_ids"),
            mm_token_type_ids=required(inputs, "mm_token_type_ids"),
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=mask,
        )[0]
        return positions

    def split(self, model: Any, reduced: Call) -> tuple[Call, Rewrite | None]:
        return reduced, None


def release_of(model: Any) -> Release:
    """The release that a model is from.

    Raises:
        ConfigError: it cannot work.
    """
    if "mm_encoder_outputs" in signature(model.forward).parameters:
        return Transformers5()
    if metadata.version("transformers").startswith("4.57."):
        return Transformers4()
    raise ConfigError(
        f"{type(model).__name__}.forward takes no mm_encoder_outputs; use transformers 5.23 or "
        "newer, or 4.57"
    )


def call_of(model: Any, reduced: Call) -> Call:
    """Reduced inputs as a call of the model takes them."""
    inputs, rewrite = release_of(model).split(model, reduced)
    return inputs if rewrite is None else rewrite(inputs)
