"""Generated shapes against real ones: as a set, copies, agreement with text and picture, and time.

    python benchmarks/shape_generation.py --parts sets,copies,text,image,speed \\
        --codes CODES --views VIEWS

CODES and VIEWS are folders that training a generator makes from ``train.zip``. Every part is a
row of ``benchmarks/results/shape_generation.json``; ``--sheet`` draws a contact sheet.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import _results
from _clouds import SEED, cloud, shortlist
from _results import RESULTS, SHAPE_GENERATOR, Item, Results, Row
from polytok.core.contracts import Codes
from polytok.core.errors import UnknownNameError
from polytok.core.files import atomic_path
from polytok.core.seeding import numpy_rng, torch_rng
from polytok.data.codes import CodeFolder
from polytok.data.views import ViewFolder
from polytok.generators import Guide, RasterOrder, Sampling
from polytok.metrics import bootstrap_mean, chamfer_matrix, set_scores
from polytok.metrics.shape import intersection_over_union
from polytok.networks.pretrained import SmallImageTower
from polytok.signals import mesh as meshes
from polytok.signals.sheet import sheet
from polytok.systems import api
from polytok.systems.shape.generation import DRAFT, UNIT_SCALE
from polytok.systems.shape.vat.generator import VATGenerator
from polytok.systems.shape.vat.generator_training import NO_CAPTION

POINTS = 2048
FEW = 256
SHORTLIST = 32
RESOLUTION = 96
DRAWS, GROUP = 200, 32
VOLUME = 8192

Array = NDArray[np.floating[Any]]


class Bench:
    """What the parts share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.generator = api.load_generator(args.model)
        self.codec = self.generator.codec
        self.args = args
        self.sampling: dict[str, Any] = {"cfg": args.cfg, "sampling": Sampling(top_p=args.top_p)}

    @cached_property
    def train(self) -> list[Item]:
        return _results.shapes("train")

    @cached_property
    def val(self) -> list[Item]:
        return _results.shapes("val", self.args.limit)

    @cached_property
    def codes(self) -> CodeFolder:
        return CodeFolder(self.args.codes)

    @cached_property
    def val_clouds(self) -> Array:
        return np.stack([cloud(i.mesh(), i.name, POINTS) for i in self.val])

    @cached_property
    def samples(self) -> Codes:
        """As many unconditional samples as val has shapes."""
        sampling = Sampling(top_p=self.args.free_top_p)
        return self.generator.generate(count=len(self.val), seed=SEED, sampling=sampling)

    @cached_property
    def sample_clouds(self) -> Array:
        return self.clouds(self.samples, "sample")

    def clouds(self, codes: Codes, key: str) -> Array:
        """Clouds of decoded codes."""
        decoded = (self.codec.decode(codes[i], resolution=RESOLUTION)[0] for i in range(len(codes)))
        return np.stack([cloud(m, f"{key}-{i}", POINTS) for i, m in enumerate(decoded)])


def sets(bench: Bench) -> Row:
    """MMD, coverage and 1-NNA of samples, training shapes, and codes with redrawn detail."""
    rng = numpy_rng(SEED, "sets")
    real = bench.val_clouds
    among = chamfer_matrix(real)
    chosen = rng.choice(len(bench.train), len(real), replace=False)
    training = np.stack([cloud(bench.train[i].mesh(), bench.train[i].name, POINTS) for i in chosen])
    ids = bench.codes.ids[0, torch.from_numpy(chosen)].long().clone()
    ends = np.cumsum([0, *bench.codes.index.slots])
    for level in range(len(ends) // 2, len(ends) - 1):
        span = slice(int(ends[level]), int(ends[level + 1]))
        pool = bench.codes.ids[0][:, span].reshape(-1).long()
        draws = torch.from_numpy(rng.integers(len(pool), size=ids[:, span].shape))
        ids[:, span] = pool[draws]
    count = len(ids)
    meta = {"centre": torch.zeros(count, 3), "scale": torch.full((count,), UNIT_SCALE)}
    parts = torch.split(ids, list(bench.codes.index.slots), dim=1)
    shuffled = Codes(indices=tuple(parts), meta=meta)
    kept = [i for i in range(count) if not bench.codec.is_empty(shuffled[i])]
    redrawn = bench.clouds(Codes.cat([shuffled[i] for i in kept]), "redrawn")
    row: Row = {"shapes": count, "redrawn_not_empty": len(kept)}
    for name, other in (
        ("samples", bench.sample_clouds),
        ("training", training),
        ("redrawn", redrawn),
    ):
        scores = set_scores(chamfer_matrix(other, real), chamfer_matrix(other), among)
        row |= {f"{name}_{k}": v for k, v in scores.as_dict().items()}
    return row


def copies(bench: Bench) -> Row:
    """Share of samples, and of val, nearer to a training shape than the tokenizer's error."""
    bank = np.stack([cloud(i.mesh(), i.name, FEW) for i in bench.train])

    def nearest(clouds: Array) -> NDArray[np.int64]:
        return np.stack([shortlist(c[:: POINTS // FEW], bank, SHORTLIST) for c in clouds])

    def distances(clouds: Array) -> Array:
        out = []
        for one, close in zip(clouds, nearest(clouds), strict=True):
            others = np.stack(
                [cloud(bench.train[i].mesh(), bench.train[i].name, POINTS) for i in close]
            )
            out.append(chamfer_matrix(one[None], others).min())
        return np.asarray(out)

    decoded = [
        bench.codec.decode(bench.codec.encode(i.mesh(), stretch=False), resolution=RESOLUTION)[0]
        for i in bench.val
    ]
    again = np.stack([cloud(m, f"decoded-{k}", POINTS) for k, m in enumerate(decoded)])
    errors = np.array(
        [
            chamfer_matrix(a[None], b[None])[0, 0]
            for a, b in zip(bench.val_clouds, again, strict=True)
        ]
    )
    limit = float(np.median(errors))
    of_samples, of_val = distances(bench.sample_clouds), distances(bench.val_clouds)
    return {
        "tokenizer_error": limit,
        "tokenizer_error_is": "median Chamfer distance of val shapes to their decoded codes",
        "samples_copied": float((of_samples < limit).mean()),
        "val_copied": float((of_val < limit).mean()),
        "samples_nearest": float(np.median(of_samples)),
        "val_nearest": float(np.median(of_val)),
    }


def _words(caption: str) -> dict[str, int]:
    text = f" {caption.lower()} "
    out: dict[str, int] = {}
    for i in range(len(text) - 2):
        out[text[i : i + 3]] = out.get(text[i : i + 3], 0) + 1
    return out


def _likeness(one: dict[str, int], other: dict[str, int]) -> float:
    dot = sum(n * other.get(k, 0) for k, n in one.items())
    return float(
        dot / np.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in other.values()))
    )


def text(bench: Bench) -> Row:
    """Top-1 of finding a caption's shape among 32 by the Chamfer distance of one sample of it."""
    items, captions = [], []
    for split in ("val", "val-unseen"):
        told = _results.captions(split)
        for item in _results.shapes(split, bench.args.limit):
            if told[item.name] not in ("", NO_CAPTION):
                items.append(item)
                captions.append(told[item.name])
    distinct = sorted(set(captions))
    place = np.array([distinct.index(c) for c in captions])
    real = np.stack([cloud(i.mesh(), i.name, POINTS) for i in items])
    drawn = Codes.cat([bench.generator.generate(c, seed=SEED, **bench.sampling) for c in distinct])
    across = chamfer_matrix(bench.clouds(drawn, "text"), real)
    told = _results.captions("train")
    grams = [(i, _words(told[i.name])) for i in bench.train if told[i.name] not in ("", NO_CAPTION)]
    found = [max(grams, key=lambda g: _likeness(_words(c), g[1]))[0] for c in distinct]
    nearest = chamfer_matrix(np.stack([cloud(i.mesh(), i.name, POINTS) for i in found]), real)
    rng = numpy_rng(SEED, "text")
    hits: dict[str, list[float]] = {"samples": [], "shuffled": [], "nearest_caption": []}
    for _ in range(DRAWS):
        few = rng.choice(len(distinct), min(GROUP, len(distinct)), replace=False)
        shapes = [int(rng.choice(np.flatnonzero(place == c))) for c in few]
        turned = np.roll(few, 1)
        for name, matrix, rows in (
            ("samples", across, few),
            ("shuffled", across, turned),
            ("nearest_caption", nearest, few),
        ):
            best = matrix[np.ix_(rows, shapes)].argmin(1)
            hits[name].append(float((best == np.arange(len(few))).mean()))
    row: Row = {"captions": len(distinct), "chance": 1 / min(GROUP, len(distinct)), "draws": DRAWS}
    return row | {f"{name}_top1": float(np.mean(values)) for name, values in hits.items()}


def image(bench: Bench) -> Row:
    """V-IoU to the true shape of a sample from one of its pictures, and of what retrieval finds."""
    tower = bench.generator.model.tower("image")
    assert isinstance(tower, SmallImageTower)
    training = ViewFolder(bench.args.views)
    silhouettes = _silhouettes(training.pictures[:, :, 1])
    features = _features(tower, training.pictures)
    by_name = {i.name: i for i in bench.train}
    views = _views(bench.val, training)
    seen = _features(tower, views[:, None])[:, 0]
    outlines = _silhouettes(views[:, None, 1])[:, 0]
    solids: dict[str, Any] = {}

    def field(item: Item) -> Callable[[Array], NDArray[np.bool_]]:
        if item.name not in solids:
            solids[item.name] = meshes.solidify(item.mesh())
        return lambda points: solids[item.name].nearest(points).sdf < 0

    points = numpy_rng(SEED, "volume").uniform(-1.0, 1.0, (VOLUME, 3))
    queries = torch.from_numpy(points.astype(np.float32))[None]
    scores: dict[str, list[float]] = {}
    for k, item in enumerate(bench.val):
        truth = field(item)(points)
        other = (k + 1) % len(bench.val)
        union = np.minimum(silhouettes, outlines[k]).sum((2, 3)) / np.maximum(
            silhouettes, outlines[k]
        ).sum((2, 3))
        found = {
            "silhouette": int(union.max(1).argmax()),
            "feature": int((features @ seen[k]).max(1).argmax()),
        }
        given: dict[str, dict[str, Any]] = {
            "samples": {"image": _picture(views[k])},
            "undrafted": {"image": _picture(views[k]), "draft": 0.0},
            "shuffled": {"image": _picture(views[other])},
            "unconditional": {},
        }
        for name, prompt in given.items():
            codes = bench.generator.generate(**prompt, seed=k, **bench.sampling)
            with torch.inference_mode():
                inside = bench.codec.field(codes)(queries)[0].numpy() > 0
            scores.setdefault(name, []).append(intersection_over_union(inside, truth))
        for name, place in found.items():
            inside = field(by_name[training.index.names[place]])(points)
            scores.setdefault(name, []).append(intersection_over_union(inside, truth))
    return {"shapes": len(bench.val), "points": VOLUME} | {
        f"{name}_v_iou": bootstrap_mean(values).mean for name, values in scores.items()
    }


def _views(items: Sequence[Item], like: ViewFolder) -> NDArray[np.uint8]:
    """One picture (n, 2, S, S) of each shape, drawn as those of training."""
    return np.stack(
        [
            meshes.views(i.mesh(), like.index.sampling, numpy_rng(SEED, "view", i.name))[0]
            for i in items
        ]
    )


def _picture(view: NDArray[np.uint8]) -> Any:
    from PIL import Image

    light, alpha = view
    return Image.fromarray(np.stack([light, light, light, alpha], axis=-1))


def _silhouettes(alpha: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Opacity (n, V, S, S) at 32 pixels a side."""
    n, count, size, _ = alpha.shape
    step = size // 32
    small = alpha.reshape(n, count, 32, step, 32, step).mean((3, 5)) / 255
    return small.astype(np.float32)


@torch.inference_mode()
def _features(tower: SmallImageTower, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Unit pooled features (n, V, dim) of views on white."""
    out = []
    for block in np.array_split(pictures, max(len(pictures) // 64, 1)):
        light, alpha = block[:, :, 0] / 255.0, block[:, :, 1] / 255.0
        grey = torch.from_numpy((light * alpha + 1 - alpha).astype(np.float32)).flatten(0, 1)
        pooled = tower({"image": grey[:, None].expand(-1, 3, -1, -1)}).pooled.float()
        pooled = torch.nn.functional.normalize(pooled, dim=-1)
        out.append(pooled.unflatten(0, block.shape[:2]).numpy())
    return np.concatenate(out)


def speed(bench: Bench) -> Row:
    """Seconds per code, tokens only, batch 1, by scale against raster order; and the passes."""
    model = bench.generator.model
    slots = model.process.slots
    raster = VATGenerator(model.config, bench.codec.model.bottleneck.quantizer).eval()
    raster.load_state_dict(model.state_dict())
    lookup = bench.codec.model.bottleneck.quantizer.embedding
    raster.process = RasterOrder(sum(slots), lookup.num_embeddings, lookup)
    with torch.no_grad():
        prompt = _prompt(bench)
    seconds: dict[str, list[float]] = {"scales": [], "raster": []}
    passes = []
    count = _Count(model)
    for turn in range(-1, 7):
        for name, one in (("scales", model), ("raster", raster)):
            count.passes = 0
            start = time.perf_counter()
            one.generate(
                prompt,
                count=1,
                rng=torch_rng(SEED, turn),
                guide=Guide(shares={"text": 1.0}, strength=2.0),
            )
            took = time.perf_counter() - start
            if turn >= 0:
                seconds[name].append(took)
                passes += [count.passes] if name == "scales" else []
    ratio = float(np.median(np.array(seconds["raster"]) / np.array(seconds["scales"])))
    return {
        "threads": torch.get_num_threads(),
        "passes": passes[0],
        "scales": len(slots),
        "branches": 2,
        "scales_seconds": float(np.median(seconds["scales"])),
        "raster_seconds": float(np.median(seconds["raster"])),
        "times_faster": ratio,
    }


class _Count:
    """Counts forward passes of a generator's net."""

    def __init__(self, model: VATGenerator) -> None:
        self.passes = 0
        model.net.register_forward_hook(self._add)

    def _add(self, *_: object) -> None:
        self.passes += 1


def _prompt(bench: Bench) -> dict[str, Any]:
    tower = bench.generator.model.tower("text")
    assert tower is not None
    return tower.prepare(["wooden barrel"])


PARTS: dict[str, Callable[[Bench], Row]] = {
    "sets": sets,
    "copies": copies,
    "text": text,
    "image": image,
    "speed": speed,
}
PROMPTS = ("wooden barrel", "chair", "table", "tree", "house", "sword")


def sheets(bench: Bench, out: Path) -> None:
    """Draw samples from texts, from pictures of val shapes, and from nothing."""
    rows = []
    for words in PROMPTS:
        codes = bench.generator.generate(words, count=4, seed=SEED, **bench.sampling)
        rows.append([(words, meshes.render(m, size=192)) for m in bench.codec.decode(codes)])
    codes = bench.generator.generate(count=4, seed=SEED)
    rows.append([("no condition", meshes.render(m, size=192)) for m in bench.codec.decode(codes)])
    training = ViewFolder(bench.args.views)
    for item in bench.val[:: max(len(bench.val) // 6, 1)][:6]:
        view = _views([item], training)[0]
        shown = _flat(view[0].astype(float), view[1] / 255.0).resize((192, 192))
        codes = bench.generator.generate(image=_picture(view), count=3, seed=SEED, **bench.sampling)
        made = [("from the picture", meshes.render(m, size=192)) for m in bench.codec.decode(codes)]
        rows.append([("picture given", shown), *made])
    with atomic_path(out) as aside:
        sheet(rows).save(aside)


def _flat(light: Array, alpha: Array) -> Any:
    from PIL import Image

    return Image.fromarray((light * alpha + 255 * (1 - alpha)).astype(np.uint8)).convert("RGB")


def _masses(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def main(argv: list[str] | None = None) -> None:
    """Run the parts that have no row yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=SHAPE_GENERATOR)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--codes", type=Path, help="codes of the training shapes")
    parser.add_argument("--views", type=Path, help="pictures of the training shapes")
    parser.add_argument("--cfg", type=float, default=2.0)
    parser.add_argument("--top-p", type=float, default=0.7, help="of samples with a condition")
    parser.add_argument(
        "--free-top-p", type=_masses, default=(1.0,), help="of samples without one, by scale"
    )
    parser.add_argument("--limit", type=int, default=None, help="shapes per split, for a trial")
    parser.add_argument("--sheet", type=Path, help="draw a contact sheet there")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    names = args.parts.split(",") if args.parts else []
    for name in names:
        if name not in PARTS:
            raise UnknownNameError("part", name, PARTS)
    bench = Bench(args)
    if args.sheet:
        sheets(bench, args.sheet)
    about = {
        "about": "one protocol per part, see the functions; Chamfer on 2,048 points per shape, "
        "longest side 2; V-IoU in the frame of the codes, without alignment",
        "model": bench.generator.name,
        "weights": bench.generator.weights,
        "cfg": args.cfg,
        "draft": DRAFT,
        "top_p": args.top_p,
        "free_top_p": args.free_top_p,
        "resolution": RESOLUTION,
        "limit": args.limit,
    }
    name = "shape_generation"
    results = Results(name, about, fresh=args.fresh, folder=args.out, keys=("part",))
    for part in names:
        if part in results.done():
            continue
        start = time.perf_counter()
        row = PARTS[part](bench)
        results.rows.append({"part": part, **row, "seconds": time.perf_counter() - start})
        results.save()
        print(results.rows[-1], flush=True)


if __name__ == "__main__":
    main()
