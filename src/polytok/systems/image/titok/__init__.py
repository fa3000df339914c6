"""TiTok: an image is worth 32 tokens (arXiv 2406.07550).

A vision transformer reads the patches of an image together with K learnt latents, which are
quantized; a second one makes the image of them. K does not depend on the size of the image.
Official weights: bytedance/1d-tokenizer, Apache-2.0.
"""

from __future__ import annotations

from pathlib import Path

from polytok.core import hub
from polytok.core.config import from_dict
from polytok.systems.image.codec import ImageCodec
from polytok.systems.image.titok.config import (
    PRESETS,
    TailDropConfig,
    TiTokConfig,
    TowerConfig,
    preset,
)
from polytok.systems.image.titok.convert import OFFICIAL
from polytok.systems.image.titok.model import SoftCodes, TiTok, legacy_layout
from polytok.systems.image.titok.training import STAGES, prepare_training

__all__ = [
    "OFFICIAL",
    "PRESETS",
    "STAGES",
    "SoftCodes",
    "TailDropConfig",
    "TiTok",
    "TiTokConfig",
    "TowerConfig",
    "legacy_layout",
    "load_model",
    "prepare_training",
    "preset",
]


def load_model(
    folder: Path, info: hub.Info, *, name: str, device: str = "cpu"
) -> ImageCodec | TiTok:
    """Build the model of a folder, fill it with its weights and join it with the image signal.

    Continuous tokens have no codec: their model is returned as it is.
    """
    model = TiTok(from_dict(TiTokConfig, info.config))
    hub.load_weights(model, folder)
    model = model.to(device).eval()
    if not model.spec.is_discrete:
        return model
    codec = hub.fingerprint(folder)
    return ImageCodec(model, size=model.config.size, name=name, weights=codec)
