"""A small image tower: a vision transformer that trains along with its generator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.layers import Block, compute_dtype, unit_gain
from polytok.networks.pretrained.slots import Tower, TowerOutput, listed, taken
from polytok.signals.image import framed

GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class SmallImageConfig:
    """Sizes of a small image tower.

    Args:
        size: pixels per side of the square input. patch: pixels per side of a patch.
        stem: ``linear`` map of each patch, or ``conv``, which halves the picture as often as a
            patch takes and learns from fewer pictures (arXiv 2106.14881).
    """

    size: int = 64
    patch: int = 8
    stem: Literal["linear", "conv"] = "linear"
    dim: int = 128
    num_layers: int = 3
    num_heads: int = 2

    def __post_init__(self) -> None:
        if self.patch < 1 or self.size < 1 or self.size % self.patch:
            raise ConfigError(f"size={self.size} is not a multiple of patch={self.patch}")
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        if self.stem == "conv" and (self.patch < 2 or self.patch & (self.patch - 1)):
            raise ConfigError(f"patch={self.patch} is not a power of two, as stem='conv' needs")


class ConvStem(nn.Module):
    """Pictures (B, 3, S, S) to one token per patch (B, (S / patch)^2, dim), by halving."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        count = patch.bit_length() - 1
        widths = [3, *(max(dim >> k, GROUPS) for k in reversed(range(count)))]
        layers: list[nn.Module] = []
        for width, wider in itertools.pairwise(widths):
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(math.gcd(GROUPS, wider), wider), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], dim, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures).flatten(2).mT


class PatchStem(nn.Linear):
    """Pictures (B, 3, S, S) to one token per patch (B, (S / patch)^2, dim), by a linear map."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__(3 * patch**2, dim)
        self.patch = patch
        unit_gain(self)

    def forward(self, pictures: Tensor) -> Tensor:
        return super().forward(
            rearrange(pictures, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        )


class SmallImageTower(Tower):
    """``image`` (B, 3, size, size) in [0, 1], on a plain background -> one token per patch."""

    def __init__(self, config: SmallImageConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SmallImageConfig()
        self.dim, self.size = config.dim, config.size
        stem = ConvStem if config.stem == "conv" else PatchStem
        self.embed = stem(config.patch, config.dim)
        # Content must not drown in the positions, and patches of one colour vary little.
        self.norm_patches = nn.LayerNorm(config.dim, eps=1e-6)
        count = (config.size // config.patch) ** 2
        self.positions = nn.Parameter(torch.randn(count, config.dim) * 0.3)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)

    def prepare(self, signals: Sequence[Any]) -> dict[str, Tensor]:
        """Frame PIL images on white: ``image`` (B, 3, size, size) in [0, 1]."""
        return prepare_images(signals, self.config.size)

    def forward(self, inputs: dict[str, Tensor]) -> TowerOutput:
        """Turn ``image`` into tokens (B, (size / patch)^2, dim), all valid."""
        image = taken(inputs, "image", (None, 3, self.config.size, self.config.size))
        x = self.norm_patches(self.embed(image * 2 - 1)) + self.positions
        x = x.to(compute_dtype(x))
        for block in self.blocks:
            x = block(x)
        tokens = self.norm(x)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return TowerOutput(tokens=tokens, mask=mask, pooled=tokens.mean(1))


def prepare_images(signals: Sequence[Any], size: int) -> dict[str, Tensor]:
    """Frame PIL images on white as ``image`` (B, 3, size, size) in [0, 1]."""
    images = listed(signals, Image.Image, "PIL images")
    return {"image": torch.from_numpy(np.stack([framed(image, size) for image in images]))}
