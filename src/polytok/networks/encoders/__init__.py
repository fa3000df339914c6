"""Encoder networks by kind."""

from polytok.networks.encoders.latent_query import LatentQueryEncoder
from polytok.networks.encoders.point import PointEncoder

__all__ = ["LatentQueryEncoder", "PointEncoder"]
