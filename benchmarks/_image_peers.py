"""What other coders make of a picture in so many bytes: WebP, AVIF, JPEG and hashes.

A picture is coded at its own size, or shrunk before and enlarged after. Files are kept in a folder,
one JSON per picture, so that nothing is searched twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polytok.core.files import write_text

Pixels = NDArray[np.uint8]
Coder = Callable[[Image.Image, int], bytes]

TOP = 100  # of qualities, from 0
BICUBIC, LANCZOS = "BICUBIC", "LANCZOS"
FILTERS = (BICUBIC, LANCZOS)
BLUR_GRIDS = ((4, 3), (3, 4), (3, 3))  # 28, 28 and 22 characters
BLUR_SIDE = 32  # it holds no more than a few waves: pixels it is computed on
PACKAGES = ("Pillow", "thash", "blurhash")


@dataclass(frozen=True)
class Coded:
    """A file, and with which filter its picture is enlarged to the size of the original."""

    method: str
    data: bytes
    filter: str = BICUBIC

    def picture(self, size: tuple[int, int]) -> Image.Image:
        """Decode to ``RGB`` of the given width and height."""
        small = DECODERS.get(self.method, _opened)(self.data)
        if small.size == size:
            return small
        return small.resize(size, Image.Resampling[self.filter])


def search(
    picture: Image.Image, budgets: Sequence[int], sides: Sequence[int], hashes: bool = True
) -> dict[str, dict[int, Coded]]:
    """By method and budget, the file whose picture is nearest by mean square.

    Methods are ``webp``, ``avif`` and ``jpeg``, each also as ``small-*``: shrunk to the best of
    the ``sides``; besides ``webp-lossless``, ``thumbhash`` and ``blurhash`` if ``hashes``. Budgets
    that no file fits are left out.

    Args:
        budgets: bytes. sides: pixels of the longest side.
    """
    error = cache(partial(_error, np.asarray(picture, np.float32), picture.size))
    found: dict[str, dict[int, Coded]] = {}
    smaller = [side for side in sides if side < max(picture.size)]
    for name, coders in CODERS.items():
        for method, shrunk, filters in (
            (name, [picture], FILTERS[:1]),
            (f"small-{name}", [_shrunk(picture, side) for side in smaller], FILTERS),
        ):
            files = [_largest(coder, one, budgets) for one in shrunk for coder in coders]
            fit = {
                b: [Coded(name, f[b], way) for f in files if b in f for way in filters]
                for b in budgets
            }
            found[method] = _nearest(fit, error)
    if hashes:
        for method, coded in (
            ("webp-lossless", [Coded("webp", _webp_lossless(picture))]),
            ("thumbhash", [Coded("thumbhash", _thumbhash(picture), f) for f in FILTERS]),
            ("blurhash", [Coded("blurhash", d, f) for d in _blurhashes(picture) for f in FILTERS]),
        ):
            fit = {b: [c for c in coded if len(c.data) <= b] for b in budgets}
            found[method] = _nearest(fit, error)
    return found


def kept_search(
    picture: Image.Image,
    budgets: Sequence[int],
    sides: Sequence[int],
    folder: Path,
    hashes: bool = True,
) -> dict[str, dict[int, Coded]]:
    """:func:`search`, kept in ``folder`` under what it depends on."""
    asked = [list(picture.size), list(budgets), list(sides), hashes]
    key = hashlib.blake2b(picture.tobytes() + json.dumps(asked).encode(), digest_size=8).hexdigest()
    path = folder / f"{key}.json"
    if path.exists():
        stored = json.loads(path.read_text())
        return {
            method: {int(b): Coded(c[0], bytes.fromhex(c[1]), c[2]) for b, c in files.items()}
            for method, files in stored.items()
        }
    found = search(picture, budgets, sides, hashes)
    rows = {
        method: {b: [c.method, c.data.hex(), c.filter] for b, c in files.items()}
        for method, files in found.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(rows))
    return found


def mean_colour(picture: Image.Image) -> Image.Image:
    """What a file that does not fit counts as: the mean colour of the picture."""
    colour = np.rint(np.asarray(picture, np.float64).mean((0, 1))).astype(int)
    return Image.new("RGB", picture.size, tuple(colour.tolist()))


def _largest(coder: Coder, picture: Image.Image, budgets: Iterable[int]) -> dict[int, bytes]:
    """The file of highest quality within each budget, by bisection."""
    encode = cache(partial(coder, picture))
    found, low = {}, 0
    for budget in sorted(budgets):
        if len(encode(low)) > budget:
            continue  # only the lowest quality can be too large here
        high = TOP + 1
        while high - low > 1:
            middle = (low + high) // 2
            if len(encode(middle)) <= budget:
                low = middle
            else:
                high = middle
        found[budget] = encode(low)
    return found


def _nearest(
    choice: Mapping[int, Sequence[Coded]], error: Callable[[Coded], float]
) -> dict[int, Coded]:
    """The best of each budget's files; a file that fits a smaller budget also fits this one."""
    found: dict[int, Coded] = {}
    best: list[Coded] = []
    for budget in sorted(choice):
        best = sorted([*best, *choice[budget]], key=error)[:1]
        if best:
            found[budget] = best[0]
    return found


def _error(values: NDArray[np.float32], size: tuple[int, int], coded: Coded) -> float:
    return float(np.square(np.asarray(coded.picture(size), np.float32) - values).mean())


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    longest = max(picture.size)
    width, height = (max(1, round(s * side / longest)) for s in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _saved(picture: Image.Image, form: str, **options: object) -> bytes:
    out = BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def _webp(picture: Image.Image, quality: int) -> bytes:
    return _saved(picture, "WEBP", quality=quality, method=6)


def _webp_lossless(picture: Image.Image) -> bytes:
    return _saved(picture, "WEBP", lossless=True, quality=100, method=4)


def _avif(picture: Image.Image, quality: int) -> bytes:
    return _saved(picture, "AVIF", quality=quality, max_threads=1)


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    data = _saved(picture, "JPEG", quality=max(1, quality), optimize=True)
    # Readers need no JFIF segment, the first one.
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


def _grey_jpeg(picture: Image.Image, quality: int) -> bytes:
    return _jpeg(picture.convert("L"), quality)


def _thumbhash(picture: Image.Image) -> bytes:
    import thash

    return bytes(thash.encode(picture))


def _blurhashes(picture: Image.Image) -> list[bytes]:
    import blurhash

    small = np.asarray(picture.resize((BLUR_SIDE, BLUR_SIDE), Image.Resampling.LANCZOS)).tolist()
    return [blurhash.encode(small, x, y).encode() for x, y in BLUR_GRIDS]


def _opened(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data)) as image:
        return image.convert("RGB")


def _from_thumbhash(data: bytes) -> Image.Image:
    import thash

    width, height, rgba = thash.thumb_hash_to_rgba(list(data))
    return Image.frombytes("RGBA", (width, height), bytes(rgba)).convert("RGB")


def _from_blurhash(data: bytes) -> Image.Image:
    import blurhash

    pixels = blurhash.decode(data.decode(), BLUR_SIDE, BLUR_SIDE)
    return Image.fromarray(np.asarray(pixels, np.uint8))


CODERS: dict[str, tuple[Coder, ...]] = {
    "webp": (_webp,),
    "avif": (_avif,),
    "jpeg": (_jpeg, _grey_jpeg),
}
DECODERS: dict[str, Callable[[bytes], Image.Image]] = {
    "thumbhash": _from_thumbhash,
    "blurhash": _from_blurhash,
}
