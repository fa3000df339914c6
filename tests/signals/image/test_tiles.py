"""Tiles: nothing of a picture is lost, added or moved on the way to them and back."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from polytok.core.errors import ConfigError
from polytok.signals.image import flat, from_tiles, to_tiles


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("grid", [(1, 1), (1, 3), (4, 1), (2, 3)])
def test_a_picture_of_the_grid_comes_back_exactly(grid: tuple[int, int]) -> None:
    rows, columns = grid
    image = noise(8 * columns, 8 * rows)
    tiles = to_tiles(image, 8, grid)
    assert tiles.shape == (rows * columns, 3, 8, 8) and tiles.dtype == np.float32
    assert tiles.flags.c_contiguous and tiles.min() >= 0 and tiles.max() <= 1
    pixels = np.asarray(image)
    for k, tile in enumerate(tiles):
        top, left = 8 * (k // columns), 8 * (k % columns)
        part = pixels[top : top + 8, left : left + 8]
        assert np.array_equal(np.rint(tile.transpose(1, 2, 0) * 255), part)
    assert np.array_equal(np.asarray(from_tiles(tiles, grid, image.size)), pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (37, 23), (300, 200), (8, 8)])
def test_every_size_comes_back_and_one_colour_stays_one_colour(size: tuple[int, int]) -> None:
    for grid in ((1, 1), (2, 3)):
        tiles = to_tiles(Image.new("RGB", size, (10, 200, 30)), 8, grid)
        assert np.abs(tiles * 255 - np.array([10, 200, 30])[:, None, None]).max() < 1e-3
        back = from_tiles(tiles, grid, size)
        assert back.size == size and np.ptp(np.asarray(back), axis=(0, 1)).max() == 0


def test_a_smooth_picture_survives_another_ratio() -> None:
    """The sides of the grid need not be in the ratio of the picture's: resizing undoes it."""
    y, x = np.mgrid[0:48, 0:96]
    smooth = np.stack([x * 2, y * 4, x + y], -1).astype(np.uint8)
    back = from_tiles(to_tiles(Image.fromarray(smooth), 64, (1, 1)), (1, 1), (96, 48))
    assert np.abs(np.asarray(back).astype(int) - smooth).mean() < 1.0


def test_values_are_clipped_and_rounded() -> None:
    tiles = np.array([-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0]).repeat(6)
    image = from_tiles(tiles.reshape(3, 2, 6).repeat(3, 1)[None, :, :6], (1, 1), (6, 6))
    assert set(np.asarray(image).ravel().tolist()) == {0, 1, 255}


def test_transparency_is_laid_over_the_background_and_said() -> None:
    notes: list[str] = []
    image = Image.new("RGBA", (2, 1), (200, 100, 0, 255))
    assert flat(image, note=notes.append).getpixel((0, 0)) == (200, 100, 0)
    assert flat(noise(2, 2), note=notes.append).mode == "RGB"
    assert notes == []
    image.putpixel((1, 0), (200, 100, 0, 0))
    found = flat(image, (1, 2, 3), note=notes.append)
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(200, 100, 0), (1, 2, 3)]
    assert notes == ["its transparent parts are laid over rgb(1, 2, 3)"]
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 51))
    assert flat(half).getpixel((0, 0)) == pytest.approx((255, 204, 204), abs=1)


@pytest.mark.parametrize("background", [(0, 0), (0, 0, 256), (-1, 0, 0)])
def test_backgrounds_are_checked(background: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="background="):
        flat(noise(2, 2), background)
