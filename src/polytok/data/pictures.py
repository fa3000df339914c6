"""Folders of small pictures that tokenizers train on: drawn or cropped once, loaded whole.

Every source (an icon, a shape, a photo) gives a few pictures: the first one plain, centred on
white, the others with a place, size, colours and background of their own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytok.core.config import from_dict
from polytok.core.errors import ConfigError, PolytokError, UnknownNameError, one_line
from polytok.core.files import atomic_path, opened_folder
from polytok.core.seeding import derive, numpy_rng
from polytok.data.codes import keep_index
from polytok.data.images import EpochOrder, LabelledImages
from polytok.data.picture_sources import KINDS, MIRRORED, Source

Pixels = NDArray[np.uint8]
Split = Literal["train", "val", "test"]

INDEX = "pictures.json"
PART = 256  # sources in a file
HELD_BACK = {"test": range(5), "val": range(5, 10)}  # of 100


@dataclass(frozen=True, kw_only=True)
class PictureIndex:
    """What a folder of pictures of one kind holds.

    Args:
        names: files of the sources, in order. variants: pictures per source.
    """

    kind: str
    size: int
    variants: int
    names: tuple[str, ...]
    seed: int = 0


def prepare_pictures(
    kind: str,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int = 64,
    seed: int = 0,
    variants: int | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> PictureIndex:
    """Make the pictures of one kind in ``out/kind``; what is there already is not made again.

    Args:
        kind: ``emoji``, ``icons``, ``shapes``, ``photos`` or ``labelled``.
        source: folder or zip of its files, see :mod:`polytok.data.picture_sources`.
        out: folder that several kinds may share.
        size: pixels per side. seed: of every draw.
        variants: pictures per source; None takes what the kind is used to.
        limit: at most so many sources.
        progress: is told how many sources are done, of how many.

    Raises:
        UnknownNameError: there is no such kind.
        ConfigError: a number is out of range, or ``out`` holds other pictures of this kind.
        PolytokError: the source is missing, has no files of this kind, or one cannot be read.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of pictures", kind, KINDS)
    count = KINDS[kind].variants if variants is None else variants
    for name, value in (
        ("size", size),
        ("variants", count),
        ("limit", 1 if limit is None else limit),
    ):
        if value < 1:
            raise ConfigError(f"{name}={value} is not positive")
    folder = Path(out) / kind
    with opened_folder(source) as root:
        sources = KINDS[kind].find(root)[:limit]
        if not sources:
            raise PolytokError(f"{source} has no {kind}")
        index = PictureIndex(
            kind=kind, size=size, variants=count, names=tuple(s.name for s in sources), seed=seed
        )
        folder.mkdir(parents=True, exist_ok=True)
        keep_index(folder / INDEX, index, "pictures")
        for number, some in enumerate(_parts(sources)):
            if not _path(folder, number).is_file():
                _make_part(_path(folder, number), root, some, index)
            if progress is not None:
                progress(min(len(sources), (number + 1) * PART), len(sources))
    return index


def split_of(family: str) -> Split:
    """Which split the sources of a family belong to: 90% train, 5% val, 5% test, for ever."""
    place = derive(0, "pictures", family) % 100
    for name in ("test", "val"):
        if place in HELD_BACK[name]:
            return name
    return "train"


def read_pictures(
    folder: str | os.PathLike[str],
    split: Split,
    *,
    kinds: Sequence[str] | None = None,
    plain: bool = False,
) -> LabelledImages:
    """Read the pictures of a split, all kinds one after the other.

    Sources that look alike, such as an emoji in several skin tones, are in the same split. Labels
    are coarse groups such as ``emoji/face``; ``classes`` has those of every split.

    Args:
        folder: made by :func:`prepare_pictures`.
        kinds: only these. plain: only the first picture of every source.

    Raises:
        UnknownNameError: there is no such split.
        PolytokError: a kind or part of it is missing or damaged, sizes differ, or none is left.
    """
    if split not in ("train", *HELD_BACK):
        raise UnknownNameError("split", split, ("train", *HELD_BACK))
    root = Path(folder)
    found = kinds or sorted(p.parent.name for p in root.glob(f"*/{INDEX}"))
    if not found:
        raise PolytokError(f"{folder} has no pictures")
    names, groups, pixels, classes = list[str](), list[str](), list[Pixels](), set[str]()
    for kind in found:
        for part, rows in _read_kind(root / kind):
            classes |= {row["group"] for row in rows}
            for views, row in zip(part, rows, strict=True):
                if split_of(row["family"]) == split:
                    kept = views[:1] if plain else views
                    names += [f"{kind}/{row['name']}"] * len(kept)
                    groups += [row["group"]] * len(kept)
                    pixels.append(kept)
    if len({views.shape[2:] for views in pixels}) != 1:
        sizes = sorted({views.shape[-1] for views in pixels})
        raise PolytokError(f"{folder} has no pictures of one size for {split!r}, but {sizes}")
    places = {name: i for i, name in enumerate(sorted(classes))}
    return LabelledImages(
        torch.from_numpy(np.concatenate(pixels)),
        torch.tensor([places[group] for group in groups]),
        tuple(sorted(classes)),
        tuple(names),
    )


class PictureSamples:
    """Numbered training samples: shifted, some mirrored; epoch by epoch in new order.

    A sample has ``image`` (3, H, W) in [0, 1], ``label`` () int64 and ``seed`` () int64. Emoji
    and icons hold letters and arrows, so they are never mirrored; nor is what has no kind.

    Args:
        images: from :func:`read_pictures`.
        shift: pixels a picture may move each way; its border is repeated.
    """

    def __init__(self, images: LabelledImages, *, shift: int = 3, seed: int = 0) -> None:
        if shift < 0:
            raise ConfigError(f"shift={shift} is negative")
        self.data, self.shift, self.seed = images, shift, seed
        self._order = EpochOrder(len(images), seed)
        self._mirrored = [name.split("/")[0] in MIRRORED for name in images.classes]

    def __len__(self) -> int:
        return len(self.data)

    def sample(self, n: int) -> dict[str, Tensor]:
        """Sample n >= 0, always the same for the same n."""
        index = self._order(n)
        rng = numpy_rng(self.seed, "picture", n)
        image, label = self.data.pixels[index], self.data.labels[index]
        if rng.random() < 0.5 and self._mirrored[int(label)]:
            image = image.flip(-1)
        top, left = (int(v) for v in rng.integers(-self.shift, self.shift + 1, 2))
        height, width = image.shape[-2:]
        rows = (torch.arange(height) + top).clamp(0, height - 1)
        columns = (torch.arange(width) + left).clamp(0, width - 1)
        image = image[:, rows][:, :, columns].float() / 255
        return {"image": image, "label": label, "seed": torch.tensor(derive(self.seed, n))}


def _parts(sources: Sequence[Source]) -> Iterator[Sequence[Source]]:
    for start in range(0, len(sources), PART):
        yield sources[start : start + PART]


def _path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:03d}.safetensors"


def _make_part(path: Path, root: Path, sources: Sequence[Source], index: PictureIndex) -> None:
    from safetensors.numpy import save_file

    draw = KINDS[index.kind].draw
    pixels = np.empty((len(sources), index.variants, 3, index.size, index.size), np.uint8)
    for views, source in zip(pixels, sources, strict=True):
        rng = numpy_rng(index.seed, "draw", index.kind, source.name)
        try:
            views[:] = draw(root, source, index.size, index.variants, rng)
        except PolytokError as error:
            raise PolytokError(f"{source.name} cannot be drawn: {one_line(error)}") from error
    rows = [{"name": s.name, "family": s.family, "group": s.group} for s in sources]
    with atomic_path(path) as aside:
        save_file({"pixels": pixels}, aside, {"rows": json.dumps(rows)})


def _read_kind(folder: Path) -> Iterator[tuple[Pixels, list[dict[str, str]]]]:
    """Pictures (n, variants, 3, H, W) of every part, and a row for each of their n sources."""
    from safetensors import SafetensorError, safe_open

    try:
        index = from_dict(PictureIndex, json.loads((folder / INDEX).read_text()))
        for number in range(-(-len(index.names) // PART)):
            with safe_open(_path(folder, number), "numpy") as file:
                yield file.get_tensor("pixels"), json.loads(file.metadata()["rows"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise PolytokError(f"{folder} has no whole set of pictures: {one_line(error)}") from error
