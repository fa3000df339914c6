"""Every kind of quantizer at a size, and the 64 Gaussians that each should learn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.bottlenecks import (
    IBQ,
    BinarySphericalQuantizer,
    ClusteringQuantizer,
    CosineEMAQuantizer,
    DistanceLogits,
    EMAQuantizer,
    FactorizedQuantizer,
    FiniteScalarQuantizer,
    GroupedQuantizer,
    GumbelQuantizer,
    LookupFreeQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
    rotation,
)
from polytok.core.contracts import Bottleneck

WEIGHTS: Mapping[str, float] = {
    "vq/commit": 0.25,
    "vq/codebook": 1.0,
    "vq/index": 1.0,
    "vq/kl": 5e-4,
    "vq/entropy_sample": 0.1,
    "vq/entropy_batch": 0.1,
    "vq/disentangle": 0.1,
}
FSQ_LEVELS = {64: (8, 8), 256: (8, 6, 5), 1024: (8, 5, 5, 5)}
FAR, WIDTH, GAUSSIANS = 100.0, 0.1, 64
# Kinds that see directions alone.
DIRECTIONS = ("vq cosine", "ema cosine", "cvq cosine", "ibq", "ibq entropy")


def _split(size: int) -> int:
    """Codes per book of two that have ``size`` together."""
    return math.isqrt(size)


def _bits(size: int) -> int:
    return size.bit_length() - 1


# Kinds by the number of codes K, channels d and updates between restarts.
KINDS: dict[str, Callable[[int, int, int], Bottleneck]] = {
    "vq": lambda k, d, r: VectorQuantizer(k, d, restart_every=r),
    "vq rotation": lambda k, d, r: VectorQuantizer(k, d, estimator=rotation, restart_every=r),
    "vq cosine": lambda k, d, r: VectorQuantizer(k, d, metric="cosine", restart_every=r),
    "ema": lambda k, d, r: EMAQuantizer(k, d, restart_every=r),
    "ema cosine": lambda k, d, r: CosineEMAQuantizer(k, d, restart_every=r),
    "simvq": lambda k, d, r: SimVQ(k, d, restart_every=r),
    "ibq": lambda k, d, r: IBQ(k, d, restart_every=r),
    "ibq entropy": lambda k, d, r: IBQ(k, d, restart_every=r, entropy_temperature=0.01),
    "gumbel linear": lambda k, d, r: GumbelQuantizer(k, d, restart_every=r),
    "gumbel distance": lambda k, d, r: GumbelQuantizer(
        k, d, logits=DistanceLogits(), restart_every=r
    ),
    "cvq": lambda k, d, r: ClusteringQuantizer(k, d),
    "cvq cosine": lambda k, d, r: ClusteringQuantizer(k, d, metric="cosine"),
    "residual vq": lambda k, d, r: ResidualQuantizer(
        [VectorQuantizer(_split(k), d, restart_every=r) for _ in range(2)]
    ),
    "residual ema": lambda k, d, r: ResidualQuantizer(
        [EMAQuantizer(_split(k), d, restart_every=r) for _ in range(2)]
    ),
    "grouped vq": lambda k, d, r: GroupedQuantizer(
        [VectorQuantizer(_split(k), d // 2, restart_every=r) for _ in range(2)]
    ),
    "factorized vq": lambda k, d, r: FactorizedQuantizer(
        [nn.Linear(d, d // 2) for _ in range(2)],
        [VectorQuantizer(_split(k), d // 2, restart_every=r) for _ in range(2)],
    ),
    "fsq": lambda k, d, r: _mapped(FiniteScalarQuantizer(FSQ_LEVELS[k]), d, len(FSQ_LEVELS[k])),
    "fsq symmetric": lambda k, d, r: _mapped(
        FiniteScalarQuantizer(FSQ_LEVELS[k], form="symmetric"), d, len(FSQ_LEVELS[k])
    ),
    "lfq": lambda k, d, r: _mapped(LookupFreeQuantizer(_bits(k)), d, _bits(k)),
    "lfq entropy": lambda k, d, r: _mapped(
        LookupFreeQuantizer(_bits(k), entropy_temperature=1.0), d, _bits(k)
    ),
    "bsq": lambda k, d, r: _mapped(BinarySphericalQuantizer(_bits(k)), d, _bits(k)),
    "bsq entropy": lambda k, d, r: _mapped(
        BinarySphericalQuantizer(_bits(k), entropy_temperature=0.2), d, _bits(k)
    ),
}
WITHOUT_CODES = ("fsq", "lfq", "bsq")


def _mapped(inner: Bottleneck, dim: int, inner_dim: int) -> Bottleneck:
    return ProjectedQuantizer(inner, dim, inner_dim)


def has_codes(name: str) -> bool:
    """Whether a kind has codes that can start and restart."""
    return not name.startswith(WITHOUT_CODES)


def loss_of(losses: Mapping[str, Tensor]) -> Tensor:
    """The weighted sum of a quantizer's losses."""
    return sum((WEIGHTS[name] * loss for name, loss in losses.items()), torch.zeros(()))


def mixture(name: str, count: int, rng: torch.Generator) -> Tensor:
    """(1, count, 2) of 64 Gaussians 1 apart, of width 0.1: on a grid, for directions on a ring."""
    ids = torch.randint(GAUSSIANS, (count,), generator=rng)
    if name in DIRECTIONS:
        angles = ids * (2 * math.pi / GAUSSIANS)
        radius = GAUSSIANS / (2 * math.pi)
        centres = radius * torch.stack([angles.cos(), angles.sin()], dim=-1)
    else:
        side = math.isqrt(GAUSSIANS)
        centres = torch.stack([ids % side, ids // side], dim=-1) - (side - 1) / 2
    return (centres + WIDTH * torch.randn(count, 2, generator=rng))[None]


@torch.no_grad()
def put_far(quantizer: nn.Module) -> None:
    """Make all codes uniform in a unit cube that lies far from the data."""
    for module in quantizer.modules():
        if isinstance(module, VectorQuantizer | IBQ | GumbelQuantizer | ClusteringQuantizer):
            module.embedding.weight.uniform_(FAR, FAR + 1)
        elif isinstance(module, SimVQ):
            module.frozen.uniform_(FAR, FAR + 1)
        elif isinstance(module, EMAQuantizer):
            module.codes.uniform_(FAR, FAR + 1)
            module.sums.copy_(module.codes)
        elif isinstance(module, CosineEMAQuantizer):
            module.codes.copy_(F.normalize(module.codes.uniform_(FAR, FAR + 1), dim=-1))
