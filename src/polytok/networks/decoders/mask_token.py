"""A few tokens -> features of an image grid: mask tokens read them in a vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.layers import ViTBlock, grid_places, nested_places, sine_embedding


class MaskTokenDecoder(nn.Module):
    """A class token, a mask token per grid cell and N <= K tokens pass a vision transformer.

    TiTok's decoder (arXiv 2406.07550, section 3.2; card titok 3.4), for any prefix of the K tokens
    (One-D-Piece): what the tokens are told of their place does not depend on how many there are.

    Args:
        grid: cells a side. num_latents: K.
    """

    def __init__(
        self, *, grid: int, dim: int, num_heads: int, num_layers: int, num_latents: int
    ) -> None:
        super().__init__()
        scale = dim**-0.5
        self.class_token = nn.Parameter(scale * torch.randn(1, dim))
        self.mask_token = nn.Parameter(scale * torch.randn(1, dim))
        self.position = nn.Parameter(scale * torch.randn(1 + grid**2, dim))
        self.latent_position = nn.Parameter(scale * torch.randn(num_latents, dim))
        self.norm_in = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(
            ViTBlock(dim, num_heads, key_similarity=0.7) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(dim)
        with torch.no_grad():
            self.position[1:] = sine_embedding(grid_places(grid), dim)
            places, widths = nested_places(num_latents)
            self.latent_position.copy_(sine_embedding(places, dim, widths))

    def forward(self, tokens: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, D) to features (B, grid^2, D), row by row.

        Args:
            lengths: (B,) valid tokens of each item, the first ones; None when all are.
        """
        count, present = tokens.shape[:2]
        cells = self.mask_token.expand(len(self.position) - 1, -1)
        grid = torch.cat([self.class_token, cells]) + self.position
        tokens = tokens + self.latent_position[:present]
        x = self.norm_in(torch.cat([grid.expand(count, -1, -1), tokens], dim=1))
        mask = None if lengths is None else self._mask(lengths, present)
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.norm_out(x[:, 1 : len(self.position)])

    def _mask(self, lengths: Tensor, present: int) -> Tensor:
        """Whether a key may be seen: the grid always, tokens up to the length; (B, 1, 1, S)."""
        place = torch.arange(present, device=lengths.device)
        valid = place < lengths[:, None]
        grid = valid.new_ones(len(lengths), len(self.position))
        return torch.cat([grid, valid], dim=1)[:, None, None]


class CodeHead(nn.Module):
    """Features (B, h w, D) -> logits (B, h w, V) over the codes of another tokenizer."""

    def __init__(self, dim: int, vocab: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(2 * dim, vocab)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(self.up(features).tanh())


class PatchHead(nn.Module):
    """Features (B, h w, D) of a square grid -> image (B, 3, H, W): a patch per cell, smoothed.

    A patch holds its values row by row, channels last. It starts out as grey.
    """

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.out = nn.Linear(dim, 3 * patch**2)
        self.smooth = nn.Conv2d(3, 3, 3, padding=1)
        # Three channels leave no room for a random start: it would mix the colours up.
        nn.init.dirac_(self.smooth.weight)
        nn.init.constant_(self.smooth.bias, 0.5)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        size = round(features.shape[1] ** 0.5)
        if size**2 != features.shape[1]:
            raise ConfigError(f"{features.shape[1]} cells are not a square grid")
        patches = self.out(features).unflatten(-1, (self.patch, self.patch, 3))
        patches = patches.unflatten(1, (size, size))  # B, h, w, rows, columns, channels
        return self.smooth(patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3))
