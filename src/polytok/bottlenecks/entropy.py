"""Entropy terms that make code choices sure for each token and even over a batch.

Both are unweighted and signed so that positive weights do what is wanted: ``vq/entropy_sample`` =
mean of H(p_n) makes every choice sure, ``vq/entropy_batch`` = -H(mean of p_n) spreads choices over
the codes (arXiv 2310.05737, equation 5). With equal weights their sum is the published term; it is
negative where the batch's entropy is the larger, which is right. Means are over the tokens of one
process. Entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polytok.core.errors import ConfigError

CHUNK = 1 << 21  # probabilities held at a time
TINY = 1e-20
MOST_BITS = 24  # of a group whose 2^b probabilities are held


def in_chunks(
    fn: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, width: int
) -> list[tuple[Tensor, ...]]:
    """Apply ``fn`` to parts of the rows of x (n, d), each giving ``width`` numbers per row.

    With more than one part, what ``fn`` computes inside is computed again for the gradient, so
    that memory does not grow with n x width.
    """
    parts = x.split(max(1, CHUNK // width))
    if len(parts) == 1 or not torch.is_grad_enabled():
        return [fn(part) for part in parts]
    return [checkpoint(fn, p, use_reentrant=False, preserve_rng_state=False) for p in parts]


def code_entropies(
    logits_fn: Callable[[Tensor], Tensor], z: Tensor, size: int
) -> dict[str, Tensor]:
    """Entropy terms of p = softmax(logits) over ``size`` codes.

    Args:
        logits_fn: (n, d) -> (n, size). z: (..., d).
    """
    flat = z.reshape(-1, z.shape[-1])

    def sums(part: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits_fn(part).log_softmax(-1)
        p = log_p.exp()
        return -(p * log_p).sum(), p.sum(0)

    parts = in_chunks(sums, flat, size)
    sample = torch.stack([part[0] for part in parts]).sum()
    mean = torch.stack([part[1] for part in parts]).sum(0) / max(1, len(flat))
    return _named(sample / max(1, len(flat)), entropy_of(mean))


def entropy_of(p: Tensor) -> Tensor:
    """Entropy of all entries of p together, in nats."""
    # The gradient of entropy is infinite at 0; a probability that small moves nothing.
    return torch.special.entr(p.clamp(min=TINY)).sum()


def bit_entropies(logits: Tensor, groups: Sequence[int]) -> dict[str, Tensor]:
    """Entropy terms of words of independent bits, exactly, summed over groups of bits.

    A token's bits are independent given its logits, so its entropy is a sum over bits. The batch's
    is over all 2^b words of a group: their mean probabilities are one product of two matrices, each
    of the probabilities of half the bits, so no n x 2^b table is made.

    Args:
        logits: (..., D) of each bit being set. groups: bits per group, D in all.

    Raises:
        ConfigError: a group has more than 24 bits.
    """
    if max(groups) > MOST_BITS:
        raise ConfigError(f"entropy over 2^{max(groups)} codes: split the bits, 24 at most")
    flat = logits.reshape(-1, logits.shape[-1])
    p = flat.sigmoid()
    count = max(1, len(flat))
    sample = (F.softplus(flat) - flat * p).sum() / count
    batch = torch.stack([_words_entropy(part, count) for part in p.split(list(groups), dim=-1)])
    return _named(sample, batch.sum())


def _words_entropy(p: Tensor, count: int) -> Tensor:
    half = p.shape[1] // 2
    return entropy_of(_words(p[:, :half]).T @ _words(p[:, half:]) / count)


def _words(p: Tensor) -> Tensor:
    """Probabilities (n, 2^b) of all words of independent bits (n, b)."""
    words = p.new_ones(len(p), 1)
    for column in range(p.shape[1]):
        bit = p[:, column : column + 1]
        words = torch.cat([words * (1 - bit), words * bit], dim=1)
    return words


def _named(sample: Tensor, batch: Tensor) -> dict[str, Tensor]:
    return {"vq/entropy_sample": sample, "vq/entropy_batch": -batch}
