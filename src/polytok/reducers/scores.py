"""What reducers rank tokens by, computed only when asked for.

Legend: B batch, H heads, T tokens, N patch tokens (T without the prefix), d channels of a head.
``bias`` is broadcastable to (B, H, T, T) and added to the logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

CHUNK = 256


def attention_rows(q: Tensor, k: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Attention of some queries (B, H, S, d) over keys (B, H, T, d): (B, H, S, T), in float32."""
    logits = (q * scale) @ k.transpose(-2, -1)
    logits = logits.float() if bias is None else logits.float() + bias
    return logits.softmax(-1)


def class_row(q: Tensor, k: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """What the first token attends to, (B, T), mean over heads: T d products instead of T T d."""
    return attention_rows(q[:, :, :1], k, scale, bias)[:, :, 0].mean(1)


def attention_received(
    q: Tensor, k: Tensor, scale: float, bias: Tensor | None = None, *, chunk: int = CHUNK
) -> Tensor:
    """What each token gets, (B, T), mean over heads and queries; exact, by ``chunk`` queries."""
    parts = [attention_rows(some, k, scale, bias).sum(2).mean(1) for some in q.split(chunk, 2)]
    return torch.stack(parts).sum(0) / q.shape[2]


def sampled_received(
    q: Tensor, k: Tensor, scale: float, bias: Tensor | None = None, *, queries: int
) -> Tensor:
    """:func:`attention_received` of ``queries`` evenly spaced queries: another, cheaper ranking."""
    queries = min(queries, q.shape[2])
    index = spaced(queries, q.shape[2], q.device)
    return attention_received(q[:, :, index], k, scale, bias, chunk=queries)


def spaced(count: int, total: int, device: torch.device | None = None) -> Tensor:
    """(count,) int64 indices, evenly spaced within 0..total-1, all different."""
    return ((2 * torch.arange(count, device=device) + 1) * total) // (2 * count)


@dataclass
class Scores:
    """What one block knows of its tokens.

    Args:
        x: (B, T, C) the residual stream where the reduction happens.
        q, k: (B, H, T, d) of the block's attention, as they enter the product.
        scale: of the logits. bias: log sizes, see :meth:`TokenState.bias`.
        prefix: tokens that are no patches; the first is the class token where there is one.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    scale: float
    bias: Tensor | None = None
    prefix: int = 1
    _map: Tensor | None = field(default=None, repr=False)

    def features(self) -> Tensor:
        """(B, N, C) the patch tokens."""
        return self.x[:, self.prefix :]

    def class_row(self) -> Tensor:
        """(B, N) what the class token attends to, mean over heads. Rows sum to less than 1."""
        return class_row(self.q, self.k, self.scale, self.bias)[:, self.prefix :]

    def key_mean(self) -> Tensor:
        """(B, N, d) keys, mean over heads."""
        return self.k[:, :, self.prefix :].mean(1)

    def received(self, queries: int | None = None) -> Tensor:
        """(B, T) what each token gets, the prefix too; exact, or from so many ``queries``."""
        if queries is not None:
            return sampled_received(self.q, self.k, self.scale, self.bias, queries=queries)
        if self._map is not None:
            return self._map.mean((1, 2))
        return attention_received(self.q, self.k, self.scale, self.bias)

    def attention(self) -> Tensor:
        """(B, H, T, T) the whole map in float32: T T d products and T T numbers per head."""
        if self._map is None:
            self._map = attention_rows(self.q, self.k, self.scale, self.bias)
        return self._map
