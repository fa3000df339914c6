"""What a family of vision-language models must tell: five answers, no subclass of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError, SignalError
from polytok.reducers.vlm.layout import Layout

Positions = Literal["contiguous", "keep"]
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Tower:
    """The vision tower of a model.

    Args:
        layers: its blocks, in order.
        scored: the blocks that see the whole tile, so that their attention can score.
        feature_layer: the block whose output becomes the visual tokens.
        prefix: tokens before the patches; with one or more, the first is the class token.
    """

    module: Any
    layers: nn.ModuleList
    scored: tuple[int, ...]
    feature_layer: int
    prefix: int


class Host(Protocol):
    """A model family.

    ``pixels`` names the inputs that only the tower reads, ``positions`` the convention its models
    were trained to be shortened with.
    """

    name: str
    pixels: tuple[str, ...]
    positions: Positions

    def tower(self, model: Any) -> Tower:
        """Find the vision tower."""

    def layouts(self, model: Any, inputs: Inputs) -> list[Layout]:
        """Where the tokens of every image come from, from the sizes of the inputs alone."""

    def encode(self, model: Any, inputs: Inputs) -> Any:
        """Run the tower and the projector: the model's own output, ``pooler_output`` the tokens."""

    def pool(
        self, model: Any, inputs: Inputs, rows: Sequence[Tensor], layouts: Sequence[Layout]
    ) -> list[Tensor]:
        """Attention rows (B, H, n) as recorded -> (tiles, H, cells) per image, merged as tokens."""

    def rewrap(self, features: Sequence[Tensor]) -> Any:
        """(n_i, D) per image -> the type that the model wants as ``pooler_output``."""

    def position_ids(self, model: Any, inputs: Inputs, mask: Tensor) -> Tensor:
        """Positions (..., B, n) of the unshortened prompt, as ``generate`` would have made them."""


def core_of(model: Any) -> Any:
    """The model without its language-modelling head.

    Raises:
        ConfigError: the model has no such part.
    """
    core = getattr(model, "model", None)
    if not hasattr(core, "get_image_features") or not hasattr(core, "language_model"):
        raise ConfigError(
            f"{type(model).__name__} has no `model` with an image tower and a language model; "
            "pass the ...ForConditionalGeneration model itself"
        )
    return core


def cache_name(model: Any) -> str:
    """How this release of transformers calls the cache among a model's inputs."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def prefix_of(tower: nn.Module) -> int:
    """How many tokens stand before the patches: 1 with a class token, else 0."""
    ends = ("class_embedding", "cls_token")
    return int(any(name.endswith(ends) for name, _ in tower.named_parameters()))


def layers_of(tower: nn.Module) -> nn.ModuleList:
    """The blocks of a tower: its longest list of modules.

    Raises:
        ConfigError: it has none.
    """
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ConfigError(f"{type(tower).__name__} has no list of blocks to score with")
    return max(lists, key=len)


def layer_index(layer: int, count: int) -> int:
    """Index of the block whose output is ``hidden_states[layer]`` (0 is the embedding)."""
    return (layer if layer >= 0 else layer + count + 1) - 1


def grid_of(config: Any) -> tuple[int, int]:
    """Rows and columns of patches of a tower with a fixed picture size."""
    size, patch = (
        (v, v) if isinstance(v, int) else tuple(v) for v in (config.image_size, config.patch_size)
    )
    return size[0] // patch[0], size[1] // patch[1]


def required(inputs: Inputs, name: str) -> Tensor:
    """An input the family cannot do without.

    Raises:
        SignalError: it is missing.
    """
    value = inputs.get(name)
    if value is None:
        raise SignalError(f"the inputs lack {name}; pass everything that the processor returned")
    return value


def split_rows(rows: Sequence[Tensor], tiles: Sequence[int], prefix: int) -> list[Tensor]:
    """Rows (all tiles, H, prefix + patches) -> per image (tiles, H, patches)."""
    return list(torch.cat(list(rows))[..., prefix:].split(list(tiles)))


def text_positions(mask: Tensor) -> Tensor:
    """Positions (B, n) that count the valid tokens from 0, as ``generate`` makes them."""
    return (mask.long().cumsum(-1) - 1).masked_fill(~mask.bool(), 0)
