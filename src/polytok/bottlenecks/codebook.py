"""What vector quantizers share: nearest code, k-means, usage and restarts over all ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from polytok.core.errors import PolytokError

CHUNK = 1 << 19  # entries of the distance matrix held at a time


def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index of the nearest code by Euclidean distance, fp32, ties to the lowest index.

    Args:
        vectors: (..., d). codes: (V, d).

    Returns:
        int64 (...).
    """
    flat = vectors.detach().reshape(-1, vectors.shape[-1]).float()
    codes = codes.detach().float()
    half_norms = codes.square().sum(-1) / 2
    rows = max(1, CHUNK // codes.shape[0])
    parts = [(half_norms - part @ codes.T).argmin(-1) for part in flat.split(rows)]
    return torch.cat(parts).view(vectors.shape[:-1]) if parts else flat.new_zeros(0).long()


def kmeans(vectors: Tensor, count: int, *, rng: torch.Generator, iterations: int = 10) -> Tensor:
    """Lloyd's algorithm from random starts; a centre that loses all its points starts again.

    Args:
        vectors: (n, d) with n >= 1.

    Returns:
        (count, d) centres; when n < count, some rows repeat with a little jitter.
    """
    n = vectors.shape[0]
    order = torch.randperm(n, generator=rng)
    centres = vectors[order[torch.arange(count) % n]].clone()
    if n < count:
        spread = vectors.std(0, correction=0) * 1e-2
        centres[n:] += torch.randn(count - n, vectors.shape[1], generator=rng) * spread
    for _ in range(iterations):
        ids = nearest(vectors, centres)
        counts = torch.bincount(ids, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, ids, vectors)
        centres = torch.where(
            counts[:, None] > 0, sums / counts.clamp(min=1)[:, None].float(), centres
        )
        empty = (counts == 0).nonzero().squeeze(1)
        if len(empty) and n >= count:
            centres[empty] = vectors[torch.randint(n, (len(empty),), generator=rng)]
    return centres


def lookup(ids: Tensor, codes: Tensor) -> Tensor:
    """Codes of ids (B, n), or of probabilities (B, n, V) as soft tokens: (B, n, d)."""
    return ids.float() @ codes if ids.is_floating_point() else F.embedding(ids, codes)


def check_levels(indices: Sequence[Tensor], num_levels: int | None, most: int) -> int:
    """How many levels to embed: ``num_levels``, or as many as there are indices.

    Raises:
        PolytokError: it is not within 1..what is there.
    """
    count = len(indices) if num_levels is None else num_levels
    if not 1 <= count <= min(len(indices), most):
        raise PolytokError(f"num_levels={count} is not within 1..{min(len(indices), most)}")
    return count


def code_stats(ids: Tensor, size: int) -> dict[str, Tensor]:
    """How evenly a batch uses ``size`` codes.

    Args:
        ids: int64 of any shape.

    Returns:
        ``usage``: share of the codes that occur, in [0, 1]. ``perplexity``: exp of the entropy of
        their frequencies, in [1, size]; both 0 for an empty batch.
    """
    flat = ids.flatten()
    if not len(flat):
        return {"usage": flat.new_zeros(()).float(), "perplexity": flat.new_zeros(()).float()}
    # Not bincount: the size of its result depends on data, which fake tensors do not have.
    counts = flat.new_zeros(size).index_add_(0, flat, torch.ones_like(flat))
    # Mean over tokens, not over codes: fewer logarithms where there are more codes than tokens.
    entropy = math.log(len(flat)) - counts[flat].float().log().mean()
    return {"usage": counts.count_nonzero() / size, "perplexity": entropy.exp()}


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place; the tensor itself in a single process."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def gather_over_ranks(x: Tensor) -> Tensor:
    """Concatenate equal-shaped tensors of all processes along dim 0, in rank order."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
