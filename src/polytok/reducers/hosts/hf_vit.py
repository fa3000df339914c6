"""transformers' ViT and DeiT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from polytok.reducers.hosts.hf_model import HFHost


class HFViT(HFHost):
    """Layers with norms before attention and MLP, one dropout for both."""

    def blocks(self, core: Any) -> Sequence[nn.Module]:
        return list(core.layers)

    def norm(self, block: Any, x: Tensor) -> Tensor:
        return block.layernorm_before(x)

    def add_attention(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return block.dropout(out) + x

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.dropout(block.mlp(block.layernorm_after(x))) + x
