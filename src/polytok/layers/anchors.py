"""Exchange between plane tokens and latents that have a place in space."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.layers.positions import PLANE_AXES

RADIUS = 0.7
WIDTH = 0.2  # of the Gaussian that links an anchor to plane cells; the cube is 2 wide


def cell_centres(size: int) -> Tensor:
    """Centres of a size x size grid over [-1, 1]^2: (size^2, 2) as (column, row), row by row."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], dim=-1)


def octahedral_anchors(count: int) -> Tensor:
    """Anchors (count, 3) on a sphere of radius 0.7, in the order of a square grid of latents.

    The octahedral map folds the square around the sphere, so that neighbours on the grid are
    neighbours in space, and coarse scales of the grid are coarse views of the shape.

    Raises:
        ConfigError: ``count`` is no square.
    """
    side = math.isqrt(count)
    if side**2 != count:
        raise ConfigError(f"{count} anchored latents are not a square number")
    u, v = cell_centres(side).unbind(-1)
    height = 1 - u.abs() - v.abs()
    x = torch.where(height < 0, (1 - v.abs()) * u.sign(), u)
    y = torch.where(height < 0, (1 - u.abs()) * v.sign(), v)
    points = torch.stack([x, y, height], dim=-1)
    return RADIUS * points / points.norm(dim=-1, keepdim=True)


def plane_links(anchors: Tensor, size: int) -> Tensor:
    """Nearness of anchors (M, 3) to the cells of three size x size planes: (3, M, size^2)."""
    cells = cell_centres(size)
    squares = [torch.cdist(anchors[:, list(axes)], cells).square() for axes in PLANE_AXES]
    return torch.exp(-torch.stack(squares) / (2 * WIDTH**2))


class AnchorExchange(nn.Module):
    """Linear mixing of tokens between three planes and M anchored latents, one map per plane.

    A few latents that attend to hundreds of tokens start with their average, and learn where to
    look long after everything else. This starts them with what lies near their anchor, and plane
    cells with what nearby latents say; weights and places are free to move from there.

    Args:
        num_latents: M, a square number. size: cells per plane side r.
    """

    def __init__(self, dim: int, num_latents: int, size: int) -> None:
        super().__init__()
        self.links = nn.Parameter(plane_links(octahedral_anchors(num_latents), size))
        self.maps = nn.Parameter(torch.randn(3, dim, dim) * dim**-0.5)

    def gather(self, planes: Tensor) -> Tensor:
        """Plane tokens (B, 3 r r, D) -> what latents start from (B, M, D)."""
        tokens = planes.unflatten(1, (3, -1))
        weights = self._weights(2).to(tokens.dtype)
        return torch.einsum("imc,bicd,ide->bme", weights, tokens, self.maps.to(tokens.dtype)) / (
            3**0.5
        )

    def spread(self, latents: Tensor) -> Tensor:
        """Latents (B, M, D) -> what plane tokens start from (B, 3 r r, D)."""
        weights = self._weights(1).to(latents.dtype)
        maps = self.maps.to(latents.dtype)
        return torch.einsum("imc,bmd,ide->bice", weights, latents, maps).flatten(1, 2)

    def _weights(self, dim: int) -> Tensor:
        """Links of unit length along ``dim``, so that a sum of unrelated tokens keeps variance."""
        return self.links / self.links.norm(dim=dim, keepdim=True).clamp(min=1e-6)
