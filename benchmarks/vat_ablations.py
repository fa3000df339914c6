"""VAT's mechanisms and choices at a small scale: VVQ, compression, resamplers, sizes, training.

    python benchmarks/vat_ablations.py --data .prepared/train --val .prepared/val --runs runs/arms
    python benchmarks/vat_ablations.py ... --arms vvq,no_vvq --seeds 0,1,2
    python benchmarks/vat_ablations.py ... --name vat_trials --arms vvq,muon,deep_encoder

Every arm trains nearly the same small model on as many samples. An arm that is in
``benchmarks/results/vat_ablations_30k.json`` (30k: samples per arm) is skipped, and one that was
interrupted goes on.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from _results import RESULTS, Results, Row
from polytok.core.config import from_dict, override, to_dict
from polytok.core.contracts import Stage
from polytok.core.errors import PolytokError, UnknownNameError
from polytok.data.prepared import PreparedFolder
from polytok.data.shapes import ShapeSampling, ShapeSource
from polytok.systems.shape.vat import STAGES, VAT, VATConfig, preset
from polytok.systems.shape.vat.training import Validation
from polytok.training import TrainConfig, fit

BASE = override(
    preset("vat-512b-small"),
    slots=(1, 4, 9, 16, 25, 36, 64),
    codebook_size=256,
    num_points=1024,
    num_features=108,
    dim=128,
    num_heads=2,
    encoder_layers=2,
    latent_layers=1,
    decoder_layers=2,
    channels=(64, 32, 32),
    mlp_dim=32,
    mlp_layers=2,
    prefix_dropout=0.0,
)
CROSS: dict[str, Any] = {"feature_mode": "cross_learned", "is_anchored": False}
QUIET: dict[str, Any] = {"is_variational": False}
DROP: dict[str, Any] = {"prefix_dropout": 0.2}
# As many features to a latent as in the paper, about five.
RICH: dict[str, Any] = {"num_points": 2048, "num_features": 300}
ARMS: dict[str, dict[str, Any]] = {
    "vvq": {},
    "no_vvq": QUIET,
    "no_compression": {"is_compressed": False},
    "rich": RICH,
    "rich_no_compression": {**RICH, "is_compressed": False},
    "free": {"is_anchored": False},
    "free_quiet": {"is_anchored": False, **QUIET},
    "no_overlap": {"overlap_weight": 0.0},
    # Features pooled on planes come in counts of 3 r r, which M = 64 is not, and anchored latents
    # need them.
    "cross": CROSS,
    "cross_no_compression": {**CROSS, "is_compressed": False},
    "grid2d_drop": DROP,
    "grid2d_quiet_drop": {**QUIET, **DROP},
} | {
    f"{name}{suffix}": {"resampler": name, **change}
    for name in ("linear1d", "attn", "nested")
    for suffix, change in (
        ("", {}),
        ("_quiet", QUIET),
        ("_drop", DROP),
        ("_quiet_drop", {**QUIET, **DROP}),
    )
}
# An arm has the KL weight of the training stages; these have others.
KL_WEIGHTS = {f"vvq_kl{w}": float(w) for w in ("3e-3", "1e-2", "3e-2", "1e-1", "3e-1")} | {
    f"{name}_kl3e-1": 0.3
    for name in (
        "free",
        "grid2d_drop",
        *(f"{n}{s}" for n in ("linear1d", "attn", "nested") for s in ("", "_drop")),
    )
}
ARMS |= {name: ARMS[name.rsplit("_kl", 1)[0]] for name in KL_WEIGHTS}
# What might make better weights: sizes first, then how they are trained and on what.
ARMS |= {
    "deep_encoder": {"encoder_layers": 4},
    "deep_decoder": {"decoder_layers": 4},
    "fine_planes": {"channels": (64, 32, 32, 32)},
    "large_codebook": {"codebook_size": 4096},
    "sdf": {"loss": "sdf", "band": 0.05, "overlap_weight": 0.0},
    "sharp": {"sharp_fraction": 0.5},
    "wide": {"dim": 192, "num_heads": 3},
    "small_codes": {"code_dim": 8},
} | {name: {} for name in ("muon", "fast", "slow", "long_average", "volume", "plain", "mixed")}
TRAIN: dict[str, dict[str, Any]] = {
    "muon": {"muon": ("*.blocks.*",)},
    "fast": {"lr": 2e-3},
    "slow": {"lr": 5e-4},
    "long_average": {"ema_decay": 0.9995},
}
SAMPLING: dict[str, dict[str, Any]] = {
    "volume": {"num_volume": 448, "num_near": 192},
    "plain": {"stretch": 0.0, "mix": 0.0},
    "mixed": {"mix": 0.4},
}
SHARES = {"warm": 0.1, "continuous": 0.3, "quantized": 0.4, "settle": 0.2}
NUM_QUERIES = {"num_volume": 256, "num_near": 384}


def config_of(arm: str) -> VATConfig:
    """The configuration of an arm.

    Raises:
        UnknownNameError: no arm has this name.
    """
    if arm not in ARMS:
        raise UnknownNameError("arm", arm, ARMS)
    return override(BASE, **ARMS[arm])


def stages_of(arm: str) -> list[Stage]:
    """The training stages of an arm, with its KL weight where noise is drawn."""
    weight = KL_WEIGHTS.get(arm)
    if weight is None:
        return list(STAGES)
    return [
        replace(stage, weights={**stage.weights, "kl": weight}) if stage.weights["kl"] else stage
        for stage in STAGES
    ]


def train_config(arm: str, seed: int, samples: int) -> TrainConfig:
    """How an arm is trained."""
    plain = TrainConfig(
        batch_size=16,
        lr=1e-3,
        warmup_samples=samples // 50,
        final_lr_factor=0.02,
        ema_decay=0.998,
        seed=seed,
        save_every=max(samples // 10, 1),
        log_every=max(samples // 30, 1),
    )
    return replace(plain, **TRAIN.get(arm, {}))


def points_of(arm: str) -> dict[str, float]:
    """How many points an arm sees, and the share of them on sharp edges."""
    config = config_of(arm)
    return {"num_points": config.num_points, "sharp_fraction": config.sharp_fraction}


def sampling_of(arm: str) -> ShapeSampling:
    """What an arm learns from."""
    return from_dict(ShapeSampling, {**points_of(arm), **NUM_QUERIES, **SAMPLING.get(arm, {})})


@torch.no_grad()
def energies(model: VAT, validation: Validation) -> list[float]:
    """Share of the latents' energy that is left after each scale, mean over shapes."""
    device = next(model.parameters()).device
    left, count = torch.zeros(len(model.config.slots), dtype=torch.float64), 0
    for batch in validation.batches:
        hidden = model.encoder(batch["points"].to(device), batch["normals"].to(device))
        out = model.bottleneck.quantizer(model.bottleneck.gaussian(hidden).latents)
        size = len(batch["points"])
        left += size * out.stats["rest_energy"].cpu().double()
        count += size
    return (left / count).tolist()


def measure(model: VAT, validation: Validation) -> Row:
    """IoU of the latent, the full code and every prefix, and what each scale removes."""
    model.eval()
    with torch.no_grad():
        scores = validation(model)
    levels = range(1, len(model.config.slots))
    prefixes = [scores[f"iou_prefix_{k}"] for k in levels] + [scores["iou_full"]]
    removed = [a - b for a, b in pairwise([1.0, *energies(model, validation)])]
    return {
        "iou_latent": scores["iou_latent"],
        "iou_full": scores["iou_full"],
        "near_iou_full": scores["near_iou_full"],
        "cs_iou": scores["cs_iou"],
        "iou_prefix": [round(v, 4) for v in prefixes],
        "removed": [round(v, 4) for v in removed],
        "codes_used": float((model.bottleneck.quantizer.usage > 0).any(0).float().mean()),
    }


def train_arm(
    arm: str, seed: int, samples: int, store: PreparedFolder, validation: Validation, runs: Path
) -> Row | None:
    """Train an arm, or finish it, and measure it; None when it was interrupted."""
    torch.manual_seed(seed)
    model = VAT(config_of(arm))
    source = ShapeSource(store, sampling_of(arm), seed=seed)
    plan = [(stage, round(samples * SHARES[stage.name])) for stage in stages_of(arm)]
    start = time.perf_counter()
    done = fit(
        model, plan, source, train_config(arm, seed, samples), runs / f"{arm}-{seed}-{samples}"
    )
    if not done.is_complete:
        return None
    return {
        "name": f"{arm}-{seed}",
        "arm": arm,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "samples": done.samples,
        "seconds": time.perf_counter() - start,
        **measure(model, validation),
    }


def protocol(samples: int, num_val: int) -> dict[str, Any]:
    """What the rows mean, for the header of the file."""
    return {
        "about": "V-IoU on volume queries of val; cs_iou is the mean over the prefixes of 1..K-1 "
        "scales; removed is the share of the mean latents' energy that a scale takes away; "
        "averaged weights",
        "base": to_dict(BASE),
        "samples": samples,
        "shares": SHARES,
        "kl_weights": KL_WEIGHTS,
        "queries": NUM_QUERIES,
        "train": TRAIN,
        "sampling": SAMPLING,
        "num_val": num_val,
        "uniform": [s / sum(BASE.slots) for s in BASE.slots],
    }


def line_of(row: Row) -> str:
    """One arm on one line."""
    prefixes = " ".join(f"{v:.3f}" for v in row["iou_prefix"])
    removed = " ".join(f"{v:.2f}" for v in row["removed"])
    return (
        f"{row['name']}: CS-IoU {row['cs_iou']:.4f}, V-IoU {row['iou_full']:.4f} (latent "
        f"{row['iou_latent']:.4f}), prefixes {prefixes}, removed {removed}, {row['seconds']:.0f} s"
    )


def main(argv: list[str] | None = None) -> None:
    """Train and measure the arms that are not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="prepared shapes to learn from")
    parser.add_argument("--val", type=Path, required=True, help="prepared shapes to score")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--samples", type=int, default=30_000, help="shapes seen per arm")
    parser.add_argument("--name", default="vat_ablations", help="of the file of results")
    parser.add_argument("--num-val", type=int, default=166)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    arms, seeds = args.arms.split(","), [int(s) for s in args.seeds.split(",")]
    for arm in arms:
        config_of(arm)
    about = protocol(args.samples, args.num_val)
    name = f"{args.name}_{args.samples // 1000}k"
    results = Results(name, about, folder=args.out, keys=("arm", "seed", "name"))
    left = [(a, s) for s in seeds for a in arms if f"{a}-{s}" not in results.done()]
    if left:
        store, held_out = PreparedFolder(args.data), PreparedFolder(args.val)
        for arm, seed in left:
            validation = Validation(held_out, points_of(arm), args.num_val)
            row = train_arm(arm, seed, args.samples, store, validation, args.runs)
            if row is None:
                raise PolytokError(f"{arm}-{seed} was interrupted; run again to continue")
            results.rows.append(row)
            results.save()
    for row in results.rows:
        print(line_of(row), flush=True)


if __name__ == "__main__":
    main()
