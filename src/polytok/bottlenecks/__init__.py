"""Bottlenecks: make latents few or discrete, one contract, one file per kind."""

from polytok.bottlenecks.bsq import BinarySphericalQuantizer
from polytok.bottlenecks.cvq import ClusteringQuantizer
from polytok.bottlenecks.ema import CosineEMAQuantizer, EMAQuantizer
from polytok.bottlenecks.estimators import rotation, straight_through
from polytok.bottlenecks.factorized import FactorizedQuantizer
from polytok.bottlenecks.fsq import FiniteScalarQuantizer
from polytok.bottlenecks.gaussian import GaussianBottleneck
from polytok.bottlenecks.grouped import GroupedQuantizer
from polytok.bottlenecks.gumbel import DistanceLogits, GumbelQuantizer, LinearLogits
from polytok.bottlenecks.ibq import IBQ
from polytok.bottlenecks.lfq import LookupFreeQuantizer
from polytok.bottlenecks.multi_scale import MultiScaleVQ
from polytok.bottlenecks.projected import ProjectedQuantizer
from polytok.bottlenecks.resamplers import RESAMPLERS, ScaleResampler, make_resampler
from polytok.bottlenecks.residual import ResidualQuantizer
from polytok.bottlenecks.simvq import SimVQ
from polytok.bottlenecks.usage import advise
from polytok.bottlenecks.vq import VectorQuantizer

__all__ = [
    "IBQ",
    "RESAMPLERS",
    "BinarySphericalQuantizer",
    "ClusteringQuantizer",
    "CosineEMAQuantizer",
    "DistanceLogits",
    "EMAQuantizer",
    "FactorizedQuantizer",
    "FiniteScalarQuantizer",
    "GaussianBottleneck",
    "GroupedQuantizer",
    "GumbelQuantizer",
    "LinearLogits",
    "LookupFreeQuantizer",
    "MultiScaleVQ",
    "ProjectedQuantizer",
    "ResidualQuantizer",
    "ScaleResampler",
    "SimVQ",
    "VectorQuantizer",
    "advise",
    "make_resampler",
    "rotation",
    "straight_through",
]
