"""Explicit caches: values that a caller makes, passes to every step and throws away."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of all layers in static buffers (R, H, capacity, d).

    ``length`` slots are filled. ``mask`` (R, prefix) tells which of the first slots are valid.
    """

    def __init__(
        self, num_layers: int, rows: int, heads: int, capacity: int, dim: int, like: Tensor
    ) -> None:
        shape = (num_layers, 2, rows, heads, capacity, dim)
        self.buffer = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.length = 0
        self.mask: Tensor | None = None

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (R, H, n, d) of a layer; returns all of them up to now."""
        end = self.length + k.shape[2]
        if end > self.buffer.shape[4]:
            raise IndexError(f"{end} slots do not fit a cache of {self.buffer.shape[4]}")
        self.buffer[layer, 0, :, :, self.length : end] = k
        self.buffer[layer, 1, :, :, self.length : end] = v
        return self.buffer[layer, 0, :, :, :end], self.buffer[layer, 1, :, :, :end]

    def advance(self, count: int) -> None:
        """Count ``count`` slots as filled, once all layers have appended them."""
        self.length += count
