"""Metrics; each comes with the conventions it was computed under."""

from polytok.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_mean
from polytok.metrics.peers import DracoFit, draco_candidates, draco_decode, draco_encode, draco_fit
from polytok.metrics.sets import SetScores, chamfer_matrix, set_scores
from polytok.metrics.shape import CONVENTIONS, ShapeReference, ShapeScores, shape_scores

__all__ = [
    "CONVENTIONS",
    "DracoFit",
    "Interval",
    "SetScores",
    "ShapeReference",
    "ShapeScores",
    "bootstrap_difference",
    "bootstrap_mean",
    "chamfer_matrix",
    "draco_candidates",
    "draco_decode",
    "draco_encode",
    "draco_fit",
    "set_scores",
    "shape_scores",
]
