"""A quantizer of ours and its twin of vector-quantize-pytorch; run as a script, one step's memory.

    python benchmarks/_quantizer_peers.py KIND SIDE K TOKENS

prints the peak resident memory in MiB of a process that does one training step, and that before
the quantizer is built. Nothing but torch and one of the libraries is imported then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DIM, LEVELS, LENGTH = 16, 4, 256
TEMPERATURE = 0.5
FSQ_LEVELS = {
    1024: (8, 5, 5, 5),
    4096: (7, 5, 5, 5, 5),
    16384: (8, 8, 8, 6, 5),
    65536: (8, 8, 8, 5, 5, 5),
}
SIDES = ("ours", "theirs")

# Latents, ids (..., levels) and one loss.
Result = tuple[Tensor, Tensor, Tensor]
Step = Callable[[Tensor], Result]


def width(kind: str, size: int) -> int:
    """Channels of the inputs."""
    if kind == "fsq":
        return len(FSQ_LEVELS[size])
    return size.bit_length() - 1 if kind == "lfq" else DIM


def inputs(kind: str, size: int, tokens: int) -> Tensor:
    """Seeded tokens (B, 256, d)."""
    rng = torch.Generator().manual_seed(1)
    return torch.randn(tokens // LENGTH, LENGTH, width(kind, size), generator=rng)


def ours(kind: str, size: int) -> tuple[nn.Module, Step]:
    """Our quantizer, and its forward pass."""
    from polytok import bottlenecks as b

    build: dict[str, Callable[[], nn.Module]] = {
        "vq": lambda: b.VectorQuantizer(size, DIM),
        "ema": lambda: b.EMAQuantizer(size, DIM, decay=0.8),
        "rvq": lambda: b.ResidualQuantizer(
            [b.VectorQuantizer(size, DIM) for _ in range(LEVELS)], gradient="each"
        ),
        "fsq": lambda: b.FiniteScalarQuantizer(FSQ_LEVELS[size]),
        "lfq": lambda: b.LookupFreeQuantizer(
            size.bit_length() - 1, entropy_temperature=TEMPERATURE
        ),
    }
    quantizer: Any = build[kind]()

    def step(z: Tensor) -> Result:
        out = quantizer(z)
        if kind == "ema":
            quantizer.update(out)
        loss = sum(out.losses.values(), torch.zeros(()))
        return out.latents, torch.stack(out.indices, dim=-1), loss

    return quantizer.train(), step


def theirs(kind: str, size: int, twin: Any = None) -> tuple[nn.Module, Step]:
    """Their quantizer, with the codes of ours where it is given, and its forward pass."""
    import vector_quantize_pytorch as v

    learnt = {"learnable_codebook": True, "ema_update": False, "rotation_trick": False}
    build: dict[str, Callable[[], nn.Module]] = {
        "vq": lambda: v.VectorQuantize(dim=DIM, codebook_size=size, **learnt),
        "ema": lambda: v.VectorQuantize(dim=DIM, codebook_size=size, rotation_trick=False),
        "rvq": lambda: v.ResidualVQ(dim=DIM, num_quantizers=LEVELS, codebook_size=size, **learnt),
        "fsq": lambda: v.FSQ(levels=list(FSQ_LEVELS[size])),
        "lfq": lambda: v.LFQ(codebook_size=size, entropy_loss_weight=1.0, commitment_loss_weight=1),
    }
    quantizer: Any = build[kind]()
    if twin is not None and kind in ("vq", "ema", "rvq"):
        _copy(twin, quantizer)

    def step(z: Tensor) -> Result:
        if kind == "lfq":
            latents, ids, loss = quantizer(z, inv_temperature=1 / TEMPERATURE)
            return latents, ids[..., None], loss
        if kind == "fsq":
            latents, ids = quantizer(z)
            return latents, ids[..., None], torch.zeros(())
        latents, ids, loss = quantizer(z)
        return latents, ids if kind == "rvq" else ids[..., None], loss.mean()

    return quantizer.train(), step


@torch.no_grad()
def _copy(twin: Any, quantizer: Any) -> None:
    pairs = zip(
        getattr(twin, "levels", [twin]), getattr(quantizer, "layers", [quantizer]), strict=True
    )
    for mine, other in pairs:
        other._codebook.embed.copy_(mine.codes[None])
        other._codebook.embed_avg.copy_(mine.codes[None])


def train(quantizer: nn.Module, step: Step, z: Tensor) -> None:
    """One forward and backward pass."""
    quantizer.zero_grad(set_to_none=True)
    z.grad = None
    latents, _, loss = step(z)
    (latents.square().mean() + loss).backward()


def _peak_mib() -> float:
    # The kernel's high-water mark of this program; ru_maxrss would count what the parent had.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024


def main(kind: str, side: str, size: str, tokens: str) -> None:
    """Print peak memory after one step, and before the quantizer was built, in MiB."""
    import importlib

    torch.set_num_threads(1)
    importlib.import_module("polytok.bottlenecks" if side == "ours" else "vector_quantize_pytorch")
    before = _peak_mib()
    quantizer, step = (ours if side == "ours" else theirs)(kind, int(size))
    train(quantizer, step, inputs(kind, int(size), int(tokens)).requires_grad_())
    print(_peak_mib(), before)


if __name__ == "__main__":
    main(*sys.argv[1:])
