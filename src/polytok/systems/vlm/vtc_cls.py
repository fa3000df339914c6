"""VTC-CLS: the class token's attention, summed over layers, says which visual tokens to keep.

"[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs" (arXiv 2412.05819;
official code: THU-MIG/VTC-CLS, Apache-2.0, no weights of its own). As FasterVLM, with the scores
of several layers added up; the window ends at the layer that makes the features. The official
code has no default for its start: the last five layers are this library's choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from polytok.reducers.vlm import AttentionScore, Plan, Reduction
from polytok.reducers.vlm.hosts.base import Positions
from polytok.systems.vlm._shared import budget_of


@dataclass(frozen=True, kw_only=True)
class VTCCLSConfig:
    """What to keep, and over which layers. Give one of ``keep``, ``ratio``, ``total``.

    Args:
        keep, ratio, total, row, positions, protect_newlines: as :class:`FasterVLMConfig`.
        window: so many layers, at most, that end with the one whose output becomes the tokens.
        layers: these layers instead, negative from the end.
    """

    keep: Any = None
    ratio: float | None = None
    total: int | None = None
    row: Literal["cls", "received"] = "cls"
    window: int = 5
    layers: tuple[int, ...] | None = None
    positions: Positions | None = None
    protect_newlines: bool = True

    def plan(self) -> Plan:
        """The plan; its numbers are checked here, the model when it is applied."""
        return Plan(
            name="vtc-cls",
            visual=Reduction(
                score=AttentionScore(row=self.row, layers=self.layers, window=self.window),
                budget=budget_of(self.keep, self.ratio, self.total),
                positions=self.positions,
                protect_others=self.protect_newlines,
            ),
        )


CONFIG = VTCCLSConfig

PRESETS = {f"vtc-cls-{keep}": VTCCLSConfig(keep=keep) for keep in (64, 128, 256)}
"""The rows of the paper's main table."""
