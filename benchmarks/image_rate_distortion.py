"""Rate and distortion of pictures: polytok against WebP, AVIF, JPEG, ThumbHash and BlurHash.

    python benchmarks/image_rate_distortion.py --parts judge,tiles --work WORK \\
        --pictures FREE PHOTOS --labelled cifar10-test.zip [--model NAME ...]
    python benchmarks/image_rate_distortion.py --parts plot

FREE and PHOTOS are folders of ``prepare_pictures``; their test split is scored, and the judge
learns from their val split. Files of peers are searched once and kept in WORK. Rows go to
``benchmarks/results/image_rd_PART.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import _image_judges as judges
from _image_peers import PACKAGES, Coded, kept_search, mean_colour
from _results import RESULTS, Results, Row, load_codec
from polytok.core.errors import PolytokError
from polytok.data.images import LabelledImages, read_labelled
from polytok.data.pictures import read_pictures
from polytok.metrics import (
    IMAGE_CONVENTIONS,
    bootstrap_difference,
    classifier_agreement,
    perceptual_distance,
    psnr,
    ssim,
)

SEED = 0
BUDGETS = (32, 48, 64, 96, 128, 192, 256, 384)
SIDES = (4, 6, 8, 12, 16, 24, 32, 48)
PEERS = {
    "direct": ("webp", "avif", "jpeg"),
    "small": ("small-webp", "small-avif", "small-jpeg"),
    "hash": ("thumbhash", "blurhash"),
}
SINGLE = (*PEERS["direct"], *PEERS["small"], *PEERS["hash"], "webp-lossless")
SCORES = {"psnr": 1, "ssim": 1, "perceptual": -1, "agreement": 1}  # the sign of better
HELD_OUT = 1000  # of the labelled pictures, for the judge's accuracy
PARTS = ("judge", "tiles")

Scores = dict[str, NDArray[np.float64]]  # (n,) by name


@dataclass(frozen=True)
class Tried:
    """What a method makes of n pictures at a budget; ``has_file`` (n,): where a file fits."""

    scores: Scores
    has_file: NDArray[np.bool_]
    bytes: float  # mean of the files there are

    def where(self, keep: NDArray[np.bool_], other: Tried) -> Tried:
        """These pictures where ``keep``, those of the other elsewhere."""
        scores = {k: np.where(keep, v, other.scores[k]) for k, v in self.scores.items()}
        has_file = np.where(keep, self.has_file, other.has_file)
        return Tried(scores, has_file, np.nan)


class Scorer:
    """Scores of decoded pictures against their sources, with a judge."""

    def __init__(self, judge: judges.Judge, pictures: Sequence[Image.Image]) -> None:
        self.judge, self.wanted = judge, tensor(pictures)

    def __call__(self, decoded: Sequence[Image.Image]) -> Scores:
        image = tensor(decoded)
        pairs = list(zip(image.split(64), self.wanted.split(64), strict=True))
        return {
            "psnr": _joined(psnr(a, b) for a, b in pairs),
            "ssim": _joined(ssim(a, b) for a, b in pairs),
            "perceptual": _joined(perceptual_distance(self.judge, a, b) for a, b in pairs),
            "agreement": _joined(classifier_agreement(self.judge, a, b) for a, b in pairs),
        }


def _joined(parts: Any) -> NDArray[np.float64]:
    return torch.cat(list(parts)).double().numpy()


def tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as (n, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2) / 255


def held_back(folder: str, limit: int) -> tuple[list[Image.Image], tuple[str, ...]]:
    """Pictures of the test split, evenly spread over it, and their sources."""
    found = read_pictures(folder, "test")
    some = found.take(spread(len(found), limit))
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in some.pixels], some.names


def spread(length: int, count: int) -> Tensor:
    """Numbers (min(length, count),) within 0..length-1, as evenly as they go."""
    return torch.linspace(0, length - 1, min(count, length)).round().long()


def of_peers(
    pictures: Sequence[Image.Image], scorer: Scorer, work: Path
) -> dict[tuple[str, int], Tried]:
    """Every peer at every budget, the groups of :data:`PEERS`, and ``all`` of them."""
    files = [kept_search(p, BUDGETS, SIDES, work / "peers") for p in pictures]
    found: dict[tuple[str, int], Tried] = {}
    for method in SINGLE:
        known: dict[tuple[Coded | None, ...], Tried] = {}
        for budget in BUDGETS:
            coded = tuple(f[method].get(budget) for f in files)
            if coded not in known:  # hashes are the same file at every budget
                known[coded] = _tried(pictures, coded, scorer)
            found[method, budget] = known[coded]
    nothing = _tried(pictures, [None] * len(pictures), scorer)
    for budget in BUDGETS:
        found["mean-colour", budget] = nothing
        for group, methods in PEERS.items():
            found[group, budget] = _best([found[m, budget] for m in methods])
        found["small+hash", budget] = _best([found[g, budget] for g in ("small", "hash")])
        found["all", budget] = _best([found[g, budget] for g in PEERS])
    return found


def _tried(pictures: Sequence[Image.Image], files: Sequence[Coded | None], scorer: Scorer) -> Tried:
    decoded = [
        mean_colour(p) if c is None else c.picture(p.size)
        for p, c in zip(pictures, files, strict=True)
    ]
    sizes = [len(c.data) for c in files if c is not None]
    has_file = np.array([c is not None for c in files])
    return Tried(scorer(decoded), has_file, float(np.mean(sizes)) if sizes else np.nan)


def _best(several: Sequence[Tried]) -> Tried:
    """Picture by picture the one of highest PSNR."""
    best = several[0]
    for other in several[1:]:
        is_better = other.scores["psnr"] > best.scores["psnr"]
        # A file that is there wins over none, whatever the mean colour scores.
        is_better = np.where(other.has_file == best.has_file, is_better, other.has_file)
        best = other.where(is_better, best)
    return best


def of_model(
    model: str, pictures: Sequence[Image.Image], scorer: Scorer
) -> tuple[dict[int, Tried], Any]:
    """A codec at every budget, by the files it would write; and the codec."""
    codec = load_codec(model)
    codes = [codec.encode(picture) for picture in pictures]
    found = {}
    for budget in BUDGETS:
        files = [codec.pack(code, max_bytes=budget)[0] for code in codes]
        decoded = [codec.decode(codec.unpack(data))[0] for data in files]
        sizes = np.array([len(data) for data in files])
        found[budget] = Tried(scorer(decoded), sizes <= budget, float(sizes.mean()))
    return found, codec


def summary(one: Tried) -> Row:
    """Means, the share of pictures with a file, and the mean bytes of these."""
    means = {name: float(values.mean()) for name, values in one.scores.items()}
    size = {} if np.isnan(one.bytes) else {"file_bytes": one.bytes}
    return {"share_with_file": float(one.has_file.mean()), **size, **means}


def over(ours: Tried, theirs: Tried, names: Sequence[str]) -> Row:
    """Mean gain in each score, better being positive, with its 95% interval over sources."""
    row = {}
    for score, sign in SCORES.items():
        pair = [_by_source(sign * t.scores[score], names) for t in (ours, theirs)]
        found = bootstrap_difference(*pair)
        row[score] = [found.mean, found.low, found.high]
    return row


def _by_source(values: NDArray[np.float64], names: Sequence[str]) -> list[float]:
    """Means over the pictures of each source: they are not independent of each other."""
    groups: dict[str, list[float]] = {}
    for name, value in zip(names, values.tolist(), strict=True):
        groups.setdefault(name, []).append(value)
    return [float(np.mean(group)) for group in groups.values()]


def tiles(args: argparse.Namespace) -> None:
    """Held-back pictures of one tile at every budget."""
    judge, told = judges.load_judge(args.work / "judge.safetensors")
    results = Results(
        "image_rd_tiles",
        protocol(judge=told, limit=args.limit),
        seed=SEED,
        fresh=args.fresh,
        folder=args.out,
        keys=("domain", "bytes", "method"),
    )
    for folder in args.pictures:
        domain = Path(folder).name
        pictures, names = held_back(folder, args.limit)
        scorer = Scorer(judge, pictures)
        peers = of_peers(pictures, scorer, args.work)
        head = {"domain": domain, "pictures": len(pictures), "sources": len(set(names))}
        rows = [
            {**head, "bytes": budget, "method": method, **summary(one)}
            for (method, budget), one in peers.items()
        ]
        for model in args.model:
            found, codec = of_model(model, pictures, scorer)
            rows += [
                {
                    **head,
                    "bytes": budget,
                    "method": f"polytok:{Path(model).name}",
                    "weights": codec.weights,
                    **summary(one),
                    **{
                        f"over {group}": over(one, peers[group, budget], names)
                        for group in (*PEERS, "small+hash", "all")
                    },
                }
                for budget, one in found.items()
            ]
        _replace(results, rows)
        report(rows)


def _replace(results: Results, rows: Sequence[Row]) -> None:
    """Put rows in the place of those of the same keys, and save."""
    new = {tuple(row[k] for k in results.keys) for row in rows}
    kept = [r for r in results.rows if tuple(r[k] for k in results.keys) not in new]
    results.rows = [*kept, *rows]
    results.save()


def report(rows: Sequence[Row]) -> None:
    """Print rows."""
    for row in rows:
        scores = " ".join(f"{name} {row[name]:.3f}" for name in SCORES)
        share = f"{100 * row['share_with_file']:.0f}%"
        print(f"{row['domain']} {row['bytes']} {row['method']}: {share} {scores}", flush=True)


def make_judge(args: argparse.Namespace) -> None:
    """Train the judge on the val split of the pictures with labels, and on a labelled zip."""
    path = args.work / "judge.safetensors"
    if path.exists() and not args.fresh:
        return
    sets, tests = list[LabelledImages](), list[LabelledImages]()
    for folder in args.pictures:
        found = read_pictures(folder, "val")
        if len(found.classes) > 1:
            sets.append(judges.at_size(found))
            tests.append(judges.at_size(read_pictures(folder, "test")))
    for source in args.labelled:
        rest, part = read_labelled(source, args.labelled_size).split(HELD_OUT, seed=judges.SEED)
        sets.append(judges.at_size(rest))
        tests.append(judges.at_size(part))
    if not sets:
        raise PolytokError("no pictures with labels; name some with --pictures or --labelled")
    judge = judges.train_judge(sets, args.judge_steps)
    firsts = np.cumsum([0, *(len(s.classes) for s in sets)]).tolist()
    told = {
        "network": "4 stages of 3x3 convolutions, group norm, average pooling",
        "parameters": sum(p.numel() for p in judge.parameters()),
        "seed": judges.SEED,
        "steps": args.judge_steps,
        "batch": judges.BATCH,
        "classes": [name for s in sets for name in s.classes],
        "learnt": [len(s) for s in sets],
        "accuracy": [
            round(judges.accuracy(judge, test, first), 4)
            for test, first in zip(tests, firsts, strict=False)
        ],
    }
    judges.keep(judge, told, path)
    print(told, flush=True)


def protocol(**extra: Any) -> Row:
    """What the rows mean."""
    from importlib import metadata

    return {
        "method": "whole files of at most so many bytes per picture of the test split. Peers: "
        "Pillow's WebP (method 6), AVIF and JPEG (optimised, colour 4:2:0 or grey, without JFIF "
        "segment), of each the highest quality that fits, by bisection; small-*: Lanczos to one of "
        f"{', '.join(map(str, SIDES))} pixels, enlarged by bicubic or Lanczos, the nearest of all "
        "by mean square; thumbhash: as its package decodes it; blurhash: 4x3, 3x4 or 3x3, one "
        "byte a character. What does not fit scores as the mean colour of the picture. direct = "
        "webp, avif, jpeg; small = small-*; hash = both hashes; all = these, picture by picture "
        "the file of highest PSNR. webp-lossless stands aside: equal pictures count as 100 dB. "
        "polytok: the longest prefix of a file that fits. 'over X': mean gain, better being "
        "positive, with its 95% bootstrap interval over sources",
        "packages": {name: metadata.version(name) for name in PACKAGES},
        **extra,
        "conventions": {
            name: IMAGE_CONVENTIONS[name]
            for name in ("psnr", "ssim", "perceptual_distance", "classifier_agreement")
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--pictures", nargs="*", default=[], help="folders of prepared pictures")
    parser.add_argument("--labelled", nargs="*", default=[], help="class/name.jpg, for the judge")
    parser.add_argument("--labelled-size", type=int, default=32, help="pixels a side of these")
    parser.add_argument("--judge-steps", type=int, default=500)
    parser.add_argument("--model", nargs="*", default=[], help="weights tags or folders")
    parser.add_argument("--limit", type=int, default=200, help="pictures of each folder")
    parser.add_argument("--work", type=Path, required=True, help="keeps the judge and peers' files")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    run: Mapping[str, Callable[[argparse.Namespace], None]] = {"judge": make_judge, "tiles": tiles}
    parts = args.parts.split(",")
    if unknown := set(parts) - set(run):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    for part in parts:
        run[part](args)


if __name__ == "__main__":
    main()
