"""timm's VisionTransformer: ViT, DeiT, DeiT-III, distilled, DINOv2 with registers, CLIP, SigLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from polytok.core.errors import PolytokError
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers.hosts.timm_model import TimmHost, check_methods, check_pool, heads
from polytok.reducers.reducer import Reducer
from polytok.reducers.state import TokenState

MODULE = "timm.models.vision_transformer"


class TimmViT(TimmHost):
    """Blocks of norm, attention, layer scale and MLP with one qkv product; learned positions."""

    name = "timm VisionTransformer"

    def matches(self, module: nn.Module) -> bool:
        return any(
            c.__module__ == MODULE and c.__name__ == "VisionTransformer"
            for c in type(module).__mro__
        )

    def check(self, core: Any, reducer: Reducer, restore: str) -> None:
        timm = import_hf(MODULE)
        check_methods(
            core, timm.VisionTransformer, "forward", "forward_features", "forward_intermediates"
        )
        check_pool(core, restore)
        for block in core.blocks:
            if not isinstance(block, timm.Block) or not isinstance(block.attn, timm.Attention):
                raise PolytokError(
                    f"blocks of {type(block).__name__} with {type(block.attn).__name__} are not "
                    "known to token reduction; timm's Block with Attention works"
                )
            check_methods(block, timm.Block, "forward")
            check_methods(block.attn, timm.Attention, "forward")

    def qkv(self, block: Any, y: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        attn = block.attn
        q, k, v = (heads(part, attn.num_heads) for part in attn.qkv(y).chunk(3, -1))
        return attn.q_norm(q), attn.k_norm(k), v

    def query_key(self, block: Any, y: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        attn = block.attn
        both = _rows(attn.qkv, y, slice(0, 2 * attn.attn_dim))
        q, k = (heads(part, attn.num_heads) for part in both.chunk(2, -1))
        return attn.q_norm(q), attn.k_norm(k)

    def value(self, block: Any, y: Tensor) -> Tensor:
        attn = block.attn
        return heads(_rows(attn.qkv, y, slice(2 * attn.attn_dim, None)), attn.num_heads)

    def add_attention(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return x + block.drop_path1(block.ls1(out))

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    def resume(
        self,
        plain: Callable[..., Tensor],
        x: Tensor,
        args: tuple[Any, ...],
        native: dict[str, Any],
        state: TokenState,
    ) -> Tensor:
        bias = state.bias()
        return plain(x) if bias is None else plain(x, attn_mask=bias.to(x.dtype))


def _rows(qkv: nn.Module, y: Tensor, rows: slice) -> Tensor:
    """Some outputs of a linear layer; a wrapped one computes all of them."""
    if type(qkv) is not nn.Linear:
        return qkv(y)[..., rows]  # type: ignore[no-any-return]
    return F.linear(y, qkv.weight[rows], None if qkv.bias is None else qkv.bias[rows])
