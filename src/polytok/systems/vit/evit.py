"""EViT: tokens that the class token attends to go on, the others become one.

"Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations"
(arXiv 2202.07800; official code: youweiliang/evit, Apache-2.0, ten DeiT-S checkpoints with the
keys of plain DeiT). Plain weights work unchanged; fine-tuning or training with a falling keep
ratio makes up for most of what is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polytok.reducers import Fuse, Reducer, Scores, Select, TokenMap, TokenState


@dataclass(frozen=True, kw_only=True)
class EViT(Reducer):
    """Between attention and MLP of a few blocks, keep the patches the class token attends to most.

    Kept patches are in the order of their attention. The fused token is the sum of the others,
    weighted by their attention as it is, and counts as a patch in the next block.

    Args:
        fuse: add the fused token; else the others are dropped.
    """

    needs_cls: ClassVar[bool] = True
    fuse: bool = True

    @property
    def extra(self) -> int:
        return int(self.fuse)

    def choose(self, state: TokenState, scores: Scores, keep: int) -> TokenMap:
        attention = scores.class_row()
        index = attention.topk(keep).indices
        if not self.fuse:
            return Select(index, state.patches)
        return Fuse(index, attention, state.patches)

    def macs(self, length: int, keep: int, dim: int) -> int:
        return length * dim


PRESETS = {"evit": EViT()}
