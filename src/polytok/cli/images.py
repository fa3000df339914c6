"""Pictures on the command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor

from polytok import bitstream
from polytok.cli import show
from polytok.core.contracts import Codes
from polytok.core.errors import PolytokError, SignalError
from polytok.metrics import IMAGE_CONVENTIONS, bits_per_pixel, psnr, ssim
from polytok.signals import image as images
from polytok.signals.image.io import MAX_PIXELS
from polytok.signals.sheet import sheet
from polytok.systems.image.codec import AUTO_TILES, ImageCodec

NOUN, UNIT, SUFFIX = "image", "tokens", ".png"
FACTS = ("width", "height")
EXTENSIONS, WRITABLE = images.EXTENSIONS, images.WRITABLE
AUTO = "auto"
SSIM_WINDOW = 11
SHEET_COLUMNS = 8
SHEET_SIDE = 256  # of the pictures of a sheet, unless another size is asked for

Row = dict[str, Any]


def encode(
    codec: ImageCodec,
    source: Path,
    *,
    tokens: int | None = None,
    tiles: int | str = 1,
    effort: int = 0,
    background: str = "white",
    fit: Callable[[Codes], int] | None = None,
) -> Codes:
    """Encode a picture file, and say what of it is changed or left out.

    ``fit`` counts the tokens of every tile that its file may hold: no others are searched for.
    """
    return codec.encode(
        source,
        tokens=tokens,
        tiles=_tiles(tiles, is_limited=fit is not None),
        effort=effort,
        fit=fit,
        background=_colour(background),
        note=lambda text: show.note(f"{source}: {text}"),
    )


def decode(
    codec: ImageCodec,
    codes: Codes,
    target: Path,
    *,
    force: bool,
    tokens: int | None = None,
    size: int | None = None,
    lengths: str | None = None,
) -> Row:
    """Write the picture of a code, or a sheet of pictures of its prefixes."""
    if lengths is not None:
        if tokens is not None:
            raise PolytokError("--lengths and --tokens exclude each other")
        return _decode_sheet(codec, codes, target, _numbers(lengths), size, force=force)
    picture = codec.decode(codes, tokens=tokens, size=size)[0]
    original = tuple(codes.meta["size"][0].tolist())
    if size is None and picture.size != original:
        show.note(
            f"{target}: {picture.width} x {picture.height} of {original[0]} x {original[1]} "
            "pixels; --size asks for more"
        )
    images.write(picture, target, force=force)
    return {"width": picture.width, "height": picture.height}


def count(codec: ImageCodec, codes: Codes) -> int:
    """Tokens of every tile of a code."""
    return len(bitstream.bits_per_level(codes, codec.spec))


def prefix(codec: ImageCodec, codes: Codes, *, tokens: int) -> Codes:
    """The first tokens of every tile of a code."""
    return codec.prefix(codes, tokens)


def facts(codec: ImageCodec, header: bitstream.Header, codes: Codes, size: int) -> Row:
    """Width, height, tiles, tokens of each, and bits per pixel."""
    width, height = header.size
    bits = bitstream.bits_per_level(codes, codec.spec)
    return {
        "width": width,
        "height": height,
        "tiles": list(header.grid),
        "tokens": len(bits),
        "bits": round(sum(bits), 1),
        "bits_per_pixel": round(bits_per_pixel(size, width, height), 5),
        "smallest_bytes": bitstream.sizes(codec.spec, header.meta)[0],
    }


def compare(first: Path, second: Path) -> Row:
    """PSNR and SSIM of a picture against the true one, both laid over white."""
    pictures = [read(path) for path in (first, second)]
    one, other = pictures
    if one.size != other.size:
        raise SignalError(
            f"{first} is {one.width} x {one.height}, {second} is {other.width} x {other.height}; "
            "pictures to compare have one size"
        )
    return {k: round(v, 5) for k, v in _scores(one, other).items()}


def conventions() -> Row:
    """What the scores mean."""
    return {name: IMAGE_CONVENTIONS[name] for name in ("psnr", "ssim", "bits_per_pixel")}


def settings(
    *,
    tokens: int | None = None,
    bytes: int | None = None,
    tiles: int | str = 1,
    effort: int = 0,
    prefixes: bool = False,
) -> Row:
    """What the scores depend on."""
    return {
        "tokens": tokens or "all",
        "bytes": bytes or "any",
        "tiles": tiles,
        "effort": effort,
    }


def read(path: Path) -> Image.Image:
    """Read a picture to score against, laid over white."""
    return images.flat(images.read(path))


def failed(picture: Image.Image, *, seed: int) -> None:
    """A picture that cannot be encoded has no scores."""


def score(
    codec: ImageCodec,
    picture: Image.Image,
    *,
    seed: int,
    tokens: int | None = None,
    bytes: int | None = None,
    tiles: int | str = 1,
    effort: int = 0,
    prefixes: bool = False,
) -> Row:
    """Encode, decode and score a picture, and prefixes of 1, 2, 4, ... tokens if asked for."""
    start = time.perf_counter()
    fit = None if bytes is None else codec.fitting(bytes)
    choices = _tiles(tiles, is_limited=bytes is not None)
    codes = codec.encode(picture, tokens=tokens, tiles=choices, effort=effort, fit=fit)
    [data] = codec.pack(codes, max_bytes=bytes)
    middle = time.perf_counter()
    codes = codec.unpack(data)
    decoded = codec.decode(codes)[0]
    end = time.perf_counter()
    truth = picture
    if decoded.size != picture.size:
        truth = picture.resize(decoded.size, Image.Resampling.LANCZOS)
    kept = count(codec, codes)
    row: Row = {
        "width": picture.width,
        "height": picture.height,
        "tokens": kept,
        "bytes": len(data),
        "bits_per_pixel": round(bits_per_pixel(len(data), *picture.size), 5),
        **({"tiles": int(codes.meta["tiles"])} if tiles == AUTO else {}),
        "encode_seconds": round(middle - start, 3),
        "decode_seconds": round(end - middle, 3),
        **_scores(decoded, truth),
    }
    if prefixes:
        for k in (2**n for n in range(kept.bit_length()) if 2**n < kept):
            short = codec.decode(codes, tokens=k)[0]
            row |= {f"prefix_{k}_{name}": v for name, v in _scores(short, truth).items()}
    return row


def _scores(picture: Image.Image, truth: Image.Image) -> dict[str, float]:
    """PSNR, and SSIM where its window fits into the picture."""
    one, other = (
        torch.from_numpy(np.array(p)).permute(2, 0, 1)[None].float() / 255 for p in (picture, truth)
    )
    scores = {"psnr": float(psnr(one, other))}
    if min(picture.size) >= SSIM_WINDOW:
        # Channel by channel: the sums of its windows take many times the memory of the picture.
        channels = zip(one.split(1, 1), other.split(1, 1), strict=True)
        scores["ssim"] = float(torch.cat([ssim(a, b) for a, b in channels]).mean())
    return scores


def _decode_sheet(
    codec: ImageCodec,
    codes: Codes,
    target: Path,
    lengths: list[int],
    size: int | None,
    *,
    force: bool,
) -> Row:
    side = SHEET_SIDE if size is None else size
    _check_sheet(codes, len(lengths), side)
    cells = []
    for length in lengths:
        short = codec.prefix(codes, length)
        picture = codec.decode(short, size=side)[0]
        word = "token" if length == 1 else "tokens"
        cells.append((f"{length} {word}\n{len(codec.pack(short)[0]):,} B", picture))
    rows = [cells[k : k + SHEET_COLUMNS] for k in range(0, len(cells), SHEET_COLUMNS)]
    made = sheet(rows)
    images.write(made, target, force=force)
    return {"pictures": len(cells), "width": made.width, "height": made.height}


def _check_sheet(codes: Codes, count: int, side: int) -> None:
    """Refuse a sheet that could not be read again, before its pictures fill the memory."""
    shares = (codes.meta["size"][0] / codes.meta["size"][0].max()).tolist()
    width, height = (max(1, round(side * share)) for share in shares)
    columns, rows = min(count, SHEET_COLUMNS), -(-count // SHEET_COLUMNS)
    if columns * width * rows * height > MAX_PIXELS:
        raise PolytokError(
            f"--lengths asks for {count} pictures of {width} x {height}, together more than "
            f"{MAX_PIXELS // 10**6} megapixels; --size makes them smaller"
        )


def _tiles(tiles: int | str, *, is_limited: bool) -> int | tuple[int, ...]:
    """Numbers of tiles to choose from, or the one that was asked for."""
    if isinstance(tiles, int):
        return tiles
    if not is_limited:
        raise PolytokError(f"--tiles {AUTO} needs --bytes: without a limit more tiles show more")
    return AUTO_TILES


def _colour(text: str) -> tuple[int, int, int]:
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise PolytokError(f"--background {text!r} is no colour: a name, or #rrggbb") from error
    return red, green, blue


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise PolytokError(f"--lengths {text!r} is not of the form 4,8,16") from error
