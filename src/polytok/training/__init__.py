"""Training: stages, the loop, averaged weights, resume and recipes."""

from polytok.training.adversary import ADVERSARIAL, Adversary
from polytok.training.config import TrainConfig
from polytok.training.ema import WeightAverage
from polytok.training.loop import FitResult, fit
from polytok.training.recipe import DataRecipe, Recipe, StageBudget
from polytok.training.samples import SampleSource

__all__ = [
    "ADVERSARIAL",
    "Adversary",
    "DataRecipe",
    "FitResult",
    "Recipe",
    "SampleSource",
    "StageBudget",
    "TrainConfig",
    "WeightAverage",
    "fit",
]
