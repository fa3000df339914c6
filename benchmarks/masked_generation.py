"""Masked image generation by its number of steps: classes, distance to real images, copies, time.

    python benchmarks/masked_generation.py --generator RUN --classifier RUN \\
        --train images/cifar10-train.zip --val images/cifar10-test.zip

RUN are folders of training; the generator names its tokenizer, and the classifier has learnt the
same classes. A classifier may also be a file of ``_class_judge.py``. Every row of
``benchmarks/results/masked_generation.json`` is a set of images against the val images: samples of
so many steps, and what to compare them with. *Feature distance* is the Frechet distance of the
classifier's last features: it ranks sets under this classifier alone, and is no score of any other
network. ``--sheet`` draws samples beside their nearest training images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import _class_judge as class_judge
from _image_judges import load_judge as load_kept
from _results import RESULTS, Results, Row
from polytok.core.contracts import Codes
from polytok.core.errors import ConfigError
from polytok.core.files import atomic_path
from polytok.core.seeding import torch_rng
from polytok.data.images import LabelledImages
from polytok.metrics import frechet_distance
from polytok.signals.sheet import sheet
from polytok.systems import api
from polytok.systems.classics.vit_classifier import ViTClassifier
from polytok.systems.images import read_split

SEED = 0
BATCH = 100
STEPS = (1, 2, 4, 8, 16, 32)
SHEET_ROWS, SHEET_COLUMNS, SHEET_PIXELS = 4, 8, 96


class Judge:
    """What a classifier says of images (n, 3, H, W) in [0, 1], resized to what it takes.

    Args:
        look: features (n, d) and class scores (n, c) of images (n, 3, size, size) in [0, 1].
    """

    def __init__(
        self, look: Callable[[Tensor], tuple[Tensor, Tensor]], size: int, count: int
    ) -> None:
        self.look, self.size, self.num_classes = look, size, count
        self.told: Row = {}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Classes (n,) and features (n, d)."""
        found = [self.look(self._resized(part).clamp(0, 1)) for part in images.split(BATCH)]
        features, scores = (torch.cat(parts) for parts in zip(*found, strict=True))
        return scores.argmax(-1), features

    def _resized(self, images: Tensor) -> Tensor:
        if images.shape[-1] == self.size:
            return images
        return F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)


def load_judge(name: str) -> Judge:
    """The judge of a file of ``_class_judge.py``, or of a run or tag of ``vit-classifier``.

    Raises:
        ConfigError: it is neither.
    """
    if name.endswith(".safetensors"):
        kept, told = load_kept(Path(name), class_judge.ClassJudge, "benchmarks/_class_judge.py")
        judge = Judge(kept.look, class_judge.SIZE, len(told["classes"]))
        judge.told = told
        return judge
    model = api.load(name)
    if not isinstance(model, ViTClassifier):
        raise ConfigError(f"{name} is no classifier of images")
    vit: Any = model.vit

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = vit.forward_features(images * 2 - 1)
        return vit.forward_head(tokens, pre_logits=True), vit.forward_head(tokens)

    return Judge(look, model.config.size, model.config.num_classes)


@contextmanager
def counted(net: torch.nn.Module) -> Iterator[list[int]]:
    """The rows of every pass of a net meanwhile."""
    rows: list[int] = []
    handle = net.register_forward_hook(lambda *args: rows.append(len(args[2])))
    try:
        yield rows
    finally:
        handle.remove()


class Bench:
    """What the rows share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.generator = api.load_generator(args.generator, modality="image")
        self.codec = self.generator.codec
        self.judge = load_judge(args.classifier)
        self.train = read_split(args.train, "train", self.codec.size)
        self.val = read_split(args.val, "val", self.codec.size)
        if args.limit is not None:
            self.val = self.val.take(_spread(len(self.val), args.limit))
        self.count: int = args.count or len(self.val)
        self.has_classes = self.generator.model.config.num_classes > 0
        names = self.generator.classes
        if self.has_classes and not self.train.classes == self.val.classes == names:
            raise ConfigError(f"the generator has classes {names}, not those of the images")
        if self.has_classes and self.judge.num_classes != len(names):
            raise ConfigError(
                f"the classifier has {self.judge.num_classes} classes, not {len(names)}"
            )
        self.options = {"cfg": args.cfg, "temperature": args.temperature}

    @property
    def labels(self) -> Tensor:
        """Classes that samples are asked for, evenly."""
        return torch.arange(self.count) % max(1, len(self.generator.classes))

    @cached_property
    def val_features(self) -> Tensor:
        return self.judge(self.val.images())[1]

    def draw(self, steps: int | None, count: int) -> Codes:
        """Samples of one seed, each of its class."""
        labels = self.labels[:count].tolist() if self.has_classes else None
        return self.generator.generate(labels, count=count, seed=SEED, steps=steps, **self.options)

    def pictures(self, codes: Codes) -> Tensor:
        """Decoded codes (n, 3, S, S) in [0, 1], as they are written to files."""
        return torch.cat([_tensor(p) for p in self.generator.images(codes)])

    def scores(self, images: Tensor, labels: Tensor) -> Row:
        """Distance to val, and agreement of the classifier with the labels."""
        classes, features = self.judge(images)
        row: Row = {
            "images": len(images),
            "feature_distance": frechet_distance(features.numpy(), self.val_features.numpy()),
        }
        if self.has_classes:
            row["class_agreement"] = float((classes == labels).float().mean())
        return row


def samples(bench: Bench, steps: int) -> Row:
    """Samples of so many steps: scores, passes of the net, seconds per image."""
    with counted(bench.generator.model.net) as one:
        bench.draw(steps, 1)
    with counted(bench.generator.model.net) as rows:
        start = time.perf_counter()
        codes = bench.draw(steps, bench.count)
        middle = time.perf_counter()
    images = bench.pictures(codes)
    end = time.perf_counter()
    return {
        "steps": steps,
        "passes": len(one),
        "rows_per_image": sum(rows) / bench.count,
        "token_seconds": (middle - start) / bench.count,
        "decode_seconds": (end - middle) / bench.count,
        "threads": torch.get_num_threads(),
        **bench.scores(images, bench.labels),
    }


def decoded(bench: Bench) -> Row:
    """Val images after the tokenizer alone: the best that samples can be."""
    return bench.scores(_decoded(bench, bench.val), bench.val.labels)


def training(bench: Bench) -> Row:
    """As many training images: what is left when images are real."""
    some = bench.train.take(_spread(len(bench.train), bench.count))
    return bench.scores(some.images(), some.labels)


def independent(bench: Bench) -> Row:
    """Every id drawn from its place in training codes, each alone: what the generator must beat."""
    some = bench.train.take(_spread(len(bench.train), bench.count))
    ids = _encoded(bench, some)
    rng = torch_rng(SEED, "independent")
    drawn = torch.stack(
        [column[torch.randint(len(column), (bench.count,), generator=rng)] for column in ids.T],
        dim=1,
    )
    return bench.scores(_pictures_of(bench, drawn), bench.labels)


def copies(bench: Bench) -> Row:
    """Share of samples, and of val, nearer to a training image than the tokenizer's error.

    Distances are root mean squares over values in [0, 1].
    """
    errors = (_decoded(bench, bench.val) - bench.val.images()).square().flatten(1).mean(1).sqrt()
    limit = float(errors.median())
    of_samples = nearest(bench.pictures(bench.draw(None, bench.count)), bench.train)[0]
    of_val = nearest(bench.val.images(), bench.train)[0]
    return {
        "images": bench.count,
        "tokenizer_error": limit,
        "samples_copied": float((of_samples < limit).float().mean()),
        "val_copied": float((of_val < limit).float().mean()),
        "samples_nearest": float(of_samples.median()),
        "val_nearest": float(of_val.median()),
    }


REFERENCES: dict[str, Callable[[Bench], Row]] = {
    "decoded": decoded,
    "training": training,
    "independent": independent,
    "copies": copies,
}


def nearest(images: Tensor, among: LabelledImages) -> tuple[Tensor, Tensor]:
    """Distance (n,) of images to the nearest of others, and which that is."""
    mine = images.flatten(1)
    best = torch.full((len(mine),), torch.inf)
    place = torch.zeros(len(mine), dtype=torch.int64)
    for start in range(0, len(among), 10 * BATCH):
        theirs = among.images(slice(start, start + 10 * BATCH)).flatten(1)
        found, which = torch.cdist(mine, theirs).min(1)
        is_nearer = found < best
        best[is_nearer], place[is_nearer] = found[is_nearer], which[is_nearer] + start
    return best / mine.shape[1] ** 0.5, place


def draw_sheet(bench: Bench, out: Path) -> None:
    """Samples, and below each the training image nearest to it."""
    count = min(bench.count, SHEET_ROWS * SHEET_COLUMNS)
    codes = bench.draw(None, count)
    distance, place = nearest(bench.pictures(codes), bench.train)
    shown = bench.generator.images(codes, size=SHEET_PIXELS)
    real = [_picture(bench.train.pixels[i]) for i in place.tolist()]
    rows: list[list[tuple[str, Any]]] = []
    for start in range(0, count, SHEET_COLUMNS):
        items = range(start, min(start + SHEET_COLUMNS, count))
        names = bench.generator.classes
        told = [names[int(bench.labels[i])] if names else "sample" for i in items]
        rows.append([(name, shown[i]) for name, i in zip(told, items, strict=True)])
        rows.append([(f"{float(distance[i]):.3f}", real[i]) for i in items])
    with atomic_path(out) as aside:
        sheet(rows).save(aside)


def _picture(pixels: Tensor) -> Image.Image:
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return picture.resize((SHEET_PIXELS, SHEET_PIXELS), Image.Resampling.NEAREST)


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


@torch.inference_mode()
def _encoded(bench: Bench, images: LabelledImages) -> Tensor:
    """Ids (n, L)."""
    model = bench.codec.model
    parts = range(0, len(images), BATCH)
    found = [model.encode({"image": images.images(slice(i, i + BATCH))}).indices[0] for i in parts]
    return torch.cat(found)


def _decoded(bench: Bench, images: LabelledImages) -> Tensor:
    return _pictures_of(bench, _encoded(bench, images))


def _pictures_of(bench: Bench, ids: Tensor) -> Tensor:
    sides = torch.full((len(ids), 2), bench.codec.size)
    meta = {"size": sides, "tiles": torch.ones(len(ids), dtype=torch.int64)}
    return bench.pictures(Codes(indices=(ids,), meta=meta))


def _spread(length: int, count: int) -> Tensor:
    return torch.linspace(0, length - 1, min(count, length)).round().long()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rows that are not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--generator", required=True, help="weights tag or folder")
    parser.add_argument("--classifier", required=True, help="folder of a vit-classifier, or a file")
    parser.add_argument("--train", required=True, help="images that both have learnt")
    parser.add_argument("--val", required=True, help="unseen images")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--cfg", type=float, default=None, help="default: the model's own")
    parser.add_argument("--temperature", type=float, default=None, help="default: the model's own")
    parser.add_argument("--count", type=int, default=None, help="samples; default as many as val")
    parser.add_argument("--limit", type=int, default=None, help="val images, for a trial")
    parser.add_argument("--name", default="masked_generation", help="of the results")
    parser.add_argument("--sheet", type=Path, help="draw a contact sheet there")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    bench = Bench(args)
    config = bench.generator.model.config
    about = {
        "about": "sets of images against val images; feature distance: Frechet distance of the "
        "classifier's last features, which ranks sets under this classifier alone; class "
        "agreement: share of samples that the classifier gives the class they were asked for",
        "generator": bench.generator.weights,
        "tokenizer": bench.codec.weights,
        "judge": bench.judge.told,
        "cfg": config.cfg if args.cfg is None else args.cfg,
        "guidance": config.guidance,
        "temperature": config.temperature if args.temperature is None else args.temperature,
        "val_images": len(bench.val),
        "train_images": len(bench.train),
    }
    results = Results(args.name, about, seed=SEED, fresh=args.fresh, folder=args.out, keys=("set",))
    if args.sheet:
        draw_sheet(bench, args.sheet)
    wanted = [int(text) for text in args.steps.split(",") if text]
    todo = {name: partial(make, bench) for name, make in REFERENCES.items()}
    for steps in wanted:
        if steps <= config.length:
            todo[f"steps {steps:03d}"] = partial(samples, bench, steps)
    for name, make in todo.items():
        if name not in results.done():
            results.rows.append({"set": name, **make()})
            results.save()
            print(results.rows[-1], flush=True)


if __name__ == "__main__":
    main()
