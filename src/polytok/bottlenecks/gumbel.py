"""Gumbel quantization: a code is drawn from logits, its gradient is the softmax's (1611.01144)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytok.bottlenecks.codebook import (
    affinities,
    code_stats,
    embed_ids,
    gather_over_ranks,
    kmeans,
    lookup,
    nearest,
)
from polytok.bottlenecks.usage import dead_share, replacements
from polytok.core.contracts import Bottleneck, BottleneckOutput


class LinearLogits(nn.Module):
    """Logits of K codes as a linear map of inputs (..., d)."""

    sharpness: Tensor

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, codebook_size)
        self.register_buffer("sharpness", torch.ones(()))

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        """(n, d) -> (n, K)."""
        return self.map(z)

    @torch.no_grad()
    def place(self, rows: Tensor, vectors: Tensor) -> None:
        """Make rows score inputs by -sharpness |z - vector|^2, up to a constant per input."""
        self.map.weight[rows] = 2 * self.sharpness * vectors
        self.map.bias[rows] = -self.sharpness * vectors.square().sum(-1)


class DistanceLogits(nn.Module):
    """Logits of K codes as -t |z - e|^2 with one learnt temperature t > 0."""

    sharpness: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor, codes: Tensor) -> Tensor:
        """(n, d) -> (n, K)."""
        return self.sharpness.clamp(min=1e-6) * affinities(z, codes)

    def place(self, rows: Tensor, vectors: Tensor) -> None:
        """Nothing to do: the codes themselves say where they are."""


class GumbelQuantizer(Bottleneck):
    """z (B, N, d) -> a code of K drawn per token, or the likeliest one without a generator.

    The output is the code; its gradient is that of (one-hot + y - sg y) E, y = softmax((logits +
    noise) / temperature). ``temperature`` is a plain attribute: a stage or a system anneals it.

    Args:
        codebook_size: K. dim: d.
        logits: :class:`LinearLogits` (None) or :class:`DistanceLogits`.
        restart_every: updates between restarts of dead codes; 0 = never.

    The loss ``vq/kl`` = KL(softmax of the logits || uniform), in nats per token, keeps choices from
    settling early; its weights are small (0.0005).
    """

    usage: Tensor
    steps: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        logits: LinearLogits | DistanceLogits | None = None,
        temperature: float = 1.0,
        restart_every: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, dim)
        self.logits = LinearLogits(codebook_size, dim) if logits is None else logits
        self.temperature = temperature
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
            logits = self.logits(z.reshape(-1, z.shape[-1]), codes)
            noisy = logits if rng is None else logits + gumbel_noise(logits, rng)
            ids = noisy.detach().argmax(-1).view(z.shape[:-1])
            latents = lookup(ids, codes)
            if torch.is_grad_enabled():
                soft = (noisy / self.temperature).softmax(-1) @ codes.detach()
                # A term of value zero: the output is the code itself, bit for bit.
                latents = latents + (soft - soft.detach()).view(z.shape)
            log_p = logits.log_softmax(-1)
            losses = {"vq/kl": math.log(len(codes)) + (log_p.exp() * log_p).sum(-1).mean()}
        stats = {**code_stats(ids, len(codes)), "dead": dead_share(self.usage)}
        stats["inputs"] = z.detach()
        return BottleneckOutput(latents=latents, indices=(ids,), losses=losses, stats=stats)

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, d) of ids (B, n), or of probabilities (B, n, K) as soft tokens."""
        return embed_ids(self, indices, num_levels)

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start by k-means over latents (..., d) of all ranks.

        Logits become those of a mixture of Gaussians at the centres, as wide as the clusters are.
        """
        vectors = gather_over_ranks(latents.float().flatten(0, -2)).cpu()
        centres = kmeans(vectors, len(self.usage), rng=rng)
        spread = (vectors - centres[nearest(vectors, centres)]).square().sum(-1).mean()
        self.embedding.weight.copy_(centres)
        # Half the inverse variance per channel.
        self.logits.sharpness.fill_(vectors.shape[1] / 2 / float(spread.clamp(min=1e-6)))
        self.logits.place(torch.arange(len(centres)), self.embedding.weight)
        self.usage.fill_(1.0 / len(centres))

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Track how often codes are used (EMA of frequencies) and restart dead ones."""
        found = replacements(self.usage, self.steps, out, every=self.restart_every, seed=self.seed)
        if found is not None:
            dead, vectors = found
            self.embedding.weight[dead] = vectors.to(self.embedding.weight)
            self.logits.place(dead, vectors.to(self.embedding.weight))


def gumbel_noise(like: Tensor, rng: torch.Generator) -> Tensor:
    """Standard Gumbel noise of the shape of ``like``."""
    noise = torch.empty(like.shape, device=rng.device).exponential_(generator=rng)
    return -noise.log().to(like.device)
