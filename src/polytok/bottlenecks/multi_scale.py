"""Residual quantization over scales of growing slot counts with one codebook.

VAR's multi-scale quantizer (arXiv 2404.02905, algorithm 1) on a plain list of slot counts;
card vat 3.3. All arithmetic is fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from polytok.bottlenecks.codebook import gather_over_ranks, kmeans, nearest, sum_over_ranks
from polytok.bottlenecks.resamplers import make_resampler
from polytok.core.contracts import Bottleneck, BottleneckOutput
from polytok.core.errors import ConfigError, PolytokError

USAGE_DECAY = 0.99
DEAD_BELOW = 0.01  # of uniform use


def _ticks(count: int) -> NDArray[np.float64]:
    """Positions in [0, 1] of the refinement layers that scales share (VAR's tick rule).

    In float64, because scales that lie half-way between two layers are decided by its rounding.
    """
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    return np.linspace(edge, 1 - edge, count)


class Refinement(nn.Module):
    """Phi: (1 - a) h + a layer(h), one of ``count`` layers picked by the scale's position.

    Args:
        shape: layout of the M slots, see :class:`ScaleResampler`. a = 0 is the identity.
    """

    def __init__(
        self, dim: int, shape: tuple[int, ...], num_levels: int, *, ratio: float, count: int
    ) -> None:
        super().__init__()
        self.shape, self.ratio = shape, ratio
        kinds = {2: nn.Conv2d, 1: nn.Conv1d}
        make = kinds.get(len(shape))
        layers = [
            make(dim, dim, 3, padding=1) if make else nn.Linear(dim, dim)
            for _ in range(count if ratio else 0)
        ]
        self.layers = nn.ModuleList(layers)
        ticks = _ticks(count)
        self.pick = [
            int(np.abs(ticks - level / max(1, num_levels - 1)).argmin())
            for level in range(num_levels)
        ]

    def forward(self, h: Tensor, level: int) -> Tensor:
        """Refine (B, M, d)."""
        if not self.ratio:
            return h
        layer = self.layers[self.pick[level]]
        if self.shape:
            y = layer(h.transpose(1, 2).unflatten(-1, self.shape)).flatten(2).transpose(1, 2)
        else:
            y = layer(h)
        return h * (1 - self.ratio) + y * self.ratio


class MultiScaleVQ(Bottleneck):
    """z (B, M, d) -> indices of s_1, .., s_K = M slots and the running sum of their lifts.

    Args:
        codebook_size: V. codebook_dim: d. slots: s_k, growing, the last is M.
        resampler: name, see :data:`RESAMPLERS`.
        refine_ratio: a of Phi. num_refinements: layers Phi shares over the scales.
        beta: weight of the commitment term inside ``vq``.
        restart_every: steps between restarts of dead codes; 0 = never.

    The loss ``vq`` is the mean over scales of beta MSE(sg f_k, z) + MSE(f_k, sg z), on the running
    sum f_k. The output is z + sg(f_K - z) in training and f_K itself in eval. The straight-through
    estimator carries gradient to z only; the codebook and Phi learn from ``vq``.
    """

    usage: Tensor
    steps: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        codebook_dim: int,
        slots: Sequence[int],
        resampler: str = "grid2d",
        refine_ratio: float = 0.5,
        num_refinements: int = 4,
        beta: float = 0.25,
        restart_every: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.slots = tuple(slots)
        self.resampler = make_resampler(resampler, self.slots, codebook_dim)
        self.embedding = nn.Embedding(codebook_size, codebook_dim)
        self.phi = Refinement(
            codebook_dim,
            self.resampler.refine_shape,
            len(self.slots),
            ratio=refine_ratio,
            count=num_refinements,
        )
        self.beta, self.restart_every, self.seed = beta, restart_every, seed
        self.register_buffer("usage", torch.zeros(len(self.slots), codebook_size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.embedding.num_embeddings,) * len(self.slots)

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize; ``stats`` hold per-scale removed energy and what ``update`` needs.

        With ``start_level`` > 0 the levels below it are skipped: z is what they left over.
        """
        with torch.autocast(z.device.type, enabled=False):
            return self._forward(z.float(), range(start_level, len(self.slots)))

    def _forward(self, z: Tensor, levels: range) -> BottleneckOutput:
        rest, total = z.detach(), torch.zeros_like(z)
        indices, inputs, prefixes, energies = [], [], [], [rest.square().mean()]
        loss = z.new_zeros(())
        for level in levels:
            vectors = self.resampler.down(rest, level).detach()
            ids = nearest(vectors, self.embedding.weight)
            lifted = self._lift(self.embedding(ids), level)
            total = total + lifted
            rest = rest - lifted.detach()
            loss = loss + self.beta * F.mse_loss(total.detach(), z)
            loss = loss + F.mse_loss(total, z.detach())
            indices.append(ids)
            inputs.append(vectors)
            prefixes.append(total)
            energies.append(rest.square().mean())
        energy = torch.stack(energies)
        return BottleneckOutput(
            latents=z + (total - z).detach() if self.training else total,
            indices=tuple(indices),
            losses={"vq": loss / len(levels)},
            stats={
                "rest_energy": energy[1:] / energy[0].clamp(min=1e-12),
                "inputs": inputs,
                "prefixes": [p.detach() for p in prefixes],
            },
            is_exact=not self.training,
        )

    def _lift(self, codes: Tensor, level: int) -> Tensor:
        """Phi_k(Up_k(codes)): (B, s_k, d) -> (B, M, d)."""
        return self.phi(self.resampler.up(codes, level), level)

    def lookup(self, ids: Tensor) -> Tensor:
        """Code vectors of ids (B, n), or of probabilities (B, n, V) as soft tokens: (B, n, d)."""
        if ids.is_floating_point():
            return ids @ self.embedding.weight
        return self.embedding(ids)

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Decode a prefix of levels: (B, M, d)."""
        count = len(indices) if num_levels is None else num_levels
        if not 1 <= count <= min(len(indices), len(self.slots)):
            raise PolytokError(f"num_levels={count} is not within 1..{len(indices)}")
        return self.combine([self.lookup(ids) for ids in indices[:count]])

    def combine(self, codes: Sequence[Tensor]) -> Tensor:
        """Sum the lifts of the first levels' code vectors (B, s_k, d): (B, M, d)."""
        with torch.autocast(codes[0].device.type, enabled=False):
            total = torch.zeros((), device=codes[0].device)
            for level, vectors in enumerate(codes):
                total = total + self._lift(vectors, level)
        return total

    def lift(self, ids: Tensor, level: int) -> Tensor:
        """What the ids (B, s_k) of one scale add to the sum: (B, M, d)."""
        with torch.autocast(ids.device.type, enabled=False):
            return self._lift(self.lookup(ids), level)

    def teacher_inputs(self, indices: Sequence[Tensor]) -> Tensor:
        """Inputs of scales 2..k from the ids of k: Down_{j+1} of the sum up to j (B, n, d)."""
        total, inputs = torch.zeros((), device=indices[0].device), []
        for level in range(len(indices) - 1):
            total = total + self.lift(indices[level], level)
            with torch.autocast(total.device.type, enabled=False):
                inputs.append(self.resampler.down(total, level + 1))
        return torch.cat(inputs, dim=1)

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start the codebook by k-means over the residuals of every scale (n, M, d).

        Codes are shared out over scales by their slot counts; each scale clusters what the
        scales before it left over.

        Raises:
            ConfigError: fewer codes than scales.
        """
        latents = gather_over_ranks(latents.float())
        total, size = sum(self.slots), self.embedding.num_embeddings
        if size < len(self.slots):
            raise ConfigError(f"codebook_size={size} is below the {len(self.slots)} scales")
        shares = [max(1, size * s // total) for s in self.slots]
        shares[-1] += size - sum(shares)
        rest, codes = latents, []
        for level, share in enumerate(shares):
            vectors = self.resampler.down(rest, level)
            centres = kmeans(vectors.flatten(0, 1).cpu(), share, rng=rng).to(latents.device)
            codes.append(centres)
            rest = rest - self._lift(centres[nearest(vectors, centres)], level)
        self.embedding.weight.copy_(torch.cat(codes))
        self.usage.fill_(1.0 / size)

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Track usage per scale (EMA of relative frequencies) and restart dead codes."""
        if out.indices is None:
            return
        size = self.embedding.num_embeddings
        counts = torch.stack([torch.bincount(i.flatten(), minlength=size) for i in out.indices])
        counts = sum_over_ranks(counts.float())
        frequency = counts / counts.sum(1, keepdim=True).clamp(min=1)
        first = len(self.slots) - len(out.indices)  # levels below start_level were skipped
        decay = USAGE_DECAY if int(self.steps) else 0.0
        self.usage[first:].mul_(decay).add_(frequency, alpha=1 - decay)
        self.steps += 1
        if self.restart_every and int(self.steps) % self.restart_every == 0:
            self._restart(out.stats["inputs"])

    def _restart(self, inputs: Iterable[Tensor]) -> None:
        weights = torch.tensor(self.slots, dtype=self.usage.dtype, device=self.usage.device)
        use = (self.usage * weights[:, None]).sum(0) / weights.sum()
        dead = (use < DEAD_BELOW / use.numel()).nonzero().squeeze(1)
        if not len(dead):
            return
        # Seeded by the step, so every rank draws the same rows and a resumed run repeats itself.
        rng = torch.Generator().manual_seed(self.seed + int(self.steps))
        pool = torch.cat([gather_over_ranks(v.flatten(0, 1)) for v in inputs])
        rows = torch.randint(len(pool), (len(dead),), generator=rng).to(pool.device)
        self.embedding.weight[dead] = pool[rows]
        # A fresh code counts as used uniformly; it must earn its place until the next restart.
        self.usage[:, dead] = 1.0 / use.numel()
