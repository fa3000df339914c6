"""The object of a picture is framed the same, whatever the picture's kind, size and backdrop."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from polytok.core.errors import ConfigError, SignalError
from polytok.signals.image import framed

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def chair(side: int = 96, at: tuple[int, int] = (20, 30), mode: str = "RGBA") -> Image.Image:
    """A coloured object, twice as high as wide, on nothing."""
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    x, y = at
    draw.rectangle((x, y, x + 19, y + 39), fill=(*RED, 255))
    draw.rectangle((x, y + 20, x + 19, y + 39), fill=(*BLUE, 255))
    return image.convert(mode)


def on(colour: tuple[int, int, int], image: Image.Image) -> Image.Image:
    backdrop = Image.new("RGBA", image.size, (*colour, 255))
    backdrop.alpha_composite(image)
    return backdrop.convert("RGB")


def extent(frame: NDArray[np.float32], background: float = 1.0) -> tuple[int, int, int, int]:
    """Rows and columns (first, last) of what is not background."""
    seen = (np.abs(frame - background) > 0.02).any(0)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


@pytest.mark.parametrize(("size", "fill"), [(64, 0.85), (64, 1.0), (100, 0.5), (33, 0.3)])
def test_the_longest_side_takes_its_share_in_the_middle(size: int, fill: float) -> None:
    frame = framed(chair(), size, fill=fill)
    assert frame.shape == (3, size, size)
    assert frame.dtype == np.float32
    assert frame.flags.c_contiguous
    assert frame.flags.writeable
    top, bottom, left, right = extent(frame)
    assert bottom - top + 1 == round(fill * size)
    assert right - left + 1 == round(fill * size / 2)
    assert abs((top + bottom) / 2 - (size - 1) / 2) <= 0.5
    assert abs((left + right) / 2 - (size - 1) / 2) <= 0.5


def test_where_the_object_stood_changes_nothing() -> None:
    wanted = framed(chair(), 64)
    for at in ((0, 0), (76, 56), (33, 7)):
        assert np.array_equal(framed(chair(at=at), 64), wanted)
    assert np.array_equal(framed(chair(side=300, at=(200, 100)), 64), wanted)


def test_hidden_colours_do_not_show() -> None:
    image = np.zeros((40, 40, 4), np.uint8)
    image[..., :3] = GREEN
    image[10:30, 10:30] = (*RED, 255)
    frame = framed(Image.fromarray(image), 57, background=(0, 0, 0))
    assert frame[1].max() == 0


def test_half_transparent_pixels_mix_with_the_background() -> None:
    frame = framed(Image.new("RGBA", (8, 8), (200, 100, 0, 51)), 8, background=(10, 20, 30), fill=1)
    wanted = [10 + 0.2 * 190, 20 + 0.2 * 80, 30 - 0.2 * 30]
    assert np.abs(frame.mean((1, 2)) * 255 - wanted).max() < 1
    assert np.ptp(frame, axis=(1, 2)).max() == 0


def test_faint_haze_does_not_widen_the_box() -> None:
    hazy = np.asarray(chair()).copy()
    hazy[..., 3] = np.maximum(hazy[..., 3], 12)
    frame = framed(Image.fromarray(hazy), 64)
    assert np.array_equal(frame, framed(chair(), 64))


@pytest.mark.parametrize("colour", [WHITE, (0, 0, 0), (40, 90, 60)])
@pytest.mark.parametrize("noise", [0, 8])
def test_a_backdrop_of_one_colour_is_as_good_as_alpha(
    colour: tuple[int, int, int], noise: int
) -> None:
    image = np.asarray(on(colour, chair())).astype(int)
    shift = np.random.default_rng(0).integers(-noise, noise + 1, image.shape)
    seen = np.asarray(chair())[..., 3:] > 0
    image = np.where(seen, image, (image + shift).clip(0, 255)).astype(np.uint8)
    for background in (WHITE, (9, 9, 9)):
        frame = framed(Image.fromarray(image), 64, background=background)
        assert np.array_equal(frame, framed(chair(), 64, background=background))


def test_the_backdrop_colour_inside_an_object_stays() -> None:
    image = Image.new("RGB", (60, 60), (0, 0, 0))
    ImageDraw.Draw(image).ellipse((10, 10, 50, 50), fill=RED)
    ImageDraw.Draw(image).ellipse((20, 20, 40, 40), fill=(0, 0, 0))
    frame = framed(image, 61)
    assert frame[:, 30, 30].tolist() == [0, 0, 0]
    assert frame[:, 0, 0].tolist() == [1, 1, 1]


def test_an_object_may_touch_the_border_a_little() -> None:
    image = on(WHITE, chair(side=100, at=(40, 60)))
    top, bottom, _, _ = extent(framed(image, 100))
    assert bottom - top + 1 == 85


def test_a_photo_is_cut_to_its_centre() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 20, 3), dtype=np.uint8))
    frame = framed(photo, 8)
    assert np.array_equal(frame.transpose(1, 2, 0) * np.float32(255), np.asarray(photo)[:, 6:14])
    opaque = photo.convert("RGBA")
    assert np.array_equal(framed(opaque, 8), frame)


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (3, 3000), (2, 50_000)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_odd_sizes_work(size: tuple[int, int], mode: str) -> None:
    colour = (10, 20, 30, 128) if mode == "RGBA" else (10, 20, 30) if mode == "RGB" else 7
    frame = framed(Image.new(mode, size, colour), 32)
    assert frame.shape == (3, 32, 32)
    if mode == "RGB":
        assert np.abs(frame.mean((1, 2)) * 255 - colour).max() < 1e-3
    else:
        assert frame.min() < 1


def test_what_cannot_be_seen_is_refused() -> None:
    with pytest.raises(SignalError, match="largest alpha is 0 of 255"):
        framed(Image.new("RGBA", (5, 5), (1, 2, 3, 0)), 8)
    with pytest.raises(SignalError, match="largest alpha is 12 of 255"):
        framed(Image.new("LA", (5, 5), (9, 12)), 8)
    with pytest.raises(SignalError, match="0 x 5"):
        framed(Image.new("RGB", (0, 5)), 8)


def test_settings_are_checked() -> None:
    image = Image.new("RGB", (4, 4))
    with pytest.raises(ConfigError, match="size=0"):
        framed(image, 0)
    for fill in (0.0, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="fill="):
            framed(image, 8, fill=fill)
    for background in ((0, 0), (0, 0, 256), (-1, 0, 0)):
        with pytest.raises(ConfigError, match="background="):
            framed(image, 8, background=background)


def test_the_image_stays_as_it_is_and_values_stay_in_range() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        shape = (*rng.integers(1, 40, 2), 4)
        image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        before, side = image.tobytes(), int(rng.integers(1, 40))
        frame = framed(image, side, background=(255, 0, 7), fill=float(rng.uniform(0.01, 1)))
        assert frame.shape == (3, side, side)
        assert frame.min() >= 0
        assert frame.max() <= 1
        assert image.tobytes() == before


def test_a_lazy_image_that_is_damaged_is_refused() -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "png")
    image = Image.open(io.BytesIO(file.getvalue()[:600]))
    with pytest.raises(SignalError, match="truncated"):
        framed(image, 8)
