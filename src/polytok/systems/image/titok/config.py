"""Configuration and presets of TiTok."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polytok.core.errors import ConfigError, UnknownNameError
from polytok.layers.prefix_dropout import Distribution


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """A vision transformer: width, blocks, heads."""

    dim: int
    num_layers: int
    num_heads: int

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class TailDropConfig:
    """Random prefixes of the tokens in training, see :class:`polytok.layers.PrefixDropout`.

    Args:
        min_keep: the shortest prefix. per_sample: a length for each image instead of the batch.
    """

    distribution: Distribution = "uniform"
    min_keep: int = 1
    per_sample: bool = False


@dataclass(frozen=True, kw_only=True)
class TiTokConfig:
    """Sizes and choices of a 1-D image tokenizer; names in brackets are the card's symbols.

    Args:
        size: pixels a side. patch: pixels a side of a patch.
        num_latents: tokens of an image [K].
        bottleneck: ``vq``, or ``gaussian`` for continuous tokens.
        code_dim: channels of a token. codebook_size, metric: of ``vq``; ``cosine`` compares
            directions alone. restart_every: steps between restarts of its dead codes; 0 = never.
        layout: how the K x D outputs of the encoder become K tokens. ``plain`` takes each output
            for a token; ``legacy`` reads them as D x K, so that a token mixes all outputs, which
            the two-stage weights were trained with.
        pixels: preset of the tokenizer whose codes the decoder predicts, and whose decoder makes
            pixels of them; "" predicts pixels.
        tail_drop: train on random prefixes, any of which then decodes; None: on whole codes.
        has_token_counts: whether the weights hold how often each token has each code, by which
            files are range coded, see :meth:`TiTok.counted`. To train on from such weights, set it.
    """

    num_latents: int
    encoder: TowerConfig
    decoder: TowerConfig
    size: int = 256
    patch: int = 16
    bottleneck: Literal["vq", "gaussian"] = "vq"
    code_dim: int = 12
    codebook_size: int = 4096
    metric: Literal["cosine", "euclidean"] = "cosine"
    restart_every: int = 0
    layout: Literal["plain", "legacy"] = "plain"
    pixels: str = ""
    tail_drop: TailDropConfig | None = None
    has_token_counts: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "patch", "num_latents", "code_dim", "codebook_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if self.size % self.patch:
            raise ConfigError(f"size={self.size} is not a multiple of patch={self.patch}")
        if self.has_token_counts and self.bottleneck != "vq":
            raise ConfigError(f"bottleneck={self.bottleneck!r} has no codes to count")
        keep = self.tail_drop.min_keep if self.tail_drop else 1
        if not 1 <= keep <= self.num_latents:
            raise ConfigError(f"min_keep={keep} is not within 1..{self.num_latents}")

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.size // self.patch


SMALL = TowerConfig(dim=512, num_layers=8, num_heads=8)
BASE = TowerConfig(dim=768, num_layers=12, num_heads=12)
LARGE = TowerConfig(dim=1024, num_layers=24, num_heads=16)


def two_stage(
    tower: TowerConfig, num_latents: int, tail_drop: TailDropConfig | None = None
) -> TiTokConfig:
    """The published models that predict the codes of MaskGIT-VQGAN."""
    return TiTokConfig(
        num_latents=num_latents,
        encoder=tower,
        decoder=tower,
        layout="legacy",
        pixels="maskgit-vqgan",
        tail_drop=tail_drop,
    )


def single_stage(encoder: TowerConfig, num_latents: int) -> TiTokConfig:
    """The published models that predict pixels, with a codebook."""
    return TiTokConfig(
        num_latents=num_latents,
        encoder=encoder,
        decoder=LARGE,
        code_dim=64,
        codebook_size=8192,
        metric="euclidean",
    )


def continuous(encoder: TowerConfig, num_latents: int) -> TiTokConfig:
    """The published models that predict pixels, with Gaussian tokens."""
    return TiTokConfig(
        num_latents=num_latents,
        encoder=encoder,
        decoder=LARGE,
        bottleneck="gaussian",
        code_dim=16,
    )


TINY = TowerConfig(dim=64, num_layers=2, num_heads=2)

PRESETS = {
    "titok-tiny": TiTokConfig(
        size=32,
        patch=4,
        num_latents=8,
        encoder=TINY,
        decoder=TINY,
        code_dim=8,
        codebook_size=256,
        restart_every=100,
    ),
    "titok-l32": two_stage(LARGE, 32),
    "titok-b64": two_stage(BASE, 64),
    "titok-s128": two_stage(SMALL, 128),
    "titok-bl64-vq8k": single_stage(BASE, 64),
    "titok-bl128-vq8k": single_stage(BASE, 128),
    "titok-sl256-vq8k": single_stage(SMALL, 256),
    "titok-ll32-vae-c16": continuous(LARGE, 32),
    "titok-bl64-vae-c16": continuous(BASE, 64),
    "titok-bl128-vae-c16": continuous(BASE, 128),
}


def preset(name: str) -> TiTokConfig:
    """The configuration of a preset.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]
