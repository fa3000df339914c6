"""MCTF: merge tokens that are alike, little attended to and small, in both directions.

"Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers"
(arXiv 2403.10030; official code: mlvlab/MCTF, MIT, of which the matching descends from
non-commercial code and was not used). Works on plain weights, and better after fine-tuning with
two rates that should agree (:class:`MCTFTuning`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytok.core import hub
from polytok.core.contracts import Batch, Stage, StepContext, StepOutput
from polytok.core.errors import ConfigError
from polytok.reducers import Reducer, Schedule, Scores, TokenMap, TokenState, reduce
from polytok.reducers.maps import Backend
from polytok.reducers.matching import cosine, halves, merge_halves
from polytok.reducers.reducer import Where
from polytok.systems.vit import _shared
from polytok.training import Recipe


@dataclass(frozen=True, kw_only=True)
class MCTF(Reducer):
    """Before a block, merge by the product of three scores, each to the power 1 / tau.

    Likeness is (cosine + 1) / 2 of the residual stream; the others grow as the attention that
    both tokens receive, and their sizes, shrink.

    Args:
        tau: of likeness, attention and size; 0 leaves a score out.
        ahead: ``reuse`` merges the block's own attention map along with the tokens (the
            published choice; it needs the whole map), ``recompute`` attends anew, ``behind``
            merges after the block.
        is_two_way: half of the merges go from b to a; else all from a to b.
        pooling: weights of the merged mean: attention received times size, or size, or none.
        queries: estimate attention received from so many queries, where the map is not needed.
        backend: ``onehot`` merges by a matrix product.
    """

    tracks_size: ClassVar[bool] = True
    tau: tuple[float, float, float] = (1.0, 20.0, 40.0)
    ahead: Literal["reuse", "recompute", "behind"] = "reuse"
    is_two_way: bool = True
    pooling: Literal["attention", "size", "mean"] = "attention"
    queries: int | None = None
    backend: Backend = "scatter"

    def __post_init__(self) -> None:
        if len(self.tau) != 3 or not all(0 <= tau < math.inf for tau in self.tau):
            raise ConfigError(f"tau={self.tau} must be three numbers >= 0")
        if self.queries is not None and (self.queries < 1 or self.ahead == "reuse"):
            raise ConfigError(
                f"queries={self.queries} must be >= 1, and ahead={self.ahead!r} not 'reuse', "
                "which has the whole map"
            )

    @property
    def where(self) -> Where:
        return "output" if self.ahead == "behind" else "input"

    @property
    def reuses_attention(self) -> bool:
        return self.ahead == "reuse"

    @torch.no_grad()
    def choose(self, state: TokenState, scores: Scores, keep: int) -> TokenMap:
        if self.reuses_attention:
            scores.attention()
        received = scores.received(self.queries)[:, state.prefix :]
        size = torch.ones_like(received) if state.size is None else state.size[:, state.prefix :]
        gone = state.patches - keep
        back = gone - gone // 2 if self.is_two_way else 0
        return merge_halves(
            self._fit(scores.features(), received, size),
            gone - back,
            back,
            weights=self._weights(received, size),
            backend=self.backend,
        )

    def _fit(self, x: Tensor, received: Tensor, size: Tensor) -> Tensor:
        """(B, n_a, n_b) log of the product, which orders pairs alike."""
        a, b = halves(x.shape[1], x.device)
        fit = x.new_zeros(x.shape[0], len(a), len(b), dtype=torch.float32)
        alike, info, small = self.tau
        if alike:
            fit = fit + ((cosine(x[:, a], x[:, b]) + 1) / 2).clamp(min=0).log() / alike
        for value, tau in ((received, info), (size, small)):
            if tau:
                each = value.float().log() / tau
                fit = fit - each[:, a, None] - each[:, None, b]
        return fit

    def _weights(self, received: Tensor, size: Tensor) -> Tensor | None:
        if self.pooling == "mean":
            return None
        share = size / size.amax(1, keepdim=True)
        return share * received if self.pooling == "attention" else size

    def least(self, patches: int) -> int:
        # Nine patches and the class token are left alone, as published.
        return max(patches - patches // 2, min(9, patches))

    def layers(self, depth: int) -> tuple[int, ...]:
        return tuple(range(1, depth))

    def schedule(self, depth: int) -> Schedule:
        return Schedule.removals(16, self.layers(depth))

    def macs(self, length: int, keep: int, dim: int) -> int:
        return (length // 2) ** 2 * dim


PRESETS = {"mctf": MCTF()}
STAGES = (Stage(name="tune", weights={"ce": 1.0, "ce_teacher": 1.0, "consistency": 1.0}),)


@dataclass(frozen=True, kw_only=True)
class MCTFTuningConfig:
    """How a classifier is trained to say the same with fewer tokens.

    Args:
        r: what the student's blocks remove, a share of the patches when below 1.
        teacher_r: the teacher's is drawn per step from 0 up to this, of the same kind.
        draws: levels that are drawn from, so that few shapes occur.
        threshold: only samples whose student gives the label more than this count.
        layers: blocks that reduce; all but the first if empty.
        vit: sizes of the classifier.
    """

    r: float = 0.35
    teacher_r: float = 0.15
    draws: int = 4
    threshold: float = 0.0
    layers: tuple[int, ...] = ()
    vit: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.teacher_r < 0 or self.draws < 1 or not 0 <= self.threshold <= 1:
            raise ConfigError(
                f"teacher_r={self.teacher_r} must be >= 0, draws={self.draws} >= 1 and "
                f"threshold={self.threshold} within [0, 1]"
            )


class MCTFTuning(nn.Module):
    """One network, twice: as a student with r, and as its teacher with a smaller r per step.

    Losses: ``ce`` and ``ce_teacher``; ``consistency``, the squared distance of the student's class
    feature after the last norm to the teacher's, which gets no gradient from it.

    Args:
        classifier: a plain one; its state-dict keys do not change.
    """

    def __init__(self, classifier: Any, config: MCTFTuningConfig) -> None:
        super().__init__()
        self.config = replace(config, vit=_shared.sizes_of(classifier))
        self.layers = config.layers or MCTF().layers(len(classifier.vit.blocks))
        reduce(classifier.vit, "mctf", schedule=self._schedule(config.r))
        self.classifier = classifier

    def _schedule(self, r: float) -> Schedule:
        return Schedule.removals(r, self.layers)

    def logits(self, image: Tensor) -> Tensor:
        """Class scores (B, num_classes) of images (B, 3, H, W) in [0, 1]."""
        scores: Tensor = self.classifier.logits(image)
        return scores

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """A step on ``batch["image"]`` and ``batch["label"]``; the draw takes ``ctx.rng``."""
        level = int(torch.randint(self.config.draws, (), generator=ctx.rng))
        small = self._schedule(self.config.teacher_r * level / self.config.draws)
        label = batch["label"]
        student, logits = self._seen(batch["image"], self._schedule(self.config.r))
        teacher, taught = self._seen(batch["image"], small)
        smoothing = self.classifier.config.label_smoothing
        losses = {
            name: F.cross_entropy(scores, label, label_smoothing=smoothing)
            for name, scores in (("ce", logits), ("ce_teacher", taught))
        }
        apart = (teacher.detach() - student).square().mean(1)
        sure = logits.softmax(-1).gather(1, label[:, None])[:, 0] > self.config.threshold
        losses["consistency"] = (apart * sure).sum() / sure.sum().clamp(min=1)
        accuracy = (logits.argmax(-1) == label).float().mean()
        return StepOutput(losses=losses, metrics={"accuracy": accuracy}, output={"logits": logits})

    def _seen(self, image: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Class feature (B, C) and logits under a schedule, in float32."""
        features = self.classifier.vit.forward_features(_shared.scaled(image), keep=schedule)
        return features[:, 0].float(), self.classifier.vit.forward_head(features).float()


def prepare_training(recipe: Recipe) -> _shared.ReductionTraining:
    """Build a run of the stage ``tune`` from the classifier that ``init`` names.

    Raises:
        PolytokError: see :func:`polytok.systems.vit._shared.prepare`.
    """
    return _shared.prepare(recipe, MCTFTuningConfig, MCTFTuning)


def load_model(folder: Path, info: hub.Info, *, name: str, device: str = "cpu") -> MCTFTuning:
    """Build the model of a run's folder and fill it with its weights."""
    return _shared.loaded(folder, info, MCTFTuningConfig, MCTFTuning, device)
