"""transformers' DINOv2, with and without registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from polytok.reducers.hosts.hf_model import HFHost


class HFDinov2(HFHost):
    """Layers with layer scale and drop path."""

    def blocks(self, core: Any) -> Sequence[nn.Module]:
        return list(core.encoder.layer)

    def norm(self, block: Any, x: Tensor) -> Tensor:
        return block.norm1(x)

    def add_attention(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return block.drop_path(block.layer_scale1(out)) + x

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.drop_path(block.layer_scale2(block.mlp(block.norm2(x)))) + x
