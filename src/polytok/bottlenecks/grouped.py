"""Channels split over bottlenecks side by side: product quantization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from polytok.bottlenecks.codebook import parts_of
from polytok.core.contracts import Bottleneck, BottleneckOutput
from polytok.core.errors import ConfigError, PolytokError

T = TypeVar("T")


class GroupedQuantizer(Bottleneck):
    """z (B, N, D) -> D / G channels to each of G bottlenecks, whose outputs are joined.

    Indices are ordered by level, then by group, so that the first levels of all groups are a prefix
    of the code. Losses are means over groups by name, statistics lists in the order of the indices.

    Args:
        groups: bottlenecks with the same number of levels, each of D / G channels.
    """

    def __init__(self, groups: Sequence[Bottleneck]) -> None:
        super().__init__()
        depths = {len(group.vocab_sizes) for group in groups}
        if len(depths) != 1 or 0 in depths:
            told = [len(group.vocab_sizes) for group in groups]
            raise ConfigError(f"groups of {told} levels must have the same number, 1 or more")
        self.groups = nn.ModuleList(groups)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return tuple(by_level([group.vocab_sizes for group in parts_of(self.groups)]))

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize every share of the channels; the latents are (B, N, D).

        Raises:
            PolytokError: D is not a multiple of the number of groups.
        """
        if z.shape[-1] % len(self.groups):
            raise PolytokError(
                f"{z.shape[-1]} channels do not split into {len(self.groups)} groups"
            )
        shares = z.chunk(len(self.groups), dim=-1)
        outs = [
            group(share, rng=rng, start_level=start_level)
            for group, share in zip(parts_of(self.groups), shares, strict=True)
        ]
        return join(outs)

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, D) of the first indices of all groups.

        Raises:
            PolytokError: the number of indices is not a multiple of the number of groups.
        """
        shares = by_group(indices, num_levels, len(self.groups), len(self.vocab_sizes))
        parts = [group.embed(ids) for group, ids in zip(parts_of(self.groups), shares, strict=True)]
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start every group from its share of latents (..., D)."""
        shares = latents.chunk(len(self.groups), dim=-1)
        for group, share in zip(parts_of(self.groups), shares, strict=True):
            group.start(share, rng=rng)

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Update every group."""
        for group, inner in zip(parts_of(self.groups), out.stats["groups"], strict=True):
            group.update(inner)


def by_level(parts: Sequence[Sequence[T]]) -> list[T]:
    """The first items of all parts, then the second ones, and so on."""
    return [item for items in zip(*parts, strict=True) for item in items]


def by_group(
    indices: Sequence[Tensor], num_levels: int | None, num_groups: int, most: int
) -> list[Sequence[Tensor]]:
    """Undo :func:`by_level` for a prefix of the indices.

    Raises:
        PolytokError: the prefix is empty, longer than what is there, or ends within a level.
    """
    count = len(indices) if num_levels is None else num_levels
    if not 1 <= count <= min(len(indices), most) or count % num_groups:
        raise PolytokError(
            f"num_levels={count} must be a multiple of {num_groups} groups within "
            f"{num_groups}..{min(len(indices), most)}"
        )
    return [indices[group:count:num_groups] for group in range(num_groups)]


def join(outs: Sequence[BottleneckOutput]) -> BottleneckOutput:
    """Outputs side by side: latents joined, indices by level, losses as means by name."""
    names = list(dict.fromkeys(name for out in outs for name in out.losses))
    losses = {
        name: torch.stack([out.losses[name] for out in outs if name in out.losses]).mean()
        for name in names
    }
    shared = [
        name for name in ("usage", "perplexity", "dead") if all(name in o.stats for o in outs)
    ]
    stats = {
        name: torch.stack([out.stats[name] for out in outs], dim=-1).flatten() for name in shared
    }
    return BottleneckOutput(
        latents=torch.cat([out.latents for out in outs], dim=-1),
        indices=tuple(by_level([out.indices or () for out in outs])),
        losses=losses,
        stats={**stats, "groups": list(outs)},
        is_exact=all(out.is_exact for out in outs),
    )
