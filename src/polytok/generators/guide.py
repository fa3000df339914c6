"""Guidance: a weighted sum over branches of conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.generators.cond import NULL
from polytok.generators.process import Step

Schedule = Callable[[Step], float]


def constant(step: Step) -> float:
    """The full strength at every step."""
    return 1.0


def linear(step: Step) -> float:
    """From none at the first step to the full strength at the last (VAR)."""
    return step.ratio


def interval(low: float, high: float, inner: Schedule = constant) -> Schedule:
    """``inner`` while the ratio of the step is within [low, high], else none."""
    return lambda step: inner(step) if low <= step.ratio <= high else 0.0


def lagging(step: Step) -> float:
    """The share of steps that are done: none at the first, not quite all at the last (MUSE)."""
    return step.start


def power_cosine(power: float) -> Schedule:
    """(1 - cos(pi s^power)) / 2 of the share s of steps that are done (MDT, RAR).

    With strength w - 1 it makes guidance u + (1 + (w - 1) schedule) (c - u).
    """
    return lambda step: (1 - math.cos(math.pi * step.start**power)) / 2


@dataclass(frozen=True, kw_only=True)
class Guide:
    """out = u + sum_b share_b (1 + strength schedule(step)) (out_b - u), with u the null branch.

    One share of 1 is classifier-free guidance (1 + t) c - t u; strength 0 runs that branch alone.

    Args:
        shares: by branch; empty for the null branch alone.
        strength: w of (1 + w) c - w u at full schedule. schedule: of the strength.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    strength: float = 0.0
    schedule: Schedule = linear

    def __post_init__(self) -> None:
        values = [self.strength, *self.shares.values()]
        if not all(abs(v) < float("inf") for v in values):
            raise ConfigError(f"guidance must be finite, got {values}")
        if NULL in self.shares:
            raise ConfigError(f"the branch {NULL!r} gets what the others leave")

    def weights(self, step: Step) -> dict[str, float]:
        """The weight of every branch at a step; they sum to one."""
        factor = 1 + self.strength * self.schedule(step) if self.strength else 1.0
        out = {name: share * factor for name, share in self.shares.items()}
        return {**out, NULL: 1 - sum(out.values())}

    def branches(self, plan: Sequence[Step]) -> list[str]:
        """The branches that have weight at some step: the others are never run."""
        weights = [self.weights(step) for step in plan]
        names = [*self.shares, NULL]
        used = [name for name in names if any(abs(w[name]) > 1e-12 for w in weights)]
        return used or [NULL]

    def combine(self, outputs: Tensor, names: Sequence[str], step: Step) -> Tensor:
        """Sum outputs (R, ...) of the named branches by their weights."""
        if len(names) == 1:
            return outputs[0]
        weights = self.weights(step)
        factors = torch.tensor(
            [weights[n] for n in names], dtype=outputs.dtype, device=outputs.device
        )
        return torch.einsum("r,r...->...", factors, outputs)
