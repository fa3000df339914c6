"""Configuration and presets of VAT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polytok.core.config import override
from polytok.core.errors import ConfigError, UnknownNameError

# Nine scales: 304 tokens of 12 bits are 456 bytes; the first seven are 140 tokens, 210 bytes.
SLOTS_512 = (1, 4, 9, 16, 25, 36, 49, 64, 100)
# VAR's squares (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), extended as for 512-pixel images.
SLOTS_VAR = (1, 4, 9, 16, 25, 36, 64, 100, 169, 256)
# VAR's squares as far as 480 bytes of 6-bit ids reach: 616 tokens are 462 bytes, and the first
# eight scales, 276 tokens, 207 bytes.
SLOTS_512_VAR = (1, 4, 9, 16, 25, 36, 64, 121, 144, 196)
SLOTS_4KB = (*SLOTS_VAR, 576, 1024)


@dataclass(frozen=True, kw_only=True)
class VATConfig:
    """Sizes and choices of a VAT tokenizer; names in brackets are the card's symbols.

    Args:
        slots: tokens per scale [s_k]; the last is the number of latents [M].
        codebook_size: [V]. code_dim: [d].
        num_points: surface points per shape [P]; ``sharp_fraction`` of them lie on sharp edges.
        num_features: feature tokens before compression [N].
        dim, num_heads: width [C] and heads of every block.
        latent_layers: decoder blocks over the latents alone, before the joint ones.
        plane_size: tokens per plane side [r]; channels: of the upsampler, one doubling a step.
        loss: ``sdf`` (L1 of the truncated distance) or ``occupancy`` (soft, binary cross-entropy).
        band: truncation, or half-width of the soft edge, in normalised units.
        overlap_weight: share of 1 - soft IoU that is added to the loss of ``occupancy``.
        is_anchored: latents and plane cells start from their neighbours in space (ours, not the
            paper's: a start from averages learns where to look only after many thousand shapes).
        is_variational: sample the latents and charge the KL (VVQ).
        mean_fraction: share of training samples that decode from the mean instead of a draw.
        prefix_dropout: share of training samples that decode from a random prefix of scales.
    """

    slots: tuple[int, ...] = SLOTS_512
    codebook_size: int = 4096
    code_dim: int = 16
    resampler: str = "grid2d"
    refine_ratio: float = 0.5
    beta: float = 0.25
    num_points: int = 2048
    sharp_fraction: float = 0.25
    feature_mode: Literal["cross_learned", "cross_fps", "subset", "planes"] = "cross_learned"
    num_features: int = 128
    is_compressed: bool = True
    dim: int = 256
    num_heads: int = 4
    encoder_layers: int = 4
    latent_layers: int = 2
    decoder_layers: int = 4
    plane_size: int = 8
    channels: tuple[int, ...] = (128, 64, 32, 32)
    refine_last: bool = True
    mlp_dim: int = 64
    mlp_layers: int = 3
    extent: float = 1.05
    loss: Literal["sdf", "occupancy"] = "sdf"
    band: float = 0.05
    overlap_weight: float = 0.0
    is_anchored: bool = False
    is_variational: bool = True
    mean_fraction: float = 0.2
    prefix_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        if not self.slots or min(self.slots) < 1:
            raise ConfigError(f"slots={self.slots} must be positive counts")
        if self.prefix_dropout and len(self.slots) < 2:
            raise ConfigError("prefix_dropout needs at least two scales")
        for name in ("sharp_fraction", "mean_fraction", "prefix_dropout", "refine_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not within [0, 1]")

    @property
    def num_latents(self) -> int:
        return self.slots[-1]


SMALL = VATConfig(
    feature_mode="planes",
    num_features=192,
    num_points=1024,
    dim=192,
    num_heads=3,
    encoder_layers=2,
    latent_layers=0,
    decoder_layers=3,
    channels=(64, 32, 32, 24),
    refine_last=False,
    loss="occupancy",
    band=0.03,
    overlap_weight=0.3,
    is_anchored=True,
    prefix_dropout=0.2,
)

# The paper's sizes, as far as they are known; built and round-tripped, never trained here.
PAPER = VATConfig(
    slots=SLOTS_512_VAR,
    codebook_size=64,
    code_dim=16,
    num_points=81920,
    num_features=3072,
    dim=768,
    num_heads=12,
    encoder_layers=8,
    latent_layers=0,
    decoder_layers=16,
    plane_size=32,
    channels=(256, 128, 64, 32),
    mlp_layers=4,
    loss="occupancy",
    band=1 / 512,
)

PRESETS: dict[str, VATConfig] = {
    "vat-512b-small": SMALL,
    "vat-512b-tiny": VATConfig(
        slots=(1, 4, 9, 16),
        codebook_size=64,
        code_dim=8,
        num_points=512,
        num_features=32,
        dim=64,
        num_heads=1,
        encoder_layers=1,
        latent_layers=1,
        decoder_layers=1,
        plane_size=4,
        channels=(32, 16, 16),
        mlp_dim=32,
        mlp_layers=2,
    ),
    "vat-512b": PAPER,
    "vat-4kb-small": override(
        SMALL, slots=(1, 4, 9, 16, 25, 36, 64, 100, 169, 256), codebook_size=16384
    ),
    "vat-4kb": override(PAPER, slots=SLOTS_4KB, codebook_size=16384, code_dim=32),
}


def preset(name: str) -> VATConfig:
    """Return the configuration of a preset.

    Raises:
        UnknownNameError: no such preset.
    """
    if name not in PRESETS:
        raise UnknownNameError("VAT preset", name, PRESETS)
    return PRESETS[name]
