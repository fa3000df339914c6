"""Nets: from what a process asks to features. The transformer is VAR's (arXiv 2404.02905)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.generators.cache import KVCache
from polytok.generators.cond import Cond
from polytok.generators.process import Query
from polytok.layers import attend

EPS = 1e-6
MAX_LOG_SCALE = math.log(100)


class Net(nn.Module):
    """Contract: features (R, n, W) of the n slots of a query, for R rows of conditions."""

    dim: int

    def new_cache(self, rows: int, capacity: int, cond: Cond) -> Any:
        """An empty cache for ``rows`` rows and ``capacity`` slots; None if it keeps none."""
        return None

    def forward(self, query: Query, cond: Cond, *, cache: Any = None) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define forward")


class UnitQK(nn.Module):
    """Unit queries and keys with a learned sharpness per head (VAR's released models)."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((1, num_heads, 1, 1), math.log(4)))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Prepare q and k (R, H, n, d) for attention with scale 1/sqrt(d)."""
        scale = self.log_scale.clamp(max=MAX_LOG_SCALE).exp() * q.shape[-1] ** 0.5
        return F.normalize(q.float(), dim=-1) * scale, F.normalize(k.float(), dim=-1)


class QuarterQK(nn.Module):
    """Plain queries and keys with a quarter of the usual softmax scale (VAR without unit q, k)."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q * 0.25, k


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, qk: nn.Module, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.qk = num_heads, qk
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        # A bias on keys would shift all logits of a query alike: it has no effect.
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = (t.to(v.dtype) for t in self.qk(q, k))
        if cache is not None:
            k, v = cache.append(layer, k, v)
        return self.dropout(self.out(attend(q, k, v, mask=mask).transpose(1, 2).flatten(-2)))


class _FeedForward(nn.Module):
    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.gelu(self.up(x), approximate="tanh")))


class Modulation(nn.Module):
    """Gates, scales and shifts of one block from its own linear map of the condition vector."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(dim, count * dim)

    def forward(self, vector: Tensor) -> Tensor:
        """(R, W) -> (R, 1, count, W)."""
        return self.linear(F.silu(vector)).unflatten(-1, (1, self.count, -1)).float()


class Offset(nn.Module):
    """Gates, scales and shifts of one block: those of all blocks plus a learned offset."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(1, 1, count, dim) * dim**-0.5)

    def forward(self, shared: Tensor) -> Tensor:
        return self.offset + shared


class AdaptiveBlock(nn.Module):
    """Attention and feed-forward behind norms without weights, modulated by the condition."""

    def __init__(
        self, dim: int, num_heads: int, qk: nn.Module, modulate: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.dim, self.modulate = dim, modulate
        self.attention = _Attention(dim, num_heads, qk, dropout)
        self.mlp = _FeedForward(dim, dropout)

    def forward(
        self, x: Tensor, given: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = self.modulate(given).unbind(2)
        y = F.layer_norm(x, (self.dim,), eps=EPS) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(y, mask, cache, layer)
        y = F.layer_norm(x, (self.dim,), eps=EPS) * (1 + scale2) + shift2
        return x + gate2 * self.mlp(y)


class AdaptiveTransformer(Net):
    """Transformer over numbered slots, after a prefix of condition tokens if there is one.

    Slots without input (start slots) begin as the condition vector. Prefix tokens see one another
    alone; slots see the prefix, and one another by the query's mask or by what is cached.

    Args:
        dim: W. depth: blocks. levels: level number of every slot, which has an embedding of its
            own. num_start: start slots.
        embed: from a query's ids or vectors to (B, m, W).
        qk: makes the treatment of queries and keys of a block from its number of heads.
        modulation: ``block`` (a linear map per block) or ``shared`` (one for all, plus offsets).
        dropout: on what attention and feed-forward add.
    """

    level_of: Tensor

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        levels: Sequence[int],
        num_start: int,
        embed: nn.Module,
        qk: Callable[[int], nn.Module] = UnitQK,
        modulation: Literal["block", "shared"] = "block",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"dim={dim} is not a multiple of num_heads={num_heads}")
        self.dim, self.num_heads, self.embed = dim, num_heads, embed
        self.register_buffer("level_of", torch.tensor(list(levels)), persistent=False)
        self.start = nn.Parameter(torch.zeros(1, num_start, dim))
        self.positions = nn.Parameter(torch.zeros(1, len(levels), dim))
        self.levels = nn.Embedding(max(levels) + 1, dim)
        is_shared = modulation == "shared"
        self.shared = Modulation(dim, 6) if is_shared else None
        kind: Callable[[int, int], nn.Module] = Offset if is_shared else Modulation
        blocks = [
            AdaptiveBlock(dim, num_heads, qk(num_heads), kind(dim, 6), dropout)
            for _ in range(depth)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.final = Modulation(dim, 2)
        self._initialise(blocks)

    def _initialise(self, blocks: Sequence[AdaptiveBlock]) -> None:
        std = (3 * self.dim) ** -0.5
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        for table in (self.start, self.positions):
            if table.numel():
                nn.init.trunc_normal_(table, std=std)
        with torch.no_grad():
            for block in blocks:
                block.attention.out.weight.div_((2 * len(blocks)) ** 0.5)
                block.mlp.down.weight.div_((2 * len(blocks)) ** 0.5)
            for module in self.modules():
                # Gates start open and everything else unmodulated: a plain transformer.
                if isinstance(module, Modulation):
                    module.linear.weight.mul_(0.1)
                    if module.count == 6:
                        module.linear.bias[: 2 * self.dim] = 1.0

    def new_cache(self, rows: int, capacity: int, cond: Cond) -> KVCache | None:
        if not capacity:
            return None
        like: Tensor = self.positions
        if torch.is_autocast_enabled(like.device.type):
            like = like.to(torch.get_autocast_dtype(like.device.type))
        size = self.dim // self.num_heads
        capacity += cond.num_tokens
        return KVCache(len(self.blocks), rows, self.num_heads, capacity, size, like)

    def forward(self, query: Query, cond: Cond, *, cache: KVCache | None = None) -> Tensor:
        if query.tau is not None:
            raise ConfigError("this net knows no time")
        x = self._inputs(query, cond)
        num_slots = x.shape[1]
        is_first = cache is None or not cache.length
        if is_first and cond.tokens is not None:
            x = torch.cat([cond.tokens.to(x.dtype), x], dim=1)
        mask = self._mask(query, cond, num_slots, cache)
        given = cond.vector if self.shared is None else self.shared(cond.vector)
        for layer, block in enumerate(self.blocks):
            x = block(x, given, mask, cache, layer)
        if cache is not None:
            cache.advance(x.shape[1])
        x = x[:, x.shape[1] - num_slots :]
        scale, shift = self.final(cond.vector).unbind(2)
        return F.layer_norm(x.float(), (self.dim,), eps=EPS) * (1 + scale) + shift

    def _inputs(self, query: Query, cond: Cond) -> Tensor:
        """Slots (R, n, W) before the first block."""
        where = self.positions[:, query.index] + self.levels(self.level_of[query.index])
        given = 0 if query.inp is None else query.inp.shape[1]
        num_start = len(query.index) - given
        parts = []
        if num_start:
            parts.append(cond.vector[:, None] + self.start[:, query.index[:num_start]])
        if query.inp is not None:
            parts.append(self.embed(query.inp).float())
        return torch.cat(parts, dim=1) + where

    def _mask(
        self, query: Query, cond: Cond, num_slots: int, cache: KVCache | None
    ) -> Tensor | None:
        """Who sees whom: None for everyone, else (n, n) or (R, 1, rows, columns) bool."""
        prefix = cond.num_tokens
        if not prefix:
            return query.mask
        assert cond.mask is not None
        if cache is not None and cache.length:
            columns = F.pad(cond.mask, (0, cache.length - prefix + num_slots), value=True)
            return columns[:, None, None]
        inner = query.mask
        if inner is None:
            inner = cond.mask.new_ones(num_slots, num_slots)
        rows = F.pad(inner, (prefix, 0, prefix, 0), value=True)
        rows[:prefix, prefix:] = False
        columns = F.pad(cond.mask, (0, num_slots), value=True)
        return (rows & columns[:, None])[:, None]
