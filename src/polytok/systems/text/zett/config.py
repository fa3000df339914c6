"""Sizes of ZeTT's hypernetwork, and its presets."""

from __future__ import annotations

from dataclasses import dataclass

from polytok.core.config import override
from polytok.core.errors import ConfigError, UnknownNameError


@dataclass(frozen=True, kw_only=True)
class HypernetConfig:
    """A hypernetwork and the language model it belongs to; names in brackets are the card's.

    Args:
        language_model: folder or hub id of the model whose tokenizer is exchanged; ``revision``
            of it on the hub. Training fills the next five fields from it.
        vocab_size: true size of its vocabulary [V_old], whatever its embedding is padded to.
        num_extra: byte tokens that its byte-level tokenizer has beyond them [fallback_embeddings].
        pad_id: fills rows of source ids; what equals it is masked.
        embed_dim: width of its embeddings [d]. is_tied: one matrix serves input and output.
        has_bias: predict a logit bias; worth it where the model's head has one.
        dim, inner_dim: width [h] and inner width of every block. num_heads, num_layers.
        max_pieces: source ids kept per token [hn_surface_maxlen].
        num_positions: rows of the position table, at least ``max_pieces``.
        num_languages: rows of the language table; 0 for none.
    """

    language_model: str = ""
    revision: str | None = None
    vocab_size: int = 0
    num_extra: int = 0
    pad_id: int = 0
    embed_dim: int = 0
    is_tied: bool = True
    has_bias: bool = False
    dim: int = 768
    inner_dim: int = 1536
    num_heads: int = 12
    num_layers: int = 3
    max_pieces: int = 7
    num_positions: int = 8
    num_languages: int = 0

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        for name in ("num_layers", "max_pieces", "inner_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("vocab_size", "num_extra", "pad_id", "embed_dim", "num_languages"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        if self.num_positions < self.max_pieces:
            raise ConfigError(
                f"num_positions={self.num_positions} is below max_pieces={self.max_pieces}"
            )

    @property
    def source_dim(self) -> int:
        """Width of what a source id is read as: input and output embedding side by side."""
        return self.embed_dim if self.is_tied else 2 * self.embed_dim


_GPT2 = HypernetConfig(
    language_model="gpt2", vocab_size=50257, pad_id=50256, embed_dim=768, is_tied=True
)

PRESETS: dict[str, HypernetConfig] = {
    "zett-tiny": HypernetConfig(dim=64, inner_dim=128, num_heads=1, num_layers=2),
    "zett-small": HypernetConfig(dim=256, inner_dim=512, num_heads=4),
    "zett-gpt2": _GPT2,
    "zett-tinyllama": override(
        _GPT2,
        language_model="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        vocab_size=32000,
        pad_id=2,
        embed_dim=2048,
        is_tied=False,
        dim=2048,
        inner_dim=4096,
        num_heads=32,
    ),
    "zett-mistral-7b": override(
        _GPT2,
        language_model="mistralai/Mistral-7B-v0.1",
        vocab_size=32000,
        pad_id=2,
        embed_dim=4096,
        is_tied=False,
        dim=4096,
        inner_dim=8192,
        num_heads=32,
    ),
}


def preset(name: str) -> HypernetConfig:
    """Return the configuration of a preset.

    Raises:
        UnknownNameError: no such preset.
    """
    if name not in PRESETS:
        raise UnknownNameError("ZeTT preset", name, PRESETS)
    return PRESETS[name]
