"""How much a token matters: (tiles, cells) per image, higher is better, on a scale of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.reducers.vlm.hosts.base import Tower
from polytok.reducers.vlm.tap import Tap
from polytok.reducers.vlm.tokens import VisualTokens


class Score(Protocol):
    """Scores cells; ``taps`` says what must be recorded for it while the tower runs."""

    def taps(self, tower: Tower) -> tuple[Tap, ...]: ...

    def __call__(self, tokens: VisualTokens) -> list[Tensor]: ...


@dataclass(frozen=True)
class AttentionScore:
    """Attention in the tower, summed over layers.

    Args:
        row: ``cls`` what the class token attends to; ``received`` what a token gets on average,
            for towers without a class token.
        layers: which layers, negative from the end; None: the ``window`` layers that end with
            the one whose output becomes the tokens.
        window: how many layers, at most, when ``layers`` is None.
        heads: ``mean`` over heads, or ``merged``: all heads as one.

    Raises (on use):
        ConfigError: the tower has no class token, or a layer that cannot score.
    """

    row: Literal["cls", "received"] = "cls"
    layers: tuple[int, ...] | None = None
    window: int = 1
    heads: Literal["mean", "merged"] = "mean"

    def __post_init__(self) -> None:
        if self.window < 1 or self.layers == ():
            raise ConfigError(f"window={self.window}, layers={self.layers}: at least one layer")

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        if self.row == "cls" and not tower.prefix:
            raise ConfigError(
                f"{type(tower.module).__name__} has no class token; score with row='received'"
            )
        heads: Literal["keep", "merged"] = "merged" if self.heads == "merged" else "keep"
        return tuple(Tap(layer, self.row, heads) for layer in self._layers(tower))

    def _layers(self, tower: Tower) -> tuple[int, ...]:
        if self.layers is None:
            return tuple(i for i in tower.scored if i <= tower.feature_layer)[-self.window :]
        count = len(tower.layers)
        found = tuple(i + count if i < 0 else i for i in self.layers)
        if wrong := [i for i, j in zip(self.layers, found, strict=True) if j not in tower.scored]:
            raise ConfigError(f"layer {wrong[0]} cannot score; one of {list(tower.scored)} can")
        return found

    def __call__(self, tokens: VisualTokens) -> list[Tensor]:
        rows = [tokens.rows[tap] for tap in self.taps(tokens.tower)]
        images = zip(*rows, strict=True)
        return [torch.stack([row.mean(1) for row in image]).sum(0) for image in images]


@dataclass(frozen=True)
class FeatureNorm:
    """Length of the feature vector; a baseline that should do no better than chance."""

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return ()

    def __call__(self, tokens: VisualTokens) -> list[Tensor]:
        return [
            layout.spread(features).float().norm(dim=-1)
            for layout, features in zip(tokens.layouts, tokens.features, strict=True)
        ]


@dataclass(frozen=True)
class RandomScore:
    """Scores drawn anew for every image of a batch, the same in every call.

    Those of an image depend on its place in the batch: seeds of its own would give all images of
    a size the same.
    """

    seed: int = 0

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return ()

    def __call__(self, tokens: VisualTokens) -> list[Tensor]:
        rng = torch.Generator().manual_seed(self.seed)
        return [
            torch.rand(x.tiles, x.cells, generator=rng).to(f.device)
            for x, f in zip(tokens.layouts, tokens.features, strict=True)
        ]


@dataclass(frozen=True)
class Inverse:
    """The worst first: the control that shows whether a score says anything."""

    score: Score

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        return self.score.taps(tower)

    def __call__(self, tokens: VisualTokens) -> list[Tensor]:
        return [-scores for scores in self.score(tokens)]
