"""How often codes are used over training, which are dead, and what to do about it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from polytok.bottlenecks.codebook import gather_over_ranks, sum_over_ranks
from polytok.core.contracts import BottleneckOutput

USAGE_DECAY = 0.99
DEAD_BELOW = 0.1  # of uniform use
WELL_USED, BADLY_USED = 0.9, 0.5
ENOUGH_TOKENS = 4  # per code, before the share of codes that occur means something


def track_usage(usage: Tensor, ids: Tensor) -> None:
    """Move the running frequencies ``usage`` (V,) towards those of a batch of all ranks."""
    counts = torch.bincount(ids.flatten(), minlength=len(usage)).to(usage)
    counts = sum_over_ranks(counts)
    usage.lerp_(counts / counts.sum().clamp(min=1), 1 - USAGE_DECAY)


def dead_codes(usage: Tensor) -> Tensor:
    """Which codes (V,) are used far less than all codes are on average."""
    return usage < DEAD_BELOW * usage.mean()


def dead_share(usage: Tensor) -> Tensor:
    """Share of the codes that are dead, in [0, 1]."""
    return dead_codes(usage).float().mean()


def draw_restarts(
    usage: Tensor, inputs: Tensor, *, steps: Tensor, every: int, seed: int
) -> tuple[Tensor, Tensor] | None:
    """Dead codes and the inputs of all ranks that should replace them; None when there are none.

    Args:
        usage: (V,), the same on every rank. inputs: (..., d).
        steps: updates so far. every: updates between restarts; 0 = never.

    Returns:
        Ids (n,) and vectors (n, d), each another row of the inputs.
    """
    if not every or int(steps) % every:
        return None
    dead = dead_codes(usage).nonzero().squeeze(1)
    if not len(dead):
        return None
    pool = gather_over_ranks(inputs.flatten(0, -2))
    # Seeded by the step, so every rank draws the same rows and a resumed run repeats itself.
    rng = torch.Generator().manual_seed(seed + int(steps))
    rows = torch.randperm(len(pool), generator=rng)[: len(dead)].to(pool.device)
    # Where there are fewer inputs than dead codes, which codes must wait is drawn too.
    order = torch.randperm(len(dead), generator=rng)[: len(rows)].to(dead.device)
    return dead[order], pool[rows]


def replacements(
    usage: Tensor, steps: Tensor, out: BottleneckOutput, *, every: int, seed: int
) -> tuple[Tensor, Tensor] | None:
    """Count a batch in ``usage`` and ``steps``, both in place, then draw restarts.

    A restarted code counts as used like the average one; it must earn its place until it is dead.

    Returns:
        As :func:`draw_restarts`.
    """
    if out.indices is None:
        return None
    track_usage(usage, out.indices[0])
    steps += 1
    found = draw_restarts(usage, out.stats["inputs"], steps=steps, every=every, seed=seed)
    if found is not None:
        usage[found[0]] = usage.mean()
    return found


def advise(*, usage: float, perplexity: float, size: int, num_tokens: int) -> str:
    """One sentence on how a codebook is used and what to change.

    Args:
        usage: share of the codes that occur, in [0, 1]. perplexity: of their frequencies, in
            [1, size]; both as in ``stats`` of a bottleneck, over ``num_tokens`` tokens.
    """
    if num_tokens < ENOUGH_TOKENS * size:
        return (
            f"{num_tokens} tokens cannot tell how {size} codes are used: "
            f"look at {ENOUGH_TOKENS * size} or more"
        )
    told = f"{usage:.0%} of {size} codes occur, as if {perplexity:.0f} were used evenly"
    if usage < BADLY_USED:
        return (
            f"{told}: start the codes by k-means (start), restart dead ones (restart_every), "
            "compare unit vectors (metric='cosine') of 4 to 32 channels, or use FSQ"
        )
    if usage < WELL_USED:
        return f"{told}: restart dead codes (restart_every), or take fewer codes"
    if perplexity < BADLY_USED * usage * size:
        bits = math.log2(size / max(perplexity, 1.0))
        return (
            f"{told}: an entropy loss (entropy_temperature) evens them out, or range coding saves "
            f"up to {bits:.1f} bits per token"
        )
    return f"{told}: nothing to change"
