"""Words of bits as codes: their ids, least significant bit first, in one or more vocabularies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from polytok.bottlenecks.codebook import code_stats
from polytok.bottlenecks.entropy import bit_entropies
from polytok.bottlenecks.estimators import Estimator
from polytok.core.contracts import BottleneckOutput
from polytok.core.errors import ConfigError, PolytokError

MOST_BITS = 52  # of an id that a float64 holds exactly
FP32_BITS = 24


def check_bits(bits: int | Sequence[int]) -> tuple[int, ...]:
    """Bits per vocabulary.

    Raises:
        ConfigError: one is not within 1..52.
    """
    groups = (bits,) if isinstance(bits, int) else tuple(bits)
    if not groups or min(groups) < 1 or max(groups) > MOST_BITS:
        raise ConfigError(f"bits={bits} must be within 1..{MOST_BITS} per vocabulary")
    return groups


def to_ids(is_set: Tensor, groups: Sequence[int]) -> tuple[Tensor, ...]:
    """Ids (...) per vocabulary of bool bits (..., D): the sum of 2^j over the bits j of a group."""
    ids = []
    for part in is_set.split(list(groups), dim=-1):
        # A product with a vector is far faster than a sum over a short last dimension.
        exact = torch.float32 if part.shape[-1] <= FP32_BITS else torch.float64
        weights = 2 ** torch.arange(part.shape[-1], device=part.device)
        ids.append((part.to(exact) @ weights.to(exact)).long())
    return tuple(ids)


def to_signs(ids: Tensor, num_bits: int) -> Tensor:
    """-1 or 1 (..., num_bits), fp32, of ids (...)."""
    shifts = torch.arange(num_bits, device=ids.device)
    return ((ids.unsqueeze(-1) >> shifts) & 1).float() * 2 - 1


def all_groups(
    indices: Sequence[Tensor], num_levels: int | None, groups: Sequence[int]
) -> Sequence[Tensor]:
    """The indices, of all vocabularies.

    Raises:
        PolytokError: one is missing.
    """
    count = len(indices) if num_levels is None else num_levels
    if count != len(groups) or len(indices) < count:
        raise PolytokError(f"num_levels={count} must be {len(groups)}: a token needs all its bits")
    return indices[:count]


def signs_of(indices: Sequence[Tensor], groups: Sequence[int]) -> Tensor:
    """Signs (B, n, bits) of ids (B, n), or mean signs of probabilities (B, n, 2^b), per group."""
    parts = []
    for ids, num_bits in zip(indices, groups, strict=True):
        if ids.is_floating_point():
            words = torch.arange(2**num_bits, device=ids.device)
            parts.append(ids.float() @ to_signs(words, num_bits))
        else:
            parts.append(to_signs(ids, num_bits))
    return torch.cat(parts, dim=-1)


def quantize_bits(
    vectors: Tensor,
    groups: Sequence[int],
    *,
    scale: float,
    estimator: Estimator,
    entropy_temperature: float | None,
) -> BottleneckOutput:
    """Codes +-scale of fp32 vectors (B, N, D) by their signs; zero becomes -scale.

    Losses: ``vq/commit`` = MSE(sg q, vectors), and with a temperature the entropies over the codes
    c of each vocabulary, of logits 2 vectors.c / temperature.
    """
    is_set = vectors.detach() > 0
    q = (is_set.float() * 2 - 1) * scale
    indices = to_ids(is_set, groups)
    losses = {"vq/commit": F.mse_loss(vectors, q)}
    if entropy_temperature is not None:
        # Two codes that differ in one bit have logits 4 scale vectors / temperature apart.
        losses |= bit_entropies(vectors * (4 * scale / entropy_temperature), groups)
    return BottleneckOutput(
        latents=estimator(vectors, q),
        indices=indices,
        losses=losses,
        stats=bit_stats(indices, groups),
    )


def bit_stats(indices: Sequence[Tensor], groups: Sequence[int]) -> dict[str, Tensor]:
    """``usage`` and ``perplexity`` of every vocabulary, (G,) each; see :func:`code_stats`."""
    stats = [code_stats(ids, 2**bits) for ids, bits in zip(indices, groups, strict=True)]
    return {name: torch.stack([s[name] for s in stats]) for name in stats[0]}
