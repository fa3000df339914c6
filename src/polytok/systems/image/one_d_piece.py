"""One-D-Piece: an image tokenizer whose every prefix is a picture (arXiv 2501.10064).

TiTok trained on random prefixes of its tokens (tail token drop), so that the first tokens hold the
coarse content and quality grows with their number. Official weights: turingmotors/One-D-Piece,
Apache-2.0.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from polytok.core import hub
from polytok.core.contracts import Codes
from polytok.core.errors import UnknownNameError
from polytok.systems.image import titok
from polytok.systems.image.codec import ImageCodec
from polytok.systems.image.titok.config import (
    BASE,
    LARGE,
    SMALL,
    TailDropConfig,
    TiTokConfig,
    TowerConfig,
    two_stage,
)
from polytok.systems.image.titok.convert import OFFICIAL
from polytok.systems.image.titok.model import TiTok
from polytok.systems.image.titok.training import STAGES, prepare
from polytok.systems.images import ImageTraining
from polytok.training import Recipe

__all__ = [
    "OFFICIAL",
    "PRESETS",
    "STAGES",
    "load_model",
    "prepare_training",
    "preset",
    "token_contribution",
]

MICRO = TowerConfig(dim=64, num_layers=2, num_heads=2)
TINY = TowerConfig(dim=128, num_layers=4, num_heads=2)

PRESETS = {
    "one-d-piece-micro": TiTokConfig(
        size=32,
        patch=4,
        num_latents=16,
        encoder=MICRO,
        decoder=MICRO,
        code_dim=8,
        codebook_size=256,
        restart_every=100,
        tail_drop=TailDropConfig(),
    ),
    "one-d-piece-tiny": TiTokConfig(
        size=64,
        patch=8,
        num_latents=64,
        encoder=TINY,
        decoder=TINY,
        code_dim=8,
        restart_every=100,
        tail_drop=TailDropConfig(),
    ),
    "one-d-piece-s-256": two_stage(SMALL, 256, TailDropConfig()),
    "one-d-piece-b-256": two_stage(BASE, 256, TailDropConfig()),
    "one-d-piece-l-256": two_stage(LARGE, 256, TailDropConfig()),
}


def preset(name: str) -> TiTokConfig:
    """The configuration of a preset.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]


def prepare_training(recipe: Recipe) -> ImageTraining:
    """Build the model and read the pictures of a recipe, as TiTok does."""
    return prepare(recipe, preset(recipe.preset))


def load_model(
    folder: Path, info: hub.Info, *, name: str, device: str = "cpu"
) -> ImageCodec | TiTok:
    """Build the model of a folder, fill it with its weights and join it with the image signal."""
    return titok.load_model(folder, info, name=name, device=device)


@torch.no_grad()
def token_contribution(model: TiTok, image: Tensor, *, rng: torch.Generator) -> Tensor:
    """How much every token moves every pixel: (B, K, H, W).

    The mean over channels of what changes in the picture, in absolute value, when the token is
    replaced by a random other one.

    Args:
        image: (B, 3, H, W) in [0, 1]. rng: draws the other tokens.
    """
    (ids,) = model.encode({"image": image}).indices
    whole = model.decode(Codes(indices=(ids,)))["image"]
    vocab = model.spec.levels[0].vocab
    changes = []
    for place in range(ids.shape[1]):
        step = torch.randint(1, vocab, (len(ids),), generator=rng).to(ids.device)
        other = ids.clone()
        other[:, place] = (ids[:, place] + step) % vocab
        changes.append((model.decode(Codes(indices=(other,)))["image"] - whole).abs().mean(1))
    return torch.stack(changes, dim=1)
