"""Latent tokens -> three feature planes -> a value per point (card vat 3.4)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.layers import PLANE_AXES, AnchorExchange, Block, compute_dtype


class ResidualConv(nn.Module):
    """Two 3x3 convolutions behind GroupNorm and SiLU, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
        self.body = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def keep_variance(module: nn.Module) -> None:
    """Start convolutions and linear layers so that no stage shrinks what the latents say.

    torch's own start takes two thirds of the variance at every layer, and ReLUs half of the rest:
    after the whole head next to nothing of the planes would reach the first logits.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            taps = 9 if isinstance(layer, nn.Conv2d) else 1
            inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            nn.init.normal_(layer.weight, std=(inputs * taps) ** -0.5)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)


class PlaneUpsampler(nn.Module):
    """Plane tokens (B, 3 r r, D) -> planes (B, 3, C, R, R), R = r * 2^stages.

    Planes are folded into the batch, so no convolution mixes the borders of two planes.

    Args:
        channels: channels after the first projection and after each doubling; the last is C.
        refine_last: whether the last, largest stage has a residual block too; on a CPU that
            block alone costs a fifth of a training step.
    """

    def __init__(
        self, dim: int, size: int, channels: tuple[int, ...], *, refine_last: bool = True
    ) -> None:
        super().__init__()
        self.size = size
        self.project = nn.Linear(dim, channels[0])
        stages = list(itertools.pairwise(channels))
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(stages, start=1):
            layers.append(nn.ConvTranspose2d(before, after, 2, stride=2))
            if refine_last or number < len(stages):
                layers.append(ResidualConv(after))
        self.stages = nn.Sequential(*layers)

    def forward(self, tokens: Tensor) -> Tensor:
        batch = tokens.shape[0]
        x = self.project(tokens).reshape(batch * 3, self.size, self.size, -1).permute(0, 3, 1, 2)
        return self.stages(x).unflatten(0, (batch, 3))


def sample_planes(planes: Tensor, points: Tensor, extent: float) -> Tensor:
    """Concatenate the bilinear samples of the xy, xz and zy planes at 3D points.

    Args:
        planes: (B, 3, C, R, R); rows and columns cover [-extent, extent], cell centres inside.
        points: (B, Q, 3); points outside the box read zeros.

    Returns:
        (B, Q, 3 C), fp32.
    """
    batch, _, channels, _, _ = planes.shape
    grid = torch.stack([points[..., list(axes)] for axes in PLANE_AXES], dim=1) / extent
    sampled = F.grid_sample(
        planes.flatten(0, 1).float(),
        grid.flatten(0, 1).unsqueeze(1).float(),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return sampled.view(batch, 3 * channels, -1).transpose(1, 2)


class PlaneField:
    """An implicit field: planes and the network that reads them.

    Args:
        planes: (B, 3, C, R, R).
        iso: (B,), the logit at the surface; 0 if None.
    """

    def __init__(
        self, planes: Tensor, head: nn.Module, extent: float, iso: Tensor | None = None
    ) -> None:
        self.planes, self.head, self.extent, self.iso = planes, head, extent, iso

    def __len__(self) -> int:
        return int(self.planes.shape[0])

    def __getitem__(self, item: int) -> PlaneField:
        iso = None if self.iso is None else self.iso[item : item + 1]
        return PlaneField(self.planes[item : item + 1], self.head, self.extent, iso)

    def __call__(self, points: Tensor) -> Tensor:
        """Evaluate points (B, Q, 3): logits (B, Q) less ``iso``, inside positive."""
        logits: Tensor = self.head(sample_planes(self.planes, points, self.extent)).squeeze(-1)
        return logits if self.iso is None else logits - self.iso[:, None]


class TriplaneDecoder(nn.Module):
    """Latents (B, M, D) -> a :class:`PlaneField`.

    Args:
        num_latent_layers: blocks over the M latents alone (the memory-light option of the card).
        num_layers: blocks over latents and the 3 r r learnable plane tokens together.
        plane_size: r. channels: see :class:`PlaneUpsampler`.
        extent: half side of the box that the planes cover.
        is_anchored: latents have places in space, and plane tokens start from the nearest ones.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_layers: int,
        num_latents: int,
        plane_size: int,
        channels: tuple[int, ...],
        num_latent_layers: int = 0,
        mlp_dim: int = 64,
        mlp_layers: int = 3,
        extent: float = 1.05,
        refine_last: bool = True,
        is_anchored: bool = False,
    ) -> None:
        super().__init__()
        self.extent = extent
        self.position = nn.Parameter(torch.randn(num_latents, dim) * 0.02)
        self.plane_tokens = nn.Parameter(torch.randn(3 * plane_size**2, dim) * 0.02)
        self.exchange = AnchorExchange(dim, num_latents, plane_size) if is_anchored else None
        self.latent_blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_latent_layers))
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.upsample = PlaneUpsampler(dim, plane_size, channels, refine_last=refine_last)
        widths = [3 * channels[-1], *[mlp_dim] * mlp_layers]
        hidden = [
            layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())
        ]
        self.head = nn.Sequential(*hidden, nn.Linear(mlp_dim, 1))
        keep_variance(self.upsample)
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def planes(self, latents: Tensor) -> Tensor:
        """Turn latents (B, M, D) into planes (B, 3, C, R, R)."""
        dtype = compute_dtype(latents)
        x = (latents + self.position).to(dtype)
        for block in self.latent_blocks:
            x = block(x)
        tokens = self.plane_tokens.to(dtype).expand(latents.shape[0], -1, -1)
        if self.exchange is not None:
            tokens = tokens + self.exchange.spread(x)
        x = torch.cat([x, tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.upsample(self.norm(x[:, latents.shape[1] :]))

    def forward(self, latents: Tensor) -> PlaneField:
        return PlaneField(self.planes(latents), self.head, self.extent)
