"""The visual tokens of a batch, with what was recorded while they were made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from polytok.reducers.vlm.hosts.base import Tower
from polytok.reducers.vlm.layout import Layout
from polytok.reducers.vlm.tap import Tap


@dataclass(frozen=True, kw_only=True)
class VisualTokens:
    """Ragged visual tokens.

    Args:
        features: per image (n_i, D), in the order of the placeholders.
        layouts: per image, where its tokens come from.
        rows: per tap and image, attention (tiles, heads, cells), merged as the tokens are.
        tower: of the model that made them.
    """

    features: Sequence[Tensor]
    layouts: Sequence[Layout]
    tower: Tower
    rows: dict[Tap, list[Tensor]] = field(default_factory=dict)
