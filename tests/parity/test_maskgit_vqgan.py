"""Our MaskGIT-VQGAN against the official code, on random weights.

``data/titok.npz``, arrays under ``V/``, holds what the encoder, decoder and quantizer of
bytedance/1d-tokenizer (Apache-2.0, commit 942a96f; ``modeling/modules/maskgit_vqgan.py``) gave in
fp32 on one CPU thread: 5 pictures of 32 pixels, 32 channels, multipliers 1, 1, 2, codebook 48 x 16,
seed 5. ``data/titok_keys.json``: names and shapes of the full size.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parity.official import arrays, assert_covered, filled, pictures, shapes_of
from polytok.core.contracts import Codes, StepContext
from polytok.systems.classics.maskgit_vqgan import (
    STAGES,
    MaskGITVQGAN,
    MaskGITVQGANConfig,
    key_map,
    preset,
)

pytestmark = pytest.mark.parity
CONFIG = MaskGITVQGANConfig(
    size=32, channels=32, multipliers=(1, 1, 2), latent_dim=16, codebook_size=48
)


@pytest.fixture(scope="module")
def oracle() -> dict[str, Tensor]:
    return arrays("titok.npz", "V/")


@pytest.fixture(scope="module")
def model() -> MaskGITVQGAN:
    return filled(MaskGITVQGAN(CONFIG), key_map(CONFIG), seed=5)  # type: ignore[return-value]


@torch.no_grad()
def test_ids_and_latents_are_those_of_the_official_code(
    oracle: dict[str, Tensor], model: MaskGITVQGAN
) -> None:
    image = pictures(5, 5, 32)
    torch.testing.assert_close(model.encoder(image), oracle["z"], atol=1e-4, rtol=0)
    assert torch.equal(model.encode({"image": image}).indices[0], oracle["ids"])
    assert len(oracle["ids"].unique()) > CONFIG.codebook_size // 2


@torch.no_grad()
def test_pictures_are_those_of_the_official_code(
    oracle: dict[str, Tensor], model: MaskGITVQGAN
) -> None:
    latents = model.codebook[oracle["ids"]].transpose(1, 2).unflatten(-1, (8, 8))
    torch.testing.assert_close(model.decode_latents(latents), oracle["image"], atol=1e-4, rtol=0)
    decoded = model.decode(Codes(indices=(oracle["ids"],)))["image"]
    torch.testing.assert_close(decoded, oracle["image"].clamp(0, 1), atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_weights_of_its_stage_make_the_official_loss(
    oracle: dict[str, Tensor], model: MaskGITVQGAN
) -> None:
    losses = model({"image": pictures(5, 5, 32)}, StepContext()).losses
    weighted = sum(STAGES[0].weights[k] * v for k, v in losses.items() if k.startswith("vq/"))
    torch.testing.assert_close(weighted, oracle["loss"], atol=1e-4, rtol=1e-5)


def test_the_key_map_covers_the_full_size() -> None:
    config = preset("maskgit-vqgan")
    with torch.device("meta"):
        model = MaskGITVQGAN(config)
    assert_covered(model, key_map(config), shapes_of("titok_keys.json")["maskgit-vqgan"])
