"""Fewer visual tokens for the vision-language models of transformers."""

from polytok.reducers.vlm.budgets import Budget, PerTile, Total
from polytok.reducers.vlm.contrast import Contrast, ContrastProcessor, contrasted
from polytok.reducers.vlm.cut import AttentionKeep, CutRule, Prefill, Several, StaticExit
from polytok.reducers.vlm.layout import Layout
from polytok.reducers.vlm.plan import Plan
from polytok.reducers.vlm.reduction import Reduction
from polytok.reducers.vlm.report import Report
from polytok.reducers.vlm.run import Run
from polytok.reducers.vlm.scores import AttentionScore, FeatureNorm, Inverse, RandomScore, Score
from polytok.reducers.vlm.select import Diverse, average_into_nearest, evenly, top
from polytok.reducers.vlm.tap import Tap
from polytok.reducers.vlm.tokens import VisualTokens

__all__ = [
    "AttentionKeep",
    "AttentionScore",
    "Budget",
    "Contrast",
    "ContrastProcessor",
    "CutRule",
    "Diverse",
    "FeatureNorm",
    "Inverse",
    "Layout",
    "PerTile",
    "Plan",
    "Prefill",
    "RandomScore",
    "Reduction",
    "Report",
    "Run",
    "Score",
    "Several",
    "StaticExit",
    "Tap",
    "Total",
    "VisualTokens",
    "average_into_nearest",
    "contrasted",
    "evenly",
    "top",
]
