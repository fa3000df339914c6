"""Decoder networks by kind."""

from polytok.networks.decoders.mask_token import CodeHead, MaskTokenDecoder, PatchHead
from polytok.networks.decoders.triplane import PlaneField, TriplaneDecoder

__all__ = ["CodeHead", "MaskTokenDecoder", "PatchHead", "PlaneField", "TriplaneDecoder"]
