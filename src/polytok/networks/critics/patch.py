"""PatchGAN critics: image (B, 3, H, W) in [0, 1] -> one logit per patch, high for real ones.

Both use group norm, so a score does not depend on the rest of the batch, nor a step on how its
batch is spread over processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.core.errors import ConfigError, PolytokError


@dataclass(frozen=True, kw_only=True)
class PatchCriticConfig:
    """Sizes of a :class:`PatchCritic`.

    Args:
        width: channels of the first layer; they double from layer to layer, up to 8 x.
        num_layers: that halve the image. groups: of the norm.
    """

    width: int = 64
    num_layers: int = 3
    groups: int = 32

    def __post_init__(self) -> None:
        _check(self.width, self.num_layers, self.groups)


class PatchCritic(nn.Module):
    """PatchGAN of Isola et al. 2017 (arXiv 1611.07004): 4x4 convolutions of stride 2.

    Its logits (B, 1, H', W') see patches of 70 pixels at 3 layers. Group norm stands where the
    paper has batch norm.
    """

    def __init__(self, config: PatchCriticConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PatchCriticConfig()
        widths = [config.width * min(1 << i, 8) for i in range(config.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (width, wider) in enumerate(pairwise(widths)):
            stride = 2 if i < config.num_layers - 1 else 1
            layers += [
                nn.Conv2d(width, wider, 4, stride, 1, bias=False),
                nn.GroupNorm(config.groups, wider),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        # Below this the last two layers, which do not halve, have nothing left to look at.
        self.least = 3 << config.num_layers

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 1, H / 2^n - 2, W / 2^n - 2) after n layers, for multiples of 2^n."""
        _check_image(image, self.least)
        return self.layers(image * 2 - 1)


@dataclass(frozen=True, kw_only=True)
class BlurPatchCriticConfig:
    """Sizes of a :class:`BlurPatchCritic`; the defaults are those of TiTok.

    Args:
        width: channels of the first stage; they double from stage to stage.
        num_stages: that halve the image. groups: of the norm.
        grid: logits a side, whatever the image's size.
    """

    width: int = 128
    num_stages: int = 3
    groups: int = 32
    grid: int = 16

    def __post_init__(self) -> None:
        _check(self.width, self.num_stages, self.groups)
        if self.grid < 1:
            raise ConfigError(f"grid={self.grid} is not positive")


class BlurPatchCritic(nn.Module):
    """Critic of TiTok (card titok 3.5): stages of a 3x3 convolution and a blur of stride 2.

    It takes images in [0, 1] as they are. Logits are (B, 1, grid, grid).
    """

    def __init__(self, config: BlurPatchCriticConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or BlurPatchCriticConfig()
        widths = [config.width, *(config.width << i for i in range(config.num_stages))]
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 5, padding=2), nn.LeakyReLU(0.1))
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, wider, 3, padding=1),
                Blur(),
                nn.GroupNorm(config.groups, wider),
                nn.LeakyReLU(0.1),
            )
            for width, wider in pairwise(widths)
        )
        self.pool = nn.AdaptiveMaxPool2d(config.grid)
        self.head = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(widths[-1], 1, 5, padding=2),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 1, grid, grid)."""
        _check_image(image, 1 << self.config.num_stages)
        x = self.stem(image)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.pool(x))


class Blur(nn.Module):
    """Halve maps (B, C, H, W) through the taps 1 3 3 1 in both directions; zeros lie around."""

    taps: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("taps", taps[:, None] * taps[None, :], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[-3:]
        # "Same" padding: an odd side, which becomes (side + 1) / 2, gets one zero more at its end.
        x = F.pad(x, (1, 1 + width % 2, 1, 1 + height % 2))
        taps = self.taps.to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv2d(x, taps, stride=2, groups=channels)


def _check(width: int, num_layers: int, groups: int) -> None:
    if num_layers < 1:
        raise ConfigError(f"a critic of {num_layers} layers sees nothing")
    if width < 1 or groups < 1 or width % groups:
        raise ConfigError(f"width={width} is not a multiple of groups={groups}")


def _check_image(image: Tensor, least: int) -> None:
    if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < least:
        raise PolytokError(
            f"images (B, 3, H, W) of at least {least} pixels a side are needed, "
            f"got {tuple(image.shape)}"
        )
