"""Losses on implicit fields. Signed distances are negative inside, logits positive inside."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_occupancy(sdf: Tensor, band: float) -> Tensor:
    """1 inside, 0 outside, linear over |sdf| < band (Direct3D's semi-continuous occupancy)."""
    return (0.5 - 0.5 * sdf / band).clamp(0, 1)


def soft_occupancy_loss(logits: Tensor, sdf: Tensor, *, band: float) -> Tensor:
    """Binary cross-entropy of logits (B, Q) with soft occupancies of distances (B, Q)."""
    return F.binary_cross_entropy_with_logits(logits.float(), soft_occupancy(sdf, band))


def signed_distance_loss(logits: Tensor, sdf: Tensor, *, band: float) -> Tensor:
    """L1 of tanh(logits) with the negated distance truncated to +- band and scaled to [-1, 1]."""
    target = (-sdf / band).clamp(-1, 1)
    return (logits.float().tanh() - target).abs().mean()


def overlap_loss(logits: Tensor, sdf: Tensor, *, band: float) -> Tensor:
    """1 - soft IoU of each shape's queries, averaged; logits and distances (B, Q).

    Cross-entropy alone is cautious: where half of the plausible shapes are empty it says outside.
    """
    guess, truth = logits.float().sigmoid(), soft_occupancy(sdf, band)
    both = (guess * truth).sum(-1)
    either = (guess + truth).sum(-1) - both
    return (1 - (both + 1) / (either + 1)).mean()
