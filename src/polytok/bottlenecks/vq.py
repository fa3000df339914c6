"""Vector quantization with a codebook that learns by gradient (arXiv 1711.00937, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytok.bottlenecks.codebook import (
    Metric,
    affinities,
    embed_ids,
    gather_over_ranks,
    kmeans,
    normalise_of,
    quantize,
)
from polytok.bottlenecks.entropy import code_entropies
from polytok.bottlenecks.estimators import Estimator, straight_through
from polytok.bottlenecks.usage import dead_share, replacements
from polytok.core.contracts import Bottleneck, BottleneckOutput


class VectorQuantizer(Bottleneck):
    """z (B, N, D) -> the nearest of K codes per token.

    Args:
        codebook_size: K. dim: D.
        codebook_dim: d of the codes; when it is given, linear maps D -> d -> D lie around them.
        metric: ``cosine`` compares directions: inputs and codes have unit length, and so does the
            output before it is mapped back.
        estimator: how gradient reaches the input, see :mod:`polytok.bottlenecks.estimators`.
        entropy_temperature: of the entropy terms on negative squared distances; None: no such
            terms, and nothing is computed for them.
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
        entropy_temperature: float | None = None,
        restart_every: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.normalise = normalise_of(metric)
        inner = dim if codebook_dim is None else codebook_dim
        is_mapped = codebook_dim is not None
        self.project_in = nn.Linear(dim, inner) if is_mapped else nn.Identity()
        self.project_out = nn.Linear(inner, dim) if is_mapped else nn.Identity()
        self.embedding = nn.Embedding(codebook_size, inner)
        self.metric, self.estimator = metric, estimator
        self.entropy_temperature = entropy_temperature
        self.restart_every, self.seed = restart_every, seed
        self.register_buffer("usage", torch.full((codebook_size,), 1.0 / codebook_size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.embedding.num_embeddings,)

    @property
    def codes(self) -> Tensor:
        """The codes (K, d) as they are compared and put out."""
        return self.normalise(self.embedding.weight.float())

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize in fp32; the latents are (B, N, D)."""
        with torch.autocast(z.device.type, enabled=False):
            z, codes = self._vectors(z), self.codes
            out = quantize(z, codes, self.estimator)
            out.latents = self.project_out(out.latents)
            if (temperature := self.entropy_temperature) is not None:
                out.losses |= code_entropies(
                    lambda part: affinities(part, codes) / temperature, z, len(codes)
                )
        out.stats["dead"] = dead_share(self.usage)
        return out

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, D) of ids (B, n), or of probabilities (B, n, K) as soft tokens."""
        latents = embed_ids(self, indices, num_levels)
        with torch.autocast(latents.device.type, enabled=False):
            return self.project_out(latents)

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start the codes by k-means over latents (..., D) of all ranks."""
        vectors = gather_over_ranks(self._vectors(latents).flatten(0, -2))
        size = self.embedding.num_embeddings
        centres = kmeans(vectors.cpu(), size, rng=rng, normalise=self.normalise)
        self.embedding.weight.copy_(centres)
        self.usage.fill_(1.0 / size)

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Track how often codes are used (EMA of frequencies) and restart dead ones."""
        found = replacements(self.usage, self.steps, out, every=self.restart_every, seed=self.seed)
        if found is not None:
            dead, vectors = found
            self.embedding.weight[dead] = vectors.to(self.embedding.weight)

    def _vectors(self, z: Tensor) -> Tensor:
        """What is compared with the codes, fp32 (..., d)."""
        return self.normalise(self.project_in(z.float()))
