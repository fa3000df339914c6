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
from polytok.core.errors import WeightsError
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
            levels=process.levels().tolist(),
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


def key_map(config: VARConfig) -> dict[str, str]:
    """Our names to the official ones; tensors are equal in shape and layout."""
    names = {
        "net.start": "pos_start",
        "net.positions": "pos_1LC",
        "net.levels.weight": "lvl_embed.weight",
        "net.embed.weight": "word_embed.weight",
        "net.embed.bias": "word_embed.bias",
        "net.final.linear.weight": "head_nm.ada_lin.1.weight",
        "net.final.linear.bias": "head_nm.ada_lin.1.bias",
        "head.proj.weight": "head.weight",
        "head.proj.bias": "head.bias",
        "conditioner.embedding.weight": "class_emb.weight",
    }
    block = {
        "attention.qkv.weight": "attn.mat_qkv.weight",
        "attention.q_bias": "attn.q_bias",
        "attention.v_bias": "attn.v_bias",
        "attention.out.weight": "attn.proj.weight",
        "attention.out.bias": "attn.proj.bias",
        "mlp.up.weight": "ffn.fc1.weight",
        "mlp.up.bias": "ffn.fc1.bias",
        "mlp.down.weight": "ffn.fc2.weight",
        "mlp.down.bias": "ffn.fc2.bias",
    }
    if config.attention == "unit":
        block["attention.qk.log_scale"] = "attn.scale_mul_1H11"
    if config.modulation == "block":
        block |= {f"modulate.linear.{k}": f"ada_lin.1.{k}" for k in ("weight", "bias")}
    else:
        block["modulate.offset"] = "ada_gss"
        names |= {f"net.shared.linear.{k}": f"shared_ada_lin.1.{k}" for k in ("weight", "bias")}
    for i in range(config.depth):
        names |= {f"net.blocks.{i}.{a}": f"blocks.{i}.{b}" for a, b in block.items()}
    return names


def is_derived(name: str) -> bool:
    """Whether an official tensor follows from the configuration: masks, level numbers, zeros."""
    return name in ("lvl_1L", "attn_bias_for_masking") or name.endswith("zero_k_bias")


def convert(official: Mapping[str, Tensor], config: VARConfig) -> dict[str, Tensor]:
    """Rename an official state dict.

    Raises:
        WeightsError: a tensor is missing, or one is unknown.
    """
    names = key_map(config)
    missing = sorted(set(names.values()) - set(official))
    unknown = sorted(k for k in set(official) - set(names.values()) if not is_derived(k))
    if missing or unknown:
        raise WeightsError(f"not VAR's tensors: missing {missing[:3]}, unknown {unknown[:3]}")
    return {ours: torch.as_tensor(official[theirs]) for ours, theirs in names.items()}
