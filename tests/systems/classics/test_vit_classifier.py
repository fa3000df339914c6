"""The small vision transformer: its sizes, its learning, its loading."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

import polytok
from polytok.core.errors import ConfigError
from polytok.data.images import read_labelled
from polytok.systems import api
from polytok.systems.classics.vit_classifier import ViTClassifier, accuracy, preset

RECIPE = """
preset = "vit-classifier-tiny"
stages = [{{ name = "classify", samples = {samples} }}]
[data]
train = "{data}"
[sampling]
shift = 1
erase = 0.0
held_out = 6
[train]
batch_size = 12
lr = 3e-3
ema_decay = 0.0
precision = "fp32"
device = "cpu"
num_workers = 0
"""


@pytest.fixture
def stripes(tmp_path: Path) -> Path:
    """Three classes of noisy pictures: rows, columns, and a plain tone."""
    rng = np.random.default_rng(0)
    path = tmp_path / "stripes.zip"
    with ZipFile(path, "w") as out:
        for name, wave in {
            "rows": np.sin(np.arange(16))[:, None],
            "columns": np.sin(np.arange(16))[None],
            "plain": np.zeros((16, 16)),
        }.items():
            for i in range(10):
                tone = 128 + 80 * np.broadcast_to(wave, (16, 16)) + rng.normal(0, 8, (16, 16))
                file = BytesIO()
                Image.fromarray(tone.clip(0, 255).astype(np.uint8)).convert("RGB").save(file, "PNG")
                out.writestr(f"{name}/{i}.png", file.getvalue())
    return path


def test_the_subject_of_reduction_has_64_tokens_and_a_class_token() -> None:
    vit = ViTClassifier(preset("vit-classifier-cifar")).vit
    assert vit.patch_embed.num_patches == 64
    assert (vit.num_prefix_tokens, len(vit.blocks)) == (1, 9)
    assert vit.patch_embed(torch.zeros(2, 3, 32, 32)).shape == (2, 64, vit.embed_dim)


def test_a_recipe_learns_and_its_folder_loads(stripes: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(samples=1200, data=stripes))
    api.train(recipe, tmp_path / "run")
    model = polytok.load(tmp_path / "run")
    assert isinstance(model, ViTClassifier)
    assert accuracy(model.logits, read_labelled(stripes, 16)) >= 0.9


def test_wrong_sizes_and_data_are_refused(stripes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stride=3"):
        preset("vit-classifier-tiny").__class__(stride=3)
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.format(samples=12, data=stripes)
    recipe.write_text(text + "[config]\nnum_classes = 4\n")
    with pytest.raises(ConfigError, match="has 3 classes, not 4"):
        api.train(recipe, tmp_path / "run")
    recipe.write_text(text.replace("erase", "erased"))
    with pytest.raises(ConfigError, match="unknown sampling key 'erased'"):
        api.train(recipe, tmp_path / "run")
