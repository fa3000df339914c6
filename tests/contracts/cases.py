"""What the contract tests run over: every stub, and every registered tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from contracts.stubs import DIM, STUBS, TOKENS, FieldStub, RaggedStub, SampledStub
from polytok.core import registry
from polytok.core.contracts import Batch, Tokenizer
from polytok.systems.classics import maskgit_vqgan, vqgan
from polytok.systems.classics.maskgit_vqgan import MaskGITVQGAN
from polytok.systems.classics.vqgan import VQGAN
from polytok.systems.image import one_d_piece, titok
from polytok.systems.image.titok import TiTok
from polytok.systems.shape.vat import VAT, preset

# How to build a preset of each registered tokenizer; a system without a row fails its tests.
BUILDERS: dict[str, Callable[[str], Tokenizer]] = {
    "maskgit-vqgan": lambda name: MaskGITVQGAN(maskgit_vqgan.preset(name)),
    "one-d-piece": lambda name: TiTok(one_d_piece.preset(name)),
    "titok": lambda name: TiTok(titok.preset(name)),
    "vat": lambda name: VAT(preset(name)),
    "vqgan": lambda name: VQGAN(vqgan.preset(name)),
}
SAMPLED = {"vat"}  # a generator changes the code that encode gives

PRESETS = [name for s in registry.SYSTEMS.values() if s.kind == "tokenizer" for name in s.presets]
SMALL_PRESETS = [name for name in PRESETS if name.endswith("-tiny")]


@dataclass(frozen=True)
class Case:
    """A tokenizer under test.

    Args:
        build: makes it with fresh random weights. batch: makes a batch of n items.
        is_sampled: whether a generator changes the code that encode gives.
    """

    name: str
    build: Callable[[], Tokenizer]
    batch: Callable[[int], Batch]
    is_sampled: bool


def build_preset(name: str) -> Tokenizer:
    """Build a registered preset with random weights."""
    return BUILDERS[registry.system_of(name).name](name)


def shape_batch(count: int, *, points: int = 64, queries: int = 48) -> Batch:
    """Spheres of several radii off the origin, with true normals and signed distances."""
    rng = torch.Generator().manual_seed(5)
    radius = 0.3 + 0.5 * torch.rand(count, 1, generator=rng)
    shift = 0.1 * torch.randn(count, 1, 3, generator=rng)
    normals = torch.randn(count, points, 3, generator=rng)
    normals = normals / normals.norm(dim=-1, keepdim=True)
    where = torch.rand(count, queries, 3, generator=rng) * 2 - 1
    return {
        "points": normals * radius[..., None] + shift,
        "normals": normals,
        "queries": where,
        "sdf": (where - shift).norm(dim=-1) - radius,
        "near": torch.zeros(count, queries, dtype=torch.bool),
        "seed": torch.arange(count) + 11,
        "centre": shift[:, 0],
        "scale": radius[:, 0],
    }


def image_batch(count: int, *, size: int = 32) -> Batch:
    """Pictures of coloured stripes under noise."""
    rng = torch.Generator().manual_seed(7)
    stripes = torch.rand(count, 3, 1, 4, generator=rng).repeat_interleave(size // 4, 3)
    noise = torch.rand(count, 3, size, size, generator=rng)
    return {"image": 0.7 * stripes + 0.3 * noise, "seed": torch.arange(count) + 11}


def stub_batch(count: int) -> Batch:
    """Rows, a ragged mask over them, and a picture."""
    rng = torch.Generator().manual_seed(6)
    lengths = torch.arange(count) % TOKENS + 1
    return {
        "rows": torch.randn(count, TOKENS, DIM, generator=rng),
        "mask": torch.arange(TOKENS) < lengths[:, None],
        "image": torch.rand(count, 3, 8, 8, generator=rng),
    }


def take(batch: Batch, items: slice) -> Batch:
    """Some items of a batch."""
    return {key: value[items] for key, value in batch.items()}


def batch_of(name: str) -> Callable[[int], Batch]:
    """The batch maker of a preset."""
    system = registry.system_of(name)
    if system.modality == "image":
        return functools.partial(image_batch, size=system.load().preset(name).size)
    return {"shape": shape_batch}.get(system.modality, stub_batch)


CASES = [
    *(
        Case(
            name=stub.__name__,
            build=stub,
            batch=shape_batch if stub is FieldStub else stub_batch,
            is_sampled=stub is SampledStub or stub.__name__ == "LatentsStub",
        )
        for stub in STUBS
    ),
    *(
        Case(
            name=name,
            build=lambda name=name: build_preset(name),
            batch=batch_of(name),
            is_sampled=registry.system_of(name).name in SAMPLED,
        )
        for name in SMALL_PRESETS
    ),
]


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of everything a state dict holds."""
    return {key: value.clone() for key, value in module.state_dict().items()}


__all__ = [
    "CASES",
    "PRESETS",
    "Case",
    "RaggedStub",
    "build_preset",
    "image_batch",
    "shape_batch",
    "state",
    "take",
]
