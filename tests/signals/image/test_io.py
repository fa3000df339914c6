"""Images: every mode, upright, as sRGB, with a word on what is lost; damaged files in one line."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from polytok.core.errors import PolytokError, SignalError
from polytok.signals.image import from_array, plain, read, write
from polytok.signals.image.io import is_image

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
    "float.tiff": (row([0.0, 0.2, 1.0], "F"), {}, [(0,) * 3, (51,) * 3, WHITE]),
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


def png(
    width: int, height: int, bits: int, rows: bytes, *, kind: int = 2, clear: bytes = b""
) -> bytes:
    """A PNG of the given rows, each of which begins with a byte of zero; kind 2 is RGB, 0 grey."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    start = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    start = chunk(b"IHDR", start) + (chunk(b"tRNS", clear) if clear else b"")
    data = start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with little in it."""
    return png(width, height, 8, b"\0" * 100)


def deep_png() -> bytes:
    """One pixel of three times 16 bits."""
    return png(1, 1, 16, b"\0" + struct.pack(">3H", 65535, 0, 0x8040))


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


@pytest.mark.parametrize("values", [[0.0, float("nan")], [-1.0, 1.0], [0.0, 255.0]])
def test_the_range_of_floats_is_not_guessed(values: list[float], tmp_path: Path) -> None:
    row(values, "F").save(tmp_path / "a.tiff")
    with pytest.raises(SignalError, match=r"a\.tiff: float pixels from .* within \[0, 1\]"):
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


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm", "avif"])
def test_the_first_bytes_tell_an_image(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(encoded(kind))
    assert is_image(path)
    path.write_bytes(png_header(60_000, 60_000))
    assert is_image(path), "too large, but an image"
    for data in (b"", b"v 0 0 0", b"solid a", b"glTF\x02\0\0\0", b"ply\n", b"PTK1" * 9, b"\0" * 99):
        path.write_bytes(data)
        assert not is_image(path), data
    assert not is_image(tmp_path) and not is_image(tmp_path / "none")


def noted(path: Path) -> tuple[Image.Image, list[str]]:
    notes: list[str] = []
    return read(path, note=notes.append), notes


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """sRGB with its red and blue primaries exchanged."""
    table = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
    data = bytearray(srgb_profile())
    for k in range(int.from_bytes(data[128:132], "big")):
        at = 132 + 12 * k
        data[at : at + 4] = table.get(bytes(data[at : at + 4]), data[at : at + 4])
    return bytes(data)


def linear_grey_profile() -> bytes:
    """A grey profile whose values are proportional to light, from the bytes up."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * v) for v in (0.9642, 1, 0.8249)))
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    text = b"text\0\0\0\0linear\0\0"
    tags = {b"wtpt": white, b"kTRC": curve, b"cprt": text}
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        at = 128 + 4 + 12 * len(tags) + len(body)
        table += name + struct.pack(">2I", at, len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", 0, b"\0" * 4, 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28 + white[8:20]
    data = head.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(data)) + data[4:]


def test_nothing_is_said_of_a_picture_that_is_whole(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "a.png")
    assert noted(tmp_path / "a.png")[1] == []


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA"])
def test_colours_are_converted_from_the_profile(mode: str, tmp_path: Path) -> None:
    """Of a picture whose profile exchanges red and blue, the two are exchanged; alpha stays."""
    colours = {"RGB": [RED, BLUE], "RGBA": [(*RED, 9), (*BLUE, 255)], "L": [60], "LA": [(60, 9)]}
    image = palette([RED, BLUE]) if mode == "P" else row(colours[mode], mode)
    image.save(tmp_path / "a.png", icc_profile=swapped_profile())
    found, notes = noted(tmp_path / "a.png")
    assert notes == ["its colours are converted from its ICC profile to sRGB"]
    wanted = {"RGBA": [(*BLUE, 9), (*RED, 255)], "L": [(60,) * 3], "LA": [(60, 60, 60, 9)]}
    apart = np.array(pixels(found)) - np.array(wanted.get(mode, [BLUE, RED]))
    assert np.abs(apart).max() <= 2
    assert found.info == {}
    assert np.array_equal(np.asarray(plain(found)), np.asarray(found)), "converted twice"


def test_a_grey_profile_is_followed(tmp_path: Path) -> None:
    row([0, 55, 255], "L").save(tmp_path / "a.png", icc_profile=linear_grey_profile())
    found, notes = noted(tmp_path / "a.png")
    assert notes == ["its colours are converted from its ICC profile to sRGB"]
    # sRGB stores the light 55 / 255 as 1.055 l^(1 / 2.4) - 0.055.
    middle = round(255 * (1.055 * (55 / 255) ** (1 / 2.4) - 0.055))
    assert np.abs(np.array(pixels(found)) - [[0] * 3, [middle] * 3, [255] * 3]).max() <= 2


@pytest.mark.parametrize("kind", ["damaged", "cut", "of other channels"])
def test_a_profile_that_cannot_be_used_is_said(kind: str, tmp_path: Path) -> None:
    damaged = {"damaged": b"no profile", "cut": srgb_profile()[:200]}
    profile = damaged.get(kind, linear_grey_profile())
    Image.new("RGB", (2, 2), RED).save(tmp_path / "a.png", icc_profile=profile)
    found, notes = noted(tmp_path / "a.png")
    assert notes == ["its ICC profile cannot be used; its colours are taken for sRGB"]
    assert pixels(found) == [RED] * 4


def test_dropped_tags_bits_and_frames_are_said(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.new("RGB", (2, 3)).save(tmp_path / "a.png", exif=exif)
    assert noted(tmp_path / "a.png")[1] == ["EXIF is dropped"]
    exif[0x0112] = 6
    Image.new("RGB", (2, 3)).save(tmp_path / "a.png", exif=exif)
    turned = "it is turned upright as its EXIF orientation says; EXIF is dropped"
    assert noted(tmp_path / "a.png")[1] == [turned]
    row([0, 65535], "I;16").save(tmp_path / "a.png")
    assert noted(tmp_path / "a.png")[1] == ["its values are rounded to 8 bits"]
    (tmp_path / "a.png").write_bytes(deep_png())
    found, notes = noted(tmp_path / "a.png")
    assert pixels(found) == [(255, 0, 128)] and notes == ["its values are rounded to 8 bits"]
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, RED)]
    for name in ("a.gif", "a.webp", "a.tiff"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert noted(tmp_path / name)[1] == ["of several frames the first is read"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_that_is_turned_is_said(orientation: int, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.tiff", exif=exif)
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    found, notes = noted(tmp_path / "a.tiff")
    assert np.array_equal(np.asarray(found), np.asarray(read(tmp_path / "a.png")))
    turned = "it is turned upright as its EXIF orientation says; EXIF is dropped"
    assert notes == ([turned] if orientation > 1 else [])


def test_a_transparent_grey_of_16_bits_stays_transparent(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">3H", 300, 301, 65535)
    (tmp_path / "a.png").write_bytes(png(3, 1, 16, rows, kind=0, clear=struct.pack(">H", 300)))
    found, notes = noted(tmp_path / "a.png")
    assert pixels(found) == [(1, 1, 1, 0), (1, 1, 1, 255), (*WHITE, 255)]
    assert notes == ["its values are rounded to 8 bits"]


def test_clipped_and_rounded_whole_numbers_are_said(tmp_path: Path) -> None:
    rounded = "its values are rounded to 8 bits"
    row([-5, 99999], "I").save(tmp_path / "a.tiff")
    clipped = "its values from -5 to 99999 are clipped to 0..65535"
    assert noted(tmp_path / "a.tiff")[1] == [rounded, clipped]
    row([0, 65535], "I").save(tmp_path / "a.tiff")
    assert noted(tmp_path / "a.tiff")[1] == [rounded]
    for most, wanted in ((65535, [rounded]), (255, []), (100, [])):
        body = bytes(6 if most > 255 else 3)
        (tmp_path / "a.ppm").write_bytes(b"P6 1 1 %d\n" % most + body)
        assert noted(tmp_path / "a.ppm")[1] == wanted, most
    (tmp_path / "a.ppm").write_bytes(b"P3 1 1 1000\n1 2 999\n")
    assert noted(tmp_path / "a.ppm")[1] == [rounded]


# Files of any size: what can be read at a fraction is, and the rest is refused.

WATCHED = """
import resource, sys
from polytok.core.errors import SignalError
from polytok.signals.image import read

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
notes = []
try:
    image = read(sys.argv[1], note=notes.append)
    print(image.size, image.getpixel((0, 0)), *notes, sep=chr(10))
except SignalError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def watched(path: Path) -> tuple[list[str], int]:
    """What reading a file says, and the megabytes it took, in a fresh process."""
    command = [sys.executable, "-c", WATCHED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *lines, spent = done.stdout.splitlines()
    return lines, int(spent)


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 megapixels of one grey, once stored row by row and once progressively."""
    folder = tmp_path_factory.mktemp("huge")
    image = Image.new("L", (20_000, 20_000), 90)
    image.save(folder / "rows.jpg")
    # Only the marker of the frame tells a reader that it is progressive.
    data = (folder / "rows.jpg").read_bytes()
    (folder / "progressive.jpg").write_bytes(data.replace(b"\xff\xc0\0\x0b", b"\xff\xc2\0\x0b", 1))
    return folder


def test_400_megapixels_are_read_at_a_quarter_in_bounded_memory(huge: Path) -> None:
    lines, megabytes = watched(huge / "rows.jpg")
    note = "of its 20000 x 20000 pixels 5000 x 5000 are read"
    assert lines == ["(5000, 5000)", "(90, 90, 90)", note]
    assert megabytes < 400  # whole, one copy alone would take 1,600


def test_what_has_to_be_held_whole_is_refused(huge: Path) -> None:
    lines, megabytes = watched(huge / "progressive.jpg")
    assert lines == [f"{huge / 'progressive.jpg'}: more than 100 megapixels"]
    assert megabytes < 50


def jpeg_header(width: int, height: int, *, scan: int = 3, kind: int = 0xC0) -> bytes:
    """The markers of a JPEG up to its first scan, which has ``scan`` of three components."""
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0])
    start = (
        bytes([scan]) + bytes([k for n in range(1, scan + 1) for k in (n, 0)]) + bytes([0, 63, 0])
    )
    out = b"\xff\xd8"
    for marker, body in ((kind, frame), (0xDA, start)):
        out += bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
    return out


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (jpeg_header(12_000, 10_000, scan=1), "12000 x 10000, more than 100 megapixels"),
        (jpeg_header(12_000, 10_000, kind=0xC2), "12000 x 10000, more than 100 megapixels"),
        (jpeg_header(30_000, 20_000, scan=1), "more than 100 megapixels"),
        (jpeg_header(30_000, 20_000), "30000 x 20000, more than 500 megapixels"),
        (jpeg_header(65_000, 65_000), "65000 x 65000, more than 500 megapixels"),
        (jpeg_header(20_000, 20_000), "broken data stream"),
        (jpeg_header(20_000, 20_000)[:20], "Truncated File Read"),
    ],
    ids=["planes", "progressive", "large planes", "large", "largest", "nothing", "cut"],
)
def test_bombs_are_refused_before_they_are_decoded(
    data: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(SignalError, match=reason) as caught:
        read(tmp_path / "a.jpg")
    assert "\n" not in str(caught.value)


# Arrays, and writing.


def test_arrays_become_pictures_within_half_a_level() -> None:
    values = np.random.default_rng(0).random((3, 7, 5))
    for kind in (np.float16, np.float32, np.float64):
        image = from_array(values.astype(kind))
        assert image.mode == "RGB" and image.size == (5, 7)
        found = np.asarray(image).transpose(2, 0, 1) / 255
        assert np.abs(found - values.astype(kind)).max() <= 0.5 / 255 + 1e-3 * (kind is np.float16)
    ends = from_array(np.array([[[0.0]], [[1.0]], [[0.5]]]))
    assert pixels(ends) == [(0, 255, 128)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((3, 2, 2), np.nan), r"values from nan to nan; .* within \[0, 1\]"),
        (np.linspace(-1, 1, 12).reshape(3, 2, 2), r"values from -1 to 1"),
        (np.linspace(0, 255, 12).reshape(3, 2, 2), r"values from 0 to 255"),
        (np.full((3, 2, 2), np.inf), "values from inf"),
        (np.zeros((3, 2, 2), np.uint8), r"floats \(3, H, W\), not uint8 \(3, 2, 2\)"),
        (np.zeros((2, 2, 3)), r"not float64 \(2, 2, 3\)"),
        (np.zeros((1, 3, 2, 2)), r"not float64 \(1, 3, 2, 2\)"),
        (np.zeros((3, 0, 2)), r"not float64 \(3, 0, 2\)"),
    ],
)
def test_arrays_of_another_kind_or_range_are_refused(
    values: NDArray[np.generic], message: str
) -> None:
    with pytest.raises(SignalError, match=message):
        from_array(values)


def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 6, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    for name in ("a.png", "b.webp"):
        write(image, tmp_path / name)
        assert np.array_equal(np.asarray(read(tmp_path / name)), noise), name
    write(image, tmp_path / "c.JPG")
    assert (tmp_path / "c.JPG").read_bytes()[:3] == b"\xff\xd8\xff"
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(PolytokError, match="--force"):
        write(Image.new("RGB", (1, 1)), tmp_path / "a.png", force=False)
    assert (tmp_path / "a.png").read_bytes() == before
    for name, what in (("d.gif", "unknown extension '.gif'"), ("d", "no extension")):
        with pytest.raises(SignalError, match=what):
            write(image, tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("suffix", "longest"), [(".webp", 16_383), (".jpg", 65_500)])
def test_pictures_too_large_for_their_format_are_refused(
    suffix: str, longest: int, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    write(Image.new("L", (longest, 1)), path)
    assert read(path).size == (longest, 1)
    path.unlink()
    for size in ((longest + 1, 1), (1, longest + 1)):
        message = f"{size[0]} x {size[1]} pixels; {suffix} holds at most {longest} along a side"
        with pytest.raises(SignalError, match=message):
            write(Image.new("L", size), path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_what_a_format_cannot_store_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=f"{name}: the image is 0 x 3, without a pixel"):
        write(Image.new("RGB", (0, 3)), tmp_path / name)
    if not name.endswith("webp"):  # which is converted
        with pytest.raises(SignalError, match=f"cannot write .*{name}: cannot write mode F as"):
            write(Image.new("F", (2, 2)), tmp_path / name)
    assert not list(tmp_path.iterdir())
