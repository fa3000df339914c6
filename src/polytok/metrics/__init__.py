"""Metrics; each comes with the conventions it was computed under."""

from polytok.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_mean
from polytok.metrics.collapse import (
    CollapseReport,
    LossScale,
    collapse_report,
    measure_collapse,
    record_moments,
)
from polytok.metrics.image import (
    IMAGE_CONVENTIONS,
    bits_per_pixel,
    classifier_agreement,
    feature_distance,
    frechet_distance,
    ms_ssim,
    perceptual_distance,
    psnr,
    ssim,
)
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
    "IMAGE_CONVENTIONS",
    "CollapseReport",
    "DracoFit",
    "Interval",
    "LossScale",
    "SetScores",
    "ShapeReference",
    "ShapeScores",
    "attention_entropy",
    "average_precision",
    "bits_per_pixel",
    "bootstrap_difference",
    "bootstrap_mean",
    "chamfer_matrix",
    "classifier_agreement",
    "collapse_report",
    "draco_candidates",
    "draco_decode",
    "draco_encode",
    "draco_fit",
    "feature_distance",
    "frechet_distance",
    "kendall_tau",
    "measure_collapse",
    "ms_ssim",
    "pearson",
    "perceptual_distance",
    "psnr",
    "record_moments",
    "set_scores",
    "shape_scores",
    "ssim",
    "top_f1",
]
