"""Metrics; each comes with the conventions it was computed under."""

from polytok.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_mean
from polytok.metrics.collapse import (
    CollapseReport,
    LossScale,
    collapse_report,
    measure_collapse,
    record_moments,
)
from polytok.metrics.image import psnr
from polytok.metrics.peers import DracoFit, draco_candidates, draco_decode, draco_encode, draco_fit
from polytok.metrics.rationale import (
    attention_entropy,
    average_precision,
    kendall_tau,
    pearson,
    top_f1,
)
from polytok.metrics.sets import SetScores, chamfer_matrix, set_scores
from polytok.metrics.shape import CONVENTIONS, ShapeReference, ShapeScores, shape_scores

__all__ = [
    "CONVENTIONS",
    "CollapseReport",
    "DracoFit",
    "Interval",
    "LossScale",
    "SetScores",
    "ShapeReference",
    "ShapeScores",
    "attention_entropy",
    "average_precision",
    "bootstrap_difference",
    "bootstrap_mean",
    "chamfer_matrix",
    "collapse_report",
    "draco_candidates",
    "draco_decode",
    "draco_encode",
    "draco_fit",
    "kendall_tau",
    "measure_collapse",
    "pearson",
    "psnr",
    "record_moments",
    "set_scores",
    "shape_scores",
    "top_f1",
]
