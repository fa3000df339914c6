"""Labelled images of one size, from a zip or folder laid out as ``class/name.jpg``."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from polytok.core.errors import ConfigError, SignalError, one_line
from polytok.core.seeding import numpy_rng

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory.

    Args:
        pixels: (N, 3, H, W) uint8. labels: (N,) int64. classes: name of each label, sorted.
        names: file of each image; empty where they are not kept.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, items: slice | Tensor = slice(None)) -> Tensor:
        """Some images as floats (n, 3, H, W) in [0, 1]."""
        return self.pixels[items].float() / 255

    def take(self, items: Tensor) -> LabelledImages:
        """The images of these numbers, in their order."""
        names = tuple(self.names[i] for i in items.tolist()) if self.names else ()
        return LabelledImages(self.pixels[items], self.labels[items], self.classes, names)

    def split(self, held_out: int, *, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
        """A random part of ``held_out`` images, and the rest: ``(rest, part)``.

        Raises:
            ConfigError: ``held_out`` leaves one side empty.
        """
        if not 0 < held_out < len(self):
            raise ConfigError(f"held_out={held_out} is not within 1..{len(self) - 1}")
        order = torch.from_numpy(numpy_rng(seed, "held-out").permutation(len(self)))
        part, rest = order[:held_out].sort().values, order[held_out:].sort().values
        return self.take(rest), self.take(part)


def read_labelled(path: str | Path, size: int) -> LabelledImages:
    """Read every image of a zip or folder, in the order of their names.

    Args:
        size: pixels a side that every image has.

    Raises:
        SignalError: it is missing or damaged, holds no image in a class folder, or an image has
            another size.
    """
    names, pixels = [], []
    for name, data in _files(Path(path)):
        names.append(name)
        pixels.append(_pixels(f"{path}: {name}", data, size))
    if not names:
        raise SignalError(f"{path}: no images of the form class/name{SUFFIXES[0]}")
    found = [name.split("/")[-2] for name in names]
    classes = tuple(sorted(set(found)))
    index = {name: i for i, name in enumerate(classes)}
    return LabelledImages(
        torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
        torch.tensor([index[n] for n in found]),
        classes,
        tuple(names),
    )


def _files(path: Path) -> list[tuple[str, bytes]]:
    """Name, with its class folder, and content of every image."""
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if _is_image(p.relative_to(path).as_posix()))
        return [(p.relative_to(path).as_posix(), p.read_bytes()) for p in found]
    try:
        with ZipFile(path) as archive:
            return [(n, archive.read(n)) for n in sorted(archive.namelist()) if _is_image(n)]
    except (OSError, BadZipFile) as error:
        raise SignalError(f"{path}: not a readable zip or folder ({one_line(error)})") from error


def _is_image(name: str) -> bool:
    return "/" in name and name.lower().endswith(SUFFIXES)


def _pixels(name: str, data: bytes, size: int) -> NDArray[np.uint8]:
    try:
        with Image.open(BytesIO(data)) as image:
            image.draft("RGB", None)
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise SignalError(f"{name}: not a readable image ({one_line(error)})") from error
    if pixels.shape[:2] != (size, size):
        raise SignalError(f"{name}: is {pixels.shape[1]}x{pixels.shape[0]}, not {size}x{size}")
    return pixels


class EpochOrder:
    """The order of samples: every item once in an epoch, in a new order each time."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __call__(self, n: int) -> int:
        """Which item sample n >= 0 is."""
        epoch, place = divmod(n, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = numpy_rng(self.seed, "epoch", epoch).permutation(self.length)
        return int(self._order[place])


class AugmentedImages:
    """Numbered training samples: shifted, mirrored, partly erased; epoch by epoch in new order.

    A sample has ``image`` (3, H, W) in [0, 1], ``label`` () int64 and ``seed`` () int64.

    Args:
        shift: pixels an image may move each way; what comes in is black.
        erase: probability that a random square of up to half a side turns grey.
    """

    def __init__(
        self, images: LabelledImages, *, shift: int = 4, erase: float = 0.25, seed: int = 0
    ) -> None:
        if shift < 0 or not 0 <= erase <= 1:
            raise ConfigError(f"shift={shift} must be >= 0 and erase={erase} within [0, 1]")
        self.data, self.shift, self.erase, self.seed = images, shift, erase, seed
        self._order = EpochOrder(len(images), seed)

    def __len__(self) -> int:
        return len(self.data)

    def sample(self, n: int) -> dict[str, Tensor]:
        """Sample n >= 0, always the same for the same n."""
        index = self._order(n)
        rng = numpy_rng(self.seed, "augment", n)
        image = self.data.pixels[index]
        if rng.random() < 0.5:
            image = image.flip(-1)
        image = self._moved(image, rng).float() / 255
        if rng.random() < self.erase:
            self._erased(image, rng)
        return {"image": image, "label": self.data.labels[index], "seed": torch.tensor(n)}

    def _moved(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        height, width = image.shape[-2:]
        padded = torch.nn.functional.pad(image, [self.shift] * 4)
        top, left = (int(v) for v in rng.integers(0, 2 * self.shift + 1, 2))
        return padded[:, top : top + height, left : left + width]

    @staticmethod
    def _erased(image: Tensor, rng: np.random.Generator) -> None:
        side = int(rng.integers(1, image.shape[-1] // 2 + 1))
        top, left = (int(v) for v in rng.integers(0, image.shape[-1] - side + 1, 2))
        image[:, top : top + side, left : left + side] = 0.5
