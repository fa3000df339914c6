"""What one-dimensional tokens of images promise, at a small scale: prefixes, and few tokens.

    python benchmarks/image_tokens.py --train images/cifar10-train.zip \\
        --test images/cifar10-test.zip --runs runs/image-tokens

Every arm learns from the same pictures of 32 pixels in the same order, for as many samples, and is
scored on pictures that none has seen. ``drop`` and ``no_drop`` are One-D-Piece with and without
its tail drop; ``titok-K`` has K tokens in no grid, ``grid-K`` is a convolutional VQ tokenizer of K
tokens in a square grid with as many codes. Rows of ``benchmarks/results/image_tokens.json`` are
kept, and an arm that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from _results import RESULTS, Results, Row
from polytok.core.contracts import Stage, Tokenizer
from polytok.core.errors import UnknownNameError
from polytok.data.images import LabelledImages, read_labelled
from polytok.data.pictures import PictureSamples
from polytok.systems.classics import vqgan
from polytok.systems.image import one_d_piece, titok
from polytok.systems.image.titok import TailDropConfig, TiTok, TowerConfig
from polytok.systems.images import ImageValidation, code_use
from polytok.training import TrainConfig, fit

SIZE, CODES = 32, 256
TOWER = TowerConfig(dim=96, num_layers=3, num_heads=2)
TOKENS = titok.TiTokConfig(
    size=SIZE,
    patch=8,
    num_latents=16,
    encoder=TOWER,
    decoder=TOWER,
    code_dim=8,
    codebook_size=CODES,
    restart_every=100,
)
# Channels after each halving: as many tokens as the last grid has cells.
GRIDS = {4: (32, 64, 96, 128), 16: (32, 64, 128)}
ARMS = {
    "drop": replace(TOKENS, tail_drop=TailDropConfig()),
    "no_drop": TOKENS,
    **{f"titok-{k}": replace(TOKENS, num_latents=k) for k in (4, 8, 32)},
    **{
        f"grid-{k}": vqgan.VQGANConfig(
            size=SIZE, channels=channels, code_dim=8, codebook_size=CODES
        )
        for k, channels in GRIDS.items()
    },
}
WARM = 0.2  # share of the samples before codes are used
PREFIXES = (1, 2, 4, 8)
KEYS = ("arm", "samples", "seed")


def build(arm: str) -> tuple[Tokenizer, Sequence[Stage], tuple[str, str]]:
    """A model of an arm, the stages of its system, and which of them are run.

    Raises:
        UnknownNameError: no arm has this name.
    """
    if arm not in ARMS:
        raise UnknownNameError("arm", arm, ARMS)
    config = ARMS[arm]
    if isinstance(config, vqgan.VQGANConfig):
        return vqgan.VQGAN(config), vqgan.STAGES, ("warm", "reconstruct")
    return TiTok(config), one_d_piece.STAGES, ("warm", "direct")


def train_config(arm: str, seed: int, samples: int) -> TrainConfig:
    """How an arm is trained: transformers by Muon, convolutions by AdamW at its usual rate."""
    is_grid = arm.startswith("grid")
    return TrainConfig(
        batch_size=32,
        lr=1e-3 if is_grid else 3e-3,
        muon=() if is_grid else ("*.blocks.*",),
        muon_scale=3.0,
        warmup_samples=samples // 25,
        weight_decay=0.0 if is_grid else 1e-4,
        final_lr_factor=0.02,
        seed=seed,
        save_every=max(samples // 5, 1),
        log_every=max(samples // 20, 1),
        num_workers=0,
        device="cpu",
    )


def train(arm: str, seed: int, pictures: LabelledImages, samples: int, folder: Path) -> Tokenizer:
    """A trained model of an arm; one that was interrupted goes on."""
    torch.manual_seed(seed)
    model, stages, names = build(arm)
    budgets = (round(WARM * samples), samples - round(WARM * samples))
    plan = [
        (next(stage for stage in stages if stage.name == name), budget)
        for name, budget in zip(names, budgets, strict=True)
    ]
    source = PictureSamples(pictures, seed=seed, shift=2)
    result = fit(model, plan, source, train_config(arm, seed, samples), folder)
    if not result.is_complete:
        raise SystemExit(f"{arm} was stopped at {result.samples:,} samples; run again to go on")
    return model


@torch.no_grad()
def prefix_psnr(model: TiTok, score: ImageValidation) -> dict[str, float]:
    """PSNR of every prefix, also of a model that has not learnt them: its decoder gets fewer."""
    spec = model.spec
    model.spec = replace(spec, prefix="tokens")
    found = score(model)
    model.spec = spec
    return {key: value for key, value in found.items() if key.startswith("psnr")}


def work(arm: str, seed: int, args: argparse.Namespace, data: dict[str, LabelledImages]) -> Row:
    """Train and score one arm."""
    start = time.process_time()
    folder = args.runs / f"{arm}-{seed}-{args.samples}"
    model = train(arm, seed, data["train"], args.samples, folder)
    seconds = time.process_time() - start
    prefixes = PREFIXES if arm in ("drop", "no_drop") else ()
    score = ImageValidation(data["test"], args.pictures, prefixes)
    found = prefix_psnr(model, score) if isinstance(model, TiTok) else score(model)
    ids = [model.encode({"image": image}).indices[0].flatten() for image in score.images.split(100)]
    count = model.spec.levels[0].count
    parameters = sum(p.numel() for p in model.parameters())
    scores: dict[str, Any] = {key: round(value, 3) for key, value in found.items() if "psnr" in key}
    use = {key: round(value, 3) for key, value in code_use(torch.cat(ids), model).items()}
    return {
        "arm": arm,
        "samples": args.samples,
        "seed": seed,
        "tokens": count,
        "parameters": parameters,
        **scores,
        **use,
        "cpu_seconds": round(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    protocol = {
        "size": SIZE,
        "codes": CODES,
        "warm_share": WARM,
        "tested": f"{args.pictures} pictures, evenly spread over {Path(args.test).name}",
        "psnr": "dB, mean over pictures, of files of all tokens or of the first k",
    }
    results = Results("image_tokens", protocol, folder=args.out, keys=KEYS)
    data = {"train": read_labelled(args.train, SIZE), "test": read_labelled(args.test, SIZE)}
    for seed in map(int, args.seeds.split(",")):
        for arm in args.arms.split(","):
            if (arm, args.samples, seed) not in {tuple(r[k] for k in KEYS) for r in results.rows}:
                results.rows.append(work(arm, seed, args, data))
                results.save()


if __name__ == "__main__":
    main()
