"""Decoder networks by kind."""

from polytok.networks.decoders.triplane import PlaneField, TriplaneDecoder

__all__ = ["PlaneField", "TriplaneDecoder"]
