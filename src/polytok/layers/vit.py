"""The plain pre-LN block of vision transformers: biases everywhere, no QK-norm.

What CLIP, TiTok and their kind are built from; see :mod:`polytok.layers.transformer` for the block
with QK-norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.layers.attention import attend
from polytok.layers.transformer import FeedForward, unit_gain

EPS = 1e-5


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases, as ``torch.nn.MultiheadAttention`` computes it.

    ``qkv`` holds the rows of q, k and v one after the other, as its ``in_proj_weight`` does.

    Args:
        key_similarity: correlation, in [0, 1), of the maps of keys and of queries at the start.
            Above 0 tokens first look at tokens like themselves. With unrelated maps a token starts
            with the average of all, and leaving that takes most of a short training.
    """

    def __init__(self, dim: int, num_heads: int, *, key_similarity: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim={dim} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.qkv = unit_gain(nn.Linear(dim, 3 * dim))
        self.out = unit_gain(nn.Linear(dim, dim))
        if key_similarity:
            with torch.no_grad():
                queries, keys, _ = self.qkv.weight.chunk(3)
                keys.copy_(key_similarity * queries + (1 - key_similarity**2) ** 0.5 * keys)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map (B, N, D) to (B, N, D); ``mask`` as in :func:`polytok.layers.attend`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v, mask=mask).transpose(1, 2).flatten(-2))


class ViTBlock(nn.Module):
    """Self-attention and feed-forward, each behind a LayerNorm (eps 1e-5) and a residual.

    Args:
        key_similarity: see :class:`SelfAttention`.
    """

    def __init__(self, dim: int, num_heads: int, *, key_similarity: float = 0.0) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim, eps=EPS)
        self.attention = SelfAttention(dim, num_heads, key_similarity=key_similarity)
        self.norm_mlp = nn.LayerNorm(dim, eps=EPS)
        self.mlp = FeedForward(dim)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map (B, N, D) to (B, N, D); ``mask``, (B, 1, N, N) or less, is True where allowed."""
        x = x + self.attention(self.norm_attention(x), mask=mask)
        return x + self.mlp(self.norm_mlp(x))
