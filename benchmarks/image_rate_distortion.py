"""Rate and distortion of pictures: polytok against WebP, AVIF, JPEG, ThumbHash and BlurHash.

    python benchmarks/image_rate_distortion.py --parts judge,tiles --work WORK \\
        --pictures FREE PHOTOS --labelled cifar10-test.zip [--model NAME ...]
    python benchmarks/image_rate_distortion.py --parts plot

FREE and PHOTOS are folders of ``prepare_pictures``; their test split is scored, and the judge
learns from their val split. Files of peers are searched once and kept in WORK. Rows go to
``benchmarks/results/image_rd_PART.json``. What ``--parts sheet`` draws ships with the documents:
give it pictures that may.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import _image_judges as judges
from _image_peers import PACKAGES, Coded, kept_search, mean_colour
from _image_report import SHEET_SIZES, draw_plot, draw_sheet
from _report import load
from _results import RESULTS, ROOT, Results, Row, load_codec
from polytok import bitstream
from polytok.core.contracts import Codes
from polytok.core.errors import PolytokError
from polytok.data.images import LabelledImages, read_labelled
from polytok.data.pictures import read_pictures
from polytok.metrics import (
    IMAGE_CONVENTIONS,
    bootstrap_difference,
    psnr,
    ssim,
)
from polytok.networks.pretrained import map_distance
from polytok.systems import api
from polytok.systems.image.codec import AUTO_TILES
from polytok.systems.image.titok.model import TiTok

SEED = 0
JUDGE = "judge.safetensors"
BATCH_PIXELS = 64 * 64 * 64
KODAK_PIXELS = 768 * 512
SHEET_PICTURES = 2  # of each folder
EFFORTS = (0, 2, 5, 9)


@dataclass(frozen=True)
class Setting:
    """What is tried on pictures.

    Args:
        budgets: bytes of a file. sides: pixels of the longest side that peers shrink to.
        tiles: along the longest side, of which polytok takes the best, picture by picture.
        has_hashes: whether they are peers. effort: of polytok.
    """

    budgets: tuple[int, ...]
    sides: tuple[int, ...]
    tiles: tuple[int, ...] = (1, 2, 3)
    has_hashes: bool = True
    effort: int = 0


TILES = Setting((32, 48, 64, 96, 128, 192, 256, 384), (4, 6, 8, 12, 16, 24, 32, 48))
SEARCHED = replace(TILES, budgets=(32, 64, 96, 128, 192, 256), effort=5)
KODAK = Setting(
    (256, 512, 1024, 2048, 4096, 8192, 16384),
    (16, 24, 32, 48, 64, 96, 128, 192, 256, 384),
    tiles=AUTO_TILES,
    has_hashes=False,
)
PEERS = {
    "direct": ("webp", "avif", "jpeg"),
    "small": ("small-webp", "small-avif", "small-jpeg"),
    "hash": ("thumbhash", "blurhash"),
}
SCORES = {"psnr": 1, "ssim": 1, "perceptual": -1, "agreement": 1}  # the sign of better
HELD_OUT = 1000  # of the labelled pictures, for the judge's accuracy

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
        self.judge = judge
        self.batches = batches(pictures)
        self.wanted = [self._seen(part) for part in self.batches]

    @torch.inference_mode()
    def __call__(self, decoded: Sequence[Image.Image]) -> Scores:
        """Scores (n,): of :data:`SCORES`."""
        parts: dict[str, list[Tensor]] = {name: [] for name in SCORES}
        for image, wanted, (maps, label) in zip(
            batches(decoded), self.batches, self.wanted, strict=True
        ):
            mine, mine_label = self._seen(image)
            parts["psnr"].append(psnr(image, wanted))
            parts["ssim"].append(ssim(image, wanted))
            parts["perceptual"].append(map_distance(mine, maps))
            parts["agreement"].append(mine_label == label)
        return {name: torch.cat(values).double().numpy() for name, values in parts.items()}

    @torch.inference_mode()
    def _seen(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = self.judge.maps(image)
        return maps, self.judge.scores(maps).argmax(-1)


def batches(pictures: Sequence[Image.Image]) -> list[Tensor]:
    """Pictures in their order as (b, 3, H, W) in [0, 1], of one size and not many pixels each."""
    found = []
    for (width, height), same in groupby(pictures, key=lambda p: p.size):
        values = torch.from_numpy(np.stack([np.asarray(p) for p in same])).permute(0, 3, 1, 2)
        found += [part / 255 for part in values.split(max(1, BATCH_PIXELS // (width * height)))]
    return found


def held_back(folder: str, limit: int) -> tuple[list[Image.Image], tuple[str, ...]]:
    """Pictures of the test split, evenly spread over it, and their sources."""
    found = read_pictures(folder, "test")
    some = found.take(spread(len(found), limit))
    return [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in some.pixels], some.names


def spread(length: int, count: int) -> Tensor:
    """Numbers (min(length, count),) within 0..length-1, as evenly as they go."""
    return torch.linspace(0, length - 1, min(count, length)).round().long()


def _inner(length: int, count: int) -> list[int]:
    """Numbers within 0..length-1, the ends left out where there are others."""
    return torch.linspace(0, length - 1, count + 2)[1:-1].round().int().tolist()


def of_peers(
    pictures: Sequence[Image.Image], scorer: Scorer, work: Path, setting: Setting
) -> dict[tuple[str, int], Tried]:
    """Every peer at every budget, the groups of :data:`PEERS`, and ``all`` of them."""
    files = []
    for number, picture in enumerate(pictures, 1):
        files.append(
            kept_search(picture, setting.budgets, setting.sides, work, hashes=setting.has_hashes)
        )
        if number % 10 == 0:
            print(f"files of peers: {number} of {len(pictures)}", flush=True)
    found: dict[tuple[str, int], Tried] = {}
    known: dict[tuple[Coded | None, ...], Tried] = {}
    for method in ("mean-colour", *files[0]):
        for budget in setting.budgets:
            coded = tuple(f.get(method, {}).get(budget) for f in files)
            if coded not in known:  # hashes are the same file at every budget
                known[coded] = _tried(pictures, coded, scorer)
            found[method, budget] = known[coded]
    for budget in setting.budgets:
        groups = [g for g in PEERS if setting.has_hashes or g != "hash"]
        for group in groups:
            found[group, budget] = _best([found[m, budget] for m in PEERS[group]])
        found["all", budget] = _best([found[g, budget] for g in groups])
        if setting.has_hashes:
            found["small+hash", budget] = _best([found[g, budget] for g in ("small", "hash")])
    return found


def members_of(setting: Setting) -> dict[str, tuple[str, ...]]:
    """Groups of peers, each with itself, best picture by picture, and the methods in it."""
    groups = {g: m for g, m in PEERS.items() if setting.has_hashes or g != "hash"}
    found = {g: (g, *m) for g, m in groups.items()}
    every = ("all", *(m for members in found.values() for m in members))
    if setting.has_hashes:
        found["small+hash"] = ("small+hash", *found["small"], *found["hash"])
    return {**found, "all": every}


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
    codec: Any, pictures: Sequence[Image.Image], scorer: Scorer, setting: Setting
) -> dict[int, Tried]:
    """A codec at every budget, by the files it would write.

    Budgets that no file fits are left out.
    """
    found: dict[int, Tried] = {}
    metas = [{"size": np.array(p.size), "tiles": np.array(min(setting.tiles))} for p in pictures]
    least = max(bitstream.sizes(codec.spec, meta)[0] for meta in metas)
    for budget in (b for b in setting.budgets if b >= least):
        fit = codec.fitting(budget)
        codes = [
            codec.encode(p, tiles=setting.tiles, effort=setting.effort, fit=fit) for p in pictures
        ]
        files = [codec.pack(code, max_bytes=budget)[0] for code in codes]
        decoded = [codec.decode(codec.unpack(data))[0] for data in files]
        sizes = np.array([len(data) for data in files])
        found[budget] = Tried(scorer(decoded), sizes <= budget, float(sizes.mean()))
        print(f"{codec.name}: {budget} bytes", flush=True)
    return found


def summary(one: Tried) -> Row:
    """Means, the share of pictures with a file, and the mean bytes of these."""
    means = {name: float(values.mean()) for name, values in one.scores.items()}
    size = {} if np.isnan(one.bytes) else {"file_bytes": one.bytes}
    return {"share_with_file": float(one.has_file.mean()), **size, **means}


def over(ours: Tried, theirs: Sequence[Tried], names: Sequence[str]) -> Row:
    """Mean gain in each score, better being positive, with its 95% interval over sources.

    Each score is compared with those of the others that are best by its mean.
    """
    row = {}
    for score, sign in SCORES.items():
        best = max(theirs, key=lambda t: sign * float(t.scores[score].mean()))
        pair = [_by_source(sign * t.scores[score], names) for t in (ours, best)]
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
    """Held-back pictures of 64 pixels a side at every budget."""
    _measure_folders("tiles", TILES, args)


def searched_tiles(args: argparse.Namespace) -> None:
    """The same by search."""
    _measure_folders("searched", SEARCHED, args)


def _measure_folders(part: str, setting: Setting, args: argparse.Namespace) -> None:
    judge, told = judges.load_judge(args.work / JUDGE, judges.Judge, "--parts judge")
    about = protocol(setting, judge=told, limit=args.limit)
    results = _results_of(part, about, args, ("domain", "bytes", "method"))
    for folder in args.pictures:
        pictures, names = held_back(folder, args.limit)
        head = {"domain": Path(folder).name, "pictures": len(pictures), "sources": len(set(names))}
        _measure(pictures, names, head, setting, judge, results, args)


def kodak(args: argparse.Namespace) -> None:
    """Whole photos at every budget."""
    judge, told = judges.load_judge(args.work / JUDGE, judges.Judge, "--parts judge")
    about = protocol(KODAK, judge=told, limit=args.limit)
    results = _results_of("kodak", about, args, ("domain", "bytes", "method"))
    names, pictures = _read_zip(args.kodak)
    names, pictures = names[: args.limit], pictures[: args.limit]
    head = {"domain": "kodak", "pictures": len(pictures), "pixels": KODAK_PIXELS}
    _measure(pictures, names, head, KODAK, judge, results, args)


def _results_of(part: str, about: Row, args: argparse.Namespace, keys: tuple[str, ...]) -> Results:
    name = f"image_rd_{part}"
    return Results(name, about, seed=SEED, fresh=args.fresh, folder=args.out, keys=keys)


def _measure(
    pictures: Sequence[Image.Image],
    names: Sequence[str],
    head: Row,
    setting: Setting,
    judge: judges.Judge,
    results: Results,
    args: argparse.Namespace,
) -> None:
    """Rows of peers and models on some pictures."""
    scorer = Scorer(judge, pictures)
    peers = of_peers(pictures, scorer, args.work / "peers", setting)
    rows = [
        {**head, "bytes": budget, "method": method, **summary(one)}
        for (method, budget), one in peers.items()
    ]
    groups = members_of(setting)
    for model in args.model:
        codec = load_codec(model)
        rows += [
            {
                **head,
                "bytes": budget,
                "method": f"polytok:{Path(model).name}",
                "weights": codec.weights,
                **summary(one),
                **{
                    f"over {g}": over(one, [peers[m, budget] for m in members], names)
                    for g, members in groups.items()
                },
            }
            for budget, one in of_model(codec, pictures, scorer, setting).items()
        ]
    _replace(results, rows)
    report(rows)


def _read_zip(path: Path) -> tuple[list[str], list[Image.Image]]:
    with ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.lower().endswith(".png"))
        return names, [Image.open(BytesIO(archive.read(n))).convert("RGB") for n in names]


def prefixes(args: argparse.Namespace) -> None:
    """PSNR over the number of tokens, of models that were trained on prefixes or were not."""
    about = {
        "about": "mean PSNR of the first tokens of held-back pictures; models that were not "
        "trained on prefixes are decoded from them all the same",
        "limit": args.limit,
        "psnr": IMAGE_CONVENTIONS["psnr"],
    }
    results = _results_of("prefixes", about, args, ("domain", "model", "tokens"))
    for folder in args.pictures:
        pictures, _ = held_back(folder, args.limit)
        for model in args.model:
            codec = load_codec(model)
            head = {"domain": Path(folder).name, "model": Path(model).name}
            head |= {"weights": codec.weights, "has_tail_drop": codec.spec.prefix == "tokens"}
            rows = [head | row for row in prefix_rows(codec, pictures)]
            _replace(results, rows)
            print(*(f"{r['tokens']}:{r['psnr']:.2f}" for r in rows), flush=True)


@torch.inference_mode()
def prefix_rows(codec: Any, pictures: Sequence[Image.Image]) -> list[Row]:
    """The mean PSNR of the first tokens, for several numbers of them."""
    whole = codec.num_tokens
    lengths = sorted({*range(1, min(whole, 16) + 1), *range(8, whole, 8), whole // 2, whole} - {0})
    scores: dict[int, list[Tensor]] = {k: [] for k in lengths}
    for wanted in batches(pictures):
        image = wanted
        if wanted.shape[-1] != codec.size:
            side = (codec.size, codec.size)
            image = F.interpolate(wanted, side, mode="bicubic", antialias=True).clamp(0, 1)
        [ids] = codec.model.encode({"image": image.to(codec.device)}).indices
        for k in lengths:
            scores[k].append(psnr(_shown(codec.model, ids[:, :k]).cpu(), image))
    return [{"tokens": k, "psnr": float(torch.cat(parts).mean())} for k, parts in scores.items()]


def _shown(model: Any, ids: Tensor) -> Tensor:
    """Pictures of first tokens, also by a model that would refuse them."""
    if isinstance(model, TiTok):
        return model.picture(model.bottleneck.embed((ids,))).clamp(0, 1)
    return model.decode(Codes(indices=(ids,)))["image"]


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
    path = args.work / JUDGE
    if path.exists() and not args.fresh:
        return
    lessons, tests = list[judges.Lesson](), list[LabelledImages]()
    for folder in args.pictures:
        found = read_pictures(folder, "val")
        if len(found.classes) > 1:
            lessons.append(judges.Lesson(judges.at_size(found), is_mirrored=False))
            tests.append(judges.at_size(read_pictures(folder, "test")))
    for source in args.labelled:
        rest, part = read_labelled(source, args.labelled_size).split(HELD_OUT, seed=judges.SEED)
        lessons.append(judges.Lesson(judges.at_size(rest), is_mirrored=True))
        tests.append(judges.at_size(part))
    if not lessons:
        raise PolytokError("no pictures with labels; name some with --pictures or --labelled")
    judge = judges.train_judge(lessons, args.judge_steps)
    sets = [lesson.images for lesson in lessons]
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


def efforts(args: argparse.Namespace) -> None:
    """PSNR and time of searched codes, whole and of a quarter of the tokens, by effort."""
    about = {
        "method": "codes of held-back pictures of one tile at each effort: mean PSNR over "
        "pictures, mean bytes of their files and seconds of encoding one picture",
        "efforts": list(EFFORTS),
        "threads": torch.get_num_threads(),
        "limit": args.limit,
    }
    keys = ("domain", "model", "tokens", "effort")
    results = Results("image_rd_efforts", about, fresh=args.fresh, folder=args.out, keys=keys)
    known = {tuple(row[key] for key in keys) for row in results.rows}
    for folder in args.pictures:
        pictures, _ = held_back(folder, args.limit)
        for model in args.model:
            codec = load_codec(model)
            for tokens in (codec.num_tokens, codec.num_tokens // 4):
                for effort in EFFORTS:
                    row = {"domain": Path(folder).name, "model": model, "tokens": tokens}
                    row |= {"effort": effort}
                    if tuple(row[key] for key in keys) not in known:
                        results.rows.append(row | searched(codec, pictures, tokens, effort))
                        results.save()
                        print(results.rows[-1], flush=True)


def searched(codec: Any, pictures: Sequence[Image.Image], tokens: int, effort: int) -> Row:
    """Mean PSNR, bytes of a file and seconds of codes of one effort."""
    start = time.perf_counter()
    codes = [codec.encode(picture, tokens=tokens, effort=effort) for picture in pictures]
    seconds = (time.perf_counter() - start) / len(pictures)
    shown = batches([codec.decode(code)[0] for code in codes])
    scores = [psnr(one, true) for one, true in zip(shown, batches(pictures), strict=True)]
    return {
        "pictures": len(pictures),
        "psnr": float(torch.cat(scores).mean()),
        "bytes": float(np.mean([len(codec.pack(code)[0]) for code in codes])),
        "seconds": seconds,
    }


def coders(args: argparse.Namespace) -> None:
    """Bytes of whole codes by coder, each file read back."""
    protocol = {
        "method": "files of whole codes of held-back pictures: bits as they are (raw), range coded "
        "by one histogram (static), under the generator of the same weights (prior); each file is "
        "the shortest of its coder and those before, and was read back to its codes",
        "limit": args.limit,
    }
    keys = ("domain", "model")
    results = Results("image_rd_coders", protocol, fresh=args.fresh, folder=args.out, keys=keys)
    known = {(row["domain"], row["model"]) for row in results.rows}
    for folder in args.pictures:
        pictures, _ = held_back(folder, args.limit)
        for model in args.model:
            if (Path(folder).name, model) not in known:
                results.rows.append({"domain": Path(folder).name, **coded(pictures, model)})
                results.save()
                print(results.rows[-1], flush=True)


def coded(pictures: Sequence[Image.Image], model: str) -> Row:
    """Mean bytes of whole codes by coder."""
    codec = load_codec(model)
    prior = api.prior_of(codec)
    sizes: dict[str, list[int]] = {"raw": [], "static": [], "prior": []}
    for picture in pictures:
        code = codec.encode(picture)
        files = {
            "raw": codec.pack(code, coder="raw")[0],
            "static": codec.pack(code)[0],
            "prior": codec.pack(code, prior=prior)[0],
        }
        for name, data in files.items():
            if not torch.equal(codec.unpack(data, prior=prior).indices[0], code.indices[0]):
                raise PolytokError(f"a file of {name} did not come back")
            sizes[name].append(len(data))
    return {
        "model": model,
        "prior": prior.fingerprint,
        "pictures": len(pictures),
        **{f"{name}_bytes": float(np.mean(found)) for name, found in sizes.items()},
    }


def draw(args: argparse.Namespace) -> None:
    """The plot of what has been measured."""
    print(draw_plot(args.out))


def make_sheet(args: argparse.Namespace) -> None:
    """A few held-back pictures of each folder, not chosen, by the model that is best there."""
    shown = []
    for folder in args.pictures:
        pictures, _ = held_back(folder, args.limit)
        codec = load_codec(_best_model(Path(folder).name, args))
        for place in _inner(len(pictures), SHEET_PICTURES):
            picture = pictures[place]
            code = codec.encode(picture)
            files = {b: codec.pack(code, max_bytes=b)[0] for b in SHEET_SIZES}
            ours = {b: (len(d), codec.decode(codec.unpack(d))[0]) for b, d in files.items()}
            found = kept_search(picture, TILES.budgets, TILES.sides, args.work / "peers")
            peers = {b: best_file(picture, found, b) for b in SHEET_SIZES}
            shown.append((picture, ours, {b: c for b, c in peers.items() if c is not None}))
    draw_sheet(shown, args.sheet)


def _best_model(domain: str, args: argparse.Namespace) -> str:
    """Of the models that were asked for, the one of highest PSNR at the smallest shown size."""
    data = load("image_rd_tiles", args.out)
    scores = {
        row["method"]: row["psnr"]
        for row in (data["rows"] if data else [])
        if (row["domain"], row["bytes"]) == (domain, SHEET_SIZES[1])
    }
    known = [m for m in args.model if f"polytok:{Path(m).name}" in scores]
    if not known:
        raise PolytokError(f"no model of --model has been measured on {domain}")
    return max(known, key=lambda m: scores[f"polytok:{Path(m).name}"])


def best_file(
    picture: Image.Image, found: Mapping[str, Mapping[int, Coded]], budget: int
) -> Coded | None:
    """The file of all peers that is nearest to a picture at a budget, lossless ones left out."""
    files = [
        found[m][budget] for group in PEERS.values() for m in group if budget in found.get(m, {})
    ]
    wanted = batches([picture])[0]
    return max(
        files,
        key=lambda c: float(psnr(batches([c.picture(picture.size)])[0], wanted)),
        default=None,
    )


def protocol(setting: Setting, **extra: Any) -> Row:
    """What the rows mean."""
    return {
        "method": "whole files of at most so many bytes. Peers: Pillow's WebP (method 6), AVIF and "
        "JPEG (optimised, colour 4:2:0 or grey, without JFIF segment), of each the highest quality "
        "that fits, by bisection; small-*: Lanczos to one of "
        f"{', '.join(map(str, setting.sides))} pixels, enlarged by bicubic or Lanczos, the nearest "
        "of all by mean square; thumbhash: as its package decodes it; blurhash: 4x3, 3x4 or 3x3, "
        "one byte a character. What does not fit scores as the mean colour of the picture. direct "
        "= webp, avif, jpeg; small = small-*; hash = both hashes; all = these, picture by picture "
        "the file of highest PSNR. webp-lossless stands aside: equal pictures count as 100 dB. "
        f"polytok: picture by picture the best of {', '.join(map(str, setting.tiles))} tiles "
        f"along the longest side by mean square, effort {setting.effort}, the longest prefix that "
        "fits. 'over X': mean gain, better being "
        "positive, with its 95% bootstrap interval over sources, over X or the method in it that "
        "is best by the mean of that score",
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
    run: Mapping[str, Callable[[argparse.Namespace], None]] = {
        "judge": make_judge,
        "tiles": tiles,
        "searched": searched_tiles,
        "kodak": kodak,
        "prefixes": prefixes,
        "coders": coders,
        "efforts": efforts,
        "plot": draw,
        "sheet": make_sheet,
    }
    parser.add_argument("--parts", default="judge,tiles", help=", ".join(run))
    parser.add_argument("--pictures", nargs="*", default=[], help="folders of prepared pictures")
    parser.add_argument("--labelled", nargs="*", default=[], help="class/name.jpg, for the judge")
    parser.add_argument("--labelled-size", type=int, default=32, help="pixels a side of these")
    parser.add_argument("--judge-steps", type=int, default=2500)
    parser.add_argument("--kodak", type=Path, help="zip of its PNG, for that part")
    parser.add_argument("--model", nargs="*", default=[], help="weights tags or folders")
    parser.add_argument("--limit", type=int, default=200, help="pictures of each folder")
    parser.add_argument("--work", type=Path, required=True, help="keeps the judge and peers' files")
    parser.add_argument("--sheet", type=Path, default=ROOT / "docs" / "images-sheet.png")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    parts = args.parts.split(",")
    if unknown := set(parts) - set(run):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    for part in parts:
        run[part](args)


if __name__ == "__main__":
    main()
