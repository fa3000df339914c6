"""Stages of a run: which step belongs to which, what they switch, how they weigh losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from polytok.core.contracts import Stage
from polytok.core.errors import ConfigError, UnknownNameError


@dataclass(frozen=True)
class Plan:
    """Stages in order, each with the step at which it ends.

    Samples of a stage are rounded up to whole steps.
    """

    stages: tuple[Stage, ...]
    ends: tuple[int, ...]

    @staticmethod
    def of(stages: Sequence[tuple[Stage, int]], batch_size: int) -> Plan:
        """Plan stages of so many samples each; those of 0 samples drop out.

        Raises:
            ConfigError: nothing is left to do, or a number of samples is negative.
        """
        kept: list[Stage] = []
        ends: list[int] = []
        for stage, num_samples in stages:
            if num_samples < 0:
                raise ConfigError(f"stage {stage.name!r} has {num_samples} samples")
            if num_samples:
                kept.append(stage)
                ends.append((ends[-1] if ends else 0) + -(-num_samples // batch_size))
        if not kept:
            raise ConfigError("a run needs a stage of at least one sample")
        return Plan(tuple(kept), tuple(ends))

    @property
    def num_steps(self) -> int:
        return self.ends[-1]

    def index(self, step: int) -> int:
        """Which stage step ``step`` belongs to."""
        return next(i for i, end in enumerate(self.ends) if step < end)

    def progress(self, step: int) -> float:
        """Fraction of the step's own stage that was done before it, in [0, 1)."""
        i = self.index(step)
        start = self.ends[i - 1] if i else 0
        return (step - start) / (self.ends[i] - start)


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether a parameter name matches any of the globs."""
    return any(fnmatchcase(name, glob) for glob in globs)


def check_globs(names: Iterable[str], globs: Iterable[str], what: str) -> None:
    """Refuse globs that match nothing, since they are misspelt.

    Raises:
        ConfigError: a glob matches none of ``names``.
    """
    names = list(names)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ConfigError(f"{what} {glob!r} matches no parameter")


def apply_stage(model: nn.Module, stage: Stage, parameters: Mapping[str, nn.Parameter]) -> None:
    """Set which parameters learn, and the options of the stage.

    Args:
        parameters: the model's own parameters by name; others are left alone.

    Raises:
        ConfigError: a glob matches nothing, or an option names an attribute that is not there.
    """
    check_globs(parameters, stage.train, f"train glob of stage {stage.name!r}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(matches(name, stage.train))
    for path, value in stage.options.items():
        _set(model, path, value, stage)


def weigh(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum the named scalar losses by their weights, in fp32; terms of weight 0 are left out.

    Raises:
        UnknownNameError: a loss has no weight.
        ConfigError: there is no loss to minimise.
    """
    for name in losses:
        if name not in weights:
            raise UnknownNameError("loss without a weight in the stage:", name, weights)
    terms = [loss.float() * weights[name] for name, loss in losses.items() if weights[name]]
    if not terms:
        raise ConfigError(f"no loss to minimise: {sorted(losses)} all have weight 0")
    return torch.stack(terms).sum()


def _set(model: nn.Module, path: str, value: Any, stage: Stage) -> None:
    *parents, name = path.split(".")
    owner: Any = model
    for parent in parents:
        owner = getattr(owner, parent, None)
    if not hasattr(owner, name):
        raise ConfigError(
            f"option {path!r} of stage {stage.name!r} is no attribute of {type(model).__name__}"
        )
    setattr(owner, name, value)
