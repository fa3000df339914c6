"""MCTF: merge tokens that are alike, little attended to and small, in both directions.

"Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision Transformers"
(arXiv 2403.10030; official code: mlvlab/MCTF, MIT, of which the matching descends from
non-commercial code and was not used). Works on plain weights, and better after fine-tuning with
two rates that should agree (:func:`consistency`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.reducers import Reducer, Schedule, Scores, TokenMap, TokenState
from polytok.reducers.maps import Backend
from polytok.reducers.matching import cosine, halves, merge_halves
from polytok.reducers.reducer import Where


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
        if len(self.tau) != 3 or min(self.tau) < 0:
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
        merged = keep + 1
        fused = length * merged * (length + merged) if self.reuses_attention else 0
        return (length // 2) ** 2 * dim + fused


PRESETS = {"mctf": MCTF()}
