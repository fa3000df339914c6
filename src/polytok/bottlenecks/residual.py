"""Residual quantization: every level quantizes what the levels before left over (2107.03312)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from polytok.bottlenecks.codebook import check_levels, lookup_or_nothing, parts_of
from polytok.bottlenecks.estimators import straight_through
from polytok.core.contracts import Bottleneck, BottleneckOutput
from polytok.core.errors import ConfigError, UnknownNameError

Gradient = Literal["chain", "each", "total"]
GRADIENTS = ("chain", "each", "total")


class ResidualQuantizer(Bottleneck):
    """z (B, N, d) -> one id per level and token; the output is the sum of the levels' codes.

    With levels that estimate gradients straight through, ``gradient`` decides what reaches z:

    - ``total``: one straight-through step around the sum; the gradient passes once.
    - ``each``: levels pass theirs and rests are r - sg(q); the gradient passes once per level.
    - ``chain``: rests are r - q, gradient and all, so only the first level's passes, and later
      levels' losses do not reach z.

    Args:
        levels: bottlenecks of one vocabulary each; the same one repeated shares its codebook.
        dropout: share of the items of a training batch that keep only the first levels.
        depths: how many levels such an item keeps, drawn alike; 1 .. all when None.

    Losses are the levels' by name: the mean over levels, where items a level drops count as 0.
    Dropped ids are -1 and embed as nothing.
    """

    def __init__(
        self,
        levels: Sequence[Bottleneck],
        *,
        gradient: Gradient = "total",
        dropout: float = 0.0,
        depths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if gradient not in GRADIENTS:
            raise UnknownNameError("gradient", gradient, GRADIENTS)
        if not levels or any(len(level.vocab_sizes) != 1 for level in levels):
            raise ConfigError("residual levels must be one or more bottlenecks of one vocabulary")
        self.depths = tuple(range(1, len(levels) + 1) if depths is None else depths)
        if not self.depths or min(self.depths) < 1 or max(self.depths) > len(levels):
            raise ConfigError(f"depths={self.depths} must be within 1..{len(levels)}")
        if not 0 <= dropout <= 1:
            raise ConfigError(f"dropout={dropout} is not within 0..1")
        self.levels = nn.ModuleList(levels)
        self.gradient, self.dropout = gradient, dropout

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return tuple(size for level in parts_of(self.levels) for size in level.vocab_sizes)

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize in fp32; the latents are (B, N, d).

        With ``start_level`` > 0 the levels below it are skipped: z is what they left over. Items
        are dropped in training alone, and only given ``rng``. ``stats`` hold ``usage``,
        ``perplexity`` and ``rest_energy`` (share of z's energy that is left) per level.
        """
        with torch.autocast(z.device.type, enabled=False):
            return self._forward(z.float(), rng, start_level)

    def _forward(
        self, z: Tensor, rng: torch.Generator | None, start_level: int
    ) -> BottleneckOutput:
        keep = self._draw_depths(len(z), rng)
        rest, total = z, torch.zeros_like(z)
        indices: list[Tensor] = []
        outs: list[BottleneckOutput] = []
        energies = [z.detach().square().mean()]
        for number in range(start_level, len(self.levels)):
            kept = None if keep is None else (keep > number).nonzero().squeeze(1).to(z.device)
            out = self.levels[number](rest if kept is None else rest[kept], rng=rng)
            q, ids = out.latents, out.indices[0]
            if kept is not None:
                q = torch.zeros_like(rest).index_copy(0, kept, q)
                ids = ids.new_full(rest.shape[:2], -1).index_copy_(0, kept, ids)
            total = total + q
            rest = rest - (q if self.gradient == "chain" else q.detach())
            indices.append(ids)
            outs.append(out)
            energies.append(rest.detach().square().mean())
        energy = torch.stack(energies)
        stats = {name: torch.stack([o.stats[name] for o in outs]) for name in _shared(outs)}
        stats["rest_energy"] = energy[1:] / energy[0].clamp(min=1e-12)
        return BottleneckOutput(
            latents=straight_through(z, total) if self.gradient == "total" else total,
            indices=tuple(indices),
            losses=_mean_losses(outs, len(z)),
            stats={**stats, "levels": outs},
        )

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Decode a prefix of levels from ids (B, n) or probabilities (B, n, V): (B, n, d)."""
        count = check_levels(indices, num_levels, len(self.levels))
        total = torch.zeros((), device=indices[0].device)
        for level, ids in zip(parts_of(self.levels), indices[:count], strict=False):
            total = total + lookup_or_nothing(level, ids)
        return total

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start every level from what the levels before leave of latents (B, N, d)."""
        rest = latents.float()
        seen: dict[Bottleneck, list[Tensor]] = {}
        for level in parts_of(self.levels):
            # A level that comes again must keep serving what it has been started from.
            inputs = [*seen.get(level, []), rest]
            seen[level] = inputs
            level.start(torch.cat(inputs), rng=rng)
            rest = rest - level(rest).latents

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Update every level that ran."""
        outs = out.stats["levels"]
        ran = parts_of(self.levels)[-len(outs) :]  # levels below start_level were skipped
        for level, inner in zip(ran, outs, strict=True):
            level.update(inner)

    def _draw_depths(self, count: int, rng: torch.Generator | None) -> Tensor | None:
        """How many levels every item keeps (count,); None: all."""
        if not self.training or rng is None or not self.dropout:
            return None
        is_cut = torch.rand(count, generator=rng, device=rng.device) < self.dropout
        picks = torch.randint(len(self.depths), (count,), generator=rng, device=rng.device)
        cut = torch.tensor(self.depths, device=rng.device)[picks]
        return cut.where(is_cut, torch.full_like(cut, len(self.levels)))


def _shared(outs: Sequence[BottleneckOutput]) -> list[str]:
    """Names of the statistics that every level has as one number."""
    names = ("usage", "perplexity", "dead")
    return [name for name in names if all(name in out.stats for out in outs)]


def _mean_losses(outs: Sequence[BottleneckOutput], count: int) -> dict[str, Tensor]:
    """Mean over levels; a level that ran on a share of the items counts by that share."""
    losses: dict[str, Tensor] = {}
    for out in outs:
        if not len(out.latents):  # a mean over nothing is no number
            continue
        share = len(out.latents) / count / len(outs)
        for name, value in out.losses.items():
            losses[name] = losses.get(name, 0.0) + value * share
    return losses
