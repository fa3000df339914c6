"""Losses by modality; each returns an unweighted scalar."""

from polytok.losses.shape import signed_distance_loss, soft_occupancy_loss

__all__ = ["signed_distance_loss", "soft_occupancy_loss"]
