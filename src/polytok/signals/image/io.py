"""Read any common image file as 8-bit sRGB, say what is left out, and write pictures."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin, UnidentifiedImageError

from polytok.core.errors import SignalError, one_line
from polytok.core.files import atomic_path

# No EPS, PSD and the like: their decoders run other programs or guess at damaged files.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What ``read`` knows, by Pillow's names."""

EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".ico", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
"""What is looked for in folders; ``read`` tells the format by content."""

WRITABLE = (".jpeg", ".jpg", ".png", ".webp")
"""What ``write`` knows."""

LONGEST = {".jpeg": 65_500, ".jpg": 65_500, ".webp": 16_383}
"""Pixels along a side that a format can store, where that is not beyond all pictures."""

MAX_PIXELS = 100_000_000
MAX_JPEG_PIXELS = 500_000_000
WORKING_SIDE = 4096
JPEG_QUALITY = 95

# What Pillow raises while it parses what is not the picture itself: tags, later frames.
_DAMAGE = (
    *(AttributeError, EOFError, KeyError, OSError, SyntaxError, TypeError, ValueError),
    struct.error,
)

Note = Callable[[str], object]
"""Gets one line for everything of a file that reading changes or leaves out."""


def read(path: str | os.PathLike[str], *, note: Note | None = None) -> Image.Image:
    """Read an image file as 8-bit sRGB: ``RGB``, or ``RGBA`` where it has transparency.

    EXIF orientation is applied, unless the tags are damaged, and the tags are dropped; colours
    are converted from the ICC profile; of an animation the first frame is read. The format is
    told by content, not by extension. JPEG files of 100 to 500 megapixels whose rows can be
    decoded one by one are read at a half, a quarter or an eighth of their sides, of which the
    longest stays at 4096 pixels or more.

    Args:
        note: is told of each of these that applies, if the picture can be read.

    Raises:
        SignalError: the file is missing, damaged, not an image of a known format, of more than
            100 megapixels (500 for JPEG), or a float image with values outside [0, 1].
    """
    path, notes = Path(path), list[str]()
    if path.is_dir():
        raise SignalError(f"{path}: is a folder, not an image file")
    try:
        # Pillow warns of large files and damaged tags; what matters here raises.
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            with _opened(file) as image:
                _reduce(image, file, notes.append)
                picture = plain(image, note=notes.append)
    except SignalError as error:
        raise SignalError(f"{path}: {error}") from error
    except Image.DecompressionBombError as error:
        reason = f"more than {MAX_PIXELS // 10**6} megapixels"
        raise SignalError(f"{path}: {reason}") from error
    except UnidentifiedImageError as error:
        known = " ".join(FORMATS).lower()
        raise SignalError(f"{path}: not a readable image (known: {known})") from error
    except OSError as error:
        raise SignalError(f"{path}: {error.strerror or one_line(error, 120)}") from error
    except Exception as error:
        # Decoders fail in many ways on damaged files; the user needs to know which file it was.
        raise SignalError(f"{path}: not a readable image ({one_line(error, 120)})") from error
    _pass_on(notes, note)
    return picture


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as an image of a format that :func:`read` knows."""
    try:
        with warnings.catch_warnings(), Path(path).open("rb") as file:
            warnings.simplefilter("ignore")
            with _opened(file):
                return True
    except Image.DecompressionBombError:
        return True
    except Exception:
        # What the first bytes of files that are something else make decoders raise, varies.
        return False


def plain(image: Image.Image, *, note: Note | None = None) -> Image.Image:
    """Turn an image of any mode upright and into 8-bit sRGB, ``RGB`` or ``RGBA`` if it has alpha.

    Whole numbers of more than 8 bits count as 0..65535; values outside are clipped. Float images
    count as 0..1. What is not pixels, such as EXIF tags, is left out.

    Args:
        note: is told what is changed or left out.

    Raises:
        SignalError: no pixel, more than 100 megapixels, truncated, or floats outside [0, 1].
    """
    notes: list[str] = []
    tell = notes.append
    width, height = image.size
    if not width or not height:
        raise SignalError(f"the image is {width} x {height}, without a pixel")
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise SignalError(f"the image is {width} x {height}, more than {limit} megapixels")
    if _is_animated(image):
        tell("of several frames the first is read")
    if _is_deep(image) or image.mode in ("I", "F") or image.mode.startswith("I;16"):
        tell("its values are rounded to 8 bits")
    # Pillow turns a TIFF while it loads it, and forgets that it did.
    orientation = _orientation(image) if image.format == "TIFF" else 1
    try:
        image.load()
    except Exception as error:
        raise SignalError(f"not a readable image ({one_line(error, 120)})") from error
    profile = image.info.get("icc_profile")
    image = _eight_bits(_upright(image, orientation, tell), tell)
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    # One colour, or the palette's entries, can be declared transparent beside the pixels.
    has_alpha |= image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info
    if image.mode == "La":
        image = image.convert("LA")
    if profile:
        image = _in_srgb(image, profile, has_alpha, tell)
    image = image.convert("RGBA" if has_alpha else "RGB")
    # Colours are sRGB now and the picture is upright: what says otherwise must not stay.
    image.info = {}
    _pass_on(notes, note)
    return image


def from_array(values: NDArray[Any]) -> Image.Image:
    """Turn floats (3, H, W) in [0, 1] into a picture, rounded to 8 bits.

    Raises:
        SignalError: another shape or type, or values outside [0, 1], which are not guessed at.
    """
    if values.ndim != 3 or values.shape[0] != 3 or not values.size or values.dtype.kind != "f":
        raise SignalError(
            f"an image is an array of floats (3, H, W), not {values.dtype} {values.shape}"
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # which NaN fails
        raise SignalError(f"values from {low:g} to {high:g}; those of an image lie within [0, 1]")
    return Image.fromarray(np.rint(values.transpose(1, 2, 0) * 255).astype(np.uint8))


def write(image: Image.Image, path: str | os.PathLike[str], *, force: bool = True) -> None:
    """Write a picture as png, jpg or webp (lossless); the file appears whole or not at all.

    Raises:
        SignalError: the extension is not one of these, or the format cannot store the picture: a
            side is beyond 16,383 pixels for webp or 65,500 for jpg, or has no pixel, or its mode
            is another.
        PolytokError: the file exists and ``force`` is false, or its folder cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITABLE:
        what = f"unknown extension {suffix!r}" if suffix else "no extension"
        raise SignalError(f"{path}: {what} (known: {' '.join(WRITABLE)})")
    size, longest = f"{image.width} x {image.height}", LONGEST.get(suffix)
    if not min(image.size):
        raise SignalError(f"{path}: the image is {size}, without a pixel")
    if longest and max(image.size) > longest:
        raise SignalError(f"{path}: {size} pixels; {suffix} holds at most {longest} along a side")
    options = {".png": {}, ".webp": {"lossless": True}}.get(suffix, {"quality": JPEG_QUALITY})
    with atomic_path(path, force=force) as aside:
        try:
            image.save(aside, **options)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or one_line(error, 120)
            raise SignalError(f"cannot write {path}: {reason}") from error


def _pass_on(notes: list[str], note: Note | None) -> None:
    """Tell what was noted, once reading has succeeded: an error speaks for itself."""
    if note is not None:
        for text in notes:
            note(text)


def _known() -> list[str]:
    Image.init()
    # Builds of Pillow differ in what they can decode.
    return [name for name in FORMATS if name in Image.OPEN]


def _opened(file: BinaryIO) -> Image.Image:
    """Open an image, or a JPEG of any size, since that can be decoded at a fraction of it."""
    try:
        return Image.open(file, formats=_known())
    except Image.DecompressionBombError:
        file.seek(0)
        if not _has_one_scan(file):
            raise
        file.seek(0)
        return JpegImagePlugin.JpegImageFile(file)


def _reduce(image: Image.Image, file: BinaryIO, tell: Note) -> None:
    """Let the decoder of a very large JPEG give a fraction of its size, which saves the memory."""
    width, height = image.size
    if width * height <= MAX_PIXELS or not isinstance(image, JpegImagePlugin.JpegImageFile):
        return
    place = file.tell()
    file.seek(0)
    has_one_scan = _has_one_scan(file)
    file.seek(place)
    if not has_one_scan:
        return
    if width * height > MAX_JPEG_PIXELS:
        limit = MAX_JPEG_PIXELS // 10**6
        raise SignalError(f"the image is {width} x {height}, more than {limit} megapixels")
    factor = next(f for f in (8, 4, 2) if max(width, height) // f >= WORKING_SIDE)
    image.draft(None, (width // factor, height // factor))
    tell(f"of its {width} x {height} pixels {image.width} x {image.height} are read")


def _has_one_scan(file: BinaryIO) -> bool:
    """Whether a file is a JPEG whose decoder holds a few rows at a time, not the whole image.

    A progressive one, or one that stores a component after the other, must be held whole.
    """
    if file.read(2) != b"\xff\xd8":
        return False
    components = 0
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        marker, length = head[1], int.from_bytes(head[2:], "big")
        body = file.read(length - 2) if length >= 2 else b""
        if marker in (0xC0, 0xC1) and len(body) > 5:
            components = body[5]
        elif marker == 0xDA:
            return bool(body) and components == body[0]
        elif 0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return False
    return False


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except _DAMAGE:
        # To know it, some decoders read on; what is damaged there is no part of the first frame.
        return False


def _is_deep(image: Image.Image) -> bool:
    """Whether Pillow itself rounds colours of 16 bits, as what its decoders are given says."""
    for codec, _, _, args in getattr(image, "tile", ()):
        if codec.startswith("ppm"):
            if isinstance(args, tuple) and args[-1] > 255:
                return True
        elif ";16" in str(args):
            return True
    return False


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except _DAMAGE:
        # Damaged tags say nothing about how the picture lies, and the picture itself is whole.
        return 1


def _upright(image: Image.Image, orientation: int, tell: Note) -> Image.Image:
    """Turn an image as its tags say, if loading it has not, by the orientation it had before."""
    has_exif = "exif" in image.info
    if orientation == 1:
        orientation = _orientation(image)
    try:
        turned = ImageOps.exif_transpose(image)
    except _DAMAGE:
        orientation, turned = 1, image
    if orientation in range(2, 9):
        tell("it is turned upright as its EXIF orientation says; EXIF is dropped")
    elif has_exif:
        tell("EXIF is dropped")
    return turned


def _eight_bits(image: Image.Image, tell: Note) -> Image.Image:
    """Bring whole numbers of more bits, and floats, to 0..255; other images stay as they are.

    The one whole number that may be declared transparent becomes alpha.
    """
    clear = None
    if image.mode == "I" or image.mode.startswith("I;16"):
        whole, clear = np.asarray(image), image.info.get("transparency")
        if whole.min() < 0 or whole.max() > 65535:
            tell(f"its values from {whole.min()} to {whole.max()} are clipped to 0..65535")
        values = whole / 257.0
    elif image.mode == "F":
        values = np.asarray(image, np.float64)
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # which NaN fails
            raise SignalError(f"float pixels from {low:g} to {high:g} do not lie within [0, 1]")
        values = values * 255
    else:
        return image
    grey = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if not isinstance(clear, int):
        return grey
    alpha = Image.fromarray(np.where(whole == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _in_srgb(image: Image.Image, profile: bytes, has_alpha: bool, tell: Note) -> Image.Image:
    """Convert colours from an ICC profile to sRGB, if it fits the image; alpha stays."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
        fits = {"L": ("1", "L", "LA"), "CMYK": ("CMYK",)}.get(space)
        if image.mode == "CMYK" if fits is None else image.mode not in fits:
            raise ValueError(space)
        rgba = image.convert("RGBA") if has_alpha else None
        colours = (rgba.convert("RGB") if rgba else image).convert(space)
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(colours, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, KeyError, OSError, TypeError, ValueError):
        tell("its ICC profile cannot be used; its colours are taken for sRGB")
        return image
    if converted is None:
        return image
    tell("its colours are converted from its ICC profile to sRGB")
    if rgba:
        converted.putalpha(rgba.getchannel("A"))
    return converted
