"""Position features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Coordinates that plane i of a triplane shows, as (column, row) of its picture: xy, xz, zy.
PLANE_AXES = ((0, 1), (0, 2), (2, 1))


class FourierEmbedding(nn.Module):
    """Raw coordinates with sines and cosines of octaves 2^0..2^(n-1), without pi.

    Args:
        num_octaves: octaves n; 8 gives 51 features of 3 coordinates (card vat 3.1).
    """

    frequencies: Tensor

    def __init__(self, num_octaves: int = 8, num_coords: int = 3) -> None:
        super().__init__()
        self.dim = num_coords * (2 * num_octaves + 1)
        self.register_buffer("frequencies", 2.0 ** torch.arange(num_octaves), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (..., c) into (..., c * (2n + 1)), in fp32."""
        phases = (x.float().unsqueeze(-1) * self.frequencies).flatten(-2)
        return torch.cat([x.float(), phases.sin(), phases.cos()], dim=-1)
