"""What every method must beat at equal tokens: no score, equal steps, a useless score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polytok.reducers.vlm import AttentionKeep, FeatureNorm, Plan, RandomScore, Reduction, evenly
from polytok.reducers.vlm.hosts.base import Positions
from polytok.systems.vlm._shared import budget_of


@dataclass(frozen=True, kw_only=True)
class RandomConfig:
    """Tokens drawn at random, the same in every call; how many is said as for FasterVLM."""

    keep: Any = None
    ratio: float | None = None
    total: int | None = None
    seed: int = 0
    positions: Positions | None = None

    def plan(self) -> Plan:
        budget = budget_of(self.keep, self.ratio, self.total)
        score = RandomScore(self.seed)
        return Plan(
            name="random",
            visual=Reduction(score=score, budget=budget, positions=self.positions),
        )


@dataclass(frozen=True, kw_only=True)
class UniformConfig:
    """Tokens at equal steps through each tile; how many is said as for FasterVLM."""

    keep: Any = None
    ratio: float | None = None
    total: int | None = None
    positions: Positions | None = None

    def plan(self) -> Plan:
        budget = budget_of(self.keep, self.ratio, self.total)
        return Plan(
            name="uniform",
            visual=Reduction(
                score=RandomScore(), budget=budget, select=evenly, positions=self.positions
            ),
        )


@dataclass(frozen=True, kw_only=True)
class NormConfig:
    """Tokens with the longest features; a score that should do no better than chance."""

    keep: Any = None
    ratio: float | None = None
    total: int | None = None
    positions: Positions | None = None

    def plan(self) -> Plan:
        budget = budget_of(self.keep, self.ratio, self.total)
        return Plan(
            name="norm",
            visual=Reduction(score=FeatureNorm(), budget=budget, positions=self.positions),
        )


@dataclass(frozen=True, kw_only=True)
class FastVConfig:
    """FastV (arXiv 2403.06764): what the last token attends to after a layer of the language model.

    Args:
        layer: from 0; the paper's K = 2 is 1.
        keep: tokens per prompt (int), or the kept fraction.
    """

    layer: int = 1
    keep: Any = 0.5

    def plan(self) -> Plan:
        return Plan(name="fastv", inside=AttentionKeep(self.layer, self.keep))


CONFIGS: dict[str, Any] = {
    "random": RandomConfig,
    "uniform": UniformConfig,
    "norm": NormConfig,
    "fastv": FastVConfig,
}
