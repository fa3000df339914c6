"""Every component gives the numbers it gave before: weights and inputs of a fixed formula.

``POLYTOK_UPDATE_FINGERPRINTS=1 pytest tests/contracts/test_fingerprints.py`` writes them anew,
after a change of the maths that is meant.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from contracts.cases import SMALL_PRESETS, build_preset
from polytok.bottlenecks import RESAMPLERS, GaussianBottleneck, MultiScaleVQ
from polytok.core.contracts import StepContext
from polytok.generators import (
    AdaptiveTransformer,
    Cond,
    PostNormTransformer,
    QuarterQK,
    Query,
    SkipTransformer,
    UnitQK,
)
from polytok.layers import (
    AnchorExchange,
    Block,
    CrossBlock,
    FeedForward,
    FourierEmbedding,
    ViTBlock,
)
from polytok.losses import overlap_loss, signed_distance_loss, soft_occupancy_loss
from polytok.networks.decoders import CodeHead, MaskTokenDecoder, PatchHead, TriplaneDecoder
from polytok.networks.encoders import LatentQueryEncoder, PointEncoder

STORED = Path(__file__).with_name("fingerprints.json")
IS_UPDATE = os.environ.get("POLYTOK_UPDATE_FINGERPRINTS") == "1"
TOLERANCE = 1e-3
SLOTS = (1, 4, 9)


def wave(*shape: int, phase: float = 0.0) -> Tensor:
    """Values in [-1, 1] that look random and are the same on any machine and torch version."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return (steps * 1.7 + 0.3 * (steps * 0.61).cos() + phase).sin().float().view(shape)


def filled(module: nn.Module) -> nn.Module:
    """Give every parameter a fixed value of about the size that training would."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            values = wave(*parameter.shape, phase=number)
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.1 * values)
            else:
                parameter.copy_(values * math.sqrt(2 / parameter[0].numel()))
    return module.eval()


def quantized(resampler: str) -> list[Tensor]:
    quantizer = filled(
        MultiScaleVQ(codebook_size=32, codebook_dim=6, slots=SLOTS, resampler=resampler)
    )
    out = quantizer(wave(3, SLOTS[-1], 6))
    return [out.latents, out.losses["vq"], *(ids.float() for ids in out.indices)]


def encoded(mode: str, num_features: int) -> list[Tensor]:
    encoder = filled(
        PointEncoder(
            dim=16,
            num_heads=2,
            num_layers=1,
            num_latents=4,
            num_features=num_features,
            feature_mode=mode,
        )
    )
    return [encoder(wave(2, 40, 3), wave(2, 40, 3, phase=1))]


def decoded() -> list[Tensor]:
    decoder = filled(
        TriplaneDecoder(
            dim=16,
            num_heads=2,
            num_layers=1,
            num_latents=4,
            plane_size=3,
            channels=(8, 4),
            num_latent_layers=1,
            mlp_dim=8,
        )
    )
    return [decoder(wave(2, 4, 16))(wave(2, 30, 3, phase=2))]


def told(lengths: Tensor | None) -> list[Tensor]:
    """Tokens of an image grid, and cells made of some of them."""
    sizes = {"dim": 16, "num_heads": 2, "num_layers": 1, "num_latents": 4}
    tokens = filled(LatentQueryEncoder(size=6, patch=2, **sizes))(wave(2, 3, 6, 6))
    return [tokens, filled(MaskTokenDecoder(grid=3, **sizes))(tokens, lengths=lengths)]


SHAPES = {
    "points": wave(2, 80, 3),
    "normals": wave(2, 80, 3, phase=1),
    "queries": wave(2, 50, 3, phase=2),
    "sdf": 0.1 * wave(2, 50, phase=3),
}


def stepped(preset: str) -> list[Tensor]:
    """Losses of a training step without noise, and the decoded code."""
    model = filled(build_preset(preset))
    is_image = model.spec.modality == "image"
    batch = SHAPES
    if is_image:
        side = model.config.size
        batch = {"image": wave(2, 3, side, side) / 2 + 0.5, "seed": torch.arange(2)}
    losses = model(batch, StepContext()).losses
    decoded = model.decode(model.encode(batch))
    values = decoded["image"] if is_image else decoded["field"](batch["queries"])
    return [*(losses[name] for name in sorted(losses)), values]


def walked(modulation: str, qk: type[nn.Module]) -> list[Tensor]:
    net = filled(
        AdaptiveTransformer(
            dim=8,
            depth=2,
            num_heads=2,
            levels=[0, 1, 1],
            num_start=1,
            embed=nn.Linear(3, 8),
            qk=qk,
            modulation=modulation,
        )
    )
    cond = Cond(vector=wave(2, 8), tokens=wave(2, 2, 8), mask=torch.ones(2, 2, dtype=torch.bool))
    return [net(Query(inp=wave(2, 2, 3), index=torch.arange(3)), cond)]


def masked(kind: type[PostNormTransformer] | type[SkipTransformer]) -> list[Tensor]:
    net = filled(kind(dim=8, depth=2, num_heads=2, vocab=5, length=3))
    query = Query(inp=torch.tensor([[0, 5, 4], [5, 5, 1]]), index=torch.arange(3))
    return [net(query, Cond(vector=wave(2, 8)))]


COMPONENTS: dict[str, Callable[[], list[Tensor]]] = {
    "generators.AdaptiveTransformer(block, UnitQK)": lambda: walked("block", UnitQK),
    "generators.AdaptiveTransformer(shared, QuarterQK)": lambda: walked("shared", QuarterQK),
    "generators.PostNormTransformer": lambda: masked(PostNormTransformer),
    "generators.SkipTransformer": lambda: masked(SkipTransformer),
    "layers.FourierEmbedding": lambda: [FourierEmbedding(4)(wave(5, 3))],
    "layers.AnchorExchange": lambda: (
        (exchange := filled(AnchorExchange(8, 4, 2)))
        and [exchange.gather(wave(2, 12, 8)), exchange.spread(wave(2, 4, 8))]
    ),
    "layers.FeedForward": lambda: [filled(FeedForward(8))(wave(2, 5, 8))],
    "layers.Block": lambda: [filled(Block(8, 2))(wave(2, 5, 8))],
    "layers.ViTBlock": lambda: [filled(ViTBlock(8, 2))(wave(2, 5, 8))],
    "layers.CrossBlock": lambda: [filled(CrossBlock(8, 2))(wave(2, 5, 8), wave(2, 7, 8, phase=1))],
    "bottlenecks.GaussianBottleneck": lambda: (
        (out := filled(GaussianBottleneck(8, 3))(wave(2, 5, 8), noise=wave(2, 5, 3)))
        and [out.latents, out.losses["kl"]]
    ),
    **{
        f"bottlenecks.MultiScaleVQ.{name}": lambda name=name: quantized(name)
        for name in sorted(RESAMPLERS)
    },
    **{
        f"networks.PointEncoder.{mode}": lambda mode=mode, count=count: encoded(mode, count)
        for mode, count in (("cross_learned", 6), ("cross_fps", 6), ("subset", 6), ("planes", 12))
    },
    "networks.TriplaneDecoder": decoded,
    "networks.LatentQueryEncoder, MaskTokenDecoder": lambda: told(torch.tensor([1, 4])),
    "networks.CodeHead": lambda: [filled(CodeHead(8, 5))(wave(2, 9, 8))],
    "networks.PatchHead": lambda: [filled(PatchHead(8, 2))(wave(2, 9, 8))],
    "losses.signed_distance_loss": lambda: [
        signed_distance_loss(wave(2, 9), 0.1 * wave(2, 9, phase=1), band=0.05)
    ],
    "losses.overlap_loss": lambda: [overlap_loss(wave(2, 9), 0.1 * wave(2, 9, phase=1), band=0.05)],
    "losses.soft_occupancy_loss": lambda: [
        soft_occupancy_loss(wave(2, 9), 0.1 * wave(2, 9, phase=1), band=0.05)
    ],
    **{f"systems.{name}": lambda name=name: stepped(name) for name in SMALL_PRESETS},
}


def fingerprint(tensors: list[Tensor]) -> list[list[float]]:
    """Per tensor: how many values, their mean size, and two projections in units of that size."""
    rows = []
    for tensor in tensors:
        flat = tensor.detach().double().flatten()
        size = flat.abs().mean()
        probes = [wave(flat.numel(), phase=p).double() for p in (4, 5)]
        norm = size * math.sqrt(flat.numel()) + 1e-12
        row = [flat.numel(), size, *((flat @ probe) / norm for probe in probes)]
        rows.append([float(f"{float(value):.6g}") for value in row])
    return rows


def stored() -> dict[str, list[list[float]]]:
    return json.loads(STORED.read_text()) if STORED.exists() else {}


@pytest.fixture(scope="module", autouse=True)
def _written_when_asked() -> None:
    if IS_UPDATE:
        with torch.no_grad():
            rows = {name: fingerprint(make()) for name, make in sorted(COMPONENTS.items())}
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items())
        STORED.write_text(f"{{\n{lines}\n}}\n")


def test_no_fingerprint_is_left_over() -> None:
    assert sorted(stored()) == sorted(COMPONENTS)


@pytest.mark.parametrize("name", sorted(COMPONENTS))
@torch.no_grad()
def test_a_component_gives_the_numbers_it_gave(name: str) -> None:
    found = torch.tensor(fingerprint(COMPONENTS[name]()), dtype=torch.float64)
    wanted = torch.tensor(stored()[name], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_small_change_of_a_weight_changes_the_fingerprint() -> None:
    block = filled(Block(8, 2))
    with torch.no_grad():
        before = fingerprint([block(wave(2, 5, 8))])
        block.mlp.down.weight[0, 0] += 0.5
        after = fingerprint([block(wave(2, 5, 8))])
    difference = torch.tensor(after) - torch.tensor(before)
    assert float(difference.abs().max()) > 2 * TOLERANCE
