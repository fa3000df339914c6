"""Better codes of pictures: descend on what the decoder shows, keep the best code passed."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from polytok.core.contracts import Bottleneck

# Of each effort. A step takes as long as two or three times decoding.
STEPS = (0, 10, 20, 40, 60, 100, 150, 200, 300, 500)
MAX_EFFORT = len(STEPS) - 1
RATE, BETAS = 0.1, (0.9, 0.95)


@runtime_checkable
class Searchable(Protocol):
    """A tokenizer of pictures whose codes can be searched for."""

    bottleneck: Bottleneck

    def features(self, image: Tensor) -> Tensor:
        """What the bottleneck gets (B, N, ...) of pictures (B, 3, H, W)."""

    def picture(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), unclamped, of embedded tokens (B, n, d)."""


@torch.inference_mode(False)
def refine(model: Searchable, image: Tensor, ids: Tensor, *, effort: int) -> Tensor:
    """Ids (B, N) whose decoded pictures have the least squared error found, no more than ``ids``.

    The vectors that the encoder gives move by the gradient of the decoder, straight through the
    nearest codes. Later tokens may take over what earlier ones said, so prefixes can lose.

    Args:
        image: (B, 3, H, W) in [0, 1]. ids: (B, N), of whole codes or of a prefix.
        effort: 0..9, see STEPS.
    """
    with torch.no_grad():
        best = ids
        least = _errors(model.picture(model.bottleneck.embed([ids])), image)
        start = model.features(image)[:, : ids.shape[1]]
    vectors = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr=RATE, betas=BETAS)
    steps = STEPS[effort]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in range(steps):
        with torch.enable_grad():
            out = model.bottleneck(vectors)
            errors = _errors(model.picture(out.latents), image)
            (vectors.grad,) = torch.autograd.grad(errors.sum(), vectors)
        is_better = errors.detach() < least
        best = torch.where(is_better[:, None], out.indices[0], best)
        least = torch.minimum(errors.detach(), least)
        optimizer.step()
        schedule.step()
    return best


def _errors(decoded: Tensor, image: Tensor) -> Tensor:
    """Mean squared error of each picture (B,), of what is shown: values within [0, 1]."""
    return (decoded.float().clamp(0, 1) - image.float()).square().mean((1, 2, 3))
