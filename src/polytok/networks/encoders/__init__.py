"""Encoder networks by kind."""

from polytok.networks.encoders.point import PointEncoder

__all__ = ["PointEncoder"]
