"""Autoregressive orders: groups of slots, one after another, each drawn in parallel.

Groups of the sizes of scales are next-scale generation (VAR, arXiv 2404.02905); groups of one
slot are raster order. Only what feeds the next group differs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from polytok.bottlenecks import MultiScaleVQ
from polytok.core.contracts import Batch, Codes
from polytok.core.errors import ConfigError, SignalError
from polytok.generators.draws import Rng
from polytok.generators.process import (
    Draw,
    Example,
    Known,
    Process,
    Query,
    Report,
    State,
    Step,
    check_known,
)


class Feed(Protocol):
    """How ids become the inputs of later groups."""

    def teacher(self, groups: Sequence[Tensor]) -> Tensor | None:
        """Inputs of groups 2..K from the ids of K groups; None when there is one."""

    def follow(self, carry: Any, ids: Tensor, group: int) -> tuple[Any, Tensor | None]:
        """Take in the ids of a group; returns what to carry and the inputs of the next group."""


class ScaleFeed:
    """The sum of the scales so far, brought down to the next one (page next-scale, section 2)."""

    def __init__(self, quantizer: MultiScaleVQ) -> None:
        self.quantizer = quantizer

    def teacher(self, groups: Sequence[Tensor]) -> Tensor | None:
        return self.quantizer.teacher_inputs(groups) if len(groups) > 1 else None

    def follow(self, carry: Any, ids: Tensor, group: int) -> tuple[Any, Tensor | None]:
        lifted = self.quantizer.lift(ids, group)
        total = lifted if carry is None else carry + lifted
        if group + 1 == len(self.quantizer.slots):
            return total, None
        return total, self.quantizer.resampler.down(total, group + 1)


class TokenFeed:
    """The previous group's own tokens, as ids or as ``lookup`` makes vectors of them."""

    def __init__(self, lookup: Callable[[Tensor], Tensor] | None = None) -> None:
        self.lookup = lookup or (lambda ids: ids)

    def teacher(self, groups: Sequence[Tensor]) -> Tensor | None:
        return self.lookup(torch.cat(list(groups[:-1]), dim=1)) if len(groups) > 1 else None

    def follow(self, carry: Any, ids: Tensor, group: int) -> tuple[Any, Tensor | None]:
        return None, self.lookup(ids)


class GroupOrder(Process):
    """Groups of ``slots`` ids over one vocabulary, in order. Batches: ids (B, L) int64.

    Args:
        feed: makes the inputs of a group from the groups before it.
        is_levels: whether every group is a level of the code, or all are one.
    """

    def __init__(
        self, slots: Sequence[int], vocab: int, feed: Feed, *, is_levels: bool = True
    ) -> None:
        if not slots or min(slots) < 1:
            raise ConfigError(f"slots={tuple(slots)} must be positive counts")
        self.slots, self.vocab, self.feed, self.is_levels = tuple(slots), vocab, feed, is_levels
        ends = list(itertools.accumulate(self.slots))
        self.spans = [slice(e - s, e) for s, e in zip(self.slots, ends, strict=True)]
        self.length = self.capacity = ends[-1]
        parts = {f"ce_{k + 1}": span for k, span in enumerate(self.spans)} if is_levels else {}
        self.report = Report(parts)

    def levels(self) -> Tensor:
        """Group number (L,) of every slot."""
        return torch.arange(len(self.slots)).repeat_interleave(torch.tensor(self.slots))

    def mask(self, device: torch.device) -> Tensor:
        """(L, L) bool: a slot sees its own group and those before it."""
        levels = self.levels().to(device)
        return levels[:, None] >= levels[None, :]

    def corrupt(self, batch: Batch, *, rng: Rng | None = None) -> Example:
        ids = batch.get("ids")
        if ids is None or ids.ndim != 2 or ids.shape[1] != self.length:
            got = "none" if ids is None else tuple(ids.shape)
            raise SignalError(f"a batch of codes needs ids (B, {self.length}), got {got}")
        index = torch.arange(self.length, device=ids.device)
        query = Query(
            inp=self.feed.teacher(self.split(ids)), index=index, mask=self.mask(ids.device)
        )
        return Example(query=query, target=ids)

    def split(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Split ids (B, L) by group."""
        return tuple(ids[:, span] for span in self.spans)

    def plan(self, steps: int | None) -> Sequence[Step]:
        total = len(self.slots)
        if steps not in (None, total):
            raise ConfigError(f"steps={steps}: this order takes {total} steps")
        return [Step(number=k, total=total) for k in range(total)]

    def start(self, count: int, device: torch.device, *, rng: Rng, known: Known | None) -> State:
        check_known(known, count, self.length, self.vocab)
        empty = torch.empty(count, 0, dtype=torch.int64, device=device)
        return State(value=empty, known=known, carry=(None, None))

    def query(self, state: State, step: Step) -> Query:
        span = self.spans[step.number]
        index = torch.arange(span.start, span.stop, device=state.value.device)
        return Query(inp=state.carry[1], index=index)

    def advance(self, state: State, step: Step, draw: Draw, *, rng: Rng) -> State:
        ids, span, known = draw.value, self.spans[step.number], state.known
        if known is not None:
            ids = torch.where(known.mask[:, span], known.ids[:, span], ids)
        carry = self.feed.follow(state.carry[0], ids, step.number)
        return State(value=torch.cat([state.value, ids], dim=1), known=known, carry=carry)

    def finish(self, state: State) -> Codes:
        return Codes(indices=self.split(state.value) if self.is_levels else (state.value,))


class ScaleOrder(GroupOrder):
    """Scale after scale of a multi-scale quantizer.

    Args:
        balance: in training a slot of a scale of n counts n^-balance, on the mean 1: 0 for all
            slots alike (VAR), 1 for all scales alike.

    Raises:
        ConfigError: it is not within [0, 1].
    """

    def __init__(self, quantizer: MultiScaleVQ, *, balance: float = 0.0) -> None:
        if not 0 <= balance <= 1:
            raise ConfigError(f"balance={balance} is not within [0, 1]")
        vocab = quantizer.embedding.num_embeddings
        super().__init__(quantizer.slots, vocab, ScaleFeed(quantizer))
        self.balance = balance

    def corrupt(self, batch: Batch, *, rng: Rng | None = None) -> Example:
        example = super().corrupt(batch, rng=rng)
        if not self.balance:
            return example
        sizes = torch.tensor(self.slots, device=example.target.device, dtype=torch.float32)
        weight = (sizes**-self.balance)[self.levels()]
        weight = weight / weight.mean()
        return replace(example, weight=weight.expand(example.target.shape))


class RasterOrder(GroupOrder):
    """One id after another; ``lookup`` turns ids into the net's inputs, None feeds the ids."""

    def __init__(
        self, length: int, vocab: int, lookup: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__((1,) * length, vocab, TokenFeed(lookup), is_levels=False)
