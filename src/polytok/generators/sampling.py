"""How ids are drawn from logits, and how sure a draw is taken to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.generators.draws import Rng, categorical, gumbel
from polytok.generators.process import Draw, Step


class Sampler(Protocol):
    """Draws ids from logits (B, n, V)."""

    def log_probs(self, logits: Tensor, step: Step) -> Tensor:
        """Log-probabilities (B, n, V) of what :meth:`draw` draws."""

    def draw(self, logits: Tensor, step: Step, *, rng: Rng) -> Draw:
        """Ids (B, n) and how sure they are."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How ids are drawn from logits.

    Args:
        temperature: divides the logits, above 0.
        top_k: keep the k likeliest ids; 0 keeps all. Ties with the k-th stay.
        top_p: keep the likeliest ids that together reach this mass; 0 or 1 keeps all. Several are
            of the first steps, and the last of them of all that follow.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} is not finite and above 0")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k} must not be negative")
        if not self._masses or not all(0 <= p <= 1 for p in self._masses):
            told = ",".join(map(str, self._masses)) or "none"
            raise ConfigError(f"top_p={told} is not within [0, 1]")

    @property
    def _masses(self) -> tuple[float, ...]:
        return self.top_p if isinstance(self.top_p, tuple) else (self.top_p,)

    def filter(self, logits: Tensor, number: int = 0) -> Tensor:
        """Scale logits (..., V) and set those that may not be drawn to -inf: top-k, then top-p.

        Args:
            number: of the step, from 0.
        """
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        mass = self._masses[min(number, len(self._masses) - 1)]
        if 0 < mass < 1:
            rising, order = logits.sort(dim=-1)
            drop = rising.softmax(dim=-1).cumsum(dim=-1) <= 1 - mass
            drop[..., -1] = False
            logits = logits.masked_fill(drop.scatter(-1, order, drop), float("-inf"))
        return logits

    def log_probs(self, logits: Tensor, step: Step) -> Tensor:
        """Log-probabilities (..., V) of ids at logits (..., V)."""
        return self.filter(logits, step.number).log_softmax(dim=-1)

    def draw(self, logits: Tensor, step: Step, *, rng: Rng) -> Draw:
        """Draw ids (B, n); their log-probability is how sure they are."""
        log_probs = self.log_probs(logits, step)
        ids = categorical(log_probs.exp(), rng)
        return Draw(value=ids, confidence=chosen(log_probs, ids))


@dataclass(frozen=True, kw_only=True)
class FallingSampling:
    """Ids by Gumbel noise that falls to none, so that the last step takes the likeliest.

    An id is the largest of logits + t g, with g Gumbel noise, t = temperature (1 - r) and r the
    share of steps up to this one; its logit, without noise, is how sure it is (1d-tokenizer's
    MaskGIT, arXiv 2406.07550).

    Args:
        temperature: of the noise, at least 0.
        flatness: divides the logits first: from about the first value to the second at the last
            step, linearly in r.
    """

    temperature: float = 1.0
    flatness: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature} is not a number of at least 0")
        if not 0 < min(self.flatness) <= max(self.flatness) < float("inf"):
            raise ConfigError(f"flatness={self.flatness} must be above 0")

    def log_probs(self, logits: Tensor, step: Step) -> Tensor:
        """Log-probabilities (..., V) of ids at logits (..., V)."""
        noise = self._noise(step)
        logits = self._flattened(logits, step)
        if not noise:
            return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype).log()
        return (logits / noise).log_softmax(dim=-1)

    def draw(self, logits: Tensor, step: Step, *, rng: Rng) -> Draw:
        """Draw ids (B, n); their logit is how sure they are."""
        logits = self._flattened(logits, step)
        noise = self._noise(step) * gumbel(logits.shape, rng, logits.device)
        ids = (logits + noise).argmax(dim=-1)
        return Draw(value=ids, confidence=chosen(logits, ids))

    def _noise(self, step: Step) -> float:
        return self.temperature * (1 - step.end)

    def _flattened(self, logits: Tensor, step: Step) -> Tensor:
        first, last = self.flatness
        return logits / (last + (first - last) * (1 - step.end))


def chosen(values: Tensor, ids: Tensor) -> Tensor:
    """The value of each id: (..., V) and (...) to (...)."""
    return values.gather(-1, ids[..., None])[..., 0]
