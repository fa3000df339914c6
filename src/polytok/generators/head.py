"""Heads: what the features of one slot parameterise, how it is drawn and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.generators.draws import Rng
from polytok.generators.process import Draw, Step
from polytok.generators.sampling import Sampler, chosen

Combine = Callable[[Tensor], Tensor]


class DrawHook(Protocol):
    """Draws ids (B, n) in the sampler's stead, from log-probabilities (B, n, V)."""

    def __call__(self, log_probs: Tensor, step: Step) -> Tensor: ...


class Head(nn.Module):
    """Contract. Branches are guided here, since some heads are generators themselves."""

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood in nats (B, n), or its stand-in, of targets."""
        raise TypeError(f"{type(self).__name__} must define loss")

    def sample(
        self,
        features: Tensor,
        combine: Combine,
        step: Step,
        *,
        rng: Rng,
        sampling: Sampler,
        draw: DrawHook | None = None,
    ) -> Draw:
        """Draw from features (R, B, n, W) of R branches that ``combine`` joins."""
        raise TypeError(f"{type(self).__name__} must define sample")


class CategoricalHead(Head):
    """One of ``vocab`` ids per slot, from a linear map.

    Args:
        smoothing: of the labels in training.
    """

    def __init__(self, dim: int, vocab: int, *, smoothing: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, vocab)
        self.smoothing = smoothing
        nn.init.trunc_normal_(self.proj.weight, std=0.02 * (3 * dim) ** -0.5)
        nn.init.zeros_(self.proj.bias)

    def weight(self) -> Tensor:
        """The linear map (V, W)."""
        return self.proj.weight

    def logits(self, features: Tensor) -> Tensor:
        """Logits (..., V) in fp32 of features (..., W)."""
        return F.linear(features, self.weight(), self.proj.bias).float()

    def loss(self, features: Tensor, target: Tensor) -> Tensor:
        smoothing = self.smoothing if self.training else 0.0
        weight, bias = self.weight(), self.proj.bias
        # Item by item, logits of a large vocabulary stay in the processor's cache.
        losses = [
            F.cross_entropy(
                F.linear(f, weight, bias).float(), t, reduction="none", label_smoothing=smoothing
            )
            for f, t in zip(features, target, strict=True)
        ]
        return torch.stack(losses)

    def sample(
        self,
        features: Tensor,
        combine: Combine,
        step: Step,
        *,
        rng: Rng,
        sampling: Sampler,
        draw: DrawHook | None = None,
    ) -> Draw:
        logits = combine(self.logits(features))
        if draw is None:
            return sampling.draw(logits, step, rng=rng)
        log_probs = sampling.log_probs(logits, step)
        ids = draw(log_probs, step)
        return Draw(value=ids, confidence=chosen(log_probs, ids))


class CodebookHead(CategoricalHead):
    """One of the V ids of a codebook, which knows where their codes lie.

    Every row of the linear map is its own and what a small network makes of the id's code: codes
    that lie side by side get similar logits, and rare ones are learnt from their neighbours.

    Args:
        codes: (V, d), not trained and none of the weights. hidden: width of the network.
    """

    codes: Tensor

    def __init__(
        self, dim: int, codes: Tensor, *, hidden: int = 256, smoothing: float = 0.0
    ) -> None:
        super().__init__(dim, len(codes), smoothing=smoothing)
        codes = codes.detach().float()
        codes = (codes - codes.mean(0)) / codes.std().clamp_min(1e-6)
        self.register_buffer("codes", codes, persistent=False)
        last = nn.Linear(hidden, dim)
        nn.init.normal_(last.weight, std=0.02)
        self.map = nn.Sequential(nn.Linear(codes.shape[1], hidden), nn.GELU(), last)
        self._made: tuple[tuple[object, ...], Tensor] | None = None

    def weight(self) -> Tensor:
        if torch.is_grad_enabled():
            return self.proj.weight + self.map(self.codes)
        # Sampling asks for it at every step: it is kept until a weight changes or moves.
        parts = [*self.parameters(), self.codes]
        device = self.codes.device.type
        key = (
            torch.is_autocast_enabled(device),
            *((p.data_ptr(), p._version, p.dtype) for p in parts),
        )
        if self._made is None or self._made[0] != key:
            self._made = key, self.proj.weight + self.map(self.codes)
        return self._made[1]
