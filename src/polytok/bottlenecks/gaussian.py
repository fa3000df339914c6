"""Gaussian bottleneck: mean and variance per token, a KL term, a reparametrised sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polytok.core.contracts import Bottleneck, BottleneckOutput

LOG_VARIANCE_RANGE = (-30.0, 20.0)
START_LOG_VARIANCE = -4.0


class GaussianBottleneck(Bottleneck):
    """z (B, N, D) -> latents (B, N, d): Z = mu + sigma * eps (card vat 3.3).

    The KL is the mean over tokens and channels of 0.5 (mu^2 + sigma^2 - 1 - log sigma^2).
    Without a generator or noise the latents are the mean. docs/posterior-collapse.md says which
    units a weight of the KL empties, and ``polytok.metrics`` measures it.
    """

    def __init__(self, dim: int, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.to_moments = nn.Linear(dim, 2 * latent_dim)
        # A unit sigma would drown the mean of a fresh encoder and leave the latents unused.
        nn.init.constant_(self.to_moments.bias[latent_dim:], START_LOG_VARIANCE)

    def forward(
        self,
        z: Tensor,
        *,
        rng: torch.Generator | None = None,
        start_level: int = 0,
        noise: Tensor | None = None,
    ) -> BottleneckOutput:
        """Sample with ``noise`` (B, N, d) if given, else with noise from ``rng``, else the mean."""
        mean, log_variance = self.moments(z)
        if noise is None and rng is not None:
            noise = torch.randn(mean.shape, generator=rng, device=rng.device).to(mean.device)
        sigma = (0.5 * log_variance).exp()
        latents = mean if noise is None else mean + sigma * noise
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        stats = {"sigma": sigma.detach().mean(), "mean_square": mean.detach().square().mean()}
        return BottleneckOutput(latents=latents, losses={"kl": kl}, stats=stats)

    def moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, N, d) of the posterior, in fp32."""
        mean, log_variance = self.to_moments(z).float().chunk(2, dim=-1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)
