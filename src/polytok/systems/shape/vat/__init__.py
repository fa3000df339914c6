"""VAT: 3D representation in 512 bytes (arXiv 2412.02202). No official code or weights exist.

A surface point cloud with normals becomes a few Gaussian latents (in-context compression), which
are quantized residually over scales of growing token counts with one codebook (VVQ). Any prefix
of scales decodes, through triplane tokens, to a field and a mesh.
"""

from polytok.systems.shape.vat.config import PRESETS, VATConfig, preset
from polytok.systems.shape.vat.model import VAT, VariationalQuantizer

__all__ = ["PRESETS", "VAT", "VATConfig", "VariationalQuantizer", "preset"]
