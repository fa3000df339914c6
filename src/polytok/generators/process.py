"""The contract of processes: how a code is taken apart for training and put together again.

A process has no parameters. Training and sampling share it, so they cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polytok.core.contracts import Batch, Codes
from polytok.core.errors import ConfigError
from polytok.generators.draws import Rng


@dataclass(frozen=True, kw_only=True)
class Step:
    """Step ``number`` of ``total``, from 0."""

    number: int
    total: int

    @property
    def ratio(self) -> float:
        """0 at the first step, 1 at the last."""
        return self.number / max(1, self.total - 1)

    @property
    def start(self) -> float:
        """Share of the steps before this one, 0 at the first."""
        return self.number / self.total

    @property
    def end(self) -> float:
        """Share of the steps up to and with this one, 1 at the last."""
        return (self.number + 1) / self.total


@dataclass(frozen=True, kw_only=True)
class Query:
    """What a net is asked.

    Args:
        inp: ids (B, m) or vectors (B, m, d) of the last m of the n slots; None when there are
            none. Slots before them are start slots, which have no input but their position.
        index: (n,) numbers of the slots.
        mask: (n, n), True where a slot may see another; None where all may, or a cache decides.
        tau: time, (B,) or (B, n), 1 = noise; None for processes without time.
    """

    index: Tensor
    inp: Tensor | None = None
    mask: Tensor | None = None
    tau: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A training example: the query, its targets (B, n), and weights (B, n) or None."""

    query: Query
    target: Tensor
    weight: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a head drew: values (B, n) or (B, n, d), and how sure of each it is, (B, n).

    That is the log-probability, unless the sampling says otherwise.
    """

    value: Tensor
    confidence: Tensor


@dataclass(frozen=True, kw_only=True)
class Known:
    """Ids that are given, (B, L), and where they hold, (B, L) bool."""

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class State:
    """A code in the making: values so far, what is given, and what the process carries along."""

    value: Tensor
    known: Known | None = None
    carry: Any = None


@dataclass(frozen=True)
class Report:
    """Means of losses (B, n) over named parts of the slots, those that are among the n."""

    parts: dict[str, slice] = field(default_factory=dict)

    def __call__(self, losses: Tensor) -> dict[str, Tensor]:
        count = losses.shape[1]
        return {n: losses[:, part].mean() for n, part in self.parts.items() if part.stop <= count}


class Process:
    """Contract. ``capacity`` slots are ever kept in a cache; 0 for nets that see all at once."""

    capacity: int = 0
    report: Report = Report()

    def corrupt(self, batch: Batch, *, rng: Rng | None = None) -> Example:
        """Make a training example of a batch."""
        raise TypeError(f"{type(self).__name__} must define corrupt")

    def plan(self, steps: int | None) -> Sequence[Step]:
        """Return the steps of sampling; None for the process's own number."""
        raise TypeError(f"{type(self).__name__} must define plan")

    def start(self, count: int, device: torch.device, *, rng: Rng, known: Known | None) -> State:
        """Begin ``count`` codes."""
        raise TypeError(f"{type(self).__name__} must define start")

    def query(self, state: State, step: Step) -> Query:
        """Ask the net for what this step needs."""
        raise TypeError(f"{type(self).__name__} must define query")

    def advance(self, state: State, step: Step, draw: Draw, *, rng: Rng) -> State:
        """Take what was drawn into the state."""
        raise TypeError(f"{type(self).__name__} must define advance")

    def finish(self, state: State) -> Codes:
        """Return the finished codes."""
        raise TypeError(f"{type(self).__name__} must define finish")


def check_known(known: Known | None, count: int, length: int, vocab: int | None = None) -> None:
    """Refuse given ids of another size.

    Raises:
        ConfigError: they are not (count, length), or an id is outside the vocabulary.
    """
    if known is None:
        return
    shape = (count, length)
    if tuple(known.ids.shape) != shape or tuple(known.mask.shape) != shape:
        raise ConfigError(
            f"known ids must be {shape}, got {tuple(known.ids.shape)} and {tuple(known.mask.shape)}"
        )
    given = known.ids[known.mask]
    if vocab is not None and len(given) and not 0 <= int(given.min()) <= int(given.max()) < vocab:
        raise ConfigError(f"known ids are not within 0..{vocab - 1}")
