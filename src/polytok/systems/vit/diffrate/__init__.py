"""DiffRate: how many tokens each block prunes and merges, found by gradient descent.

"DiffRate: Differentiable Compression Rate for Efficient Vision Transformers" (arXiv 2305.17997;
official code: OpenGVLab/DiffRate, without a licence, so written from the maths). The weights
stay; what is learned is a list of integers, which :func:`search_rates` finds for a budget.
"""

from polytok.systems.vit.diffrate.reducer import PRESETS, DiffRate
from polytok.systems.vit.diffrate.search import Rates, RateSearch, SearchConfig, search_rates
from polytok.systems.vit.diffrate.training import (
    STAGES,
    DiffRateTraining,
    DiffRateTrainingConfig,
    load_model,
    prepare_training,
)

__all__ = [
    "PRESETS",
    "STAGES",
    "DiffRate",
    "DiffRateTraining",
    "DiffRateTrainingConfig",
    "RateSearch",
    "Rates",
    "SearchConfig",
    "load_model",
    "prepare_training",
    "search_rates",
]
