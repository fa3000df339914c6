"""What vector quantizers share: nearest code, k-means, look-up, sums over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.bottlenecks.estimators import Estimator
from polytok.core.contracts import Bottleneck, BottleneckOutput
from polytok.core.errors import PolytokError, UnknownNameError

CHUNK = 1 << 19  # entries of the distance matrix held at a time
MOST_COUNTED = 1 << 22  # codes whose occurrences are counted in a table
BLOCK = 64  # codes whose scores are reduced together
ROUNDS = 64  # of draws of k-means' first centres

Metric = Literal["euclidean", "cosine"]
Normalise = Callable[[Tensor], Tensor]


def unchanged(x: Tensor) -> Tensor:
    """The vectors as they are."""
    return x


def to_unit(x: Tensor) -> Tensor:
    """The vectors (..., d) scaled to length 1; zero stays zero."""
    return F.normalize(x, dim=-1)


NORMALISE: dict[str, Normalise] = {"cosine": to_unit, "euclidean": unchanged}


def normalise_of(metric: str) -> Normalise:
    """What is done to inputs and codes before they are compared by Euclidean distance.

    Raises:
        UnknownNameError: the metric is unknown.
    """
    if metric not in NORMALISE:
        raise UnknownNameError("metric", metric, NORMALISE)
    return NORMALISE[metric]


def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index of the nearest code by Euclidean distance, fp32, ties to the lowest index.

    Args:
        vectors: (..., d). codes: (V, d).

    Returns:
        int64 (...).
    """
    codes = codes.detach().float()
    # |z - e|^2 is smallest where z.e - |e|^2 / 2 is largest; one addmm gives that.
    return _best(vectors, codes, codes.square().sum(-1) / -2)


def largest_product(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index of the code with the largest inner product, fp32, ties to the lowest index.

    Args:
        vectors: (..., d). codes: (V, d).

    Returns:
        int64 (...).
    """
    codes = codes.detach().float()
    return _best(vectors, codes, codes.new_zeros(len(codes)))


def _best(vectors: Tensor, codes: Tensor, offset: Tensor) -> Tensor:
    """Index of the largest z.e + offset, a chunk of vectors at a time."""
    flat = vectors.detach().reshape(-1, vectors.shape[-1]).float()
    count = len(codes)
    missing = -count % BLOCK if count > BLOCK else 0
    if missing:
        # By the last code and not by zeros: times an infinite value, those are NaN and win.
        codes = torch.cat([codes, codes[-1:].expand(missing, -1)])
        offset = torch.cat([offset, offset[-1:].expand(missing)])
    rows = max(1, CHUNK // codes.shape[0])
    parts = [first_largest(torch.addmm(offset, part, codes.T)) for part in flat.split(rows)]
    # Products of equal codes may be rounded differently; they are all the last one.
    return torch.cat(parts).clamp(max=count - 1).view(vectors.shape[:-1])


def first_largest(scores: Tensor) -> Tensor:
    """Index of the first largest entry of every row (n, V): argmax, and faster where V is large.

    The maximum of a block is one vector instruction per few entries, an argmax is not; so maxima
    of blocks are compared first, then the entries of the best block.
    """
    count, width = scores.shape
    if width <= BLOCK or width % BLOCK:
        return scores.argmax(-1)
    blocks = scores.view(count, width // BLOCK, BLOCK)
    best = blocks.amax(-1).argmax(-1)
    inside = blocks[torch.arange(count, device=scores.device), best].argmax(-1)
    return best * BLOCK + inside


def affinities(z: Tensor, codes: Tensor) -> Tensor:
    """-|z - e|^2 of inputs (n, d) and codes (V, d), up to a constant per input: (n, V)."""
    return torch.addmm(-codes.square().sum(-1), z, codes.T, alpha=2)


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
    if size <= MOST_COUNTED:
        # Not bincount: the size of its result depends on data, which fake tensors do not have.
        counts = torch.zeros(size, device=flat.device)
        counts.index_add_(0, flat, torch.ones((), device=flat.device).expand(len(flat)))
    else:
        counts = flat.unique(return_counts=True)[1].float()
    # Several times as fast as count_nonzero and xlogy, which count where codes are many.
    entropy = math.log(len(flat)) - counts.dot(counts.clamp(min=1).log_()) / len(flat)
    return {"usage": counts.clamp(max=1).sum() / size, "perplexity": entropy.exp()}


def quantize(z: Tensor, codes: Tensor, estimator: Estimator) -> BottleneckOutput:
    """Replace every vector by its nearest code.

    Args:
        z: (B, N, d) fp32. codes: (V, d) fp32.

    Returns:
        Latents (B, N, d), one level of indices, the losses ``vq/commit`` = MSE(sg q, z) and
        ``vq/codebook`` = MSE(q, sg z), both unweighted, and statistics with the ``inputs``.
    """
    ids = nearest(z, codes)
    q = lookup(ids, codes)
    losses = {"vq/commit": F.mse_loss(z, q.detach()), "vq/codebook": F.mse_loss(q, z.detach())}
    stats = {**code_stats(ids, len(codes)), "inputs": z.detach()}
    return BottleneckOutput(latents=estimator(z, q), indices=(ids,), losses=losses, stats=stats)


def kmeans(
    vectors: Tensor,
    count: int,
    *,
    rng: torch.Generator,
    iterations: int = 10,
    normalise: Normalise = unchanged,
) -> Tensor:
    """Lloyd's algorithm from :func:`spread_out`; a centre that loses all its points starts again.

    Args:
        vectors: (n, d) with n >= 1.
        normalise: done to centres after every step; :func:`to_unit` gives spherical k-means.

    Returns:
        (count, d) centres; when n < count, some rows repeat with a little jitter.

    Raises:
        PolytokError: there is no vector.
    """
    n = vectors.shape[0]
    if not n:
        raise PolytokError(f"{count} codes cannot start from no vector at all")
    if n < count:
        order = torch.randperm(n, generator=rng)
        centres = vectors[order[torch.arange(count) % n]].clone()
        spread = vectors.std(0, correction=0) * 1e-2
        centres[n:] += torch.randn(count - n, vectors.shape[1], generator=rng) * spread
    else:
        centres = spread_out(vectors, count, rng=rng)
    for _ in range(iterations):
        ids = nearest(vectors, centres)
        counts, sums = counts_and_sums(ids, vectors, count)
        means = normalise(sums / counts.clamp(min=1)[:, None])
        centres = torch.where(counts[:, None] > 0, means, centres)
        empty = (counts == 0).nonzero().squeeze(1)
        if len(empty) and n >= count:
            centres[empty] = vectors[torch.randint(n, (len(empty),), generator=rng)]
    return centres


def spread_out(vectors: Tensor, count: int, *, rng: torch.Generator) -> Tensor:
    """Rows (count, d) of vectors (n, d), n >= count, each drawn by its squared distance to others.

    k-means++ (Arthur and Vassilvitskii, 2007) where count <= 64; with more, draws of one of 64
    rounds do not see each other, so that it all costs one step of Lloyd's algorithm. Rows drawn
    alike would leave about a tenth of well separated clusters without a centre for good.
    """
    each = -(-count // ROUNDS)
    centres = vectors[torch.randperm(len(vectors), generator=rng)[:each]]
    fresh, gaps = centres, vectors.new_full((len(vectors),), torch.inf)
    while len(centres) < count:
        gaps = gaps.minimum((vectors - fresh[nearest(vectors, fresh)]).square().sum(-1))
        total = gaps.double().cumsum(0)
        draws = torch.rand(min(each, count - len(centres)), generator=rng, dtype=torch.float64)
        rows = torch.searchsorted(total, draws * total[-1], right=True)
        fresh = vectors[rows.clamp(max=len(vectors) - 1)]
        centres = torch.cat([centres, fresh])
    return centres


def counts_and_sums(ids: Tensor, vectors: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How many vectors (n, d) go to each code (size,), and their sums (size, d)."""
    counts = torch.bincount(ids, minlength=size).to(vectors.dtype)
    return counts, vectors.new_zeros(size, vectors.shape[1]).index_add_(0, ids, vectors)


def lookup(ids: Tensor, codes: Tensor) -> Tensor:
    """Codes of ids (B, n), or of probabilities (B, n, V) as soft tokens: (B, n, d)."""
    return ids.float() @ codes if ids.is_floating_point() else F.embedding(ids, codes)


class HasCodes(Protocol):
    """A quantizer of one codebook with ``codes`` (K, d)."""

    @property
    def codes(self) -> Tensor: ...


def embed_ids(quantizer: HasCodes, indices: Sequence[Tensor], num_levels: int | None) -> Tensor:
    """Codes (B, n, d) of the one level of ids (B, n), or of probabilities (B, n, K), in fp32.

    Raises:
        PolytokError: other than one level is asked for.
    """
    check_levels(indices, num_levels, 1)
    with torch.autocast(indices[0].device.type, enabled=False):
        return lookup(indices[0], quantizer.codes.float())


def parts_of(modules: nn.ModuleList) -> list[Bottleneck]:
    """The bottlenecks of a list of modules that holds nothing else."""
    return [cast(Bottleneck, module) for module in modules]


def lookup_or_nothing(level: Bottleneck, ids: Tensor) -> Tensor:
    """Embed one level's ids (B, n), -1 as zeros, or probabilities (B, n, V): (B, n, d)."""
    if ids.is_floating_point():
        return level.embed([ids])
    return level.embed([ids.clamp(min=0)]).masked_fill((ids < 0)[..., None], 0.0)


def check_levels(indices: Sequence[Tensor], num_levels: int | None, most: int) -> int:
    """How many levels to embed: ``num_levels``, or as many as there are indices.

    Raises:
        PolytokError: it is not within 1..what is there.
    """
    count = len(indices) if num_levels is None else num_levels
    if not 1 <= count <= min(len(indices), most):
        raise PolytokError(f"num_levels={count} is not within 1..{min(len(indices), most)}")
    return count


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place; the tensor itself in a single process."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def gather_over_ranks(x: Tensor) -> Tensor:
    """Concatenate tensors of all processes along dim 0, in rank order; the other dims are equal."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    length = torch.tensor([len(x)], device=x.device)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    counts = [int(n) for n in lengths]
    # Collectives take equal shapes alone: everyone sends as many rows as the longest has.
    padded = torch.cat([x, x.new_zeros(max(counts) - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
