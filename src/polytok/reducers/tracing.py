"""Which patches survive: tokens per block, and what became of every patch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from polytok.core.errors import PolytokError
from polytok.reducers.hosts.base import Host
from polytok.reducers.passes import Pass
from polytok.reducers.reduction import core_of

GREY = 0.25


@dataclass(frozen=True)
class Stage:
    """What one reduction left.

    Args:
        layer: the block that reduced. kept: (B, n) int64 the patch whose place each token has.
        group: (B, patches) int64 the token that stands for each patch, -1 where it was dropped.
    """

    layer: int
    kept: Tensor
    group: Tensor

    @property
    def survivors(self) -> Tensor:
        """(B, patches) bool: patches that still have a token in their place."""
        return torch.zeros_like(self.group, dtype=torch.bool).scatter(1, self.kept, True)


@dataclass(frozen=True)
class Trace:
    """One forward pass.

    Args:
        tokens: with the prefix, at the input of every block and behind the last one.
        stages: what every reduction left. grid: rows and columns of patches.
    """

    tokens: tuple[int, ...]
    stages: tuple[Stage, ...]
    grid: tuple[int, int]

    def picture(self, image: Tensor, item: int = 0) -> Image.Image:
        """The image, then what each stage leaves of it; patches without a token turn grey.

        Args:
            image: (B, 3, H, W) or (3, H, W) in [0, 1].
        """
        pixels = image if image.ndim == 3 else image[item]
        panels = [pixels, *(self._masked(pixels, s.survivors[item]) for s in self.stages)]
        rows = torch.cat(panels, -1).clamp(0, 1).mul(255).round().byte()
        return Image.fromarray(np.ascontiguousarray(rows.permute(1, 2, 0).cpu().numpy()))

    def _masked(self, pixels: Tensor, survives: Tensor) -> Tensor:
        alive = survives.view(1, 1, *self.grid).float()
        alive = torch.nn.functional.interpolate(alive, pixels.shape[-2:])[0]
        return alive * pixels + (1 - alive) * (GREY * pixels + (1 - GREY) * 0.5)


@torch.no_grad()
def trace(model: nn.Module, *inputs: Any, **named: Any) -> Trace:
    """Run a reduced model once and say what became of its patches.

    Raises:
        PolytokError: nothing is applied, or the reduction is paused.
    """
    core = core_of(model)
    host: Host = core.reduction.host
    recorded: list[Pass] = []
    sizes: list[tuple[int, int]] = []
    core.reduction.recorders.append(recorded)
    see = partial(_see_size, sizes)
    hook = host.patcher(core).register_forward_pre_hook(see, with_kwargs=True)
    try:
        model(*inputs, **named)
    finally:
        hook.remove()
        core.reduction.recorders.remove(recorded)
    if not recorded:
        raise PolytokError("the reduction is paused, so there is nothing to trace")
    states = recorded[-1].history
    first = states[0]
    stages = []
    for before, after in pairwise(states):
        if len(after.maps) > len(before.maps):
            origin = after.origin()
            assert origin is not None
            stages.append(Stage(before.layer, origin, after.group()))
    return Trace(
        tokens=tuple(state.length for state in states),
        stages=tuple(stages),
        grid=_grid(host.grid(core, sizes[-1] if sizes else None), first.num_patches),
    )


def _see_size(
    sizes: list[tuple[int, int]], patcher: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
) -> None:
    """Note height and width of the images that are cut into patches."""
    for value in (*args, *named.values()):
        if isinstance(value, Tensor) and value.ndim == 4:
            sizes.append((value.shape[2], value.shape[3]))


def _grid(of_image: tuple[int, int], patches: int) -> tuple[int, int]:
    """The grid of so many patches: that of the image, else a square, else a row."""
    if of_image[0] * of_image[1] == patches:
        return of_image
    side = round(patches**0.5)
    return (side, side) if side * side == patches else (1, patches)
