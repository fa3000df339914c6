"""A classifier that was trained for a moment, for recipes of reduction to start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from polytok.systems import api
from systems.vit.stripes import write_recipe, write_stripes


@pytest.fixture(scope="session")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("stripes") / "stripes.zip")


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory, stripes: Path) -> Path:
    """Folder of a trained tiny classifier of 16 tokens."""
    folder = tmp_path_factory.mktemp("classifier")
    values = {"preset": "vit-classifier-tiny", "stage": "classify", "samples": 1200, "lr": "3e-3"}
    recipe = write_recipe(folder, stripes, **values)
    api.train(recipe, folder / "run", ["config.num_layers=3"])
    return folder / "run"
