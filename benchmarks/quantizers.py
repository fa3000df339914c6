"""Quantizers: speed and memory beside vector-quantize-pytorch, and how codes are used.

    python benchmarks/quantizers.py --parts speed memory
    python benchmarks/quantizers.py --parts mixture training --data images/cifar10-train.zip

``mixture`` quantizes 64 Gaussians; ``training`` puts each kind between a small encoder and decoder
of patches of photos. Rows of both go to ``quantizers_usage.json``.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import _quantizer_kinds as kinds
import _quantizer_peers as peers
from _results import Results, Row, data_folder
from polytok.core.contracts import BottleneckOutput
from polytok.core.seeding import torch_rng
from polytok.data.images import read_labelled

PEER = "vector-quantize-pytorch"
SIZES = (1024, 4096, 16384, 65536)
TOKENS = {"vq": 1024, "ema": 1024, "rvq": 1024, "lfq": 256, "fsq": 16384}
MOST_SCORES = 1 << 24  # tokens x codes: the peer holds several tables of that size per level
MEMORY_SIZE, MEMORY_TOKENS = 16384, 2048
ROUNDS, FEWEST, SECONDS = 15, 5, 6.0

PATCH, DIM, HIDDEN = 4, 16, 128
PATCHES, WARMUP, RESTART = 1024, 100, 25
MIXED, MIXED_EVERY, MIXED_STEPS = 1024, 20, 150


def speed(args: argparse.Namespace) -> None:
    """Forward and backward, ours and theirs, in interleaved rounds."""
    torch.set_num_threads(args.threads)
    protocol = {
        "about": "fp32; forward, backward, and for ema the update; in training mode with the same "
        f"codes and inputs; rounds: {ROUNDS}, or {FEWEST} or more in {SECONDS} s; the order within "
        "a round of ours, theirs, ours turns",
        "dim": peers.DIM,
        "levels": peers.LEVELS,
        "threads": args.threads,
        PEER: metadata.version(PEER),
    }
    results = Results("quantizers_speed", protocol, fresh=args.fresh, keys=("kind", "size"))
    for kind, tokens in TOKENS.items():
        for size in SIZES:
            if any((r["kind"], r["size"]) == (kind, size) for r in results.rows):
                continue
            count = tokens if kind == "fsq" else min(tokens, MOST_SCORES // size)
            row = {"kind": kind, "size": size, "tokens": count, "dim": peers.width(kind, size)}
            results.rows.append(row | _compared(kind, size, count))
            results.save()
            print(results.rows[-1], flush=True)


def _compared(kind: str, size: int, tokens: int) -> Row:
    torch.manual_seed(0)
    ours, our_step = peers.ours(kind, size)
    theirs, their_step = peers.theirs(kind, size, ours)
    z = peers.inputs(kind, size, tokens).requires_grad_()
    row = _agreement(kind, our_step(z), their_step(z))
    runs = [
        lambda: peers.train(ours, our_step, z),
        lambda: peers.train(theirs, their_step, z),
        lambda: peers.train(ours, our_step, z),
    ]
    times: list[tuple[float, float, float]] = []
    start = time.perf_counter()
    for number in range(-1, ROUNDS):  # the first warms up
        order = [(number + i) % 3 for i in range(3)]
        taken = {i: _seconds(runs[i]) for i in order}
        if number >= 0:
            times.append((taken[0], taken[1], taken[2]))
        if len(times) >= FEWEST and time.perf_counter() - start > SECONDS:
            break
    mine, other = [(a + b) / 2 for a, _, b in times], [t for _, t, _ in times]
    faster = _quartiles([t / m for t, m in zip(other, mine, strict=True)])
    noise = _quartiles([a / b for a, _, b in times])
    return row | {
        "faster": faster[1],
        "faster_low": faster[0],
        "faster_high": faster[2],
        "noise_low": noise[0],
        "noise_high": noise[2],
        "seconds_ours": _quartiles(mine)[1],
        "seconds_theirs": _quartiles(other)[1],
        "rounds": len(times),
    }


@torch.no_grad()
def _agreement(kind: str, ours: peers.Result, theirs: peers.Result) -> Row:
    """How far outputs are the same; the order of LFQ's bits differs, so ids are not compared."""
    row: Row = {"output_error": float((ours[0] - theirs[0]).abs().max())}
    if kind != "lfq":
        row["same_ids"] = float((ours[1] == theirs[1]).float().mean())
    return row


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _quartiles(values: Sequence[float]) -> list[float]:
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    found: list[float] = torch.tensor(values, dtype=torch.float64).quantile(shares).tolist()
    return found


def memory(args: argparse.Namespace) -> None:
    """Peak resident memory of one training step, each in a fresh process."""
    protocol = {
        "about": "fp32; largest resident memory of a process that imports one library and does one "
        "forward and backward pass, and of it before that",
        "dim": peers.DIM,
        "levels": peers.LEVELS,
        "threads": 1,
        PEER: metadata.version(PEER),
    }
    results = Results("quantizers_memory", protocol, fresh=args.fresh, keys=("kind",))
    for kind in (k for k in TOKENS if k not in results.done()):
        row: Row = {"kind": kind, "size": MEMORY_SIZE, "tokens": MEMORY_TOKENS}
        for side in peers.SIDES:
            command = [sys.executable, peers.__file__, kind, side]
            command += [str(MEMORY_SIZE), str(MEMORY_TOKENS)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak, before = map(float, done.stdout.split())
            row |= {f"{side}_mib": peak, f"{side}_before_mib": before}
        results.rows.append(row)
        results.save()
        print(row, flush=True)


def mixture(args: argparse.Namespace) -> None:
    """How many of 64 codes each kind uses for 64 Gaussians, well started and not."""
    results = _usage_results(args)
    for name in kinds.KINDS:
        for is_well in (True, False) if kinds.has_codes(name) else (True,):
            for seed in range(3):
                key = ("mixture", name, kinds.GAUSSIANS, is_well, seed)
                _measure(results, key, lambda n=name, w=is_well, s=seed: _mixed(n, w, s))


def _mixed(name: str, is_well: bool, seed: int) -> Row:
    torch.manual_seed(seed)
    rng = torch_rng(seed, "mixture")
    quantizer = kinds.KINDS[name](kinds.GAUSSIANS, 2, MIXED_EVERY if is_well else 0).train()
    if is_well:
        quantizer.start(kinds.mixture(name, 4 * MIXED, rng), rng=rng)
    else:
        kinds.put_far(quantizer)
    optimizer = _optimizer(quantizer, lr=0.01)
    for _ in range(MIXED_STEPS):
        z = kinds.mixture(name, MIXED, rng)
        out = quantizer(z, rng=rng)
        _step(optimizer, (out.latents - z).square().mean() + kinds.loss_of(out.losses))
        quantizer.update(out)
    with torch.no_grad():
        return _used(quantizer.eval()(kinds.mixture(name, 16 * MIXED, rng)))


def _optimizer(module: nn.Module, lr: float) -> torch.optim.Optimizer | None:
    parameters = list(module.parameters())
    return torch.optim.Adam(parameters, lr=lr) if parameters else None


def _step(optimizer: torch.optim.Optimizer | None, loss: Tensor) -> None:
    if optimizer is not None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _used(out: BottleneckOutput) -> Row:
    """Used share, the least of all levels, and entropy of the ids in bits, summed over levels."""
    perplexities = out.stats["perplexity"].flatten().tolist()
    return {
        "usage": float(out.stats["usage"].min()),
        "perplexity": math.prod(perplexities),
        "entropy_bits": sum(map(math.log2, perplexities)),
    }


class PatchAutoencoder(nn.Module):
    """Patches (B, N, 48) -> 16 channels -> patches, by two nets of one hidden layer each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        size = 3 * PATCH**2
        self.encoder = nn.Sequential(nn.Linear(size, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIM))
        self.decoder = nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, size))


def training(args: argparse.Namespace) -> None:
    """How codes are used, and PSNR, with each kind in a small autoencoder of patches."""
    path = Path(args.data) if args.data else data_folder() / "images" / "cifar10-train.zip"
    rest, held_out = read_labelled(path, 32).split(500)
    train, test = _patches(rest.images(slice(0, 10000))), _patches(held_out.images())
    results = _usage_results(args)
    for is_well, size in ((True, 1024), (True, 256), (False, 1024)):
        for name in kinds.KINDS:
            if is_well or kinds.has_codes(name):
                key = ("training", name, size, is_well, 0)
                arguments = (name, size, is_well, train, test, args.steps)
                _measure(results, key, lambda a=arguments: _trained(*a))


def _patches(images: Tensor) -> Tensor:
    """Patches (n, 64, 48) in [-1, 1] of images (n, 3, 32, 32) in [0, 1]."""
    cut = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2) * 2 - 1


def _trained(name: str, size: int, is_well: bool, train: Tensor, test: Tensor, steps: int) -> Row:
    torch.manual_seed(0)
    rng = torch_rng(0, "training")
    quantizer = kinds.KINDS[name](size, DIM, RESTART if is_well else 0).train()
    model = PatchAutoencoder(quantizer(torch.zeros(1, 1, DIM)).latents.shape[-1])
    optimizer = torch.optim.Adam([*model.parameters(), *quantizer.parameters()], lr=1e-3)
    flat = train.flatten(0, 1)
    start = time.perf_counter()
    for number in range(steps):
        x = flat[torch.randint(len(flat), (PATCHES,), generator=rng)][None]
        z = model.encoder(x)
        if is_well and number < WARMUP and kinds.has_codes(name):
            _step(optimizer, (model.decoder(_widened(name, z)) - x).square().mean())
            continue
        if is_well and number == WARMUP:
            quantizer.start(model.encoder(flat[:: len(flat) // 16384][None]).detach(), rng=rng)
        out = quantizer(z, rng=rng)
        loss = (model.decoder(out.latents) - x).square().mean() + kinds.loss_of(out.losses)
        _step(optimizer, loss)
        quantizer.update(out)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        out = quantizer.eval()(model.encoder(test))
        errors = (model.decoder(out.latents).clamp(-1, 1) - test).square().mean((1, 2)) / 4
    return {**_used(out), "psnr": float(-10 * errors.log10().mean()), "seconds": seconds}


def _widened(name: str, z: Tensor) -> Tensor:
    """Latents that are not quantized yet, as long as quantized ones of a kind are."""
    is_unit = name in kinds.DIRECTIONS and not name.startswith("ibq")
    return nn.functional.normalize(z, dim=-1) if is_unit else z


def _usage_results(args: argparse.Namespace) -> Results:
    protocol = {
        "mixture": f"64 Gaussians of width {kinds.WIDTH}, 1 apart, in 2-D, on a grid; on a ring "
        f"for {', '.join(kinds.DIRECTIONS)}; {MIXED_STEPS} steps of {MIXED} tokens, Adam 0.01",
        "training": f"patches of {PATCH}x{PATCH} of CIFAR-10, 10,000 pictures; encoder and decoder "
        f"of one hidden layer of {HIDDEN}; {args.steps} steps of {PATCHES} patches, Adam 0.001; "
        f"500 other pictures of the training set tested; PSNR is the mean over pictures",
        "well": f"started by k-means, in training after {WARMUP} steps without quantizer, and dead "
        f"codes restarted every {MIXED_EVERY} (mixture) and {RESTART} (training) steps",
        "not well": "mixture: codes uniform far from the data; training: as built; no restarts",
        "weights": dict(kinds.WEIGHTS),
    }
    keys = ("part", "kind", "size", "is_well", "seed")
    return Results("quantizers_usage", protocol, fresh=args.fresh, keys=keys)


def _measure(results: Results, key: tuple[Any, ...], measure: Callable[[], Row]) -> None:
    """Add the row of a key, unless it is there."""
    if any(tuple(r[k] for k in results.keys) == key for r in results.rows):
        return
    results.rows.append(dict(zip(results.keys, key, strict=True)) | measure())
    results.save()
    print(results.rows[-1], flush=True)


PARTS = {f.__name__: f for f in (speed, memory, mixture, training)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["memory"])
    parser.add_argument("--threads", type=int, default=2, help="of the speed part")
    parser.add_argument("--steps", type=int, default=500, help="of the training part")
    parser.add_argument("--data", help="zip or folder of 32x32 images; else cifar10-train.zip")
    parser.add_argument("--fresh", action="store_true", help="drop the stored rows")
    args = parser.parse_args()
    if not set(args.parts) <= {"speed"}:
        torch.set_num_threads(1)
    for part in args.parts:
        PARTS[part](args)


if __name__ == "__main__":
    main()
