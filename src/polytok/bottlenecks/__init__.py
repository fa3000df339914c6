"""Bottlenecks: make latents few or discrete, one contract, one file per kind."""

from polytok.bottlenecks.gaussian import GaussianBottleneck
from polytok.bottlenecks.multi_scale import MultiScaleVQ
from polytok.bottlenecks.resamplers import RESAMPLERS, ScaleResampler, make_resampler

__all__ = [
    "RESAMPLERS",
    "GaussianBottleneck",
    "MultiScaleVQ",
    "ScaleResampler",
    "make_resampler",
]
