"""Codes learn a mixture of 64 Gaussians when they start and restart well, and not otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from polytok.bottlenecks import (
    IBQ,
    ClusteringQuantizer,
    CosineEMAQuantizer,
    DistanceLogits,
    EMAQuantizer,
    GumbelQuantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
    rotation,
)
from polytok.core.contracts import Bottleneck

SIZE, SIDE, WIDTH = 64, 8, 0.1
FAR = 100.0
WEIGHTS = {"vq/commit": 0.25, "vq/codebook": 1.0, "vq/index": 1.0, "vq/kl": 5e-4}
EVERY = 20

# Quantizers of SIZE codes in 2-D by the updates between restarts.
KINDS: dict[str, Callable[[int], Bottleneck]] = {
    "vq": lambda every: VectorQuantizer(SIZE, 2, restart_every=every),
    "vq-rotation": lambda every: VectorQuantizer(SIZE, 2, estimator=rotation, restart_every=every),
    "vq-cosine": lambda every: VectorQuantizer(SIZE, 2, metric="cosine", restart_every=every),
    "ema": lambda every: EMAQuantizer(SIZE, 2, restart_every=every),
    "ema-cosine": lambda every: CosineEMAQuantizer(SIZE, 2, restart_every=every),
    "simvq": lambda every: SimVQ(SIZE, 2, restart_every=every),
    "ibq": lambda every: IBQ(SIZE, 2, restart_every=every),
    "gumbel": lambda every: GumbelQuantizer(SIZE, 2, restart_every=every),
    "gumbel-distance": lambda every: GumbelQuantizer(
        SIZE, 2, logits=DistanceLogits(), restart_every=every
    ),
    "cvq": lambda every: ClusteringQuantizer(SIZE, 2),
    "cvq-cosine": lambda every: ClusteringQuantizer(SIZE, 2, metric="cosine"),
    "residual": lambda every: ResidualQuantizer(
        [VectorQuantizer(SIZE, 2, restart_every=every) for _ in range(3)]
    ),
    "residual-ema": lambda every: ResidualQuantizer(
        [EMAQuantizer(SIZE, 2, restart_every=every) for _ in range(3)]
    ),
}
# One map moves all codes of SimVQ at once, and CVQ moves unused codes always: far is no trap.
TRAPPED = [name for name in KINDS if name != "simvq" and "cvq" not in name]
DIRECTIONS = ("vq-cosine", "ema-cosine", "cvq-cosine", "ibq")


def mixture(name: str, count: int, rng: torch.Generator) -> Tensor:
    """(1, count, 2) of Gaussians 1 apart: on a grid, or on a ring for those that see directions.

    An inner product or a cosine cannot tell points that lie behind each other on a grid.
    """
    ids = torch.randint(SIZE, (count,), generator=rng)
    if name in DIRECTIONS:
        angles = ids * (2 * math.pi / SIZE)
        centres = torch.stack([angles.cos(), angles.sin()], dim=-1) * (SIZE / (2 * math.pi))
    else:
        centres = torch.stack([ids % SIDE, ids // SIDE], dim=-1) - (SIDE - 1) / 2
    return (centres + WIDTH * torch.randn(count, 2, generator=rng))[None]


@torch.no_grad()
def put_far(quantizer: Bottleneck) -> None:
    """Make all codes uniform in a unit square that lies far from the data."""
    for module in quantizer.modules():
        if isinstance(module, VectorQuantizer | IBQ | GumbelQuantizer):
            module.embedding.weight.uniform_(FAR, FAR + 1)
        elif isinstance(module, EMAQuantizer | CosineEMAQuantizer):
            module.codes.uniform_(FAR, FAR + 1)
            if isinstance(module, EMAQuantizer):
                module.sums.copy_(module.codes)
            else:
                module.codes.copy_(torch.nn.functional.normalize(module.codes, dim=-1))


def used_share(name: str, *, is_well_started: bool, steps: int, seed: int = 0) -> list[float]:
    """Share of the codes that occur after training, in evaluation, per level."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    quantizer = KINDS[name](EVERY if is_well_started else 0).train()
    if is_well_started:
        quantizer.start(mixture(name, 4096, rng), rng=rng)
    else:
        put_far(quantizer)
    parameters = list(quantizer.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.01) if parameters else None
    for _ in range(steps):
        z = mixture(name, 1024, rng)
        out = quantizer(z, rng=rng)
        if optimizer is not None:
            loss = (out.latents - z).square().mean()
            loss = loss + sum(WEIGHTS[k] * value for k, value in out.losses.items())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        quantizer.update(out)
    with torch.no_grad():
        usage = quantizer.eval()(mixture(name, 16384, rng)).stats["usage"]
    return [float(share) for share in usage.flatten()]


@pytest.mark.parametrize("name", KINDS)
def test_started_and_restarted_codes_are_all_used(name: str) -> None:
    assert min(used_share(name, is_well_started=True, steps=100)) > 0.95


@pytest.mark.parametrize("name", TRAPPED)
def test_codes_far_from_the_data_stay_unused_without_restarts(name: str) -> None:
    assert max(used_share(name, is_well_started=False, steps=100)) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", KINDS)
def test_usage_holds_over_long_training_and_seeds(name: str, seed: int) -> None:
    assert min(used_share(name, is_well_started=True, steps=800, seed=seed)) > 0.95
