"""Vector quantization with a codebook that learns by gradient (arXiv 1711.00937, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.bottlenecks.codebook import (
    check_levels,
    code_stats,
    gather_over_ranks,
    kmeans,
    lookup,
    nearest,
    sum_over_ranks,
)
from polytok.bottlenecks.estimators import Estimator, straight_through
from polytok.core.contracts import Bottleneck, BottleneckOutput
from polytok.core.errors import UnknownNameError

Metric = Literal["euclidean", "cosine"]
METRICS = ("cosine", "euclidean")
USAGE_DECAY = 0.99
DEAD_BELOW = 0.01  # of uniform use


class VectorQuantizer(Bottleneck):
    """z (B, N, D) -> the nearest of K codes per token.

    Args:
        codebook_size: K. dim: D.
        codebook_dim: d of the codes; when it is given, linear maps D -> d -> D lie around them.
        metric: ``cosine`` compares directions: inputs and codes have unit length, and so does the
            output before it is mapped back.
        estimator: how gradient reaches the input, see :mod:`polytok.bottlenecks.estimators`.
        restart_every: updates between restarts of dead codes; 0 = never.

    The losses are ``vq/commit`` = MSE(sg q, z), which moves the input, and ``vq/codebook`` =
    MSE(q, sg z), which moves the codes, both unweighted: with 0.25 on the first this is the
    paper's rule, and with 0.25 on the second the one of code that puts beta on the codebook.
    """

    usage: Tensor
    steps: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        codebook_dim: int | None = None,
        metric: Metric = "euclidean",
        estimator: Estimator = straight_through,
        restart_every: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if metric not in METRICS:
            raise UnknownNameError("metric", metric, METRICS)
        inner = dim if codebook_dim is None else codebook_dim
        is_mapped = codebook_dim is not None
        self.project_in = nn.Linear(dim, inner) if is_mapped else nn.Identity()
        self.project_out = nn.Linear(inner, dim) if is_mapped else nn.Identity()
        self.embedding = nn.Embedding(codebook_size, inner)
        self.metric, self.estimator = metric, estimator
        self.restart_every, self.seed = restart_every, seed
        self.register_buffer("usage", torch.full((codebook_size,), 1.0 / codebook_size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.embedding.num_embeddings,)

    @property
    def codes(self) -> Tensor:
        """The codes (K, d) as they are compared and put out."""
        return self._normalise(self.embedding.weight.float())

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize in fp32; the latents are (B, N, D)."""
        with torch.autocast(z.device.type, enabled=False):
            z, codes = self._vectors(z), self.codes
            ids = nearest(z, codes)
            q = lookup(ids, codes)
            losses = {
                "vq/commit": F.mse_loss(z, q.detach()),
                "vq/codebook": F.mse_loss(q, z.detach()),
            }
            latents = self.project_out(self.estimator(z, q))
        stats = {**code_stats(ids, len(codes)), "inputs": z.detach()}
        return BottleneckOutput(latents=latents, indices=(ids,), losses=losses, stats=stats)

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, D) of ids (B, n), or of probabilities (B, n, K) as soft tokens."""
        check_levels(indices, num_levels, 1)
        with torch.autocast(indices[0].device.type, enabled=False):
            return self.project_out(lookup(indices[0], self.codes))

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start the codes by k-means over latents (..., D) of all ranks."""
        vectors = gather_over_ranks(self._vectors(latents).flatten(0, -2))
        centres = kmeans(vectors.cpu(), self.embedding.num_embeddings, rng=rng)
        self.embedding.weight.copy_(centres)
        self.usage.fill_(1.0 / len(centres))

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Track how often codes are used (EMA of frequencies) and restart dead ones."""
        if out.indices is None:
            return
        counts = torch.bincount(out.indices[0].flatten(), minlength=len(self.usage)).float()
        counts = sum_over_ranks(counts)
        frequency = counts / counts.sum().clamp(min=1)
        self.usage.lerp_(frequency, 1 - USAGE_DECAY)
        self.steps += 1
        if self.restart_every and int(self.steps) % self.restart_every == 0:
            self._restart(out.stats["inputs"])

    def _restart(self, inputs: Tensor) -> None:
        dead = (self.usage < DEAD_BELOW / len(self.usage)).nonzero().squeeze(1)
        if not len(dead):
            return
        # Seeded by the step, so every rank draws the same rows and a resumed run repeats itself.
        rng = torch.Generator().manual_seed(self.seed + int(self.steps))
        pool = gather_over_ranks(inputs.flatten(0, -2))
        rows = torch.randint(len(pool), (len(dead),), generator=rng).to(pool.device)
        self.embedding.weight[dead] = pool[rows]
        # A fresh code counts as used uniformly; it must earn its place until the next restart.
        self.usage[dead] = 1.0 / len(self.usage)

    def _vectors(self, z: Tensor) -> Tensor:
        """What is compared with the codes, fp32 (..., d)."""
        return self._normalise(self.project_in(z.float()))

    def _normalise(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.metric == "cosine" else x
