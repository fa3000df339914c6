"""timm's VisionTransformer: ViT, DeiT, DeiT-III, distilled, DINOv2 with registers, CLIP, SigLIP."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from polytok.networks.pretrained.optional import import_hf
from polytok.reducers.hosts.base import heads
from polytok.reducers.hosts.timm_model import (
    TimmHost,
    check_block,
    check_methods,
    check_pool,
    rows,
)
from polytok.reducers.reducer import Reducer
from polytok.reducers.state import TokenState

timm = import_hf("timm.models.vision_transformer")


class TimmViT(TimmHost):
    """Blocks of norm, attention, layer scale and MLP with one qkv product; learned positions."""

    def check(self, core: Any, root: Any, reducer: Reducer, restore: str) -> None:
        loop = ("forward", "forward_features", "forward_intermediates")
        check_methods(core, timm.VisionTransformer, *loop)
        check_pool(core, restore)
        for block in core.blocks:
            check_block(block, timm.Block, timm.Attention)

    def qkv(self, block: Any, y: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        attn = block.attn
        q, k, v = (heads(part, attn.num_heads) for part in attn.qkv(y).chunk(3, -1))
        return attn.q_norm(q), attn.k_norm(k), v

    def query_key(self, block: Any, y: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        attn = block.attn
        both = rows(attn.qkv, y, slice(0, 2 * _width(attn)))
        q, k = (heads(part, attn.num_heads) for part in both.chunk(2, -1))
        return attn.q_norm(q), attn.k_norm(k)

    def value(self, block: Any, y: Tensor) -> Tensor:
        attn = block.attn
        return heads(rows(attn.qkv, y, slice(2 * _width(attn), None)), attn.num_heads)

    def add_attention(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return x + block.drop_path1(block.ls1(out))

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    def arguments(
        self, native: dict[str, Any], state: TokenState, bias: Tensor | None
    ) -> dict[str, Any]:
        return {} if bias is None else {"attn_mask": bias}


def _width(attn: Any) -> int:
    """Channels of all heads."""
    return int(attn.num_heads * attn.head_dim)
