"""Images: every mode, upright; damaged files in one line; objects framed the same from anything."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from polytok.core.errors import ConfigError, SignalError
from polytok.signals.image import framed, plain, read

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(p) for p in np.asarray(image).reshape(-1, len(image.getbands())).tolist()]


def row(values: list[object], mode: str) -> Image.Image:
    """An image of one row of pixels."""
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def palette(colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.new("P", (len(colours), 1))
    image.putpalette([c for colour in colours for c in colour])
    image.putdata(range(len(colours)))
    return image


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


READ = {
    "bits.png": (row([0, 255], "1"), {}, [(0, 0, 0), WHITE]),
    "grey.png": (row([0, 7, 255], "L"), {}, [(0, 0, 0), (7, 7, 7), WHITE]),
    "grey-alpha.png": (row([(9, 0), (8, 77)], "LA"), {}, [(9, 9, 9, 0), (8, 8, 8, 77)]),
    "palette.png": (palette([RED, BLUE]), {}, [RED, BLUE]),
    "palette-clear.png": (
        palette([RED, BLUE]),
        {"transparency": bytes([3, 255])},
        [(*RED, 3), (*BLUE, 255)],
    ),
    "palette-clear.gif": (palette([RED, BLUE]), {"transparency": 1}, [(*RED, 255), (*BLUE, 0)]),
    "rgb.png": (row([RED, (1, 2, 3)], "RGB"), {}, [RED, (1, 2, 3)]),
    "rgb-clear.png": (row([RED, BLUE], "RGB"), {"transparency": RED}, [(*RED, 0), (*BLUE, 255)]),
    "rgba.png": (row([(1, 2, 3, 4), (*RED, 255)], "RGBA"), {}, [(1, 2, 3, 4), (*RED, 255)]),
    "cmyk.tiff": (row([(0, 0, 0, 0), (0, 255, 255, 0)], "CMYK"), {}, [WHITE, RED]),
    "16-bit.png": (
        row([0, 257, 32768, 65535], "I;16"),
        {},
        [(0,) * 3, (1,) * 3, (128,) * 3, WHITE],
    ),
    "32-bit.tiff": (row([-5, 257, 65535, 99999], "I"), {}, [(0,) * 3, (1,) * 3, WHITE, WHITE]),
    "unit.tiff": (row([-0.1, 0.2, 1.0], "F"), {}, [(0,) * 3, (51,) * 3, WHITE]),
    "bytes.tiff": (row([0.0, 51.2, 300.0], "F"), {}, [(0,) * 3, (51,) * 3, WHITE]),
}


@pytest.mark.parametrize("name", READ)
def test_every_mode_becomes_rgb_or_rgba(name: str, tmp_path: Path) -> None:
    image, options, wanted = READ[name]
    image.save(tmp_path / name, **options)
    found = read(tmp_path / name)
    assert found.mode == ("RGB" if len(wanted[0]) == 3 else "RGBA")
    assert pixels(found) == wanted


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "YCbCr", "HSV", "LAB", "RGBX", "I;16B"])
def test_modes_that_no_file_has_work_too(mode: str) -> None:
    image = Image.new(mode, (5, 3))
    assert plain(image).size == (5, 3)
    assert plain(image).mode == ("RGBA" if mode in ("La", "RGBa", "PA") else "RGB")


def test_a_photo_survives_jpeg(tmp_path: Path) -> None:
    for mode in ("L", "RGB", "CMYK"):
        Image.new("RGB", (16, 16), (200, 200, 200)).convert(mode).save(tmp_path / "a.jpg")
        assert np.abs(np.asarray(read(tmp_path / "a.jpg"), int) - 200).max() <= 3


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied(orientation, turned, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    stored = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    found = read(tmp_path / "a.png")
    assert np.array_equal(np.asarray(found), turned(stored))
    assert np.array_equal(np.asarray(plain(found)), turned(stored)), "turned twice"


def test_damaged_exif_leaves_the_picture(tmp_path: Path) -> None:
    for exif in (
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0nonsense",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    ):
        Image.new("RGB", (8, 8), RED).save(tmp_path / "a.jpg", exif=exif)
        assert read(tmp_path / "a.jpg").size == (8, 8)


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED, BLUE)]
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        found = np.asarray(read(tmp_path / name))
        assert np.abs(found[0, 0, :3].astype(int) - GREEN).max() <= 2, name


def test_the_content_tells_the_format(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert pixels(read(tmp_path / "a.jpg"))[0] == RED


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with little in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


BAD = {
    "empty.png": (b"", "not a readable image"),
    "text.png": (b"this is not an image", "not a readable image"),
    "vector.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "known: avif bmp gif"),
    "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image"),
    "cut.png": (encoded("png")[:600], "truncated"),
    "cut.jpg": (encoded("jpeg")[:900], "truncated"),
    "wide.png": (png_header(10_001, 10_000), "10001 x 10000, more than 100 megapixels"),
    "huge.png": (png_header(60_000, 60_000), "more than 100 megapixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    data, reason = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SignalError, match=reason) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / name}: ")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match="No such file"):
        read(tmp_path / "none.png")
    with pytest.raises(SignalError, match="is a folder"):
        read(tmp_path)


def test_floats_must_be_finite(tmp_path: Path) -> None:
    row([0.0, float("nan")], "F").save(tmp_path / "a.tiff")
    with pytest.raises(SignalError, match=r"a\.tiff: a pixel is not a finite number"):
        read(tmp_path / "a.tiff")


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm"])
def test_damage_raises_nothing_but_signal_errors(kind: str, tmp_path: Path) -> None:
    whole, rng, path = encoded(kind), np.random.default_rng(1), tmp_path / f"a.{kind}"
    for trial in range(60):
        data = np.frombuffer(whole, np.uint8).copy()
        where = rng.integers(0, min(len(data), 400), 1 + trial % 4)
        data[where] = rng.integers(0, 256, len(where))
        path.write_bytes(data.tobytes()[: len(data) if trial % 2 else rng.integers(len(data))])
        try:
            found = read(path)
        except SignalError as error:
            assert "\n" not in str(error)
        else:
            assert found.mode in ("RGB", "RGBA")


def test_what_pillow_warns_of_below_the_limit_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(9_500, 10_000))
    with pytest.raises(SignalError, match="truncated"):
        read(tmp_path / "a.png")


def test_a_lazy_image_that_is_damaged_is_refused_when_framed() -> None:
    image = Image.open(io.BytesIO(encoded("png")[:600]))
    with pytest.raises(SignalError, match="truncated"):
        framed(image, 8)


# framed


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
