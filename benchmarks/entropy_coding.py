"""Bytes of ``.ptk`` files by coder, and bits per token by scale, on codes at effort 0.

    python benchmarks/entropy_coding.py --splits val,val-unseen [--stretch]

Packed, range coded with static counts, and coded with a generator's probabilities, without and
with the shape's caption. The decoded meshes are the same: every file is read back to its codes.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch

import _results
from _results import RESULTS, SHAPE_GENERATOR, Item, Results, Row
from polytok import bitstream
from polytok.core.errors import PolytokError, SignalError
from polytok.systems import api
from polytok.systems.shape.vat.generator_training import NO_CAPTION


def rows_of(item: Item, caption: str, generator: Any, stretch: bool) -> list[Row]:
    """Files of one shape."""
    codec = generator.codec
    try:
        codes = codec.encode(item.mesh(), stretch=stretch)
    except SignalError:
        return []
    words = caption if caption not in ("", NO_CAPTION) else None
    row = {**item.row, "caption": words is not None}
    row["packed"] = len(codec.pack(codes, coder="raw")[0])
    row["static"] = len(codec.pack(codes)[0])
    start = time.perf_counter()
    data = codec.pack(codes, prior=generator.prior())[0]
    row["prior"], row["is_prior_coded"] = len(data), bitstream.read_header(data).is_prior_coded
    row["write_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    back = codec.unpack(data, prior=generator.prior())
    row["read_seconds"] = time.perf_counter() - start
    if any(not torch.equal(a, b) for a, b in zip(back.indices, codes.indices, strict=True)):
        raise PolytokError(f"{item.name}: the file holds other codes")
    row["text"] = len(codec.pack(codes, prior=generator.prior(words))[0]) if words else None
    spec, tokens = codec.spec, [level.count for level in codec.spec.levels]
    static = bitstream.bits_per_level(codes, spec, histograms=codec.histograms)
    row["static_bits"] = [round(b / t, 3) for b, t in zip(static, tokens, strict=True)]
    for name, text in (("prior_bits", None), ("text_bits", words)):
        if name == "prior_bits" or words:
            nats = generator.score(codes, text=text)[0].nats
            row[name] = [round(n / math.log(2), 3) for n in nats]
    return [row]


def main(argv: list[str] | None = None) -> None:
    """Measure the shapes that are not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=SHAPE_GENERATOR)
    parser.add_argument("--splits", default="val,val-unseen")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--every", type=int, default=1, help="only every N-th shape")
    parser.add_argument("--stretch", action="store_true", help="codes of stretched shapes")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    generator = api.load_generator(args.model)
    about = {
        "about": "whole .ptk files in bytes and ideal bits per token by scale; codes at effort 0; "
        "prior and text fall back to the smaller coder, as files never grow",
        "stretch": args.stretch,
        "model": generator.name,
        "weights": generator.weights,
        "tokenizer": generator.codec.name,
        "tokens": [level.count for level in generator.spec.levels],
        "vocab": generator.spec.levels[0].vocab,
        "threads": 1,
    }
    name = "entropy_coding_stretched" if args.stretch else "entropy_coding"
    results = Results(name, about, fresh=args.fresh, folder=args.out)
    done = results.done()
    for split in args.splits.split(","):
        captions = _results.captions(split)
        shapes = _results.shapes(split, args.limit)[:: args.every]
        items = [i for i in shapes if i.name not in done]
        for number, item in enumerate(items, 1):
            results.rows += rows_of(item, captions[item.name], generator, args.stretch)
            if number % 20 == 0 or number == len(items):
                results.save()


if __name__ == "__main__":
    main()
