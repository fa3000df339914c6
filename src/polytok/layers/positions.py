"""Position features."""

from __future__ import annotations

import math

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


def grid_places(side: int) -> Tensor:
    """Centres (side^2, 2) of the cells of a square grid, row by row: row, column in [0, 1]."""
    centres = (torch.arange(side, device="cpu") + 0.5) / side
    return torch.cartesian_prod(centres, centres)


def nested_places(count: int) -> tuple[Tensor, Tensor]:
    """Places (count, 2) from coarse to fine, and widths (count,) of the squares they stand for.

    First the whole, then its quarters, then sixteenths, each level in a random order that is always
    the same, so that every prefix covers the whole about evenly.
    """
    places, widths, side = list[Tensor](), list[Tensor](), 1
    while sum(map(len, places)) < count:
        rng = torch.Generator("cpu").manual_seed(side)
        order = torch.randperm(side**2, generator=rng, device="cpu")
        places.append(grid_places(side)[order])
        widths.append(torch.full((side**2,), 1 / side, device="cpu"))
        side *= 2
    return torch.cat(places)[:count], torch.cat(widths)[:count]


def sine_embedding(places: Tensor, dim: int, widths: Tensor | None = None) -> Tensor:
    """Sines and cosines of places: (n, dim), of half a turn to eight turns along the unit square.

    Args:
        places: (n, 2) in [0, 1]. widths: (n,), over squares of which they are averaged.
    """
    octaves = torch.linspace(0, 4, max(1, dim // 4), device=places.device)
    frequencies = math.pi * 2**octaves
    phases = places[..., None] * frequencies  # n, 2, dim / 4
    weight = (
        torch.ones((), device=places.device)
        if widths is None
        else _mean_of_wave(frequencies, widths)
    )
    waves = torch.cat([phases.sin() * weight, phases.cos() * weight], dim=-1).flatten(1)
    return nn.functional.pad(waves, (0, dim - waves.shape[1]))


def _mean_of_wave(frequencies: Tensor, widths: Tensor) -> Tensor:
    """By what a wave shrinks when it is averaged over a width: (n, 1, frequencies)."""
    return torch.sinc(frequencies * widths[:, None, None] / (2 * math.pi))
