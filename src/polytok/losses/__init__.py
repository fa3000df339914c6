"""Losses by modality; each returns an unweighted scalar."""

from polytok.losses.shape import overlap_loss, signed_distance_loss, soft_occupancy_loss

__all__ = ["overlap_loss", "signed_distance_loss", "soft_occupancy_loss"]
