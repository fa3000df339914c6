"""MaskGIT-VQGAN: a convolutional VQ tokenizer of images without attention (arXiv 2202.04200).

The base that TiTok and its relatives decode through. Official weights, of 16-pixel tokens at 256
pixels, are the file ``maskgit-vqgan-imagenet-f16-256.bin`` that bytedance/1d-tokenizer
(Apache-2.0) names; ``polytok convert maskgit-vqgan`` reads it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.bottlenecks import VectorQuantizer
from polytok.core import hub
from polytok.core.config import from_dict, override
from polytok.core.contracts import Stage
from polytok.core.errors import ConfigError, UnknownNameError
from polytok.systems.classics._shared import GridTokenizer
from polytok.systems.image.codec import ImageCodec
from polytok.systems.images import ImageTraining, ready
from polytok.systems.keymap import KeyMap, Official, Row, codebook_rows, row, rows, under
from polytok.training import Recipe

EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class MaskGITVQGANConfig:
    """Sizes of the network; the defaults are those of the official weights.

    Args:
        size: pixels a side. channels: of the finest level, in ``groups`` normalised together.
        multipliers: of the channels, one per level from fine to coarse; each level but the last
            halves the grid. num_blocks: per level, and between the two halves.
        latent_dim, codebook_size: of the codebook.
    """

    size: int = 256
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_blocks: int = 2
    groups: int = 32
    latent_dim: int = 256
    codebook_size: int = 1024

    def __post_init__(self) -> None:
        if not self.multipliers or min(self.multipliers) < 1 or self.num_blocks < 1:
            raise ConfigError(
                f"multipliers={self.multipliers} and num_blocks={self.num_blocks} must be >= 1"
            )
        if self.size % self.stride:
            raise ConfigError(f"size={self.size} is not a multiple of the stride {self.stride}")
        if self.channels % self.groups:
            raise ConfigError(f"channels={self.channels} is not a multiple of {self.groups} groups")

    @property
    def stride(self) -> int:
        """Pixels a side of a token."""
        return 1 << (len(self.multipliers) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.size // self.stride, self.size // self.stride


PRESETS = {
    "maskgit-vqgan-tiny": MaskGITVQGANConfig(
        size=32, channels=32, multipliers=(1, 1, 2), latent_dim=16, codebook_size=64
    ),
    "maskgit-vqgan": MaskGITVQGANConfig(),
}

# The factor of van den Oord et al. sits on the other term here: the codes follow slowly.
STAGES = (
    Stage(
        name="reconstruct",
        weights={"mse": 1.0, "perceptual": 0.1, "vq/commit": 1.0, "vq/codebook": 0.25},
    ),
)


def preset(name: str) -> MaskGITVQGANConfig:
    """The configuration of a preset.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions (B, C, h, w) -> (B, D, h, w) beside a shortcut.

    Where the width changes, the shortcut is a 1x1 convolution of the block's own OUTPUT, not of
    its input: what the released weights were trained with.
    """

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=EPS)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(out_channels, out_channels, 1, bias=False)
            if channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return y + (x if self.shortcut is None else self.shortcut(y))


class Encoder(nn.Module):
    """Image (B, 3, H, W) to latents (B, d, h, w); each level but the last ends in a mean of 2x2."""

    def __init__(self, config: MaskGITVQGANConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1, bias=False)
        self.levels = nn.ModuleList(
            _blocks(config, before, width)
            for before, width in zip([config.channels, *widths], widths, strict=False)
        )
        self.middle = _blocks(config, widths[-1], widths[-1])
        self.norm = nn.GroupNorm(config.groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_dim, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for number, level in enumerate(self.levels):
            x = level(F.avg_pool2d(x, 2) if number else x)
        return self.conv_out(F.silu(self.norm(self.middle(x))))


class Decoder(nn.Module):
    """Latents (B, d, h, w) to an image (B, 3, H, W), unclamped; levels run from coarse to fine.

    Each level but the last ends in the nearest 2x2 enlargement and a convolution.
    """

    def __init__(self, config: MaskGITVQGANConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in reversed(config.multipliers)]
        self.conv_in = nn.Conv2d(config.latent_dim, widths[0], 3, padding=1)
        self.middle = _blocks(config, widths[0], widths[0])
        self.levels = nn.ModuleList(
            _blocks(config, before, width)
            for before, width in zip([widths[0], *widths], widths, strict=False)
        )
        self.enlarge = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in widths[:-1])
        self.norm = nn.GroupNorm(config.groups, widths[-1], eps=EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.levels[0](self.middle(self.conv_in(latents)))
        for conv, level in zip(self.enlarge, self.levels[1:], strict=True):
            x = level(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        return self.conv_out(F.silu(self.norm(x)))


def _blocks(config: MaskGITVQGANConfig, channels: int, out_channels: int) -> nn.Sequential:
    widths = [channels] + [out_channels] * config.num_blocks
    return nn.Sequential(
        *(
            ResidualBlock(before, width, config.groups)
            for before, width in itertools.pairwise(widths)
        )
    )


class MaskGITVQGAN(GridTokenizer):
    """Images of one size to a grid of ids, and back."""

    def __init__(self, config: MaskGITVQGANConfig) -> None:
        encoder = Encoder(config)
        quantizer = VectorQuantizer(config.codebook_size, config.latent_dim)
        super().__init__(config, encoder, quantizer, Decoder(config))


def decoder_rows(config: MaskGITVQGANConfig) -> list[Row]:
    """Rows of the decoder; official levels are numbered from fine to coarse."""
    last = len(config.multipliers) - 1
    found = [
        *rows({"conv_in": "conv_in", "norm": "norm_out", "conv_out": "conv_out"}),
        *_block_rows("middle", "mid", config.num_blocks),
    ]
    widths = [config.channels * m for m in reversed(config.multipliers)]
    for number, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
        level = f"up.{last - number}"
        found += _block_rows(
            f"levels.{number}", f"{level}.block", config.num_blocks, has_shortcut=before != width
        )
        if number < last:
            found += rows({f"enlarge.{number}": f"{level}.upsample_conv"})
    return found


def encoder_rows(config: MaskGITVQGANConfig) -> list[Row]:
    """Rows of the encoder."""
    found = [
        row("conv_in.weight", "conv_in.weight"),
        *rows({"norm": "norm_out", "conv_out": "conv_out"}),
        *_block_rows("middle", "mid", config.num_blocks),
    ]
    ratios = (1, *config.multipliers)
    for number, (before, ratio) in enumerate(itertools.pairwise(ratios)):
        found += _block_rows(
            f"levels.{number}",
            f"down.{number}.block",
            config.num_blocks,
            has_shortcut=before != ratio,
        )
    return found


def _block_rows(ours: str, theirs: str, count: int, *, has_shortcut: bool = False) -> list[Row]:
    block = [
        *rows({"norm1": "norm1", "norm2": "norm2"}),
        *rows({"conv1": "conv1", "conv2": "conv2"}, ("weight",)),
    ]
    found = [r for i in range(count) for r in under(f"{ours}.{i}.", f"{theirs}.{i}.", block)]
    if has_shortcut:
        found.append(row(f"{ours}.0.shortcut.weight", f"{theirs}.0.nin_shortcut.weight"))
    return found


def key_map(config: MaskGITVQGANConfig) -> KeyMap:
    """Rows between our tensors and the official ones."""
    return KeyMap(
        (
            *under("encoder.", "encoder.", encoder_rows(config)),
            *under("decoder.", "decoder.", decoder_rows(config)),
            *codebook_rows("bottleneck.", "quantize.", config.codebook_size),
        )
    )


OFFICIAL = Official(build=MaskGITVQGAN, key_map=key_map, source="bytedance/1d-tokenizer")


def prepare_training(recipe: Recipe) -> ImageTraining:
    """Build the model and read the pictures of a recipe."""
    config = override(preset(recipe.preset), **recipe.config)
    torch.manual_seed(recipe.train.seed)
    return ready(MaskGITVQGAN(config), recipe, size=config.size)


def load_model(folder: Path, info: hub.Info, *, name: str, device: str = "cpu") -> ImageCodec:
    """Build the codec of a folder and fill it with its weights."""
    config = from_dict(MaskGITVQGANConfig, info.config)
    model = MaskGITVQGAN(config)
    hub.load_weights(model, folder)
    return ImageCodec(
        model.to(device), size=config.size, name=name, weights=hub.fingerprint(folder)
    )
