"""Image -> a few tokens: a vision transformer in which learnt latents read the patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polytok.layers import ViTBlock, grid_places, nested_places, sine_embedding


class LatentQueryEncoder(nn.Module):
    """Patches, a class token and K latents pass a vision transformer; the latents are kept.

    TiTok's encoder (arXiv 2406.07550, section 3.2; card titok 3.2). K does not depend on the image
    grid.

    Args:
        size: pixels a side. patch: pixels a side of a patch; divides ``size``.
        num_latents: K.
    """

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        dim: int,
        num_heads: int,
        num_layers: int,
        num_latents: int,
    ) -> None:
        super().__init__()
        scale = dim**-0.5
        self.embed = nn.Conv2d(3, dim, patch, patch)
        self.class_token = nn.Parameter(scale * torch.randn(1, dim))
        self.position = nn.Parameter(scale * torch.randn(1 + (size // patch) ** 2, dim))
        self.latents = nn.Parameter(scale * torch.randn(num_latents, dim))
        self.latent_position = nn.Parameter(scale * torch.randn(num_latents, dim))
        self.norm_in = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(
            ViTBlock(dim, num_heads, key_similarity=0.7) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(dim)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Tell every token its place, spread the latents over the image, centre the patches."""
        dim, side = self.position.shape[1], math.isqrt(len(self.position) - 1)
        self.position[1:] = sine_embedding(grid_places(side), dim)
        places, widths = nested_places(len(self.latents))
        self.latent_position.copy_(sine_embedding(places, dim, widths))
        weight, bias = self.embed.weight, self.embed.bias
        assert bias is not None
        # Values in [0, 1] become values in [-1, 1] that are mixed with unit gain.
        nn.init.normal_(weight, std=2 * weight[0].numel() ** -0.5)
        bias.copy_(-weight.sum((1, 2, 3)) / 2)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, size, size) to tokens (B, K, D)."""
        patches = self.embed(image).flatten(2).transpose(1, 2)
        count = len(patches)
        grid = torch.cat([self.class_token.expand(count, 1, -1), patches], dim=1) + self.position
        latents = (self.latents + self.latent_position).expand(count, -1, -1)
        x = self.norm_in(torch.cat([grid, latents], dim=1))
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x[:, grid.shape[1] :])
