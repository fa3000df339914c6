"""Recipes: a complete training run in one readable TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from polytok.core.config import from_dict
from polytok.core.contracts import Stage
from polytok.core.errors import ConfigError, UnknownNameError
from polytok.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where signals come from: files, folders or zips, relative to the working folder.

    Args:
        train, val: signals to learn from, and to score now and then ("" = none).
        prepared: folder that keeps prepared signals between runs.
        num_val: score at most this many signals.
    """

    train: str
    val: str = ""
    prepared: str = ".prepared"
    num_val: int = 64


@dataclass(frozen=True, kw_only=True)
class StageBudget:
    """How many samples a stage of the system gets."""

    name: str
    samples: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Preset + data + budget.

    Args:
        preset: full name; ``config`` replaces some fields of its configuration.
        stages: stages of the system that are run, in this order.
        init: weights tag or folder of the same architecture to start from; "" for random weights.
        sampling: fields of the modality's sampling and augmentation.
        train: optimiser, schedule and bookkeeping.
    """

    preset: str
    data: DataRecipe
    stages: tuple[StageBudget, ...]
    init: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)

    @staticmethod
    def read(path: str | PathLike[str]) -> Recipe:
        """Read a recipe.

        Raises:
            ConfigError: the file cannot be read, is no TOML, or has a wrong value.
            UnknownNameError: it has an unknown key; the message suggests the nearest one.
        """
        try:
            values = tomllib.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read recipe {path}: {error}") from error
        return from_dict(Recipe, values)

    def plan(self, stages: Sequence[Stage]) -> list[tuple[Stage, int]]:
        """Join the budgets with the system's stages of the same names.

        Raises:
            UnknownNameError: the system has no such stage.
        """
        known = {stage.name: stage for stage in stages}
        for budget in self.stages:
            if budget.name not in known:
                raise UnknownNameError("stage", budget.name, known)
        return [(known[budget.name], budget.samples) for budget in self.stages]
