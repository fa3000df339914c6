"""timm's Eva: EVA-02, DINOv3, Perception Encoder and ViTs with rotary positions."""

from __future__ import annotations

from typing import Any

import torch
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

timm = import_hf("timm.models.eva")
rotate = import_hf("timm.layers").apply_rot_embed_cat


class TimmEva(TimmHost):
    """Blocks that get rotary positions; a token that stands for several has its anchor's."""

    def check(self, core: Any, root: Any, reducer: Reducer, restore: str) -> None:
        loop = ("forward", "forward_features", "forward_intermediates")
        check_methods(core, timm.Eva, *loop)
        check_pool(core, restore)
        for block in core.blocks:
            check_block(block, timm.EvaBlock, timm.EvaAttention, timm.AttentionRope)

    def embed(self, core: Any, image: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        x, rope = core._pos_embed(core.patch_embed(image))
        each = rope if core.rope_mixed and rope is not None else [rope] * len(core.blocks)
        return core.norm_pre(x), [{"rope": part} for part in each]

    def rope(self, native: dict[str, Any], state: TokenState) -> Tensor | None:
        """(n, 2 d), or per sample (B, heads or 1, n, 2 d)."""
        table, origin = native.get("rope"), state.origin()
        if table is None or origin is None:
            return table
        if table.ndim == 2:
            return table[origin][:, None]
        if table.ndim == 3:
            return table[:, origin].transpose(0, 1)
        index = origin[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3])
        return table.gather(2, index)

    def qkv(self, block: Any, y: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        attn = block.attn
        if attn.qkv is None or getattr(attn, "q_bias", None) is not None:
            return super().qkv(block, y, rope)
        q, k, v = (heads(part, attn.num_heads) for part in attn.qkv(y).chunk(3, -1))
        return (*_turned(attn, q, k, rope, v.dtype), v)

    def query_key(self, block: Any, y: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        attn = block.attn
        q, k = _part(attn, y, 0), _part(attn, y, 1)
        q, k = _turned(attn, q, k, rope, q.dtype)
        return q, k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)

    def value(self, block: Any, y: Tensor) -> Tensor:
        v = _part(block.attn, y, 2)
        return v.repeat_interleave(block.attn.num_heads // v.shape[1], dim=1)

    def add_attention(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        out = out if block.gamma_1 is None else block.gamma_1 * out
        return x + block.drop_path1(out)

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        out = block.mlp(block.norm2(x))
        return x + block.drop_path2(out if block.gamma_2 is None else block.gamma_2 * out)

    def arguments(
        self, native: dict[str, Any], state: TokenState, bias: Tensor | None
    ) -> dict[str, Any]:
        return {"rope": self.rope(native, state), "attn_mask": bias}


def _part(attn: Any, y: Tensor, number: int) -> Tensor:
    """The query, key or value (0, 1, 2) projection, by heads."""
    if attn.qkv is None:
        projection = (attn.q_proj, attn.k_proj, attn.v_proj)[number]
        count = attn.num_heads if number == 0 else getattr(attn, "num_kv_heads", attn.num_heads)
        return heads(projection(y), count)
    width = attn.num_heads * attn.head_dim
    out = rows(attn.qkv, y, slice(number * width, (number + 1) * width))
    bias = (getattr(attn, "q_bias", None), None, getattr(attn, "v_bias", None))[number]
    return heads(out if bias is None else out + bias, attn.num_heads)


def _turned(
    attn: Any, q: Tensor, k: Tensor, rope: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Norms and rotary positions, which prefix tokens go without."""
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is None:
        return q, k
    first, half = attn.num_prefix_tokens, getattr(attn, "rotate_half", False)
    turned = [
        torch.cat([part[:, :, :first], rotate(part[:, :, first:], rope, half=half)], 2).to(dtype)
        for part in (q, k)
    ]
    return turned[0], turned[1]
