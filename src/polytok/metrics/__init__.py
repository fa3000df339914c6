"""Metrics; each comes with the conventions it was computed under."""

from polytok.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_mean
from polytok.metrics.peers import DracoFit, draco_candidates, draco_decode, draco_encode, draco_fit
from polytok.metrics.shape import CONVENTIONS, ShapeReference, ShapeScores, shape_scores

__all__ = [
    "CONVENTIONS",
    "DracoFit",
    "Interval",
    "ShapeReference",
    "ShapeScores",
    "bootstrap_difference",
    "bootstrap_mean",
    "draco_candidates",
    "draco_decode",
    "draco_encode",
    "draco_fit",
    "shape_scores",
]
