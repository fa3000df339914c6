"""How many tokens each tile keeps. The count per image follows from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.reducers.vlm.hosts.base import Tower
from polytok.reducers.vlm.layout import Layout
from polytok.reducers.vlm.tap import Tap
from polytok.reducers.vlm.tokens import VisualTokens


class Budget(Protocol):
    """A rule for the number of kept tokens that show a cell."""

    @property
    def is_exact(self) -> bool:
        """Whether :meth:`count` is the number itself; else it is the most it can be."""

    def count(self, layout: Layout) -> int:
        """Tokens kept of an image, before any pixel is read."""

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        """What must be recorded to spread them over tiles."""

    def allocate(self, tokens: VisualTokens, image: int) -> tuple[int, ...]:
        """Tokens kept of each tile of an image."""

    def candidates(self, layout: Layout) -> Tensor:
        """(tiles, cells) bool, the cells that compete for them."""


@dataclass(frozen=True)
class PerTile:
    """The same for every tile: an int is tokens per tile, a float in (0, 1] the kept fraction.

    A tile that the model cuts to fewer tokens keeps what it has.

    Raises:
        ConfigError: ``keep`` is out of range.
    """

    is_exact: ClassVar[bool] = True
    keep: int | float

    def __post_init__(self) -> None:
        check_keep(self.keep, "tile")

    def _counts(self, layout: Layout) -> tuple[int, ...]:
        if isinstance(self.keep, int):
            if self.keep > layout.cells:
                raise ConfigError(
                    f"keep={self.keep} is more than the {layout.cells} tokens of a tile; "
                    "pass fewer, or a fraction in (0, 1]"
                )
            wanted = self.keep
        else:
            wanted = max(1, round(self.keep * layout.cells))
        return tuple(min(wanted, n) for n in layout.capacity)

    def count(self, layout: Layout) -> int:
        return sum(self._counts(layout))

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return ()

    def allocate(self, tokens: VisualTokens, image: int) -> tuple[int, ...]:
        return self._counts(tokens.layouts[image])

    def candidates(self, layout: Layout) -> Tensor:
        return layout.available


@dataclass(frozen=True)
class Total:
    """So many tokens per image, spread evenly over its tiles, the remainder to the thumbnail.

    Raises:
        ConfigError: ``total`` is out of range.
    """

    is_exact: ClassVar[bool] = True
    total: int

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ConfigError(f"total={self.total} is not a number of tokens per image, 1 or more")

    def _counts(self, layout: Layout) -> tuple[int, ...]:
        room = sum(layout.capacity)
        if self.total > room:
            raise ConfigError(f"total={self.total} is more than the {room} tokens of an image")
        first = layout.thumbnail or 0
        counts = [self.total // layout.tiles] * layout.tiles
        counts[first] += self.total % layout.tiles
        order = sorted(range(layout.tiles), key=lambda i: i != first)
        return spill(counts, layout.capacity, order)

    def count(self, layout: Layout) -> int:
        return sum(self._counts(layout))

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return ()

    def allocate(self, tokens: VisualTokens, image: int) -> tuple[int, ...]:
        return self._counts(tokens.layouts[image])

    def candidates(self, layout: Layout) -> Tensor:
        return layout.available


def check_keep(keep: object, unit: str) -> None:
    """Refuse what is neither a count nor a kept fraction.

    Raises:
        ConfigError: it is out of range.
    """
    is_share = type(keep) is float and 0 < keep <= 1
    if not is_share and not (type(keep) is int and keep >= 1):
        raise ConfigError(
            f"keep={keep!r} is neither a number of tokens per {unit}, 1 or more, "
            "nor a fraction in (0, 1]"
        )


def spill(counts: Sequence[int], capacity: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """What does not fit a tile goes to the first tiles of ``order`` that have room."""
    found = [min(n, room) for n, room in zip(counts, capacity, strict=True)]
    left = sum(counts) - sum(found)
    for i in order:
        more = min(left, capacity[i] - found[i])
        found[i] += more
        left -= more
    return tuple(found)
