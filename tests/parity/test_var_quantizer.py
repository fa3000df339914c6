"""Our grid2d quantizer against VAR's own code, and every resampler against plain formulas.

``data/var_quantizer.npz`` holds arrays alone: inputs, weights and what ``VectorQuantizer2`` of
FoundationVision/VAR (MIT, commit 78b9539) gave for them in fp32 on a CPU. V = 64, C = 8,
sides 1, 2, 3, 4, four refinement layers, no normalisation; torch.manual_seed(20241202) before
the module, then every array drawn from Generator().manual_seed(7): codes randn * 0.6, per layer
weights randn * 0.08 and biases randn * 0.02, and z randn of shape (5, 8, 4, 4).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polytok.bottlenecks import MultiScaleVQ
from polytok.bottlenecks.multi_scale import Refinement

DATA = Path(__file__).parent / "data" / "var_quantizer.npz"


@pytest.fixture(scope="module")
def oracle() -> dict[str, Tensor]:
    with np.load(DATA) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def quantizer(oracle: dict[str, Tensor]) -> MultiScaleVQ:
    vocab, dim = oracle["embedding"].shape
    slots = tuple(int(side) ** 2 for side in oracle["patch_nums"])
    module = MultiScaleVQ(codebook_size=vocab, codebook_dim=dim, slots=slots, resampler="grid2d")
    with torch.no_grad():
        module.embedding.weight.copy_(oracle["embedding"])
        for layer, weight, bias in zip(
            module.phi.layers, oracle["phi_weight"], oracle["phi_bias"], strict=True
        ):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return module.eval()


def tokens(pictures: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w, C)."""
    return pictures.flatten(2).transpose(1, 2)


@torch.no_grad()
def test_indices_are_identical_to_var(oracle: dict[str, Tensor], quantizer: MultiScaleVQ) -> None:
    out = quantizer(tokens(oracle["z"]))
    assert len(out.indices) == 4
    for level, ids in enumerate(out.indices):
        assert torch.equal(ids, oracle[f"indices_{level}"]), level


@torch.no_grad()
def test_running_sums_are_those_of_var(oracle: dict[str, Tensor], quantizer: MultiScaleVQ) -> None:
    out = quantizer(tokens(oracle["z"]))
    for level, prefix in enumerate(out.stats["prefixes"]):
        wanted = tokens(oracle[f"fhat_{level}"])
        torch.testing.assert_close(prefix, wanted, atol=1e-5, rtol=0)
        embedded = quantizer.embed(out.indices, num_levels=level + 1)
        torch.testing.assert_close(embedded, wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_loss_and_teacher_inputs_are_those_of_var(
    oracle: dict[str, Tensor], quantizer: MultiScaleVQ
) -> None:
    out = quantizer(tokens(oracle["z"]))
    torch.testing.assert_close(out.losses["vq"], oracle["loss"], atol=1e-5, rtol=1e-5)
    inputs = quantizer.teacher_inputs(out.indices)
    torch.testing.assert_close(inputs, oracle["teacher"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("num_levels", range(2, 17))
def test_refinement_layers_are_shared_by_var_s_rule(count: int, num_levels: int) -> None:
    """The nearest tick in float64; scales half-way between two ticks fall as NumPy rounds."""
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(edge, 1 - edge, count)
    wanted = [np.argmin(np.abs(ticks - k / (num_levels - 1))).item() for k in range(num_levels)]
    layer = Refinement(2, (), num_levels, ratio=0.5, count=count)
    assert layer.pick == wanted


# Plain formulas of each resampler on (B, M, d), written without matrices.


def sides(slots: int) -> tuple[int, int]:
    side = round(slots**0.5)
    return side, side


def area(x: Tensor, count: int) -> Tensor:
    picture = x.transpose(1, 2).unflatten(-1, sides(x.shape[1]))
    return tokens(F.interpolate(picture, size=sides(count), mode="area"))


def bicubic(x: Tensor, count: int) -> Tensor:
    picture = x.transpose(1, 2).unflatten(-1, sides(x.shape[1]))
    return tokens(F.interpolate(picture, size=sides(count), mode="bicubic"))


def pool(x: Tensor, count: int) -> Tensor:
    full = x.shape[1]
    spans = [(i * full // count, -(-(i + 1) * full // count)) for i in range(count)]
    return torch.stack([x[:, a:b].mean(1) for a, b in spans], dim=1)


def line(x: Tensor, count: int) -> Tensor:
    few = x.shape[1]
    place = ((torch.arange(count) + 0.5) * few / count - 0.5).clamp(0, few - 1)
    low = place.floor().long()
    part = (place - low)[:, None]
    return x[:, low] * (1 - part) + x[:, (low + 1).clamp(max=few - 1)] * part


def head(x: Tensor, count: int) -> Tensor:
    return x[:, :count]


def pad(x: Tensor, count: int) -> Tensor:
    return torch.cat([x, x.new_zeros(x.shape[0], count - x.shape[1], x.shape[2])], dim=1)


PLAIN: dict[str, tuple[Callable[[Tensor, int], Tensor], Callable[[Tensor, int], Tensor]]] = {
    "grid2d": (area, bicubic),
    "linear1d": (pool, line),
    "nested": (head, pad),
}


def plain_quantize(module: MultiScaleVQ, name: str, z: Tensor) -> tuple[list[Tensor], Tensor]:
    """Algorithm 1 of VAR, one scale after the other, in float64."""
    down, up = PLAIN[name]
    codes, full = module.embedding.weight.double(), z.shape[1]
    rest, total, indices = z.double(), torch.zeros_like(z, dtype=torch.float64), []
    for level, count in enumerate(module.slots):
        pooled = down(rest, count) if count != full else rest
        ids = (pooled[:, :, None] - codes).square().sum(-1).argmin(-1)
        lifted = up(codes[ids], full) if count != full else codes[ids]
        layer = module.phi.layers[module.phi.pick[level]]
        weight, bias = layer.weight.double(), layer.bias.double()
        if name == "grid2d":
            picture = lifted.transpose(1, 2).unflatten(-1, sides(full))
            refined = tokens(F.conv2d(picture, weight, bias, padding=1))
        elif name == "linear1d":
            refined = F.conv1d(lifted.transpose(1, 2), weight, bias, padding=1).transpose(1, 2)
        else:
            refined = lifted @ weight.T + bias
        lifted = 0.5 * lifted + 0.5 * refined
        total, rest = total + lifted, rest - lifted
        indices.append(ids)
    return indices, total


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        ("grid2d", (1, 4, 9, 16, 25)),
        ("grid2d", (4, 36)),
        ("grid2d", (16,)),
        ("linear1d", (1, 2, 5, 11, 17)),
        ("linear1d", (3, 3, 12)),
        ("nested", (1, 3, 8, 12)),
    ],
)
@torch.no_grad()
def test_every_schedule_equals_the_plain_algorithm(name: str, slots: tuple[int, ...]) -> None:
    module = MultiScaleVQ(codebook_size=40, codebook_dim=6, slots=slots, resampler=name).eval()
    z = torch.randn(4, slots[-1], 6)
    out = module(z)
    indices, total = plain_quantize(module, name, z)
    for found, wanted in zip(out.indices, indices, strict=True):
        assert torch.equal(found, wanted)
    torch.testing.assert_close(out.latents.double(), total, atol=1e-5, rtol=1e-5)
