"""The small vision transformer: its sizes, its learning, its loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import polytok
from polytok.core.errors import ConfigError
from polytok.data.images import read_labelled
from polytok.systems import api
from polytok.systems.classics.vit_classifier import ViTClassifier, accuracy, preset
from systems.vit.stripes import write_recipe, write_stripes

TINY = {"preset": "vit-classifier-tiny", "stage": "classify", "lr": "3e-3"}


@pytest.fixture
def stripes(tmp_path: Path) -> Path:
    return write_stripes(tmp_path / "stripes.zip")


def test_the_subject_of_reduction_has_64_tokens_and_a_class_token() -> None:
    vit = ViTClassifier(preset("vit-classifier-cifar")).vit
    assert vit.patch_embed.num_patches == 64
    assert (vit.num_prefix_tokens, len(vit.blocks)) == (1, 9)
    assert vit.patch_embed(torch.zeros(2, 3, 32, 32)).shape == (2, 64, vit.embed_dim)


def test_a_recipe_learns_and_its_folder_loads(stripes: Path, tmp_path: Path) -> None:
    api.train(write_recipe(tmp_path, stripes, samples=1200, **TINY), tmp_path / "run")
    model = polytok.load(tmp_path / "run")
    assert isinstance(model, ViTClassifier)
    assert accuracy(model.logits, read_labelled(stripes, 16)) >= 0.9


def test_wrong_sizes_and_data_are_refused(stripes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stride=3"):
        preset("vit-classifier-tiny").__class__(stride=3)
    recipe = write_recipe(tmp_path, stripes, samples=12, config="num_classes = 4", **TINY)
    with pytest.raises(ConfigError, match="has 3 classes, not 4"):
        api.train(recipe, tmp_path / "run")
    recipe = write_recipe(tmp_path, stripes, samples=12, **TINY)
    recipe.write_text(recipe.read_text().replace("erase", "erased"))
    with pytest.raises(ConfigError, match="unknown sampling key 'erased'"):
        api.train(recipe, tmp_path / "run")
