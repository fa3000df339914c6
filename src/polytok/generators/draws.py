"""Random draws of a batch: one generator for all of it, or one per item."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytok.core.errors import ConfigError

Rng = torch.Generator | Sequence[torch.Generator]
"""One generator for a batch, or a sequence of one per item: then an item's draws do not depend on
the rest of its batch."""


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
