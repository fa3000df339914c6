"""The contract of a reduction method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from polytok.reducers.maps import TokenMap
from polytok.reducers.schedule import Schedule
from polytok.reducers.scores import Scores
from polytok.reducers.state import TokenState

Where = Literal["input", "mid", "output"]


@dataclass(frozen=True, kw_only=True)
class Reducer(ABC):
    """Chooses which tokens go on. Its fields are its options; it holds no state.

    Class attributes say what it needs:
        needs_cls: ranks by the class token, so the model must have one.
        tracks_size: tokens that stand for several weigh more in the attention of later blocks.
    """

    needs_cls: ClassVar[bool] = False
    tracks_size: ClassVar[bool] = False

    @abstractmethod
    def choose(self, state: TokenState, scores: Scores, keep: int) -> TokenMap:
        """The map that keeps ``keep`` of the patch tokens; prefix tokens are not its business."""

    def check(self, depth: int) -> None:  # noqa: B027 - most fit any model
        """Refuse a model of ``depth`` blocks that the options do not fit."""

    @property
    def where(self) -> Where:
        """Where it acts: before a block, between its attention and its MLP, or behind it."""
        return "mid"

    @property
    def extra(self) -> int:
        """Tokens made beyond those kept."""
        return 0

    @property
    def reuses_attention(self) -> bool:
        """Whether a block whose input is reduced goes on with its merged attention map."""
        return False

    def least(self, patches: int) -> int:
        """The fewest of so many patch tokens that one reduction can keep."""
        return 1

    def layers(self, depth: int) -> tuple[int, ...]:
        """Blocks that reduce unless told otherwise: at a quarter, a half and three quarters."""
        return tuple(sorted({depth * i // 4 for i in (1, 2, 3)}))

    def schedule(self, depth: int) -> Schedule:
        """The published schedule, for a model of ``depth`` blocks."""
        return Schedule.ratios(0.7, self.layers(depth))

    def macs(self, length: int, keep: int, dim: int) -> int:
        """Multiply-accumulates of choosing and mapping for a sample; ``length`` has the prefix."""
        return 0
