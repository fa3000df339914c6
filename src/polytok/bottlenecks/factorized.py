"""Parallel codebooks, each behind its own view of the features (arXiv 2411.16681, section 3)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.bottlenecks.codebook import parts_of
from polytok.bottlenecks.grouped import by_group, by_level, join
from polytok.core.contracts import Bottleneck, BottleneckOutput
from polytok.core.errors import ConfigError


class FactorizedQuantizer(Bottleneck):
    """z (B, N, D) -> ``heads[m]``(z) (B, N, d_m) -> ``branches[m]``; outputs (B, N, sum of d_m).

    Unlike groups, branches see all of z. Losses are means over branches by name, and
    ``vq/disentangle``: the squared cosine between the outputs of two branches, mean over tokens and
    pairs, in [0, 1]; the paper weighs it 0.1. It needs branches of equal width, and two of them.

    Args:
        heads: modules from D to d_m channels. branches: bottlenecks of d_m channels with the same
            number of levels.
    """

    def __init__(self, heads: Sequence[nn.Module], branches: Sequence[Bottleneck]) -> None:
        super().__init__()
        if len(heads) != len(branches) or len(branches) < 2:
            raise ConfigError(f"{len(heads)} heads and {len(branches)} branches must be 2 or more")
        depths = [len(branch.vocab_sizes) for branch in branches]
        if len(set(depths)) != 1 or not depths[0]:
            raise ConfigError(f"branches of {depths} levels must have the same number, 1 or more")
        self.heads, self.branches = nn.ModuleList(heads), nn.ModuleList(branches)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return tuple(by_level([branch.vocab_sizes for branch in parts_of(self.branches)]))

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize every branch's view; heads run in the caller's precision."""
        outs = [
            branch(head(z), rng=rng, start_level=start_level)
            for head, branch in zip(self.heads, parts_of(self.branches), strict=True)
        ]
        joined = join(outs)
        joined.losses["vq/disentangle"] = disentangle([out.latents for out in outs])
        return joined

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, sum of d_m) of the first indices of all branches.

        Raises:
            PolytokError: the number of indices is not a multiple of the number of branches.
        """
        shares = by_group(indices, num_levels, len(self.branches), len(self.vocab_sizes))
        parts = [
            branch.embed(ids) for branch, ids in zip(parts_of(self.branches), shares, strict=True)
        ]
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start every branch from its view of latents (B, N, D)."""
        for head, branch in zip(self.heads, parts_of(self.branches), strict=True):
            branch.start(head(latents), rng=rng)

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Update every branch."""
        for branch, inner in zip(parts_of(self.branches), out.stats["groups"], strict=True):
            branch.update(inner)


def disentangle(latents: Sequence[Tensor]) -> Tensor:
    """Mean squared cosine between every two of latents (B, N, d), in [0, 1]."""
    pairs = itertools.combinations(latents, 2)
    squares = [F.cosine_similarity(a, b, dim=-1).square().mean() for a, b in pairs]
    return torch.stack(squares).mean()
