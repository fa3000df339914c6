"""CVQ: codes that are hardly used move onto inputs of the batch (arXiv 2307.15139, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytok.bottlenecks.codebook import (
    Metric,
    embed_ids,
    gather_over_ranks,
    kmeans,
    nearest,
    normalise_of,
    quantize,
)
from polytok.bottlenecks.estimators import Estimator, straight_through
from polytok.bottlenecks.usage import USAGE_DECAY, dead_share, track_usage
from polytok.core.contracts import Bottleneck, BottleneckOutput

SHARPNESS, OFFSET = 10.0, 1e-3


class ClusteringQuantizer(Bottleneck):
    """z (B, N, d) -> the nearest of K codes per token; gradient and usage move the codes.

    Per update, with running frequencies p_i of decay 0.99 that start at 0, a code moves the share
    exp(-10 K p_i / (1 - 0.99) - 0.001) of the way to the input of all ranks that is closest to it.

    Args:
        codebook_size: K. dim: d.
        metric: ``cosine`` compares and puts out unit vectors; codes move to inputs as they came.
        estimator: how gradient reaches the input, see :mod:`polytok.bottlenecks.estimators`.

    The losses are ``vq/commit`` and ``vq/codebook``, as of
    :class:`~polytok.bottlenecks.VectorQuantizer`.
    """

    usage: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        metric: Metric = "euclidean",
        estimator: Estimator = straight_through,
    ) -> None:
        super().__init__()
        self.metric, self.normalise, self.estimator = metric, normalise_of(metric), estimator
        self.embedding = nn.Embedding(codebook_size, dim)
        self.register_buffer("usage", torch.zeros(codebook_size))

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
        """Quantize in fp32; the latents are (B, N, d)."""
        with torch.autocast(z.device.type, enabled=False):
            out = quantize(self.normalise(z.float()), self.codes, self.estimator)
        out.stats |= {"dead": dead_share(self.usage), "raw_inputs": z.detach().float()}
        return out

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, d) of ids (B, n), or of probabilities (B, n, K) as soft tokens."""
        return embed_ids(self, indices, num_levels)

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start the codes by k-means over latents (..., d) of all ranks."""
        vectors = gather_over_ranks(self.normalise(latents.float()).flatten(0, -2))
        size = self.embedding.num_embeddings
        self.embedding.weight.copy_(kmeans(vectors.cpu(), size, rng=rng, normalise=self.normalise))
        self.usage.fill_(1.0 / size)

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Track how often codes are used and move those that are not."""
        if out.indices is None or not out.indices[0].numel():
            return
        track_usage(self.usage, out.indices[0])
        pool = gather_over_ranks(out.stats["inputs"].flatten(0, -2))
        raw = gather_over_ranks(out.stats["raw_inputs"].flatten(0, -2))
        closest = raw[nearest(self.codes, pool)]
        exponent = SHARPNESS * len(self.usage) / (1 - USAGE_DECAY) * self.usage + OFFSET
        share = (-exponent).exp()[:, None].to(self.embedding.weight)
        self.embedding.weight.lerp_(closest.to(self.embedding.weight), share)
