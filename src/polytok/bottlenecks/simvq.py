"""SimVQ: frozen random vectors under one linear map that learns (arXiv 2411.02038, section 4).

Every step of the map moves every code, so codes that are not chosen follow those that are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytok.bottlenecks.codebook import (
    embed_ids,
    gather_over_ranks,
    kmeans,
    quantize,
)
from polytok.bottlenecks.estimators import Estimator, straight_through
from polytok.bottlenecks.usage import dead_share, replacements
from polytok.core.contracts import Bottleneck, BottleneckOutput


class SimVQ(Bottleneck):
    """z (B, N, d) -> the nearest of K codes C W^T per token; C stays, W learns.

    Args:
        codebook_size: K. dim: d.
        estimator: how gradient reaches the input, see :mod:`polytok.bottlenecks.estimators`.
        restart_every: updates between restarts of dead codes, which write rows of C; 0 = never.

    The losses are ``vq/commit`` = MSE(sg q, z), which the paper weighs 0.25, and ``vq/codebook`` =
    MSE(q, sg z), of weight 1, which moves W.
    """

    frozen: Tensor
    usage: Tensor
    steps: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        estimator: Estimator = straight_through,
        restart_every: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.estimator, self.restart_every, self.seed = estimator, restart_every, seed
        # Rows of about unit length: with larger ones the map learns far too slowly.
        self.register_buffer("frozen", torch.randn(codebook_size, dim) * dim**-0.5)
        self.map = nn.Linear(dim, dim, bias=False)
        self.register_buffer("usage", torch.full((codebook_size,), 1.0 / codebook_size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (len(self.frozen),)

    @property
    def codes(self) -> Tensor:
        """The codes (K, d); a product of K x d x d."""
        return self.frozen.float() @ self.map.weight.float().T

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize in fp32; the latents are (B, N, d)."""
        with torch.autocast(z.device.type, enabled=False):
            out = quantize(z.float(), self.codes, self.estimator)
        out.stats["dead"] = dead_share(self.usage)
        return out

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, d) of ids (B, n), or of probabilities (B, n, K) as soft tokens."""
        return embed_ids(self, indices, num_levels)

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start the codes by k-means over latents (..., d) of all ranks, and W as the identity."""
        vectors = gather_over_ranks(latents.float().flatten(0, -2))
        self.frozen.copy_(kmeans(vectors.cpu(), len(self.frozen), rng=rng))
        nn.init.eye_(self.map.weight)
        self.usage.fill_(1.0 / len(self.frozen))

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Track how often codes are used (EMA of frequencies) and restart dead ones."""
        found = replacements(self.usage, self.steps, out, every=self.restart_every, seed=self.seed)
        if found is not None:
            dead, vectors = found
            # The row that W maps onto the vector, or as near to it as W reaches.
            self.frozen[dead] = vectors @ torch.linalg.pinv(self.map.weight.float()).T
