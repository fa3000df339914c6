"""Encode effort: refine a code against the shape's own field through the frozen decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polytok.core.errors import PolytokError
from polytok.core.seeding import torch_rng
from polytok.systems.shape.vat.model import VAT

# Gradient steps up to each effort. All efforts walk the same path and keep its best code so far,
# so a higher effort never ends with a worse objective.
STEPS = (0, 10, 25, 50, 75, 100, 150, 200, 300, 400)
LEARNING_RATE = 0.05
QUERIES_PER_STEP = 2048
CHECK_EVERY = 5


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The best code found: ids (1, s_k) per scale, its objective and that of the start."""

    indices: tuple[Tensor, ...]
    objective: float
    start: float
    steps: int


def refine(
    model: VAT,
    latents: Tensor,
    queries: Tensor,
    sdf: Tensor,
    *,
    effort: int,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """Move latents down the gradient of the reconstruction loss, through the quantizer.

    The objective is the model's reconstruction loss of the *quantized* latents on all queries.
    Adam moves the continuous latents; the straight-through estimator carries the gradient past
    the quantizer.

    Args:
        latents: (1, M, d), the encoder's mean. queries: (1, Q, 3). sdf: (1, Q), inside negative.
        effort: 0..9.

    Raises:
        PolytokError: effort is outside 0..9.
    """
    if not 0 <= effort < len(STEPS):
        raise PolytokError(f"effort={effort} is not within 0..{len(STEPS) - 1}")
    quantizer = model.bottleneck.quantizer
    rng = torch_rng(seed, "search")
    z = latents.detach().clone().requires_grad_()
    momentum, variance = torch.zeros_like(z), torch.zeros_like(z)

    def judge() -> tuple[float, tuple[Tensor, ...]]:
        with torch.no_grad():
            out = quantizer(z)
            loss = model.reconstruction_loss(model.field(out.latents)(queries), sdf)
        assert out.indices is not None
        return float(loss), out.indices

    start, indices = judge()
    best = start
    for step in range(1, STEPS[effort] + 1):
        pick = torch.randint(queries.shape[1], (QUERIES_PER_STEP,), generator=rng)
        total = quantizer(z).latents
        through = z + (total - z).detach()
        loss = model.reconstruction_loss(model.field(through)(queries[:, pick]), sdf[:, pick])
        (gradient,) = torch.autograd.grad(loss, z)
        momentum = 0.9 * momentum + 0.1 * gradient
        variance = 0.99 * variance + 0.01 * gradient.square()
        scale = (variance / (1 - 0.99**step)).sqrt() + 1e-8
        with torch.no_grad():
            z -= LEARNING_RATE * momentum / (1 - 0.9**step) / scale
        if step % CHECK_EVERY == 0:
            score, found = judge()
            if score < best:
                best, indices = score, found
        if on_step:
            on_step(step, STEPS[effort])
    return SearchResult(indices=indices, objective=best, start=start, steps=STEPS[effort])
