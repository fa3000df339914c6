"""Losses by modality; each returns an unweighted scalar."""

from polytok.losses.shape import overlap_loss, signed_distance_loss, soft_occupancy_loss
from polytok.losses.virtual_adversarial import (
    Space,
    VirtualAdversarialLoss,
    difference_directions,
    score_space,
)

__all__ = [
    "Space",
    "VirtualAdversarialLoss",
    "difference_directions",
    "overlap_loss",
    "score_space",
    "signed_distance_loss",
    "soft_occupancy_loss",
]
