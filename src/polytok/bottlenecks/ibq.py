"""Index backpropagation: gradient reaches every code through the softmax of scores (2412.02692)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.bottlenecks.codebook import (
    code_stats,
    embed_ids,
    gather_over_ranks,
    kmeans,
    largest_product,
    lookup,
    to_unit,
)
from polytok.bottlenecks.entropy import code_entropies, in_chunks
from polytok.bottlenecks.usage import dead_share, replacements
from polytok.core.contracts import Bottleneck, BottleneckOutput


class IBQ(Bottleneck):
    """z (B, N, d) -> the code with the largest inner product z.e of K codes per token.

    The output is the chosen code; its gradient is that of (one-hot + softmax - sg softmax) E, which
    reaches the input and all codes.

    Args:
        codebook_size: K. dim: d; 32 uses a codebook far more evenly than 256.
        entropy_temperature: of the entropy terms on the scores, 0.01 in the paper; None: no such
            terms.
        restart_every: updates between restarts of dead codes; 0 = never.

    The losses are ``vq/index`` = MSE(output, z), ``vq/commit`` = MSE(sg q, z) and ``vq/codebook`` =
    MSE(q, sg z), unweighted. The published code weighs them 1, 1 and 0.25, the paper's equation has
    the 0.25 on the commitment.
    """

    usage: Tensor
    steps: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        entropy_temperature: float | None = None,
        restart_every: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, dim)
        self.entropy_temperature = entropy_temperature
        self.restart_every, self.seed = restart_every, seed
        self.register_buffer("usage", torch.full((codebook_size,), 1.0 / codebook_size))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.embedding.num_embeddings,)

    @property
    def codes(self) -> Tensor:
        """The codes (K, d)."""
        return self.embedding.weight.float()

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize in fp32; the latents are (B, N, d)."""
        with torch.autocast(z.device.type, enabled=False):
            z, codes = z.float(), self.codes
            ids = largest_product(z, codes)
            q = lookup(ids, codes)
            latents = q
            if torch.is_grad_enabled():
                soft = soft_codes(z, codes)
                # A term of value zero: the output is the code itself, bit for bit.
                latents = q + (soft - soft.detach())
            losses = {
                "vq/index": F.mse_loss(latents, z),
                "vq/commit": F.mse_loss(z, q.detach()),
                "vq/codebook": F.mse_loss(q, z.detach()),
            }
            if (temperature := self.entropy_temperature) is not None:
                losses |= code_entropies(lambda part: part @ codes.T / temperature, z, len(codes))
        stats = {**code_stats(ids, len(codes)), "dead": dead_share(self.usage)}
        stats["inputs"] = z.detach()
        return BottleneckOutput(latents=latents, indices=(ids,), losses=losses, stats=stats)

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, d) of ids (B, n), or of probabilities (B, n, K) as soft tokens."""
        return embed_ids(self, indices, num_levels)

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start the codes by spherical k-means over latents (..., d) of all ranks.

        All have the mean length of the latents: inner products never choose a code that lies
        within the convex hull of the others.
        """
        vectors = gather_over_ranks(latents.float().flatten(0, -2)).cpu()
        units = kmeans(to_unit(vectors), len(self.usage), rng=rng, normalise=to_unit)
        self.embedding.weight.copy_(to_unit(units) * vectors.norm(dim=-1).mean())
        self.usage.fill_(1.0 / len(self.usage))

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Track how often codes are used (EMA of frequencies) and restart dead ones.

        They get the mean length of all codes: a longer one would win against nearer ones.
        """
        found = replacements(self.usage, self.steps, out, every=self.restart_every, seed=self.seed)
        if found is not None:
            dead, vectors = found
            codes = self.embedding.weight
            codes[dead] = to_unit(vectors.to(codes)) * codes.norm(dim=-1).mean()


def soft_codes(z: Tensor, codes: Tensor) -> Tensor:
    """softmax(z E^T) sg(E) of inputs (..., d), in chunks of tokens: (..., d)."""

    def mix(part: Tensor) -> tuple[Tensor]:
        return ((part @ codes.T).softmax(-1) @ codes.detach(),)

    parts = in_chunks(mix, z.reshape(-1, z.shape[-1]), len(codes))
    return torch.cat([part[0] for part in parts]).view(z.shape)
