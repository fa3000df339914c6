"""V-IoU of every prefix of scales, shape by shape: does each scale add something?

    python benchmarks/shape_prefixes.py --splits val,val-unseen

Rows go to ``benchmarks/results/shape_prefixes.json``; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import torch

import _results
from _results import SHAPE_MODEL, Item, Results, Row, load_codec
from polytok.core.seeding import numpy_rng
from polytok.signals.mesh.solid import solidify

SEED = 0
NUM_POINTS = 20_000


def prefix_rows(item: Item, model: str, codec: Any = None) -> list[Row]:
    """V-IoU of the prefixes of 1..K scales of the feed-forward code, on points of the cube."""
    codec = codec or load_codec(model)
    mesh = item.mesh()
    codes = codec.encode(mesh, effort=0, seed=SEED)
    solid = solidify(mesh)
    points = numpy_rng(SEED, item.name).uniform(-1.05, 1.05, (NUM_POINTS, 3)).astype(np.float32)
    truth = solid.nearest(points.astype(np.float64)).sdf < 0
    frame = codec.frame(codes)
    queries = torch.from_numpy(frame.apply(solid.frame.undo(points)).astype(np.float32))[None]
    overlaps = []
    for levels in range(1, len(codec.spec.levels) + 1):
        field = codec.field(codes.prefix(levels=levels))
        with torch.inference_mode():
            guess = field(queries)[0].numpy() > 0
        overlaps.append(round(float((guess & truth).sum() / max((guess | truth).sum(), 1)), 5))
    return [{**item.row, "faces": len(mesh.faces), "v_iou": overlaps}]


def main(argv: list[str] | None = None) -> None:
    """Score the shapes that have no row yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--splits", default="val,val-unseen")
    parser.add_argument("--limit", type=int, help="only the first N shapes of each split")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default=SHAPE_MODEL)
    parser.add_argument("--fresh", action="store_true", help="drop the rows that are there")
    args = parser.parse_args(argv)
    about = {
        "about": f"V-IoU of prefixes of 1..K scales on {NUM_POINTS} uniform points of the cube; "
        "effort 0; the source made solid",
        "model": args.model,
    }
    results = Results("shape_prefixes", about, seed=SEED, fresh=args.fresh)
    items = [i for split in args.splits.split(",") for i in _results.shapes(split, args.limit)]
    work = partial(prefix_rows, model=args.model)
    _results.run(items, work, results, processes=args.processes)


if __name__ == "__main__":
    main()
