"""Masked parallel generation: MaskGIT's rules (arXiv 2202.04200; google-research/maskgit)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from polytok.core.contracts import Batch, Codes
from polytok.core.errors import ConfigError, SignalError, UnknownNameError
from polytok.generators.draws import Rng, gumbel, uniform
from polytok.generators.process import (
    Draw,
    Example,
    Known,
    Process,
    Query,
    State,
    Step,
    check_known,
)

# Share of the tokens that stay masked when a share r of the way is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda r: math.cos(math.pi / 2 * r),
    "arccos": lambda r: math.acos(r) / (math.pi / 2),
    "linear": lambda r: 1 - r,
}


class MaskedOrder(Process):
    """All slots at once; the surest stay, the others are masked and drawn again.

    The net sees ids with ``vocab`` standing for the mask. Batches: ids (B, N) int64.

    Args:
        schedule: of the masked share, see :data:`SCHEDULES`; training draws its shares from it.
        temperature: of the Gumbel noise on confidences, falling linearly to 0.
        num_steps: of sampling, when none is asked for.
        visible: weight in training of a slot that is shown, where one that is hidden has 1.
    """

    def __init__(
        self,
        length: int,
        vocab: int,
        *,
        schedule: str = "cosine",
        temperature: float = 4.5,
        num_steps: int = 8,
        visible: float = 0.0,
    ) -> None:
        if schedule not in SCHEDULES:
            raise UnknownNameError("schedule", schedule, SCHEDULES)
        if not 1 <= num_steps <= length:
            raise ConfigError(f"num_steps={num_steps} is not within 1..{length}")
        for name, value in (("temperature", temperature), ("visible", visible)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name}={value} is not a finite number of at least 0")
        self.length, self.vocab, self.num_steps = length, vocab, num_steps
        self.share, self.temperature, self.visible = SCHEDULES[schedule], temperature, visible

    def corrupt(self, batch: Batch, *, rng: Rng | None = None) -> Example:
        ids = batch.get("ids")
        if ids is None or ids.ndim != 2 or ids.shape[1] != self.length:
            got = "none" if ids is None else tuple(ids.shape)
            raise SignalError(f"a batch of codes needs ids (B, {self.length}), got {got}")
        if rng is None:
            raise ConfigError("masking draws at random: an rng is needed")
        draws = uniform((len(ids), 1 + self.length), rng, ids.device)
        shares = torch.tensor([self.share(u) for u in draws[:, 0].tolist()], device=ids.device)
        count = (shares * self.length).ceil().clamp(min=1)
        hidden = draws[:, 1:].argsort(dim=1).argsort(dim=1) < count[:, None]
        index = torch.arange(self.length, device=ids.device)
        query = Query(inp=ids.masked_fill(hidden, self.vocab), index=index)
        weight = hidden.float() + self.visible * (~hidden).float()
        return Example(query=query, target=ids, weight=weight)

    def plan(self, steps: int | None) -> Sequence[Step]:
        total = self.num_steps if steps is None else steps
        if not 1 <= total <= self.length:
            raise ConfigError(f"steps={steps} is not within 1..{self.length}")
        return [Step(number=k, total=total) for k in range(total)]

    def start(self, count: int, device: torch.device, *, rng: Rng, known: Known | None) -> State:
        check_known(known, count, self.length, self.vocab)
        ids = torch.full((count, self.length), self.vocab, dtype=torch.int64, device=device)
        if known is not None:
            ids = torch.where(known.mask, known.ids, ids)
        return State(value=ids, known=known, carry=(ids == self.vocab).sum(1))

    def query(self, state: State, step: Step) -> Query:
        index = torch.arange(self.length, device=state.value.device)
        return Query(inp=state.value, index=index)

    def advance(self, state: State, step: Step, draw: Draw, *, rng: Rng) -> State:
        hidden = state.value == self.vocab
        ids = torch.where(hidden, draw.value, state.value)
        if step.number + 1 == step.total:
            return State(value=ids, known=state.known, carry=state.carry)
        noise = gumbel(ids.shape, rng, ids.device) * (self.temperature * (1 - step.end))
        sure = (draw.confidence + noise).masked_fill(~hidden, float("inf"))
        # In double precision: what is a whole number must not fall to the one below.
        left = (state.carry.double() * self.share(step.end)).floor().to(torch.int64)
        # At least one slot is drawn now and at least one is left for later, where there are two.
        left = torch.minimum(left.clamp(min=1), hidden.sum(1) - 1).clamp(min=0)
        rank = sure.argsort(dim=1).argsort(dim=1)
        ids = ids.masked_fill(rank < left[:, None], self.vocab)
        return State(value=ids, known=state.known, carry=state.carry)

    def finish(self, state: State) -> Codes:
        return Codes(indices=(state.value,))
