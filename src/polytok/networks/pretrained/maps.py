"""The slot of networks that judge images by feature maps: a small one, and towers as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from polytok.core.errors import ConfigError, PolytokError
from polytok.networks.pretrained.slots import Tower


class FeatureMaps(Protocol):
    """Gives maps (B, C, h, w), fine to coarse, of images (B, 3, H, W) in [0, 1]."""

    def maps(self, image: Tensor) -> Sequence[Tensor]: ...


def map_distance(one: Sequence[Tensor], other: Sequence[Tensor], eps: float = 1e-10) -> Tensor:
    """Distance (B,) of two images by their maps, in fp32.

    At every place the C features are scaled to length 1; the squared difference is summed over
    them, averaged over places, then over layers. It is within [0, 4].

    Args:
        one, other: maps (B, C, h, w) of the same layers. eps: added to lengths.

    Raises:
        PolytokError: there are no maps, or not as many on both sides.
    """
    if not one or len(one) != len(other):
        raise PolytokError(f"maps of {len(one)} and {len(other)} layers cannot be compared")
    layers = []
    for mine, theirs in zip(one, other, strict=True):
        mine, theirs = mine.float(), theirs.float()
        mine = mine / (mine.norm(dim=1, keepdim=True) + eps)
        theirs = theirs / (theirs.norm(dim=1, keepdim=True) + eps)
        layers.append((mine - theirs).square().sum(1).flatten(1).mean(1))
    total = layers[0]
    for layer in layers[1:]:
        total = total + layer
    return total / len(layers)


@dataclass(frozen=True, kw_only=True)
class SmallMapsConfig:
    """Sizes of a small convolutional classifier.

    Args:
        widths: channels of each stage; a stage halves the image. num_classes: outputs.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 128, 128)

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ConfigError(f"num_classes={self.num_classes} is below 2")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"widths={self.widths} are not one positive number or more")


class SmallMaps(nn.Module):
    """Image (B, 3, H, W) in [0, 1] -> class scores (B, num_classes), by plain convolutions.

    H and W are multiples of 2^stages. The maps are what each stage ends with.
    """

    def __init__(self, config: SmallMapsConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = _convolution(3, config.widths[0])
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(width, wider, stride=2), _convolution(wider, wider))
            for width, wider in zip((config.widths[0], *config.widths), config.widths, strict=False)
        )
        self.head = nn.Linear(config.widths[-1], config.num_classes)

    def maps(self, image: Tensor) -> list[Tensor]:
        """The map that each stage ends with: (B, widths[i], H / 2^(i + 1), W / 2^(i + 1))."""
        x = self.stem(image * 2 - 1)
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found

    def pooled(self, image: Tensor) -> Tensor:
        """Mean (B, widths[-1]) of the last map."""
        return self.maps(image)[-1].mean((2, 3))

    def forward(self, image: Tensor) -> Tensor:
        """Class scores (B, num_classes)."""
        return self.head(self.pooled(image))


class TowerMaps(nn.Module):
    """A tower of images as a network of one map: its tokens, (B, dim, m, 1).

    Args:
        tower: takes ``image`` (B, 3, size, size); images of another size are resized to that.
    """

    def __init__(self, tower: Tower, size: int) -> None:
        super().__init__()
        self.tower, self.size = tower, size

    def maps(self, image: Tensor) -> list[Tensor]:
        """The tokens as a single map."""
        if image.shape[-2:] != (self.size, self.size):
            image = F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)
        return [self.tower({"image": image}).tokens.transpose(1, 2).unsqueeze(-1)]


def _convolution(width: int, wider: int, *, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width, wider, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(wider), nn.ReLU())
