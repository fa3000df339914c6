"""Random draws of a batch: one generator for all of it, or one per item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytok.core.errors import ConfigError

Rng = torch.Generator | Sequence[torch.Generator]
"""One generator for a batch, or a sequence of one per item: then an item's draws do not depend on
the rest of its batch."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How ids are drawn from logits.

    Args:
        temperature: divides the logits, above 0.
        top_k: keep the k likeliest ids; 0 keeps all. Ties with the k-th stay.
        top_p: keep the likeliest ids that together reach this mass; 0 or 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} must be above 0")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} must not be negative")
        if not 0 <= self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} is not within [0, 1]")

    def filter(self, logits: Tensor) -> Tensor:
        """Scale logits (..., V) and set those that may not be drawn to -inf: top-k, then top-p."""
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        if 0 < self.top_p < 1:
            rising, order = logits.sort(dim=-1)
            drop = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            drop[..., -1] = False
            logits = logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))
        return logits


def categorical(probabilities: Tensor, rng: Rng) -> Tensor:
    """Draw ids (B, n) from probabilities (B, n, V)."""
    if isinstance(rng, torch.Generator):
        rows = probabilities.flatten(0, 1)
        return torch.multinomial(rows, 1, replacement=True, generator=rng).view(
            probabilities.shape[:2]
        )
    _check(rng, len(probabilities))
    parts = zip(probabilities, rng, strict=True)
    return torch.stack(
        [torch.multinomial(p, 1, replacement=True, generator=r)[:, 0] for p, r in parts]
    )


def uniform(shape: Sequence[int], rng: Rng, device: torch.device) -> Tensor:
    """Draw uniform numbers in [0, 1) of shape (B, ...)."""
    if isinstance(rng, torch.Generator):
        return torch.rand(*shape, generator=rng, device=rng.device).to(device)
    _check(rng, shape[0])
    parts = [torch.rand(*shape[1:], generator=r, device=r.device) for r in rng]
    return torch.stack(parts).to(device)


def gumbel(shape: Sequence[int], rng: Rng, device: torch.device) -> Tensor:
    """Draw standard Gumbel noise of shape (B, ...)."""
    u = uniform(shape, rng, device).clamp(min=1e-20)
    return -(-u.log()).clamp(min=1e-20).log()


def _check(rng: Sequence[torch.Generator], count: int) -> None:
    if len(rng) != count:
        raise ConfigError(f"{len(rng)} generators were given for {count} items")
