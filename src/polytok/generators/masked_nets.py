"""Nets of masked generation, which see all ids at once: post-norm, and with long skips.

Both read the condition's vector as one more token before the ids.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.generators.cond import Cond
from polytok.generators.net import Net
from polytok.generators.process import Query
from polytok.layers import FeedForward, ViTBlock, attend

STD = 0.02
POST_NORM_EPS = 1e-12


class PrefixedIds(nn.Module):
    """The condition's vector and then the ids, each at a place of its own.

    Args:
        vocab: ids, after which comes that of the mask. length: slots.
    """

    def __init__(self, dim: int, vocab: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab + 1, dim)
        self.positions = nn.Parameter(torch.zeros(1, 1 + length, dim))

    def forward(self, query: Query, cond: Cond) -> Tensor:
        """(R, 1 + n, W) of a query's ids (R, n) and conditions of R rows.

        Raises:
            ConfigError: the query or the conditions have what these nets do not know.
        """
        if query.inp is None or query.inp.shape[1] != len(query.index):
            raise ConfigError("this net needs an id for every slot; it has no start slots")
        if query.mask is not None or query.tau is not None:
            raise ConfigError("this net knows no time, and all of its slots see one another")
        if cond.tokens is not None:
            raise ConfigError("this net takes one vector as its condition, and no tokens")
        places = torch.cat([query.index.new_zeros(1), query.index + 1])
        x = torch.cat([cond.vector[:, None], self.embed(query.inp)], dim=1)
        return x + self.positions[:, places]


class PostNormBlock(nn.Module):
    """Attention and feed-forward, each added to its input and then normed (arXiv 1810.04805).

    Args:
        dropout: on attention's weights, and on what attention and feed-forward add.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm_attention = nn.LayerNorm(dim, eps=POST_NORM_EPS)
        self.mlp = FeedForward(dim)
        self.norm_mlp = nn.LayerNorm(dim, eps=POST_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, dropout=self.dropout.p if self.training else 0.0)
        added = self.out(mixed.transpose(1, 2).flatten(-2))
        x = self.norm_attention(x + self.dropout(added))
        return self.norm_mlp(x + self.dropout(self.mlp(x)))


class PostNormTransformer(Net):
    """BERT over ids (arXiv 1810.04805), with the condition as its first token.

    Args:
        dim: W. depth: blocks. vocab: ids, without the mask. length: slots.
        dropout: on the inputs and in every block.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        vocab: int,
        length: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.dim = dim
        self.inputs = PrefixedIds(dim, vocab, length)
        self.norm = nn.LayerNorm(dim, eps=POST_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(PostNormBlock(dim, num_heads, dropout) for _ in range(depth))
        _initialise(self)

    def forward(self, query: Query, cond: Cond, *, cache: Any = None) -> Tensor:
        x = self.dropout(self.norm(self.inputs(query, cond)))
        for block in self.blocks:
            x = block(x)
        return x[:, 1:].float()


class SkipTransformer(Net):
    """U-ViT over ids (arXiv 2209.12152): each late block also reads what an early one gave.

    The first half of the blocks is paired with the second, outermost with outermost, around one
    in the middle. Blocks are pre-norm, without dropout and without biases on q, k and v.

    Args:
        dim: W. depth: blocks without the middle one, an even number. vocab: ids, without the mask.
        length: slots.
    """

    def __init__(self, *, dim: int, depth: int, num_heads: int, vocab: int, length: int) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        if depth < 2 or depth % 2:
            raise ConfigError(f"depth={depth} is not an even number of at least 2")
        self.dim = dim
        self.inputs = PrefixedIds(dim, vocab, length)
        half = range(depth // 2)
        self.early = nn.ModuleList(_unbiased(dim, num_heads) for _ in half)
        self.middle = _unbiased(dim, num_heads)
        self.joins = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in half)
        self.late = nn.ModuleList(_unbiased(dim, num_heads) for _ in half)
        self.norm = nn.LayerNorm(dim)
        _initialise(self)

    def forward(self, query: Query, cond: Cond, *, cache: Any = None) -> Tensor:
        x, kept = self.inputs(query, cond), list[Tensor]()
        for block in self.early:
            x = block(x)
            kept.append(x)
        x = self.middle(x)
        for join, block in zip(self.joins, self.late, strict=True):
            x = block(join(torch.cat([x, kept.pop()], dim=-1)))
        return self.norm(x)[:, 1:].float()


def _unbiased(dim: int, num_heads: int) -> ViTBlock:
    block = ViTBlock(dim, num_heads)
    block.attention.qkv = nn.Linear(dim, 3 * dim, bias=False)
    return block


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ConfigError(f"dim={dim} is not a multiple of num_heads={num_heads}")


def _initialise(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(module.weight, std=STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, PrefixedIds):
            nn.init.trunc_normal_(module.positions, std=STD)
