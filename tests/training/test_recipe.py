"""Recipes and training configurations: strict in, complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polytok.core.contracts import Stage
from polytok.core.errors import ConfigError, PolytokError, UnknownNameError
from polytok.training import Recipe, StageBudget, TrainConfig

TEXT = """
preset = "vat-512b-tiny"

[data]
train = "train.zip"

[[stages]]
name = "first"
samples = 100

[[stages]]
name = "second"
samples = 200

[sampling]
mix = 0.2

[train]
batch_size = 16
lr = 1e-3
betas = [0.8, 0.9]
"""


def read(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(text)
    return Recipe.read(path)


def test_a_recipe_is_read_and_planned(tmp_path: Path) -> None:
    recipe = read(tmp_path, TEXT)
    assert recipe.stages == (
        StageBudget(name="first", samples=100),
        StageBudget(name="second", samples=200),
    )
    assert recipe.train == TrainConfig(batch_size=16, lr=1e-3, betas=(0.8, 0.9))
    assert recipe.sampling == {"mix": 0.2} and recipe.config == {}
    stages = [Stage(name=n, weights={}) for n in ("second", "first", "third")]
    assert recipe.plan(stages) == [(stages[1], 100), (stages[0], 200)]
    with pytest.raises(UnknownNameError, match="'second'"):
        recipe.plan(stages[1:])


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("batch_size = 16", "batch_sise = 16", "did you mean 'batch_size'"),
        ("batch_size = 16", "batch_size = 0", "batch_size=0 must be at least 1"),
        ("batch_size = 16", 'batch_size = "x"', "not of type int"),
        ("[sampling]", "[smapling]", "did you mean 'sampling'"),
        ('train = "train.zip"', "", "train"),
        ("lr = 1e-3", "lr = = 1", "cannot read recipe"),
        ("lr = 1e-3", 'precision = "fp8"', "fp8"),
    ],
)
def test_mistakes_are_refused_in_one_line(tmp_path: Path, old: str, new: str, text: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(PolytokError, match=text) as error:
        read(tmp_path, TEXT.replace(old, new))
    assert "\n" not in str(error.value)


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read recipe"):
        Recipe.read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0},
        {"lr": float("nan")},
        {"ema_decay": 1.0},
        {"betas": (0.9, 1.0)},
        {"clip": -1.0},
        {"num_workers": -1},
        {"final_lr_factor": 1.5},
        {"time_limit_minutes": -1.0},
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        TrainConfig(**change)
