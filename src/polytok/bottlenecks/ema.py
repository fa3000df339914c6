"""Vector quantization with codes that are running means of their inputs (1711.00937, appendix A.1).

Codes have no gradient: :meth:`update` moves them, once per optimiser step. The one loss is
``vq/commit`` = MSE(sg q, z).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytok.bottlenecks.codebook import (
    counts_and_sums,
    embed_ids,
    gather_over_ranks,
    kmeans,
    nearest,
    quantize,
    sum_over_ranks,
    to_unit,
)
from polytok.bottlenecks.estimators import Estimator, straight_through
from polytok.bottlenecks.usage import dead_share, draw_restarts, replacements
from polytok.core.contracts import Bottleneck, BottleneckOutput


class EMAQuantizer(Bottleneck):
    """z (B, N, d) -> the nearest of K codes per token, which follow the means of their inputs.

    Per update, with counts c_i and sums s_i of a batch of all ranks:
    n_i <- g n_i + (1 - g) c_i, m_i <- g m_i + (1 - g) s_i, and the code is m_i over the smoothed
    count (n_i + eps) / (n + K eps) n, where n is the sum of all n_i.

    Args:
        codebook_size: K. dim: d. decay: g. eps: of Laplace smoothing.
        estimator: how gradient reaches the input, see :mod:`polytok.bottlenecks.estimators`.
        restart_every: updates between restarts of dead codes; 0 = never.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        decay: float = 0.99,
        eps: float = 1e-5,
        estimator: Estimator = straight_through,
        restart_every: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.decay, self.eps, self.estimator = decay, eps, estimator
        self.restart_every, self.seed = restart_every, seed
        codes = torch.randn(codebook_size, dim)
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", codes.clone())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (len(self.codes),)

    @property
    def usage(self) -> Tensor:
        """Running frequencies of the codes (K,)."""
        return self.counts / self.counts.sum()

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize in fp32; the latents are (B, N, d)."""
        with torch.autocast(z.device.type, enabled=False):
            out = quantize(z.float(), self.codes.float(), self.estimator)
        del out.losses["vq/codebook"]
        out.stats["dead"] = dead_share(self.counts)
        return out

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, d) of ids (B, n), or of probabilities (B, n, K) as soft tokens."""
        return embed_ids(self, indices, num_levels)

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start the codes by k-means over latents (..., d) of all ranks."""
        vectors = gather_over_ranks(latents.float().flatten(0, -2)).cpu()
        centres = kmeans(vectors, len(self.codes), rng=rng)
        counts, _ = counts_and_sums(nearest(vectors, centres), vectors, len(centres))
        self.codes.copy_(centres)
        # Sums must agree with codes and counts, or the next update would throw the start away.
        self.counts.copy_(counts.clamp(min=1))
        self.sums.copy_(self.codes * self.counts[:, None])

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Move the codes towards the means of their inputs, then restart dead ones."""
        if out.indices is None:
            return
        inputs = out.stats["inputs"]
        ids, vectors = out.indices[0].flatten(), inputs.flatten(0, -2)
        counts, sums = counts_and_sums(ids, vectors, len(self.codes))
        self.counts.lerp_(sum_over_ranks(counts), 1 - self.decay)
        self.sums.lerp_(sum_over_ranks(sums), 1 - self.decay)
        total = self.counts.sum()
        smooth = (self.counts + self.eps) / (total + len(self.codes) * self.eps) * total
        self.codes.copy_(self.sums / smooth[:, None])
        self.steps += 1
        found = draw_restarts(
            self.counts, inputs, steps=self.steps, every=self.restart_every, seed=self.seed
        )
        if found is not None:
            dead, fresh = found
            self.codes[dead] = fresh
            self.counts[dead] = self.counts.mean()
            self.sums[dead] = fresh * self.counts[dead, None]


class CosineEMAQuantizer(Bottleneck):
    """z (B, N, d) -> the code of K unit vectors with the closest direction (2208.06366, section 2).

    Inputs have unit length, outputs are codes. Per update, a code that occurs moves to
    unit(g e + (1 - g) unit(mean of its inputs)); the others stay.

    Args:
        codebook_size: K. dim: d. decay: g.
        estimator: how gradient reaches the input, see :mod:`polytok.bottlenecks.estimators`.
        restart_every: updates between restarts of dead codes; 0 = never.
    """

    codes: Tensor
    usage: Tensor
    steps: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        decay: float = 0.99,
        estimator: Estimator = straight_through,
        restart_every: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.decay, self.estimator = decay, estimator
        self.restart_every, self.seed = restart_every, seed
        self.register_buffer("codes", to_unit(torch.randn(codebook_size, dim)))
        self.register_buffer("usage", torch.full((codebook_size,), 1.0 / codebook_size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (len(self.codes),)

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize in fp32; the latents are (B, N, d) of unit length."""
        with torch.autocast(z.device.type, enabled=False):
            out = quantize(to_unit(z.float()), self.codes.float(), self.estimator)
        del out.losses["vq/codebook"]
        out.stats["dead"] = dead_share(self.usage)
        return out

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, d) of ids (B, n), or of probabilities (B, n, K) as soft tokens."""
        return embed_ids(self, indices, num_levels)

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start the codes by spherical k-means over latents (..., d) of all ranks."""
        vectors = gather_over_ranks(to_unit(latents.float()).flatten(0, -2)).cpu()
        centres = kmeans(vectors, len(self.codes), rng=rng, normalise=to_unit)
        self.codes.copy_(to_unit(centres))
        self.usage.fill_(1.0 / len(centres))

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Turn the codes towards the means of their inputs, then restart dead ones."""
        if out.indices is None:
            return
        inputs = out.stats["inputs"]
        ids, vectors = out.indices[0].flatten(), inputs.flatten(0, -2)
        counts, sums = counts_and_sums(ids, vectors, len(self.codes))
        counts, sums = sum_over_ranks(counts), sum_over_ranks(sums)
        turned = to_unit(torch.lerp(self.codes, to_unit(sums), 1 - self.decay))
        self.codes.copy_(torch.where(counts[:, None] > 0, turned, self.codes))
        found = replacements(self.usage, self.steps, out, every=self.restart_every, seed=self.seed)
        if found is not None:
            dead, fresh = found
            self.codes[dead] = fresh
