"""Linear maps around a bottleneck that has few channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from polytok.core.contracts import Bottleneck, BottleneckOutput


class ProjectedQuantizer(Bottleneck):
    """z (B, N, D) -> d channels -> ``inner`` -> D channels.

    Codes of 4 to 32 channels are used far more evenly than wide ones (arXiv 2110.04627, table 4).

    Args:
        inner: a bottleneck of d channels. dim: D. inner_dim: d.
    """

    def __init__(self, inner: Bottleneck, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.inner = inner
        self.project_in = nn.Linear(dim, inner_dim)
        self.project_out = nn.Linear(inner_dim, dim)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return self.inner.vocab_sizes

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """The inner output with latents (B, N, D), in fp32."""
        with torch.autocast(z.device.type, enabled=False):
            out = self.inner(self.project_in(z.float()), rng=rng, start_level=start_level)
            out.latents = self.project_out(out.latents)
        return out

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, D) of what the inner bottleneck embeds."""
        codes = self.inner.embed(indices, num_levels)
        with torch.autocast(codes.device.type, enabled=False):
            return self.project_out(codes)

    @torch.no_grad()
    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Start the inner codes from latents (..., D)."""
        with torch.autocast(latents.device.type, enabled=False):
            self.inner.start(self.project_in(latents.float()), rng=rng)

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        """Update the inner bottleneck."""
        self.inner.update(out)
