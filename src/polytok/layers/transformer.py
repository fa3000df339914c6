"""Pre-LN transformer blocks with QK-norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.layers.attention import attend

EPS = 1e-6
SHARPNESS = 3.0


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that matrix products of ``x`` use: autocast's, else its own.

    Residual streams are kept in it, which halves their memory traffic under autocast.
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def unit_gain(layer: nn.Linear) -> nn.Linear:
    """Start a layer so that it keeps the variance of its input; torch's own start takes 2/3 of it.

    A few tokens that read hundreds of others start with their average, which says little about
    one input. Every factor lost on the way delays the moment when latents begin to carry a signal.
    """
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class FeedForward(nn.Module):
    """Linear, exact GELU, linear; hidden width is ``ratio`` times ``dim``."""

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.up = unit_gain(nn.Linear(dim, ratio * dim))
        self.down = unit_gain(nn.Linear(ratio * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Attention(nn.Module):
    """Multi-head attention of (B, N, D) to a context (B, S, D), with LayerNorm on q and k."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.to_q = unit_gain(nn.Linear(dim, dim, bias=False))
        self.to_kv = unit_gain(nn.Linear(dim, 2 * dim, bias=False))
        self.norm_q = nn.LayerNorm(dim // num_heads, eps=EPS)
        self.norm_k = nn.LayerNorm(dim // num_heads, eps=EPS)
        # With unit q and k a softmax over 300 tokens is nearly flat; sharper, tokens differ sooner.
        nn.init.constant_(self.norm_q.weight, SHARPNESS)
        self.out = unit_gain(nn.Linear(dim, dim))

    def forward(self, x: Tensor, context: Tensor, *, mask: Tensor | None = None) -> Tensor:
        q = self.to_q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.to_kv(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.norm_q(q).to(v.dtype), self.norm_k(k).to(v.dtype)
        return self.out(attend(q, k, v, mask=mask).transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Self-attention and feed-forward, each behind a LayerNorm and a residual."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim, eps=EPS)
        self.attention = Attention(dim, num_heads)
        self.norm_mlp = nn.LayerNorm(dim, eps=EPS)
        self.mlp = FeedForward(dim)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map (B, N, D) to (B, N, D); ``mask`` (..., N, N) is True where attention is allowed."""
        y = self.norm_attention(x)
        x = x + self.attention(y, y, mask=mask)
        return x + self.mlp(self.norm_mlp(x))

    @torch.no_grad()
    def silence(self) -> None:
        """Let the block add nothing until it is trained: a deeper network starts as the shallower
        one did (Net2Net, arXiv 1511.05641)."""
        for layer in (self.attention.out, self.mlp.down):
            layer.weight.zero_()
            layer.bias.zero_()


class CrossBlock(nn.Module):
    """Cross-attention from queries to a context, then feed-forward, both pre-LN with residuals."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(dim, eps=EPS)
        self.norm_context = nn.LayerNorm(dim, eps=EPS)
        self.attention = Attention(dim, num_heads)
        self.norm_mlp = nn.LayerNorm(dim, eps=EPS)
        self.mlp = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Map queries (B, N, D) and context (B, S, D) to (B, N, D); ``mask`` as in `Block`."""
        x = x + self.attention(self.norm_query(x), self.norm_context(context), mask=mask)
        return x + self.mlp(self.norm_mlp(x))
