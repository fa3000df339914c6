"""A picture as square tiles that a tokenizer takes, and tiles as a picture again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from polytok.core.errors import ConfigError
from polytok.signals.image.io import Note

WHITE = (255, 255, 255)


def flat(
    image: Image.Image, background: Sequence[int] = WHITE, *, note: Note | None = None
) -> Image.Image:
    """Lay an ``RGBA`` picture over a background; one without transparency becomes ``RGB``.

    Args:
        background: red, green, blue in 0..255. note: is told of it when anything shows through.

    Raises:
        ConfigError: the background is no such colour.
    """
    if len(background) != 3 or not all(0 <= c <= 255 for c in background):
        raise ConfigError(f"background={tuple(background)} is not three values in 0..255")
    if image.mode != "RGBA" or image.getchannel("A").getextrema()[0] == 255:
        return image.convert("RGB")
    if note is not None:
        note("its transparent parts are laid over rgb({}, {}, {})".format(*background))
    below = Image.new("RGBA", image.size, (*background, 255))
    below.alpha_composite(image)
    return below.convert("RGB")


def to_tiles(image: Image.Image, size: int, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Cut an ``RGB`` picture into tiles, row by row: (rows * columns, 3, size, size) in [0, 1].

    The picture is resized to the whole grid, so nothing is cropped or padded; where its sides are
    not in the ratio of the grid's, :func:`from_tiles` undoes the difference.

    Args:
        size: pixels per side of a tile. grid: rows and columns.
    """
    rows, columns = grid
    whole = image.resize((columns * size, rows * size), Image.Resampling.LANCZOS)
    values = np.asarray(whole, np.float32).reshape(rows, size, columns, size, 3) / np.float32(255)
    return np.ascontiguousarray(values.transpose(0, 2, 4, 1, 3)).reshape(-1, 3, size, size)


def from_tiles(
    tiles: NDArray[np.floating], grid: tuple[int, int], size: tuple[int, int]
) -> Image.Image:
    """Join tiles (rows * columns, 3, S, S) to an ``RGB`` picture of the given width and height.

    Values are clipped to [0, 1] and rounded to 8 bits.
    """
    rows, columns = grid
    side = tiles.shape[-1]
    values = tiles.reshape(rows, columns, 3, side, side).transpose(0, 3, 1, 4, 2)
    values = values.reshape(rows * side, columns * side, 3).clip(0, 1) * 255
    whole = Image.fromarray(np.rint(values).astype(np.uint8))
    return whole if whole.size == size else whole.resize(size, Image.Resampling.BICUBIC)
