"""Virtual adversarial losses over any perturbable tensor, and their supervised ancestors.

A *forward* maps a perturbation to logits (B, C); one logit is a Bernoulli. It should start at the
tensor that is perturbed: what comes before then runs once, and its dropout is the same throughout.

Sources: Miyato et al. 2018 (VAT), arXiv 2009.12064 (AT and iAT on attention), arXiv 2104.08763 (VAT
and iVAT on attention).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from polytok.core.errors import ConfigError, PolytokError, UnknownNameError

Forward = Callable[[Tensor], Tensor]
Kind = Literal["at", "iat", "vat", "ivat", "random"]

KINDS: tuple[str, ...] = get_args(Kind)
SUPERVISED = ("at", "iat")
DIFFERENCES = ("iat", "ivat")
TINY = 1e-12


def log_probabilities(logits: Tensor) -> Tensor:
    """Log of class probabilities in fp32: (B, C) from C logits, (B, 2) from a single one."""
    logits = logits.float()
    if logits.shape[-1] == 1:
        return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=-1)
    return logits.log_softmax(-1)


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean || other) per example (B,), in nats, of logits (B, C); at least 0."""
    log_p, log_q = log_probabilities(clean), log_probabilities(other)
    value = (log_p.exp() * (log_p - log_q)).sum(-1)
    # Rounding may leave it just below 0; a plain clamp would also take its gradient there.
    return value + (value.clamp(min=0) - value).detach()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) per example (B,), in nats; labels (B,) int64, of a single logit 0 or 1."""
    return F.nll_loss(log_probabilities(logits), labels, reduction="none")


@dataclass(frozen=True)
class Space:
    """Where a perturbation may lie: free over a tensor, or along given directions.

    Args:
        mask: bool (B, ...), the shape of the parameters; those that are False stay 0.
        directions: None if the parameters are the perturbation; else parameter (..., t, k) scales
            direction (..., t, k) of a scalar, or (..., t, k, :) of a vector, and t takes the sum.
    """

    mask: Tensor
    directions: Tensor | None = None

    def unit(self, parameters: Tensor) -> Tensor:
        """Scale the valid parameters of each example to L2 norm 1; zeros stay zeros."""
        kept = parameters.float().masked_fill(~self.mask, 0)
        # Twice: a gradient of 1e-20 has a square that is 0 in fp32.
        flat = kept.flatten(1)
        flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
        return F.normalize(flat, dim=1, eps=TINY).view_as(kept)

    def perturb(self, parameters: Tensor) -> Tensor:
        """The perturbation that parameters stand for."""
        parameters = parameters.masked_fill(~self.mask, 0)
        if self.directions is None:
            return parameters
        if self.directions.ndim == parameters.ndim:
            return (parameters * self.directions).sum(-1)
        return (parameters[..., None] * self.directions).sum(-2)


def difference_directions(scores: Tensor, mask: Tensor) -> Tensor:
    """Differences of scores of words, (s_t - s_k)_k scaled to norm 1 for every t.

    Args:
        scores: (..., T). mask: bool, broadcastable to it, True = valid.

    Returns:
        (..., T, T), detached; 0 where t or k is padding, and in rows without a difference.

    Source: arXiv 2009.12064, section 3.3, between words of a sentence.
    """
    scores, mask = scores.detach().float(), mask.expand(scores.shape)
    both = mask[..., :, None] & mask[..., None, :]
    return F.normalize((scores[..., :, None] - scores[..., None, :]) * both, dim=-1, eps=TINY)


def neighbour_directions(tokens: Tensor, table: Tensor, count: int) -> Tensor:
    """Unit vectors (B, T, count, D) from each word to its nearest other words, detached.

    Args:
        tokens: (B, T) rows of ``table`` (V, D), which holds the vectors of all words.
        count: neighbours by Euclidean distance, 1..V - 1.

    Source: Sato et al. 2018 (iAdv-Text), equations 10 to 12.
    """
    if not 1 <= count < len(table):
        raise ConfigError(f"count={count} neighbours is not within 1..{len(table) - 1}")
    table = table.detach().float()
    words = table[tokens]
    distances = torch.cdist(words.flatten(0, -2), table).view(*tokens.shape, -1)
    distances.scatter_(-1, tokens[..., None], torch.inf)
    near = distances.topk(count, largest=False).indices
    return F.normalize(table[near] - words[..., None, :], dim=-1, eps=TINY)


def steepest(objective: Callable[[Tensor], Tensor], space: Space, start: Tensor) -> Tensor:
    """Unit parameters along the gradient of ``objective(perturbation) -> (B,)`` at ``start``.

    Parameters of the model get no gradient from this.
    """
    with torch.enable_grad():
        point = start.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(space.perturb(point)).sum(), point)
    return space.unit(gradient)


def random_unit(space: Space, rng: torch.Generator | None = None) -> Tensor:
    """Unit parameters in a random direction per example; ``rng`` None draws with seed 0."""
    rng = torch.Generator(space.mask.device).manual_seed(0) if rng is None else rng
    noise = torch.randn(space.mask.shape, generator=rng, device=rng.device)
    return space.unit(noise.to(space.mask.device))


def adversarial(forward: Forward, space: Space, labels: Tensor) -> Tensor:
    """Unit parameters that raise the cross-entropy of labels (B,) most."""
    start = torch.zeros(space.mask.shape, device=space.mask.device)
    return steepest(lambda r: cross_entropy(forward(r), labels), space, start)


def virtual_adversarial(
    forward: Forward,
    space: Space,
    clean: Tensor,
    *,
    xi: float = 1e-1,
    num_power: int = 1,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Unit parameters that change the distribution of ``clean`` logits (B, C) most.

    Args:
        xi: length of the probe at which the divergence is differentiated.
        num_power: power iterations.
    """
    clean, unit = clean.detach(), random_unit(space, rng)
    for _ in range(num_power):
        unit = steepest(lambda r: divergence(clean, forward(r)), space, xi * unit)
    return unit


def worse_sign(forward: Forward, space: Space, clean: Tensor, parameters: Tensor) -> Tensor:
    """Turn the parameters of each example to the sign that changes the output more.

    To second order the divergence is even, so its gradient at a small probe finds an axis, and the
    sign is that of the probe. At lengths that saturate a softmax the two ends differ much.
    """
    # Not under no_grad: autocast would keep weights it casts there, and they would get no gradient.
    ahead, back = (divergence(clean, forward(space.perturb(way * parameters))) for way in (1, -1))
    sign = torch.where(back > ahead, -1.0, 1.0)
    return parameters * sign.view(-1, *[1] * (parameters.ndim - 1))


def score_space(kind: str, scores: Tensor, mask: Tensor) -> Space:
    """The space of a kind of perturbation over scores (B, ..., T), with a mask broadcastable to it.

    Raises:
        PolytokError: the mask does not fit the scores.
    """
    try:
        mask = mask.expand(scores.shape)
    except RuntimeError as error:
        raise PolytokError(
            f"a mask {tuple(mask.shape)} does not fit scores {tuple(scores.shape)}"
        ) from error
    if kind not in DIFFERENCES:
        return Space(mask)
    both = mask[..., :, None] & mask[..., None, :]
    return Space(both, difference_directions(scores, mask))


@dataclass(frozen=True, kw_only=True)
class VirtualAdversarialLoss:
    """How much the worst small perturbation of a kind changes a model's output.

    ``vat`` and ``ivat`` are the divergence from the clean output and need no labels; ``at`` and
    ``iat`` the cross-entropy of the perturbed output; ``random`` the divergence under a random
    perturbation. A leading ``i`` names differences of words; see :func:`score_space`.

    Args:
        eps: L2 norm per example of the parameters. xi, num_power: see :func:`virtual_adversarial`.
        picks_sign: see :func:`worse_sign`; the papers take the axis as it comes.

    Raises:
        UnknownNameError: no such kind. ConfigError: a number is out of range.
    """

    kind: str = "vat"
    eps: float
    xi: float = 1e-1
    num_power: int = 1
    picks_sign: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownNameError("kind of perturbation", self.kind, KINDS)
        if not 0 <= self.eps < float("inf") or not 0 < self.xi < float("inf"):
            raise ConfigError(f"eps={self.eps}, xi={self.xi}: need finite, >= 0 and > 0")
        if self.num_power < 1:
            raise ConfigError(f"num_power={self.num_power} must be at least 1")

    def perturbation(
        self,
        forward: Forward,
        space: Space,
        clean: Tensor,
        *,
        labels: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """The perturbation itself, detached; arguments as for a call.

        Raises:
            PolytokError: there are no labels for a kind that needs them, or sizes differ.
        """
        if len(clean) != len(space.mask):
            raise PolytokError(f"{len(clean)} outputs for a mask of {len(space.mask)} examples")
        if self.kind in SUPERVISED:
            if labels is None:
                raise PolytokError(f"kind {self.kind!r} needs labels")
            return space.perturb(self.eps * adversarial(forward, space, labels))
        if self.kind == "random":
            return space.perturb(self.eps * random_unit(space, rng))
        found = self.eps * virtual_adversarial(
            forward, space, clean, xi=self.xi, num_power=self.num_power, rng=rng
        )
        return space.perturb(worse_sign(forward, space, clean, found) if self.picks_sign else found)

    def __call__(
        self,
        forward: Forward,
        space: Space,
        clean: Tensor,
        *,
        labels: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Loss per example (B,), in nats.

        Args:
            forward: perturbation -> logits (B, C), from the perturbed tensor on.
            space: of the perturbation. clean: logits (B, C) without one; they get no gradient.
            labels: (B,) int64, for ``at`` and ``iat``.
            rng: of the random start.
        """
        perturbed = forward(self.perturbation(forward, space, clean, labels=labels, rng=rng))
        if self.kind in SUPERVISED:
            assert labels is not None
            return cross_entropy(perturbed, labels)
        return divergence(clean.detach(), perturbed)
