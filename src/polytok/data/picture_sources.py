"""What pictures are made of: emoji, icons, shapes and photos, and how each kind is drawn."""

from __future__ import annotations

import colorsys
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polytok.core.errors import PolytokError, one_line
from polytok.signals.image import read
from polytok.signals.svg import render

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]

FREE_LICENSE = "CC0-1.0"
BRANDS = "Brand / Logo"  # free to copy, but trademarks
MIRRORED = ("shapes", "photos", "labelled")
"""Kinds whose pictures mean the same in a mirror."""

_PLAIN_FILL = 0.9
_WHITE = np.ones(3, np.float32)
# Code points that change a figure's skin, gender or presentation, not what it shows.
_TONES = {*(f"1f3f{c}" for c in "bcdef"), "2640", "2642", "fe0f"}
_PEOPLE = {"1f468", "1f469", "1f9d1"}


@dataclass(frozen=True)
class Source:
    """One file that pictures are made of.

    Args:
        name: relative path. family: what looks alike has the same. group: a coarse label.
    """

    name: str
    family: str
    group: str


@dataclass(frozen=True)
class Kind:
    """How sources of a kind are found in a folder and drawn as (variants, 3, size, size)."""

    find: Callable[[Path], list[Source]]
    draw: Callable[[Path, Source, int, int, np.random.Generator], Pixels]
    variants: int


def find_emoji(root: Path) -> list[Source]:
    """``CODEPOINTS.svg`` with ``metadata.jsonl`` (file, caption) beside them."""
    rows = _json_lines(root / "metadata.jsonl")
    return [
        Source(row["file"], f"emoji/{emoji_family(row['file'])}", f"emoji/{_emoji_group(row)}")
        for row in sorted(rows, key=lambda row: row["file"])
    ]


def emoji_family(file: str) -> str:
    """The code points of an emoji without skin tone and gender."""
    parts = [p for p in Path(file).stem.split("-") if p not in _TONES]
    found = "-".join("person" if p in _PEOPLE else p for p in parts)
    return re.sub(r"(-200d)+$", "", found)


def _emoji_group(row: dict[str, Any]) -> str:
    first, caption = int(Path(row["file"]).stem.split("-")[0], 16), row["caption"]
    if 0x1F1E6 <= first <= 0x1F1FF or first == 0x1F3F4 or "flag" in caption.split():
        return "flag"
    if 0x1F600 <= first <= 0x1F644 or 0x1F910 <= first <= 0x1F917 or 0x1F920 <= first <= 0x1F92F:
        return "face"
    if "fitzpatrick" in caption or _PEOPLE & set(Path(row["file"]).stem.split("-")):
        return "person"
    return "thing"


def find_icons(root: Path) -> list[Source]:
    """``svg/NAME.svg`` with ``meta.json`` (name, tags); brands' signs are left out."""
    rows = _json(root / "meta.json")
    names = {row["name"] for row in rows if BRANDS not in row["tags"]}
    return [
        Source(f"svg/{name}.svg", f"icons/{name.split('-')[0]}", f"icons/{_icon_group(name)}")
        for name in sorted(names)
        if (root / "svg" / f"{name}.svg").is_file()
    ]


def _icon_group(name: str) -> str:
    return "outline" if "outline" in name.split("-") else "filled"


def find_shapes(root: Path) -> list[Source]:
    """Meshes with ``metadata.jsonl`` (file, license) beside them; those under CC0 alone."""
    rows = _json_lines(root / "metadata.jsonl")
    free = sorted(row["file"] for row in rows if row["license"] == FREE_LICENSE)
    return [Source(file, f"shapes/{_word(file)}", "shapes") for file in free]


def find_photos(root: Path) -> list[Source]:
    """Photos in any folder."""
    return [Source(file, f"photos/{file}", "photos") for file in _images(root)]


def find_labelled(root: Path) -> list[Source]:
    """Pictures laid out as ``class/name.jpg``."""
    found = [file for file in _images(root) if "/" in file]
    return [Source(f, f"labelled/{f}", f"labelled/{f.split('/')[-2]}") for f in found]


def draw_emoji(
    root: Path, source: Source, size: int, variants: int, rng: np.random.Generator
) -> Pixels:
    """An emoji over backgrounds."""
    svg = _text(root / source.name)
    return _over(lambda side, *_: _channels(render(svg, side)), size, variants, rng)


def draw_icon(
    root: Path, source: Source, size: int, variants: int, rng: np.random.Generator
) -> Pixels:
    """An icon in one colour over backgrounds that it stands out from."""
    svg = _text(root / source.name)

    def coloured(side: int, below: Array, is_plain: bool) -> Array:
        picture = _channels(render(svg, side))
        picture[:3] = 0 if is_plain else _standing_out(below, rng)[:, None, None]
        return picture

    return _over(coloured, size, variants, rng)


def draw_shape(
    root: Path, source: Source, size: int, variants: int, rng: np.random.Generator
) -> Pixels:
    """A mesh from random sides in a random colour over backgrounds."""
    from polytok.signals import mesh as meshes

    sampling = meshes.ViewSampling(count=variants, size=size)
    seen = meshes.views(meshes.read(root / source.name), sampling, rng).astype(np.float32) / 255
    out = np.empty((variants, 3, size, size), np.uint8)
    for view, (light, opacity) in enumerate(seen):
        below = _background(size, rng, is_plain=view == 0)
        tint = 0.1 + 0.9 * _colour(rng)
        colour = light * (tint / tint.max())[:, None, None]
        out[view] = _rounded(below + opacity * (colour - below))
    return out


def draw_photo(
    root: Path, source: Source, size: int, variants: int, rng: np.random.Generator
) -> Pixels:
    """The centre square of a photo, then random squares of half its side or more."""
    image = read(root / source.name).convert("RGB")
    out = np.empty((variants, 3, size, size), np.uint8)
    for view in range(variants):
        least = min(image.size)
        side = least if view == 0 else int(rng.integers(-(-least // 2), least + 1))
        left, top = (
            (whole - side) // 2 if view == 0 else int(rng.integers(0, whole - side + 1))
            for whole in image.size
        )
        box = (left, top, left + side, top + side)
        # With resize(box=...) Pillow would also look at pixels around the box.
        small = image.crop(box).resize((size, size), Image.Resampling.LANCZOS)
        out[view] = np.asarray(small).transpose(2, 0, 1)
    return out


KINDS = {
    "emoji": Kind(find_emoji, draw_emoji, 3),
    "icons": Kind(find_icons, draw_icon, 2),
    "shapes": Kind(find_shapes, draw_shape, 3),
    "photos": Kind(find_photos, draw_photo, 4),
    "labelled": Kind(find_labelled, draw_photo, 1),
}


def _over(
    figure: Callable[[int, Array, bool], Array], size: int, variants: int, rng: np.random.Generator
) -> Pixels:
    """Lay a figure over backgrounds: (variants, 3, size, size).

    Args:
        figure: gives (4, h, w) for a number of pixels, what will be below, and whether it is the
            plain first picture.
    """
    out = np.empty((variants, 3, size, size), np.uint8)
    for view in range(variants):
        frame = _background(size, rng, is_plain=view == 0)
        fill = _PLAIN_FILL if view == 0 else rng.uniform(0.6, 1.0)
        picture = figure(max(1, round(fill * size)), frame, view == 0)
        height, width = picture.shape[1:]
        if view == 0:
            top, left = (size - height) // 2, (size - width) // 2
        else:
            top, left = (int(rng.integers(0, size - s + 1)) for s in (height, width))
        part = frame[:, top : top + height, left : left + width]
        part += picture[3] * (picture[:3] - part)
        out[view] = _rounded(frame)
    return out


def _background(size: int, rng: np.random.Generator, *, is_plain: bool) -> Array:
    """White, one colour, or two that run into each other: (3, size, size) in [0, 1]."""
    first, second = _colour(rng), _colour(rng)
    drawn, angle = rng.random(), rng.uniform(0, 2 * np.pi)
    if is_plain or drawn < 0.25:
        first = second = _WHITE
    elif drawn < 0.7:
        second = first
    at = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    along = (np.cos(angle) * at[None] + np.sin(angle) * at[:, None]) / np.sqrt(2) + 0.5
    mixed = first[:, None, None] + along[None] * (second - first)[:, None, None]
    return np.ascontiguousarray(mixed, np.float32)


def _colour(rng: np.random.Generator) -> Array:
    """Any hue, from grey to vivid and from dark to bright."""
    hue, saturation, value = rng.random(3)
    return np.asarray(colorsys.hsv_to_rgb(hue, saturation, 0.1 + 0.9 * value), np.float32)


def _standing_out(below: Array, rng: np.random.Generator) -> Array:
    """Of a few colours the one that differs most in lightness from what is below."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    colours = [_colour(rng) for _ in range(4)]
    back = weights @ below.mean((1, 2))
    return max(colours, key=lambda colour: abs(float(weights @ colour - back)))


def _channels(image: Image.Image) -> Array:
    """``RGBA`` (4, H, W) in [0, 1]."""
    return np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255)


def _rounded(values: Array) -> Pixels:
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def _word(file: str) -> str:
    """The pack of a mesh and the first word of its name, which its variants share."""
    path = Path(file)
    words = re.split(r"(?<=[a-z])(?=[A-Z])|[^A-Za-z]+", path.stem)
    return f"{path.parent.name}/{next((w for w in words if w), path.stem).lower()}"


def _images(root: Path) -> list[str]:
    from polytok.data.images import SUFFIXES

    found = (p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    return sorted(p.relative_to(root).as_posix() for p in found)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolytokError(f"{path.name}: {one_line(error)}") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolytokError(f"{path.name} is missing or damaged: {one_line(error)}") from error


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise PolytokError(f"{path.name} is missing or damaged: {one_line(error)}") from error
