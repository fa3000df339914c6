"""Bottlenecks: make latents few or discrete, one contract, one file per kind."""

from polytok.bottlenecks.estimators import rotation, straight_through
from polytok.bottlenecks.gaussian import GaussianBottleneck
from polytok.bottlenecks.multi_scale import MultiScaleVQ
from polytok.bottlenecks.resamplers import RESAMPLERS, ScaleResampler, make_resampler
from polytok.bottlenecks.vq import VectorQuantizer

__all__ = [
    "RESAMPLERS",
    "GaussianBottleneck",
    "MultiScaleVQ",
    "ScaleResampler",
    "VectorQuantizer",
    "make_resampler",
    "rotation",
    "straight_through",
]
