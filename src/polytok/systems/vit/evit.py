"""EViT: tokens that the class token attends to go on, the others become one.

"Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations"
(arXiv 2202.07800; official code: youweiliang/evit, Apache-2.0, ten DeiT-S checkpoints with the
keys of plain DeiT). Plain weights work unchanged; fine-tuning, or training with a falling keep
ratio, makes up for most of what is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from polytok.core import hub
from polytok.core.contracts import Batch, Stage, StepContext, StepOutput
from polytok.core.errors import ConfigError
from polytok.reducers import Fuse, Reducer, Schedule, Scores, Select, TokenMap, TokenState, reduce
from polytok.reducers.reduction import reduction_of
from polytok.systems.vit import _shared
from polytok.training import Recipe


@dataclass(frozen=True, kw_only=True)
class EViT(Reducer):
    """Between attention and MLP of a few blocks, keep the patches the class token attends to most.

    Kept patches are in the order of their attention. The fused token is the sum of the others,
    weighted by their attention as it is, and counts as a patch in the next block.

    Args:
        fuse: add the fused token; else the others are dropped.
    """

    needs_cls: ClassVar[bool] = True
    fuse: bool = True

    @property
    def extra(self) -> int:
        return int(self.fuse)

    def choose(self, state: TokenState, scores: Scores, keep: int) -> TokenMap:
        attention = scores.class_row()
        index = attention.topk(keep).indices
        if not self.fuse:
            return Select(index, state.patches)
        return Fuse(index, attention, state.patches)

    def macs(self, length: int, keep: int, dim: int) -> int:
        return length * dim


PRESETS = {"evit": EViT()}
STAGES = (Stage(name="tune", weights={"ce": 1.0}),)


def keep_ramp(progress: float, start: float, length: float) -> float:
    """How far the keep ratio is from its end at ``progress`` of the run: 1, then a cosine to 0.

    Published from random weights: all tokens for 10 of 300 epochs, then 100 epochs of ramp.
    """
    if progress < start:
        return 1.0
    if progress >= start + length:
        return 0.0
    return (1 + math.cos(math.pi * (progress - start) / length)) / 2


@dataclass(frozen=True, kw_only=True)
class EViTTuningConfig:
    """How a classifier is trained with fewer tokens.

    Args:
        keep: ratio of every reducing block at the end. fuse: see :class:`EViT`.
        method: ``evit``, or a baseline to train the same way.
        layers: blocks that reduce; the usual ones if empty.
        ramp_start, ramp_length: shares of the run, see :func:`keep_ramp`; both 0 for no ramp.
        ramp_steps: levels of the ramp, so that few shapes occur.
        is_eval: train in eval mode, without dropout and drop path, as published fine-tuning does.
        vit: sizes of the classifier.
    """

    keep: float = 0.7
    fuse: bool = True
    method: str = "evit"
    layers: tuple[int, ...] = ()
    ramp_start: float = 0.0
    ramp_length: float = 0.0
    ramp_steps: int = 10
    is_eval: bool = True
    vit: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.ramp_start, self.ramp_length) < 0 or self.ramp_start + self.ramp_length > 1:
            raise ConfigError(
                f"ramp_start={self.ramp_start} and ramp_length={self.ramp_length} must be shares "
                "of the run that add up to at most 1"
            )
        if self.ramp_steps < 1:
            raise ConfigError(f"ramp_steps={self.ramp_steps} must be at least 1")


class EViTTuning(nn.Module):
    """A classifier that trains while EViT is applied to it.

    Args:
        classifier: a plain one; its state-dict keys do not change.
    """

    def __init__(self, classifier: Any, config: EViTTuningConfig) -> None:
        super().__init__()
        self.config = replace(config, vit=_shared.sizes_of(classifier))
        layers = config.layers or EViT().layers(len(classifier.vit.blocks))
        self.schedule = Schedule.ratios(config.keep, layers)
        options: dict[str, Any] = {"fuse": config.fuse} if config.method == "evit" else {}
        reduce(classifier.vit, config.method, schedule=self.schedule, **options)
        self.classifier = classifier

    def logits(self, image: Tensor) -> Tensor:
        """Class scores (B, num_classes) of images (B, 3, H, W) in [0, 1], at the last ratio set."""
        scores: Tensor = self.classifier.logits(image)
        return scores

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """Cross-entropy ``ce`` and ``accuracy``, at the keep ratio of this point of the ramp."""
        share = keep_ramp(ctx.progress, self.config.ramp_start, self.config.ramp_length)
        reduction = reduction_of(self.classifier)
        reduction.schedule = self.schedule.softened(share, steps=self.config.ramp_steps)
        out: StepOutput = self.classifier(batch, ctx)
        return out

    def train(self, mode: bool = True) -> Self:
        """Eval mode whatever ``mode`` is, where the configuration says so."""
        if not mode:
            reduction_of(self.classifier).schedule = self.schedule
        return super().train(mode and not self.config.is_eval)


def prepare_training(recipe: Recipe) -> _shared.ReductionTraining:
    """Build a run of the stage ``tune`` from the classifier that ``init`` names.

    Raises:
        PolytokError: see :func:`polytok.systems.vit._shared.prepare`.
    """
    return _shared.prepare(recipe, EViTTuningConfig, EViTTuning)


def load_model(folder: Path, info: hub.Info, *, name: str, device: str = "cpu") -> EViTTuning:
    """Build the model of a run's folder and fill it with its weights."""
    return _shared.loaded(folder, info, EViTTuningConfig, EViTTuning, device)
