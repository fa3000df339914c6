"""Every quantizer with codes to look up or round to, built small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
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

DIM, SIZE = 6, 32


@dataclass(frozen=True)
class Kind:
    """A quantizer under test.

    Args:
        build: makes it for DIM channels. tiny: makes it with 2 codes of 1 channel.
        width: channels of the output.
        is_identity: whether gradient passes to the input unchanged.
        is_projection: whether quantizing the output gives the same ids.
        is_scale_free: whether ids and output do not depend on the input's length.
        has_codes: whether codes are learnt, tracked and restarted.
    """

    build: Callable[[], Bottleneck]
    tiny: Callable[[], Bottleneck] | None = None
    width: int = DIM
    is_identity: bool = False
    is_projection: bool = False
    is_scale_free: bool = False
    has_codes: bool = True


def _heads(count: int) -> list[nn.Module]:
    return [nn.Linear(DIM, 4) for _ in range(count)]


KINDS: dict[str, Kind] = {
    "vq": Kind(
        lambda: VectorQuantizer(SIZE, DIM),
        lambda: VectorQuantizer(2, 1),
        is_identity=True,
        is_projection=True,
    ),
    "vq-cosine": Kind(
        lambda: VectorQuantizer(SIZE, DIM, metric="cosine"),
        lambda: VectorQuantizer(2, 1, metric="cosine"),
        is_projection=True,
        is_scale_free=True,
    ),
    "vq-mapped": Kind(
        lambda: VectorQuantizer(SIZE, DIM, codebook_dim=3, metric="cosine", estimator=rotation)
    ),
    "vq-rotation": Kind(lambda: VectorQuantizer(SIZE, DIM, estimator=rotation), is_projection=True),
    "vq-entropy": Kind(
        lambda: VectorQuantizer(SIZE, DIM, entropy_temperature=0.5),
        lambda: VectorQuantizer(2, 1, entropy_temperature=0.5),
        is_identity=True,
        is_projection=True,
    ),
    "ema": Kind(
        lambda: EMAQuantizer(SIZE, DIM),
        lambda: EMAQuantizer(2, 1),
        is_identity=True,
        is_projection=True,
    ),
    "ema-cosine": Kind(
        lambda: CosineEMAQuantizer(SIZE, DIM),
        lambda: CosineEMAQuantizer(2, 1),
        is_projection=True,
        is_scale_free=True,
    ),
    "simvq": Kind(
        lambda: SimVQ(SIZE, DIM), lambda: SimVQ(2, 1), is_identity=True, is_projection=True
    ),
    "cvq": Kind(
        lambda: ClusteringQuantizer(SIZE, DIM),
        lambda: ClusteringQuantizer(2, 1),
        is_identity=True,
        is_projection=True,
    ),
    "cvq-cosine": Kind(
        lambda: ClusteringQuantizer(SIZE, DIM, metric="cosine"),
        is_projection=True,
        is_scale_free=True,
    ),
    "ibq": Kind(lambda: IBQ(SIZE, DIM, entropy_temperature=0.5), lambda: IBQ(2, 1)),
    "gumbel": Kind(lambda: GumbelQuantizer(SIZE, DIM), lambda: GumbelQuantizer(2, 1)),
    "gumbel-distance": Kind(
        lambda: GumbelQuantizer(SIZE, DIM, logits=DistanceLogits()), is_projection=True
    ),
    "fsq": Kind(
        lambda: FiniteScalarQuantizer((8, 5, 4, 3, 6, 5)),
        lambda: FiniteScalarQuantizer((3,)),
        has_codes=False,
    ),
    "fsq-symmetric": Kind(
        lambda: FiniteScalarQuantizer((2, 3, 4, 5, 6, 7), form="symmetric"),
        lambda: FiniteScalarQuantizer((2,), form="symmetric"),
        has_codes=False,
    ),
    "lfq": Kind(
        lambda: LookupFreeQuantizer(DIM, entropy_temperature=0.5),
        lambda: LookupFreeQuantizer(1),
        is_identity=True,
        is_projection=True,
        is_scale_free=True,
        has_codes=False,
    ),
    "lfq-split": Kind(
        lambda: LookupFreeQuantizer((4, 2)), is_identity=True, is_projection=True, has_codes=False
    ),
    "bsq": Kind(
        lambda: BinarySphericalQuantizer((3, 3), entropy_temperature=0.5),
        lambda: BinarySphericalQuantizer(1),
        is_projection=True,
        is_scale_free=True,
        has_codes=False,
    ),
    "residual": Kind(
        lambda: ResidualQuantizer([VectorQuantizer(SIZE, DIM) for _ in range(3)]),
        lambda: ResidualQuantizer([VectorQuantizer(2, 1) for _ in range(2)]),
        is_identity=True,
    ),
    "residual-ema": Kind(
        lambda: ResidualQuantizer([EMAQuantizer(SIZE, DIM) for _ in range(3)], gradient="chain"),
        is_identity=True,
    ),
    "residual-shared": Kind(
        lambda: ResidualQuantizer([EMAQuantizer(SIZE, DIM)] * 3), is_identity=True
    ),
    "grouped": Kind(
        lambda: GroupedQuantizer([VectorQuantizer(SIZE, 3), VectorQuantizer(16, 3)]),
        is_identity=True,
        is_projection=True,
    ),
    "grouped-residual": Kind(
        lambda: GroupedQuantizer(
            [ResidualQuantizer([VectorQuantizer(SIZE, 3) for _ in range(2)]) for _ in range(2)]
        ),
        is_identity=True,
    ),
    "factorized": Kind(
        lambda: FactorizedQuantizer(
            _heads(2), [VectorQuantizer(SIZE, 4, metric="cosine") for _ in range(2)]
        ),
        width=8,
    ),
    "projected": Kind(
        lambda: ProjectedQuantizer(FiniteScalarQuantizer((5, 5, 5)), DIM, 3), has_codes=False
    ),
}


def tokens(count: int = 3, length: int = 11, dim: int = DIM) -> Tensor:
    """Inputs (count, length, dim)."""
    return torch.randn(count, length, dim)


def state_of(quantizer: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, also those that are not saved."""
    named = [*quantizer.named_parameters(), *quantizer.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}
