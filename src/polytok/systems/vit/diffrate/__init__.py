"""DiffRate: how many tokens each block prunes and merges, found by gradient descent.

"DiffRate: Differentiable Compression Rate for Efficient Vision Transformers" (arXiv 2305.17997;
official code: OpenGVLab/DiffRate, without a licence, so written from the maths). The weights
stay; what is learned is a list of integers, which :func:`search_rates` finds for a budget.
"""

from polytok.systems.vit.diffrate.reducer import PRESETS, DiffRate
from polytok.systems.vit.diffrate.search import Rates, RateSearch, SearchConfig, search_rates

__all__ = ["PRESETS", "DiffRate", "RateSearch", "Rates", "SearchConfig", "search_rates"]
