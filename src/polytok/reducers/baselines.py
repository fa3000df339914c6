"""What a method has to beat: tokens kept at random, evenly, or those the class token ignores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polytok.reducers.maps import Select, TokenMap
from polytok.reducers.reducer import Reducer
from polytok.reducers.scores import Scores, spaced
from polytok.reducers.state import TokenState


@dataclass(frozen=True, kw_only=True)
class RandomOrder(Reducer):
    """Keep random patches, others for every sample of a batch; the same for the same ``seed``."""

    seed: int = 0

    def choose(self, state: TokenState, scores: Scores, keep: int) -> TokenMap:
        noise = _noise(scores.x.shape[0], state.patches, self.seed + 7919 * state.layer, scores.x)
        return Select(noise.topk(keep).indices, state.patches)


@dataclass(frozen=True, kw_only=True)
class UniformOrder(Reducer):
    """Keep patches at equal steps of the sequence."""

    def choose(self, state: TokenState, scores: Scores, keep: int) -> TokenMap:
        index = spaced(keep, state.patches, scores.x.device)
        return Select(index.expand(scores.x.shape[0], -1), state.patches)


@dataclass(frozen=True, kw_only=True)
class InverseOrder(Reducer):
    """Keep the patches that the class token attends to least."""

    needs_cls: ClassVar[bool] = True

    def choose(self, state: TokenState, scores: Scores, keep: int) -> TokenMap:
        return Select((-scores.class_row()).topk(keep).indices, state.patches)


BASELINES: dict[str, Reducer] = {
    "inverse": InverseOrder(),
    "random": RandomOrder(),
    "uniform": UniformOrder(),
}


def _noise(samples: int, count: int, seed: int, like: Tensor) -> Tensor:
    """(samples, count) scrambled integers: no generator, so it compiles and exports."""
    x = torch.arange(samples * count, device=like.device) + (seed + 1) * 0x9E3779B1
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (x ^ (x >> 16)).view(samples, count)
