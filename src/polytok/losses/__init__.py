"""Losses by modality; each returns an unweighted scalar."""

from polytok.losses.adversarial import (
    LeCam,
    adaptive_weight,
    hinge_critic_loss,
    hinge_generator_loss,
)
from polytok.losses.perceptual import LogitLoss, PerceptualLoss
from polytok.losses.shape import overlap_loss, signed_distance_loss, soft_occupancy_loss
from polytok.losses.virtual_adversarial import (
    Space,
    VirtualAdversarialLoss,
    difference_directions,
    score_space,
)

__all__ = [
    "LeCam",
    "LogitLoss",
    "PerceptualLoss",
    "Space",
    "VirtualAdversarialLoss",
    "adaptive_weight",
    "difference_directions",
    "hinge_critic_loss",
    "hinge_generator_loss",
    "overlap_loss",
    "score_space",
    "signed_distance_loss",
    "soft_occupancy_loss",
]
