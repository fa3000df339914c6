"""TiTok and One-D-Piece against the official code, on random weights.

``data/titok.npz`` holds what ``TiTok`` of bytedance/1d-tokenizer (commit 942a96f) and ``OneDPiece``
of turingmotors/One-D-Piece (both Apache-2.0) gave in fp32 on one CPU thread for 5 pictures of 32
pixels, with their size tables made small: ``small`` 64 wide, 2 blocks, 2 heads, ``base`` 96, 3, 3,
``large`` 128, 2, 4; the pixel decoder as in test_maskgit_vqgan. Patch 4, K = 8. A: two-stage,
small, 64 x 12 codes compared by direction. B: single-stage, base to large, 64 x 16 codes. C:
Gaussian, 16 channels. D: One-D-Piece, small to large. The seed is the letter's number.
``data/titok_keys.json``: names and shapes of every released size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parity.official import arrays, assert_covered, filled, pictures, shapes_of
from polytok.core import registry
from polytok.core.contracts import Codes, StepContext
from polytok.systems.classics import maskgit_vqgan
from polytok.systems.image import one_d_piece, titok
from polytok.systems.image.titok import TiTok, TiTokConfig, TowerConfig
from polytok.systems.image.titok.config import TailDropConfig
from polytok.systems.image.titok.convert import key_map

pytestmark = pytest.mark.parity

SMALL = TowerConfig(dim=64, num_layers=2, num_heads=2)
BASE = TowerConfig(dim=96, num_layers=3, num_heads=3)
LARGE = TowerConfig(dim=128, num_layers=2, num_heads=4)
PIXELS = "maskgit-vqgan-48"
SIZES: dict[str, Any] = {"size": 32, "patch": 4, "num_latents": 8, "codebook_size": 64}
CONFIGS = {
    "A": TiTokConfig(**SIZES, encoder=SMALL, decoder=SMALL, layout="legacy", pixels=PIXELS),
    "B": TiTokConfig(**SIZES, encoder=BASE, decoder=LARGE, code_dim=16, metric="euclidean"),
    "C": TiTokConfig(**SIZES, encoder=BASE, decoder=LARGE, code_dim=16, bottleneck="gaussian"),
    "D": TiTokConfig(
        **SIZES,
        encoder=SMALL,
        decoder=LARGE,
        layout="legacy",
        pixels=PIXELS,
        tail_drop=TailDropConfig(),
    ),
}
SEEDS = {name: number for number, name in enumerate(CONFIGS, start=1)}
DISCRETE = ["A", "B", "D"]


@pytest.fixture(autouse=True)
def _small_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset of the pixel tokenizer that the oracle had."""
    config = maskgit_vqgan.MaskGITVQGANConfig(
        size=32, channels=32, multipliers=(1, 1, 2), latent_dim=16, codebook_size=48
    )
    system = registry.SYSTEMS["maskgit-vqgan"]
    monkeypatch.setitem(maskgit_vqgan.PRESETS, PIXELS, config)
    monkeypatch.setitem(
        registry.SYSTEMS,
        "maskgit-vqgan",
        registry.System(**{**vars(system), "presets": (*system.presets, PIXELS)}),
    )


@pytest.fixture
def case(request: pytest.FixtureRequest) -> tuple[TiTok, dict[str, Tensor], Tensor]:
    """Our model with the official weights, what the official one gave, and the pictures."""
    name, config = request.param, CONFIGS[request.param]
    model = filled(TiTok(config), key_map(config), SEEDS[name])
    found = arrays("titok.npz", f"{name}/")
    return model, found, pictures(SEEDS[name], 5, 32)  # type: ignore[return-value]


def bottleneck_input(model: TiTok, image: Tensor) -> Tensor:
    seen = []
    hook = model.bottleneck.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.encode({"image": image})
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("case", DISCRETE, indirect=True)
@torch.no_grad()
def test_tokens_are_those_of_the_official_code(
    case: tuple[TiTok, dict[str, Tensor], Tensor],
) -> None:
    model, found, image = case
    z = found["z"][:, :, 0].transpose(1, 2)
    torch.testing.assert_close(bottleneck_input(model, image), z, atol=1e-4, rtol=0)
    assert torch.equal(model.encode({"image": image}).indices[0], found["ids"])
    assert len(found["ids"].unique()) > 8


@pytest.mark.parametrize("case", ["A", "B"], indirect=True)
@torch.no_grad()
def test_pictures_are_those_of_the_official_code(
    case: tuple[TiTok, dict[str, Tensor], Tensor],
) -> None:
    model, found, _ = case
    latents = model.bottleneck.embed((found["ids"],))
    torch.testing.assert_close(model.picture(latents), found["image"], atol=1e-4, rtol=0)
    decoded = model.decode(Codes(indices=(found["ids"],)))["image"]
    torch.testing.assert_close(decoded, found["image"].clamp(0, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["A"], indirect=True)
@torch.no_grad()
def test_logits_over_pixel_codes_are_those_of_the_official_code(
    case: tuple[TiTok, dict[str, Tensor], Tensor],
) -> None:
    model, found, _ = case
    features = model.decoder(model.from_code(model.bottleneck.embed((found["ids"],))))
    logits = model.head(features).transpose(1, 2).unflatten(-1, (8, 8))
    torch.testing.assert_close(logits, found["hidden"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["A", "B"], indirect=True)
@torch.no_grad()
def test_quantizer_losses_are_those_of_the_official_code(
    case: tuple[TiTok, dict[str, Tensor], Tensor],
) -> None:
    model, found, image = case
    losses = model({"image": image, "seed": torch.arange(5)}, StepContext()).losses
    for name in ("commit", "codebook"):
        torch.testing.assert_close(losses[f"vq/{name}"], found[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["C"], indirect=True)
@torch.no_grad()
def test_gaussian_tokens_are_those_of_the_official_code(
    case: tuple[TiTok, dict[str, Tensor], Tensor],
) -> None:
    model, found, image = case
    codes = model.encode({"image": image})
    mean = found["mean"][:, :, 0].transpose(1, 2)
    assert codes.latents is not None
    torch.testing.assert_close(codes.latents, mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.picture(mean), found["image"], atol=1e-4, rtol=0)
    losses = model({"image": image, "seed": torch.arange(5)}, StepContext()).losses
    # Ours is a mean over tokens and 16 channels, theirs a sum over channels.
    wanted = found["kl"].mean() / 16
    torch.testing.assert_close(losses["kl"], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["D"], indirect=True)
@pytest.mark.parametrize("length", [1, 3, 8])
@torch.no_grad()
def test_prefixes_decode_as_in_the_official_code(
    length: int, case: tuple[TiTok, dict[str, Tensor], Tensor]
) -> None:
    model, found, _ = case
    codes = Codes(indices=(found["ids"],))
    latents = model.bottleneck.embed((found["ids"][:, :length],))
    wanted = found[f"image_{length}"]
    torch.testing.assert_close(model.picture(latents), wanted, atol=1e-4, rtol=0)
    decoded = model.decode(codes.prefix(tokens=length))["image"]
    torch.testing.assert_close(decoded, wanted.clamp(0, 1), atol=1e-4, rtol=0)


RELEASED = [
    *(name for name in titok.PRESETS if name in shapes_of("titok_keys.json")),
    *(name for name in one_d_piece.PRESETS if name in shapes_of("titok_keys.json")),
]


def test_every_released_model_has_a_preset() -> None:
    assert len(RELEASED) == 12
    assert set(RELEASED) <= set(shapes_of("titok_keys.json"))


@pytest.mark.parametrize("name", RELEASED)
def test_the_key_map_covers_every_released_size(name: str) -> None:
    system = one_d_piece if name in one_d_piece.PRESETS else titok
    config = system.preset(name)
    with torch.device("meta"):
        model = TiTok(config)
    assert_covered(model, key_map(config), shapes_of("titok_keys.json")[name])
