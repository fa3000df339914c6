"""FasterVLM: visual tokens that the class token attends to, before the language model.

"[CLS] Attention is All You Need for Training-Free Visual Token Pruning" (arXiv 2412.01818;
official code: Theia-4869/FasterVLM, Apache-2.0, no weights of its own). The score of a patch is
the class token's attention, mean over heads, in the layer that makes the features; the best stay
in the order of the picture. Differences: anyres images keep their newlines and their unpadding,
which the official scripts switch off, and patches are dropped after the packing, so a tile whose
padding is cut keeps the best of what is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from polytok.reducers.vlm import AttentionScore, Diverse, Plan, Reduction, top
from polytok.reducers.vlm.hosts.base import Positions
from polytok.systems.vlm._shared import budget_of


@dataclass(frozen=True, kw_only=True)
class FasterVLMConfig:
    """What to keep, and by which row of attention. Give one of ``keep``, ``ratio``, ``total``.

    Args:
        keep: tokens per TILE (int), or the KEPT fraction (float in (0, 1]).
        ratio: the REMOVED fraction, the paper's R.
        total: tokens per IMAGE, spread evenly over its tiles, the remainder to the thumbnail.
        row: ``cls``, or ``received`` for towers without a class token (the authors' advice).
        layer: of the tower; None: the one whose output becomes the tokens.
        diverse: share of the tokens taken for being unlike the others, see :class:`Diverse`.
        positions: of the tokens that stay, ``contiguous`` or ``keep``; None: as the family does.
        protect_newlines: keep all newline tokens of anyres images.
    """

    keep: Any = None
    ratio: float | None = None
    total: int | None = None
    row: Literal["cls", "received"] = "cls"
    layer: int | None = None
    diverse: float = 0.0
    positions: Positions | None = None
    protect_newlines: bool = True

    def plan(self) -> Plan:
        """The plan; its numbers are checked here, the model when it is applied."""
        layers = None if self.layer is None else (self.layer,)
        return Plan(
            name="fastervlm",
            visual=Reduction(
                score=AttentionScore(row=self.row, layers=layers),
                budget=budget_of(self.keep, self.ratio, self.total),
                select=Diverse(self.diverse) if self.diverse else top,
                positions=self.positions,
                protect_others=self.protect_newlines,
            ),
        )


CONFIG = FasterVLMConfig

PRESETS = {f"fastervlm-{keep}": FasterVLMConfig(keep=keep) for keep in (64, 128, 192)}
"""Tokens per tile that published tables use for towers with 576."""
