"""VAR: visual autoregressive modeling by next-scale prediction (arXiv 2404.02905).

The transformer and its sampling, over a multi-scale quantizer. Official weights, of
FoundationVision/VAR, load by :func:`convert`; the pixel decoder is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from polytok.bottlenecks import MultiScaleVQ
from polytok.generators import (
    AdaptiveTransformer,
    CategoricalHead,
    ClassConditioner,
    Generator,
    Guide,
    QuarterQK,
    ScaleOrder,
    UnitQK,
)
from polytok.layers import Frozen
from polytok.systems.keymap import KeyMap, check, row, rows, to_ours, under


@dataclass(frozen=True, kw_only=True)
class VARConfig:
    """Sizes of a VAR transformer; the defaults are d16 at 256 pixels.

    Args:
        sides: of the square token maps. attention: ``unit`` queries and keys (the released models)
            or ``quarter`` of the usual softmax scale. modulation: ``block``, or ``shared`` (d36).
    """

    sides: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    codebook_size: int = 4096
    code_dim: int = 32
    depth: int = 16
    dim: int = 1024
    num_heads: int = 16
    num_classes: int = 1000
    attention: Literal["unit", "quarter"] = "unit"
    modulation: Literal["block", "shared"] = "block"


class VAR(Generator):
    """The generator of a configuration; the quantizer is another model's and stays as it is."""

    def __init__(self, config: VARConfig, quantizer: MultiScaleVQ) -> None:
        process = ScaleOrder(quantizer)
        net = AdaptiveTransformer(
            dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            levels=[k for k, slots in enumerate(process.slots) for _ in range(slots)],
            num_start=process.slots[0],
            embed=nn.Linear(config.code_dim, config.dim),
            qk=UnitQK if config.attention == "unit" else QuarterQK,
            modulation=config.modulation,
        )
        super().__init__(
            net,
            CategoricalHead(config.dim, config.codebook_size),
            process,
            Guide(shares={"label": 1.0}, strength=1.5),
            ClassConditioner(config.num_classes, config.dim),
        )
        self.quantizer = Frozen(quantizer)
        self.config = config


def quantizer_of(config: VARConfig) -> MultiScaleVQ:
    """A fresh quantizer of VAR's kind: squares, area down, bicubic up, four refinements."""
    return MultiScaleVQ(
        codebook_size=config.codebook_size,
        codebook_dim=config.code_dim,
        slots=tuple(side * side for side in config.sides),
        resampler="grid2d",
    )


def key_map(config: VARConfig) -> KeyMap:
    """Rows between our tensors and the official ones, which are equal in shape and layout."""
    found = [
        row("net.start", "pos_start"),
        row("net.positions", "pos_1LC"),
        row("net.levels.weight", "lvl_embed.weight"),
        row("conditioner.embedding.weight", "class_emb.weight"),
        *rows(
            {
                "net.embed": "word_embed",
                "net.final.linear": "head_nm.ada_lin.1",
                "head.proj": "head",
            }
        ),
    ]
    block = [
        row("attention.qkv.weight", "attn.mat_qkv.weight"),
        row("attention.q_bias", "attn.q_bias"),
        row("attention.v_bias", "attn.v_bias"),
        *rows({"attention.out": "attn.proj", "mlp.up": "ffn.fc1", "mlp.down": "ffn.fc2"}),
    ]
    if config.attention == "unit":
        block.append(row("attention.qk.log_scale", "attn.scale_mul_1H11"))
    if config.modulation == "block":
        block += rows({"modulate.linear": "ada_lin.1"})
    else:
        block.append(row("modulate.offset", "ada_gss"))
        found += rows({"net.shared.linear": "shared_ada_lin.1"})
    for i in range(config.depth):
        found += under(f"net.blocks.{i}.", f"blocks.{i}.", block)
    # Masks, level numbers and zeros follow from the configuration.
    return KeyMap(tuple(found), unread=("lvl_1L", "attn_bias_for_masking", "*zero_k_bias"))


def convert(official: Mapping[str, Tensor], config: VARConfig) -> dict[str, Tensor]:
    """Our state dict from an official one.

    Raises:
        WeightsError: tensors are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        own = VAR(config, quantizer_of(config)).state_dict()
    check(key_map(config), own, official, "not VAR's")
    return to_ours(key_map(config), official)
