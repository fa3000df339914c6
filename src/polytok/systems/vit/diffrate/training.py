"""The search as a training run: a frozen classifier, and rates that the loop trains."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytok.core import hub
from polytok.core.contracts import Batch, Stage, StepContext, StepOutput
from polytok.layers import Frozen
from polytok.reducers import applied
from polytok.reducers.cost import cost
from polytok.systems.vit import _shared
from polytok.systems.vit.diffrate.reducer import DiffRate
from polytok.systems.vit.diffrate.search import RateSearch, SearchConfig
from polytok.training import Recipe

STAGES = (Stage(name="search", weights={"ce": 1.0, "budget": 5.0}),)


@dataclass(frozen=True, kw_only=True)
class DiffRateTrainingConfig:
    """What is searched; the optimiser is the recipe's, and the budget's weight the stage's.

    Args:
        share: target, as a share of the plain model's MACs.
        granularity, start, is_even: see :class:`SearchConfig`.
        warmup: share of the run without the budget.
        vit: sizes of the classifier.
    """

    share: float = 0.6
    granularity: int = 4
    start: float = 0.0
    is_even: bool = False
    warmup: float = 0.0
    vit: dict[str, Any] = field(default_factory=dict)


class DiffRateTraining(nn.Module):
    """Rates that learn; the classifier's weights stay, and are not part of the state.

    Losses: ``ce`` of the classifier with masked tokens, and ``budget``, see
    :meth:`RateSearch.excess`.

    Args:
        classifier: a trained one; it is frozen in place.
    """

    def __init__(self, classifier: Any, config: DiffRateTrainingConfig) -> None:
        super().__init__()
        self.config = replace(config, vit=_shared.sizes_of(classifier))
        self.classifier = Frozen(classifier)
        side = classifier.config.size
        names = ("share", "granularity", "start", "is_even")
        searched = SearchConfig(**{name: getattr(config, name) for name in names})
        found = cost(classifier.vit, torch.zeros(1, 3, side, side))
        self.search = RateSearch(found, searched)

    def logits(self, image: Tensor) -> Tensor:
        """Class scores (B, num_classes) with tokens really removed, by the counts as they are."""
        plain: Any = self.classifier.module
        with applied(plain.vit, self.search.found()):
            scores: Tensor = plain.logits(image)
        return scores

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """A step on ``batch["image"]`` and ``batch["label"]``."""
        plain: Any = self.classifier.module
        with self.search.searching(plain.vit):
            logits = plain.logits(batch["image"]).float()
        ce = F.cross_entropy(logits, batch["label"])
        budget = self.search.excess() * float(ctx.progress >= self.config.warmup)
        accuracy = (logits.argmax(-1) == batch["label"]).float().mean()
        macs = self.search.rates.macs(self.search.cost).detach()
        return StepOutput(
            losses={"ce": ce, "budget": budget},
            metrics={"accuracy": accuracy, "macs_share": macs / self.search.cost.plain()},
            output={"logits": logits},
        )

    def found(self) -> DiffRate:
        """The reducer that was found, for :func:`polytok.reduce`."""
        return self.search.found()


def prepare_training(recipe: Recipe) -> _shared.ReductionTraining:
    """Build a run of the stage ``search`` for the classifier that ``init`` names.

    Raises:
        PolytokError: see :func:`polytok.systems.vit._shared.prepare`.
    """
    return _shared.prepare(recipe, DiffRateTrainingConfig, DiffRateTraining)


def load_model(folder: Path, info: hub.Info, *, name: str, device: str = "cpu") -> DiffRateTraining:
    """Build the search of a run's folder with the rates it found; its classifier is random."""
    return _shared.loaded(folder, info, DiffRateTrainingConfig, DiffRateTraining, device)
