"""MaskGIT-VQGAN: what its configuration refuses, and a short training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polytok.core.config import override
from polytok.core.errors import ConfigError, SignalError
from polytok.systems import api
from polytok.systems.classics.maskgit_vqgan import (
    MaskGITVQGAN,
    MaskGITVQGANConfig,
    ResidualBlock,
    prepare_training,
    preset,
)
from polytok.training import Recipe

TINY = preset("maskgit-vqgan-tiny")


@pytest.mark.parametrize(
    "changes", [{"size": 30}, {"channels": 40}, {"multipliers": ()}, {"num_blocks": 0}]
)
def test_impossible_sizes_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        override(TINY, **changes)


def test_the_official_size_has_16_by_16_tokens_of_1024() -> None:
    assert (MaskGITVQGANConfig().stride, MaskGITVQGANConfig().grid) == (16, (16, 16))
    with torch.device("meta"):
        spec = MaskGITVQGAN(MaskGITVQGANConfig()).spec
    assert [(level.vocab, level.count) for level in spec.levels] == [(1024, 256)]


@torch.no_grad()
def test_a_shortcut_that_changes_width_reads_the_output() -> None:
    block = ResidualBlock(32, 64, 32)
    block.conv2.weight.zero_()
    # Whatever the input is, nothing of it passes beside the convolutions.
    assert not block(torch.randn(2, 32, 8, 8)).any()
    same = ResidualBlock(32, 32, 32)
    same.conv2.weight.zero_()
    x = torch.randn(2, 32, 8, 8)
    assert torch.equal(same(x), x)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(SignalError, match="64"):
        MaskGITVQGAN(TINY).encode({"image": torch.zeros(1, 3, 64, 64)})


def test_it_trains_from_a_recipe_and_is_loaded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    (data / "a").mkdir(parents=True)
    for number in range(4):
        colours = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(colours).save(data / "a" / f"{number}.png")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        preset = "maskgit-vqgan-tiny"
        data = {{ train = "{data}", val = "{data}" }}
        stages = [{{ name = "reconstruct", samples = 60 }}]
        sampling = {{ shift = 0 }}
        [train]
        batch_size = 4
        lr = 2e-3
        ema_decay = 0.0
        num_workers = 0
        precision = "fp32"
        """
    )
    training = prepare_training(Recipe.read(recipe))
    assert training.validate is not None
    with torch.no_grad():
        before = training.validate(training.model.eval())["psnr"]
    api.train(recipe, tmp_path / "run")
    codec = api.load_codec(tmp_path / "run", modality="image")
    with torch.no_grad():
        assert training.validate(codec.model)["psnr"] > before + 2
