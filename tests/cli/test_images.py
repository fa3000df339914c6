"""Pictures on the command line: every command, and whatever bad is fed in."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from cli.commands import run
from contracts import pictures
from contracts.pictures import SYSTEM
from polytok import bitstream
from polytok.cli import images, kinds
from polytok.core import hub, registry
from polytok.core.registry import Weights
from polytok.data.pictures import read_pictures, split_of
from polytok.systems import api

TAG = "patch-colours-tiny.test"
PAGE = (Path(__file__).parents[2] / "docs" / "image-codec.md").read_text()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders: one whose codes have prefixes, one whose codes have none."""
    root = tmp_path_factory.mktemp("models")
    pictures.save(root / "tiny")
    pictures.save(root / "whole", has_prefixes=False)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def image_model(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(registry.SYSTEMS, SYSTEM.name, SYSTEM)
    return folders["tiny"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """32 x 16 pixels in blocks of the colours that the model knows."""
    rng = np.random.default_rng(0)
    small = np.rint(rng.integers(0, 5, (4, 8, 3)) * 63.75).astype(np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(small.repeat(4, 0).repeat(4, 1)).save(path)
    return path


@pytest.fixture
def image_code(image_model: Path, photo: Path, tmp_path: Path) -> Path:
    path = tmp_path / "photo.ptk"
    assert run("encode", photo, "-o", path, "--model", image_model, "--tiles", 2) == 0
    return path


def register(model: Path, monkeypatch: pytest.MonkeyPatch, notice: str = "") -> None:
    """Make a model folder the shipped weights ``TAG``."""
    fingerprint = hub.fingerprint(model)
    row = Weights(preset=SYSTEM.presets[0], path=model.name, fingerprint=fingerprint, notice=notice)
    monkeypatch.setitem(registry.WEIGHTS, TAG, row)
    monkeypatch.setattr(api, "SHIPPED", model.parent)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), int)


def one_error(capfd: pytest.CaptureFixture[str]) -> str:
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_round_trip(image_code: Path, image_model: Path, photo: Path, tmp_path: Path) -> None:
    assert len(image_code.read_bytes()) <= 17 + 28
    for suffix in ("png", "webp", "jpg"):
        out = tmp_path / f"back.{suffix}"
        assert run("decode", image_code, "-o", out, "--model", image_model) == 0
        apart = np.abs(pixels(out) - pixels(photo))
        assert apart.max() <= 1 if suffix != "jpg" else apart.mean() < 30


def test_budgets(image_code: Path, image_model: Path, photo: Path, tmp_path: Path) -> None:
    """The most tokens that fit: encoding to a size, truncating to it and to its tokens agree."""
    paths = [tmp_path / name for name in ("a.ptk", "b.ptk", "c.ptk", "d.ptk")]
    size = 36
    arguments = ("--model", image_model)
    assert run("encode", photo, "-o", paths[0], "--tiles", 2, "--bytes", size, *arguments) == 0
    tokens = bitstream.read_header(paths[0].read_bytes()).levels
    assert run("truncate", image_code, "-o", paths[1], "--bytes", size, *arguments) == 0
    assert run("truncate", image_code, "-o", paths[2], "--tokens", tokens, *arguments) == 0
    assert run("encode", photo, "-o", paths[3], "--tiles", 2, "--tokens", tokens, *arguments) == 0
    assert len({path.read_bytes() for path in paths}) == 1
    assert len(paths[0].read_bytes()) <= size
    codec = api.load_codec(image_model, modality="image")
    longer = codec.encode(photo, tiles=2, tokens=tokens + 1)
    assert len(codec.pack(longer)[0]) > size


def test_decode_options(image_code: Path, image_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.png"
    assert (
        run("decode", image_code, "-o", out, "--model", image_model, "--size", 8, "--tokens", 2)
        == 0
    )
    codec = api.load_codec(image_model, modality="image")
    wanted = codec.decode(codec.unpack(image_code.read_bytes()), tokens=2, size=8)[0]
    assert wanted.size == (8, 4) and np.array_equal(pixels(out), np.asarray(wanted))


def test_a_sheet_of_lengths(image_code: Path, image_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    arguments = ("--model", image_model, "--lengths", "1,4,16", "--size", 64)
    assert run("decode", image_code, "-o", out, *arguments) == 0
    codec = api.load_codec(image_model, modality="image")
    sheet, codes = pixels(out), codec.unpack(image_code.read_bytes())
    for column, length in enumerate((1, 4, 16)):
        wanted = np.asarray(codec.decode(codes, tokens=length, size=64)[0], int)
        left = 12 + column * (64 + 12)
        assert np.array_equal(sheet[12 : 12 + 32, left : left + 64], wanted)


def test_info_counts_bytes_tiles_and_tokens(
    image_code: Path, image_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run("info", image_code, "--model", image_model, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    size = image_code.stat().st_size
    assert (facts["width"], facts["height"], facts["tiles"]) == (32, 16, [1, 2])
    assert facts["bytes"] == size and facts["tokens"] == 16
    assert facts["bits_per_pixel"] == pytest.approx(8 * size / 512, abs=1e-5)
    assert facts["smallest_bytes"] == 17 + 2
    assert facts["bits"] == pytest.approx(32 * np.log2(125), abs=0.1)


def test_what_is_lost_is_said(
    image_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x010E] = "words"
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png", exif=exif)
    out = tmp_path / "a.ptk"
    arguments = ("--model", image_model, "--background", "#00ff00")
    assert run("encode", tmp_path / "a.png", "-o", out, *arguments) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{tmp_path / 'a.png'}: EXIF is dropped",
        f"{tmp_path / 'a.png'}: its transparent parts are laid over rgb(0, 255, 0)",
    ]
    assert run("decode", out, "-o", tmp_path / "b.png", "--model", image_model) == 0
    assert np.unique(pixels(tmp_path / "b.png").reshape(-1, 3), axis=0).tolist() == [[0, 255, 0]]


def test_weights_with_a_notice_say_it_once_for_every_encode(
    image_model: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    register(image_model, monkeypatch, notice="knows no photos")
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(photo.read_bytes())
    assert run("encode", folder, "-o", tmp_path / "out", "--model", TAG) == 0
    assert capsys.readouterr().err.splitlines() == [f"{TAG}: knows no photos"]
    assert run("encode", folder, "-o", tmp_path / "again", "--model", image_model) == 0
    assert capsys.readouterr().err == ""
    # An error stands alone.
    (tmp_path / "bad.png").write_bytes(b"")
    assert run("encode", tmp_path / "bad.png", "-o", tmp_path / "bad.ptk", "--model", TAG) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    # Files of registered weights need no --model.
    assert run("decode", tmp_path / "out", "-o", tmp_path / "back") == 0
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["a.png", "b.png"]
    assert run("decode", tmp_path / "out", "-o", tmp_path / "back", "--format", "webp") == 0


def test_pictures_choose_the_default_model_of_images(
    image_model: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kinds.DEFAULT_MODELS, "image", str(image_model))
    monkeypatch.setitem(kinds.DEFAULT_MODELS, "shape", "the model of shapes")
    assert run("encode", photo, "-o", tmp_path / "a.ptk") == 0
    assert kinds.of_inputs(None, [str(photo)])[1] == str(image_model)
    assert kinds.of_inputs(None, [str(photo.parent)])[1] == str(image_model)
    assert kinds.of_inputs(None, [str(photo.parent / "*.jpg")])[1] == str(image_model)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(photo, "a.png")
    assert kinds.of_inputs(None, [str(tmp_path / "a.zip")])[1] == str(image_model)
    # A texture beside a mesh makes no folder of pictures.
    (tmp_path / "chair.obj").write_text("")
    for inputs in ([str(tmp_path)], ["chair.glb"], [str(tmp_path / "*")], ["nowhere"]):
        assert kinds.of_inputs(None, inputs)[1] == "the model of shapes"


def test_pictures_of_any_name_are_told_by_their_first_bytes(
    image_model: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kinds.DEFAULT_MODELS, "image", str(image_model))
    monkeypatch.setitem(kinds.DEFAULT_MODELS, "shape", "the model of shapes")
    for name in ("bare", "shot.PHOTO", "a.b"):
        odd = tmp_path / "odd" / name
        odd.parent.mkdir(exist_ok=True)
        odd.write_bytes(photo.read_bytes())
        assert run("encode", odd, "-o", tmp_path / "a.ptk", "--force") == 0
        assert run("encode", photo, odd, "-o", tmp_path / "both", "--force") == 0
        assert kinds.of_files(photo, odd).NOUN == "image"
    assert kinds.of_inputs(None, [str(tmp_path / "odd" / "*")])[1] == str(image_model)
    # What is neither has no say, and fails alone.
    (tmp_path / "notes").write_text("v 0 0 0")
    arguments = ("-o", tmp_path / "more", "--force")
    assert run("encode", tmp_path / "notes", odd, *arguments) == 2
    assert [p.name for p in (tmp_path / "more").iterdir()] == ["a.ptk"]


def test_pictures_among_meshes_are_named(
    photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.write_bytes(photo.read_bytes())
    for inputs in ((photo, "chair.glb"), ("a.obj", "b.ply", bare), (bare, "none", "chair.glb")):
        assert run("encode", *inputs, "-o", tmp_path / "out") == 2
        message = one_error(capfd)
        assert f"{photo if photo in inputs else bare} is a picture and " in message
        assert message.endswith(f"{'a.obj' if 'a.obj' in inputs else 'chair.glb'} is not")


@pytest.mark.parametrize("target", ["z.png", "z.jpg", "z.glb", "folder"])
def test_a_code_that_cannot_be_read_is_blamed_before_its_result(
    target: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, data in (("zero.ptk", b""), ("text.ptk", b"no code at all"), ("none.ptk", None)):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        assert run("decode", tmp_path / name, "-o", tmp_path / target) == 2
        message = one_error(capfd)
        assert "extension" not in message and ("No such file" in message) == (data is None)
    assert run("decode", tmp_path / "zero.ptk", "-o", tmp_path / "z.gif") == 2
    assert "known: .glb, .obj, .ply, .stl, .jpeg, .jpg, .png, .webp" in one_error(capfd)


def test_a_cut_file_decodes_only_when_asked(
    image_code: Path, image_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cut, out = tmp_path / "cut.ptk", tmp_path / "back.png"
    cut.write_bytes(image_code.read_bytes()[:-4])
    capfd.readouterr()
    assert run("decode", cut, "-o", out, "--model", image_model) == 2
    assert "cut" in one_error(capfd) and not out.exists()
    assert run("decode", cut, "-o", out, "--model", image_model, "--partial") == 0
    assert "whole tokens" in capfd.readouterr().err


def oracle(first: Path, second: Path) -> float:
    """SSIM by scikit-image, with the same window."""
    found = structural_similarity(
        *(pixels(path) / 255 for path in (first, second)),
        channel_axis=2,
        data_range=1,
        gaussian_weights=True,
        use_sample_covariance=False,
        sigma=1.5,
    )
    return float(found)


def test_pictures_smaller_than_a_window_have_no_ssim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, level in (("a.png", 0), ("b.png", 51)):
        Image.new("RGB", (1, 1), (level,) * 3).save(tmp_path / name)
    assert run("compare", tmp_path / "a.png", tmp_path / "b.png", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == {"psnr": pytest.approx(-20 * np.log10(0.2), abs=1e-4)}


def test_compare(photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.png"
    Image.fromarray(np.clip(pixels(photo) + 8, 0, 255).astype(np.uint8)).save(other)
    assert run("compare", other, photo, "--json") == 0
    scores = json.loads(capfd.readouterr().out)
    apart = (pixels(other) - pixels(photo)) / 255
    assert scores["psnr"] == pytest.approx(-10 * np.log10(np.square(apart).mean()), abs=1e-3)
    assert scores["ssim"] == pytest.approx(oracle(other, photo), abs=1e-4)
    Image.new("RGB", (31, 16)).save(other)
    assert run("compare", other, photo) == 2
    assert "is 31 x 16" in one_error(capfd)
    assert run("compare", other, tmp_path / "box.glb") == 2
    assert "is a picture and" in one_error(capfd)
    assert run("compare", other, photo, "--seed", 3) == 2
    assert "--seed is not for images" in one_error(capfd)


def test_pictures_are_prepared_for_training(
    photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pictures"
    more = ["--pictures", "photos", "--size", 16, "--variants", 12]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "photo.png").write_bytes(photo.read_bytes())
    for _ in range(2):  # what is there is not made again
        assert run("prepare", tmp_path / "in", out, *more) == 0
    assert capfd.readouterr().out.splitlines() == ["12 pictures of 1 photos"] * 2
    split = split_of("photos/photo.png")
    assert read_pictures(out, split).pixels.shape == (12, 3, 16, 16)


def test_evaluate_scores_every_picture(
    image_model: Path, photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "all", tmp_path / "scores.json"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(photo.read_bytes())
    (folder / "c.png").write_bytes(b"no picture")
    arguments = ("--model", image_model, "--tiles", 2, "--bytes", 40, "--prefixes", "-o", out)
    assert run("evaluate", folder, *arguments) == 2
    report = json.loads(out.read_text())
    assert (report["images"], report["encoded"], report["tiles"]) == (3, 2, 2)
    assert [f["image"] for f in report["failures"]] == ["c.png"]
    codec = api.load_codec(image_model, modality="image")
    [data] = codec.pack(codec.encode(photo, tiles=2), max_bytes=40)
    tokens = bitstream.read_header(data).levels
    decoded = np.asarray(codec.decode(codec.unpack(data))[0], float)
    error = np.square((decoded - pixels(photo)) / 255).mean()
    for row in report["rows"]:
        assert (row["bytes"], row["tokens"]) == (len(data), tokens)
        assert row["bits_per_pixel"] == pytest.approx(8 * len(data) / 512, abs=1e-5)
        assert row["psnr"] == pytest.approx(-10 * np.log10(error), abs=1e-3)
        assert row["prefix_1_psnr"] < row["prefix_4_psnr"] < row["psnr"]
    assert {"psnr", "ssim", "bytes", "bits_per_pixel"} <= report["summary"].keys()
    shown = capfd.readouterr()
    assert "2 of 3 images" in shown.out and "c.png" in shown.err


def test_evaluate_goes_on_after_a_picture_that_does_not_fit(
    image_model: Path, photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "all", tmp_path / "scores.json"
    folder.mkdir()
    (folder / "a.png").write_bytes(photo.read_bytes())
    # Two tiles of the first picture, four of the second.
    Image.open(photo).resize((32, 32)).save(folder / "b.png")
    pair = (folder / "a.png", folder / "b.png")
    whole = api.load_codec(image_model, modality="image")
    metas = [whole.encode(path, tiles=2).meta for path in pair]
    least = [bitstream.sizes(whole.spec, {k: v[0].numpy() for k, v in m.items()})[0] for m in metas]
    assert least[0] < least[1]
    arguments = ("--model", image_model, "--tiles", 2, "--prefixes", "-o", out, "--force")
    assert run("evaluate", folder, *arguments, "--bytes", least[0]) == 2
    report = json.loads(out.read_text())
    assert [r["image"] for r in report["rows"]] == ["a.png"]
    assert [f["image"] for f in report["failures"]] == ["b.png"]
    assert "smallest possible size" in report["failures"][0]["reason"]
    # Where both fit, the square keeps fewer tokens of its four tiles.
    assert run("evaluate", folder, *arguments, "--bytes", 30) == 0
    report = json.loads(out.read_text())
    long, short = (max(int(k.split("_")[1]) for k in r if "fix_" in k) for r in report["rows"])
    assert short < long
    assert f"prefix_{short}_psnr" in report["summary"]
    assert f"prefix_{long}_psnr" not in report["summary"]


def test_the_commands_of_the_page_run(
    image_model: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(image_model, monkeypatch)
    monkeypatch.setitem(kinds.DEFAULT_MODELS, "image", TAG)
    monkeypatch.chdir(tmp_path)
    with Image.open(photo) as image:
        image.save("photo.jpg")
    (tmp_path / "photos").mkdir()
    photo.rename(tmp_path / "photos" / "a.png")
    block = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)[0]
    commands = [line.partition("#")[0].split()[1:] for line in block.splitlines()]
    assert len(commands) == 10
    for arguments in commands:
        if "-o" in arguments:
            Path(arguments[arguments.index("-o") + 1]).unlink(missing_ok=True)
        assert run(*arguments) == 0, arguments
    assert Path("smaller.ptk").stat().st_size <= 48
    with Image.open("photo.png") as image:
        assert image.size == (32, 16)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def encoded(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file, kind)
    return file.getvalue()


def floats(*values: float) -> bytes:
    file = io.BytesIO()
    image = Image.new("F", (len(values), 1))
    image.putdata(values)
    image.save(file, "tiff")
    return file.getvalue()


BAD = {
    "empty.png": b"",
    "text.jpg": b"this is no picture at all",
    "cut.png": encoded("png")[:300],
    "cut.jpg": encoded("jpeg")[:500],
    "bomb.png": png_header(60_000, 60_000),
    "20000x20000.png": png_header(20_000, 20_000),
    "nan.tiff": floats(0.0, float("nan")),
    "signed.tiff": floats(-1.0, 1.0),
    "levels.tiff": floats(0.0, 255.0),
    "mesh.glb": b"glTF\x02\0\0\0",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures(
    name: str, image_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / name, tmp_path / "out.ptk"
    path.write_bytes(BAD[name])
    assert run("encode", path, "-o", out, "--model", image_model) == 2
    assert name in one_error(capfd)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", ["png", "gif", "tiff", "jpeg"])
def test_any_content_under_any_name_and_mode(kind: str, image_model: Path, tmp_path: Path) -> None:
    modes = {"png": ["P", "L", "1", "I;16"], "gif": ["P"], "tiff": ["CMYK", "LAB"], "jpeg": ["L"]}
    for mode in modes[kind]:
        path = tmp_path / f"wrong-{mode.replace(';', '')}.webp"
        path.write_bytes(encoded(kind, mode))
        out = path.with_suffix(".ptk")
        assert run("encode", path, "-o", out, "--model", image_model) == 0
        assert bitstream.read_header(out.read_bytes()).size == (24, 24)


def test_a_searched_file_fits_and_is_nearer(photo: Path, tmp_path: Path) -> None:
    plain, searched = tmp_path / "plain.ptk", tmp_path / "searched.ptk"
    assert run("encode", photo, "-o", plain, "--bytes", 60) == 0
    assert run("encode", photo, "-o", searched, "--bytes", 60, "--effort", 4) == 0
    assert max(plain.stat().st_size, searched.stat().st_size) <= 60
    scores = []
    for code in (plain, searched):
        picture = code.with_suffix(".png")
        assert run("decode", code, "-o", picture) == 0
        scores.append(images.compare(photo, picture)["psnr"])
    assert scores[1] > scores[0] + 0.1


def test_tiles_can_be_chosen_by_bytes(
    photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = []
    for size in (40, 400):
        code, report = tmp_path / f"{size}.ptk", tmp_path / f"{size}.json"
        options = ("--tiles", "auto", "--bytes", size)
        assert run("encode", photo, "-o", code, *options) == 0
        assert code.stat().st_size <= size
        header = bitstream.read_header(code.read_bytes())
        assert run("evaluate", photo.parent, *options, "--limit", 1, "-o", report) == 0
        [row] = json.loads(report.read_text())["rows"]
        assert row["tiles"] == int(header.meta["tiles"]) and row["bytes"] == code.stat().st_size
        found.append(row["psnr"])
    assert found[1] > found[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bytes", 17], "the smallest possible size: 18$"),
        (["--tokens", 17], "tokens=17 is not within 1..16"),
        (["--tokens", 0], "greater than or equal to 1"),
        (["--tiles", 17], "tiles=17 is not within 1..16"),
        (["--tiles", 0], "tiles=0 is not within 1..16"),
        (["--tiles", "two"], "--tiles 'two' is no whole number, nor auto"),
        (["--tiles", "auto"], "--tiles auto needs --bytes"),
        (["--tiles", "auto", "--bytes", 17], "the smallest possible size: 18$"),
        (["--effort", 3], "has no search, as TiTok and One-D-Piece have; use 0"),
        (["--effort", 10], "less than or equal to 9"),
        (["--seed", 3], "--seed is not for images"),
        (["--background", "clear"], "--background 'clear' is no colour"),
        (["--coder", "prior"], "unknown model '.*-gen'"),
    ],
)
def test_bad_options(
    arguments: list[object],
    message: str,
    image_model: Path,
    photo: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.ptk"
    assert run("encode", photo, "-o", out, "--model", image_model, *arguments) == 2
    assert re.search(message, one_error(capfd))
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--levels", 1], "--levels is not for images"),
        (["--res", 64], "--res is not for images"),
        (["--tokens", 17], "tokens=17 is not within"),
        (["--size", 99999], "size=99999 is not within"),
        (["--lengths", "4,eight"], "--lengths '4,eight' is not of the form"),
        (["--lengths", "4,99"], "tokens=99 is not within 1..16"),
        (["--lengths", "4", "--tokens", 4], "exclude each other"),
        (
            ["--lengths", ",".join(["4"] * 9), "--size", 4096],
            "--lengths asks for 9 pictures of 4096 x 2048, together more than 100 megapixels",
        ),
        (["-o", "out.glb"], "known: .jpeg, .jpg, .png, .webp"),
    ],
)
def test_bad_options_of_decode(
    arguments: list[object],
    message: str,
    image_code: Path,
    image_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run("decode", image_code, "-o", "out.png", "--model", image_model, *arguments) == 2
    assert message in one_error(capfd)
    assert sorted(tmp_path.iterdir()) == before


def test_options_of_images_are_not_for_shapes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for option in ("--tokens", "--tiles"):
        assert run("encode", "chair.glb", "-o", tmp_path / "a.ptk", option, 3) == 2
        assert f"{option} is not for shapes" in one_error(capfd)


def test_truncate_takes_bytes_or_tokens(
    image_code: Path, image_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    for arguments in ([], ["--bytes", 30, "--tokens", 3]):
        assert (
            run(
                "truncate", image_code, "-o", tmp_path / "a.ptk", "--model", image_model, *arguments
            )
            == 2
        )
        assert "either --bytes or --tokens" in one_error(capfd)
    assert (
        run("truncate", image_code, "-o", tmp_path / "a.ptk", "--model", image_model, "--bytes", 5)
        == 2
    )
    assert "19" in one_error(capfd)
    assert not (tmp_path / "a.ptk").exists()


def test_whole_codes_only(
    folders: dict[str, Path],
    image_model: Path,
    photo: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out, whole = tmp_path / "a.ptk", folders["whole"]
    assert run("encode", photo, "-o", out, "--model", whole, "--tokens", 8) == 2
    assert "decodes whole codes of 16 only" in one_error(capfd)
    assert run("encode", photo, "-o", out, "--model", whole, "--bytes", 20) == 2
    assert "possible sizes: " in one_error(capfd)
    assert run("encode", photo, "-o", out, "--model", whole) == 0


def test_other_kinds_of_models_are_named(
    photo: Path, generator: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("encode", photo, "-o", tmp_path / "a.ptk", "--model", generator) == 2
    assert "is a generator (vat-gen); a tokenizer is needed here" in one_error(capfd)


def test_a_model_refuses_pictures_and_codes_of_pictures(
    image_code: Path, photo: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert run("encode", photo, "-o", tmp_path / "a.ptk", "--model", model) == 2
    assert "unknown extension '.png'" in one_error(capfd)
    assert run("decode", image_code, "-o", tmp_path / "a.png", "--model", model) == 2
    assert "a code of image, not of shape" in one_error(capfd)
