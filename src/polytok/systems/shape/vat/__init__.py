"""VAT: 3D representation in 512 bytes (arXiv 2412.02202). No official code or weights exist.

A surface point cloud with normals becomes a few Gaussian latents (in-context compression), which
are quantized residually over scales of growing token counts with one codebook (VVQ). Any prefix
of scales decodes, through triplane tokens, to a field and a mesh.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polytok.core import hub
from polytok.core.config import from_dict
from polytok.systems.shape.vat.config import PRESETS, VATConfig, preset
from polytok.systems.shape.vat.model import VAT, VariationalQuantizer
from polytok.systems.shape.vat.training import STAGES, prepare_training

if TYPE_CHECKING:
    from polytok.systems.shape.codec import ShapeCodec

__all__ = [
    "PRESETS",
    "STAGES",
    "VAT",
    "VATConfig",
    "VariationalQuantizer",
    "load_model",
    "prepare_training",
    "preset",
]


def load_model(folder: Path, info: hub.Info, *, name: str, device: str = "cpu") -> ShapeCodec:
    """Build the model of a folder, fill it with its weights and join it with the mesh signal."""
    # The codec is built on this package, so it can only be imported once that is whole.
    from polytok.systems.shape.codec import ShapeCodec

    model = VAT(from_dict(VATConfig, info.config))
    hub.load_weights(model, folder)
    return ShapeCodec(model.to(device), name=name, weights=hub.fingerprint(folder))
