"""Generators of four sizes on the same codes: cross-entropy on unseen shapes over samples seen.

    python benchmarks/generator_sizes.py --train CODES --val CODES --runs runs/sizes

CODES are folders that training a generator makes beside the prepared shapes. No conditions: this
is the prior that codes files. A size that is in ``benchmarks/results/generator_sizes.json`` is
skipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from _results import RESULTS, Results, Row
from polytok.core.config import override
from polytok.core.errors import PolytokError, UnknownNameError
from polytok.data.codes import CodeFolder
from polytok.systems import api
from polytok.systems.shape.vat.generator import STAGES, VATGenerator, VATGeneratorConfig
from polytok.systems.shape.vat.generator_training import CodeSource, GeneratorValidation
from polytok.training import TrainConfig, fit

SIZES: dict[str, dict[str, Any]] = {
    "0.3M": {"dim": 48, "depth": 3, "num_heads": 1},
    "1M": {"dim": 96, "depth": 4, "num_heads": 2},
    "3M": {"dim": 160, "depth": 5, "num_heads": 2},
    "8M": {"dim": 256, "depth": 6, "num_heads": 4},
}


def unigram(train: CodeFolder, val: CodeFolder, *, per_slot: bool) -> float:
    """Cross-entropy in nats per token of counts per scale, or per slot backed by its scale's."""
    nats, vocab = 0.0, int(train.ids.max()) + 1
    ends = torch.tensor([0, *train.index.slots]).cumsum(0).tolist()
    for start, end in itertools.pairwise(ends):
        part, truth = train.ids[..., start:end].long(), val.ids[0, :, start:end].long()
        vocab = max(vocab, int(truth.max()) + 1)
        scale = torch.bincount(part.flatten(), minlength=vocab).double() + 0.5
        scale /= scale.sum()
        for slot in range(end - start):
            table = scale
            if per_slot:
                counts = torch.bincount(part[..., slot].flatten(), minlength=vocab).double()
                table = (counts + 200 * scale) / (counts.sum() + 200)
            nats -= float(table[truth[:, slot]].log().mean())
    return nats / ends[-1]


def train_config(seed: int, samples: int) -> TrainConfig:
    """How every size is trained."""
    return TrainConfig(
        batch_size=16,
        lr=1.5e-3,
        muon=("net.blocks.*",),
        betas=(0.9, 0.95),
        weight_decay=0.05,
        warmup_samples=samples // 20,
        final_lr_factor=0.05,
        clip=2.0,
        ema_decay=0.995,
        seed=seed,
        save_every=max(samples // 5, 1),
        log_every=max(samples // 20, 1),
        validate_every=max(samples // 10, 1),
        num_workers=0,
    )


def train_size(
    size: str, seed: int, samples: int, codec: Any, train: CodeFolder, val: CodeFolder, runs: Path
) -> Row | None:
    """Train a size, or finish it; None when it was interrupted."""
    torch.manual_seed(seed)
    config = override(
        VATGeneratorConfig(), **SIZES[size], dropout=0.1, tokenizer_weights=codec.weights
    )
    model = VATGenerator(config, codec.model.bottleneck.quantizer)
    folder = runs / f"{size}-{seed}-{samples}"
    validation = GeneratorValidation(CodeSource(val), len(val))
    start = time.perf_counter()
    source = CodeSource(train, seed=seed)
    done = fit(
        model,
        [(STAGES[0], samples)],
        source,
        train_config(seed, samples),
        folder,
        validate=validation,
    )
    if not done.is_complete:
        return None
    records = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [(r["samples"], round(r["val"]["ce"], 4)) for r in records if "val" in r]
    best = min(curve, key=lambda point: point[1])
    last = [r["val"] for r in records if "val" in r][-1]
    return {
        "name": f"{size}-{seed}",
        "size": size,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "samples": done.samples,
        "seconds": time.perf_counter() - start,
        "best_nats": best[1],
        "best_samples": best[0],
        "last_nats": curve[-1][1],
        "bits": best[1] / math.log(2),
        "curve": curve,
        "scales": [round(last[f"ce_scale_{k + 1}"], 3) for k in range(len(train.index.slots))],
    }


def main(argv: list[str] | None = None) -> None:
    """Train and measure the sizes that are not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="codes to learn from")
    parser.add_argument("--val", type=Path, required=True, help="codes to score")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--tokenizer", default="vat-512b-small")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    sizes, seeds = args.sizes.split(","), [int(s) for s in args.seeds.split(",")]
    for size in sizes:
        if size not in SIZES:
            raise UnknownNameError("size", size, SIZES)
    train, val = CodeFolder(args.train), CodeFolder(args.val)
    codec = api.load_codec(args.tokenizer)
    about = {
        "about": "unconditional VAT generators; cross-entropy in nats per token on the codes of "
        "val at effort 0; averaged weights; best over the curve",
        "tokenizer": args.tokenizer,
        "weights": train.index.weights,
        "passes": list(train.index.aligned),
        "samples": args.samples,
        "static_per_scale_nats": unigram(train, val, per_slot=False),
        "static_per_slot_nats": unigram(train, val, per_slot=True),
        "raw_nats": math.log(codec.spec.levels[0].vocab),
    }
    results = Results("generator_sizes", about, folder=args.out, keys=("size", "seed", "name"))
    for seed in seeds:
        for size in sizes:
            if f"{size}-{seed}" in results.done():
                continue
            row = train_size(size, seed, args.samples, codec, train, val, args.runs)
            if row is None:
                raise PolytokError(f"{size}-{seed} was interrupted; run again to continue")
            results.rows.append(row)
            results.save()
    for row in results.rows:
        print(f"{row['name']}: {row['best_nats']:.4f} nats at {row['best_samples']:,} samples")


if __name__ == "__main__":
    main()
