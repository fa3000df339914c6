"""Point cloud -> a few tokens, by in-context compression (card vat 3.1 and 3.2)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.layers import (
    PLANE_AXES,
    AnchorExchange,
    Block,
    CrossBlock,
    FourierEmbedding,
    compute_dtype,
    unit_gain,
)

FeatureMode = Literal["cross_learned", "cross_fps", "subset", "planes"]


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Indices (B, count) of farthest-point sampling, independent of the order of the points.

    Starts at the point farthest from the centroid. Ties aside, permuting the input permutes
    nothing in the chosen set or its order.

    Args:
        points: (B, P, 3).
    """
    batch = torch.arange(points.shape[0], device=points.device)
    chosen = torch.empty(points.shape[0], count, dtype=torch.long, device=points.device)
    last = (points - points.mean(1, keepdim=True)).square().sum(-1).argmax(1)
    distance = torch.full(points.shape[:2], float("inf"), device=points.device)
    for i in range(count):
        chosen[:, i] = last
        step = (points - points[batch, last].unsqueeze(1)).square().sum(-1)
        distance = torch.minimum(distance, step)
        last = distance.argmax(1)
    return chosen


class PlanePooling(nn.Module):
    """Mean features of the points in every cell of three r x r planes: (B, 3 r r, D).

    A cell token knows where it is and what lies there, as an image patch does, so that attention
    need not learn to look at places first (ConvONet, arXiv 2003.04618, on tokens).
    """

    def __init__(self, in_dim: int, dim: int, size: int, extent: float) -> None:
        super().__init__()
        self.size, self.extent = size, extent
        hidden = dim // 2
        self.point_mlp = nn.Sequential(
            unit_gain(nn.Linear(in_dim + 2, hidden)),
            nn.GELU(),
            unit_gain(nn.Linear(hidden, hidden)),
        )
        self.project = nn.Linear(hidden + 1, dim)
        # Content must not drown in the positions: a token that says only where it is tells nothing.
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.position = nn.Parameter(torch.randn(3 * size**2, dim) * 0.3)

    def forward(self, embedded: Tensor, points: Tensor) -> Tensor:
        """Pool point features (B, P, in_dim) at points (B, P, 3)."""
        batch, size = points.shape[0], self.size
        pooled = []
        for axes in PLANE_AXES:
            place = (points[..., list(axes)] / self.extent + 1) * (size / 2)
            cell = place.floor().clamp(0, size - 1)
            inside = place - cell - 0.5
            hidden = self.point_mlp(torch.cat([embedded, inside], dim=-1))
            rows = torch.arange(batch, device=points.device)[:, None] * size**2
            index = (rows + cell[..., 1].long() * size + cell[..., 0].long()).flatten()
            values = torch.cat([hidden.float(), torch.ones_like(place[..., :1])], dim=-1)
            sums = values.new_zeros(batch * size**2, values.shape[-1])
            sums = sums.index_add(0, index, values.flatten(0, 1))
            count = sums[:, -1:]
            density = (count * (size**2 / points.shape[1])).log1p()
            mean = sums[:, :-1] / count.clamp(min=1)
            pooled.append(torch.cat([mean, density], dim=-1).unflatten(0, (batch, -1)))
        return self.norm(self.project(torch.cat(pooled, dim=1))) + self.position


class PointEncoder(nn.Module):
    """Points with normals -> (B, M, D): feature tokens, then latents that read them in context.

    Args:
        num_latents: M, learnable tokens that are kept.
        num_features: N, feature tokens that only serve as context.
        num_layers: joint self-attention blocks over all M + N tokens.
        feature_mode: how points become feature tokens: learned queries, farthest points as
            queries, a farthest-point subset of the embeddings themselves, or means over the
            cells of three planes (N = 3 r r).
        is_compressed: False takes the features out of the context (the ablation of the paper):
            the blocks see M tokens, M = N feature tokens or anchored latents alone.
        is_anchored: latents have places in space and start from the features near them; needs
            features of planes.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_layers: int,
        num_latents: int,
        num_features: int,
        feature_mode: FeatureMode = "cross_learned",
        is_compressed: bool = True,
        is_anchored: bool = False,
        num_octaves: int = 8,
        extent: float = 1.05,
    ) -> None:
        super().__init__()
        self.num_latents = num_latents
        self.num_features = num_features if is_compressed or is_anchored else num_latents
        self.feature_mode = feature_mode
        self.fourier = FourierEmbedding(num_octaves)
        if feature_mode == "planes":
            size = math.isqrt(self.num_features // 3)
            if 3 * size**2 != self.num_features:
                raise ConfigError(f"num_features={self.num_features} is not 3 r r, as planes need")
            self.pooling = PlanePooling(self.fourier.dim + 3, dim, size, extent)
        else:
            self.point_embed = nn.Linear(self.fourier.dim + 3, dim)
        if feature_mode == "cross_learned":
            self.feature_queries = nn.Parameter(torch.randn(self.num_features, dim) * 0.02)
        if feature_mode.startswith("cross"):
            self.feature_cross = CrossBlock(dim, num_heads)
        self.has_latents = is_compressed or is_anchored
        if self.has_latents:
            self.latent_tokens = nn.Parameter(torch.randn(num_latents, dim) * 0.02)
            self.group_embed = nn.Parameter(torch.randn(2, dim) * 0.02)
        self.exchange = None
        if is_anchored:
            if feature_mode != "planes":
                raise ConfigError(f"anchored latents need feature_mode planes, not {feature_mode}")
            self.exchange = AnchorExchange(dim, num_latents, size)
        self.is_compressed = is_compressed
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def features(self, points: Tensor, normals: Tensor) -> Tensor:
        """Turn points (B, P, 3) and unit normals (B, P, 3) into feature tokens (B, N, D)."""
        raw = torch.cat([self.fourier(points), normals], dim=-1)
        if self.feature_mode == "planes":
            return self.pooling(raw, points)
        embedded = self.point_embed(raw)
        if self.feature_mode == "cross_learned":
            queries = self.feature_queries.to(embedded.dtype).expand(points.shape[0], -1, -1)
            return self.feature_cross(queries, embedded)
        chosen = farthest_points(points, self.num_features).unsqueeze(-1)
        queries = embedded.gather(1, chosen.expand(-1, -1, embedded.shape[-1]))
        return queries if self.feature_mode == "subset" else self.feature_cross(queries, embedded)

    def forward(self, points: Tensor, normals: Tensor) -> Tensor:
        """Encode points in [-1, 1] (B, P, 3) and normals (B, P, 3) to (B, M, D)."""
        x = self.features(points, normals)
        x = x.to(compute_dtype(x))
        if self.has_latents:
            latents = (self.latent_tokens + self.group_embed[0]).to(x.dtype)
            latents = latents.expand(points.shape[0], -1, -1)
            if self.exchange is not None:
                latents = latents + self.exchange.gather(x)
            if self.is_compressed:
                features = x + self.group_embed[1].to(x.dtype)
                latents = torch.cat([latents, features], dim=1)
            x = latents
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, : self.num_latents])
