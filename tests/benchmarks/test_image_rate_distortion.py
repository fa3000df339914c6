"""The benchmark of pictures in a few bytes, on drawn pictures and a tokenizer without training."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image, ImageDraw

from contracts import pictures
from contracts.pictures import SYSTEM
from polytok.core import registry
from polytok.core.errors import PolytokError
from polytok.core.seeding import numpy_rng
from polytok.data.pictures import prepare_pictures

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BUDGETS = (32, 64, 128)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(registry.SYSTEMS, SYSTEM.name, SYSTEM)
    module = importlib.import_module("image_rate_distortion")
    monkeypatch.setattr(module, "TILES", replace(module.TILES, budgets=BUDGETS, sides=(4, 8)))
    monkeypatch.setattr(
        module, "KODAK", module.Setting((64, 128, 512), (16,), tiles=(1, 2), has_hashes=False)
    )
    return module


@pytest.fixture
def peers(bench: ModuleType) -> ModuleType:
    return importlib.import_module("_image_peers")


def drawn(key: int | str, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A disc on a ground, in random colours."""
    rng = numpy_rng(0, "drawn", key)
    ground, disc = (tuple(rng.integers(0, 256, 3).tolist()) for _ in range(2))
    picture = Image.new("RGB", size, ground)
    x, y, r = (int(v) for v in rng.integers(12, 40, 3))
    ImageDraw.Draw(picture).ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=disc)
    return picture


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Prepared pictures of two classes, labelled ones, whole photos, and a tokenizer."""
    for number in range(90):
        place = tmp_path / "raw" / ("odd" if number % 2 else "even")
        place.mkdir(parents=True, exist_ok=True)
        drawn(number).save(place / f"{number:02d}.png")
    prepare_pictures("labelled", tmp_path / "raw", tmp_path / "drawn")
    with ZipFile(tmp_path / "photos.zip", "w") as archive:
        for number in range(2):
            data = BytesIO()
            drawn(f"photo {number}", (64, 48)).save(data, "PNG")
            archive.writestr(f"{number}.png", data.getvalue())
    pictures.save(tmp_path / "colours", patches=8)  # whole codes of about 73 bytes
    return {"pictures": tmp_path / "drawn", "kodak": tmp_path / "photos.zip"}


@pytest.fixture
def run(
    bench: ModuleType, folders: dict[str, Path], tmp_path: Path
) -> Callable[..., list[dict[str, Any]]]:
    """Run parts; the rows of the last one."""

    def go(parts: str, *more: object) -> list[dict[str, Any]]:
        options = ["--parts", parts, "--judge-steps", "2", "--out", tmp_path / "out"]
        options += ["--work", tmp_path / "work", "--sheet", tmp_path / "sheet.png"]
        options += [part for name, path in folders.items() for part in (f"--{name}", path)]
        bench.main([str(o) for o in (*options, *more)])
        path = tmp_path / "out" / f"image_rd_{parts.split(',')[-1]}.json"
        return json.loads(path.read_text())["rows"] if path.exists() else []

    return go


def test_files_fit_and_more_bytes_are_no_worse(peers: ModuleType) -> None:
    picture = drawn("one")
    values = np.asarray(picture, np.float32)
    found = peers.search(picture, (30, 96, 384), (4, 8, 16, 200))
    for method, files in found.items():
        assert all(len(coded.data) <= budget for budget, coded in files.items())
        errors = [peers._error(values, picture.size, coded) for _, coded in sorted(files.items())]
        assert errors == sorted(errors, reverse=True), method
    assert 20 < len(found["thumbhash"][30].data) < 26
    assert len(found["blurhash"][30].data) in (22, 28)
    assert 30 not in found["small-webp"] and 96 in found["small-webp"]
    assert 96 not in found["jpeg"] and 384 in found["jpeg"]
    for form, method in (("WEBP", "webp"), ("AVIF", "small-avif"), ("JPEG", "jpeg")):
        with Image.open(BytesIO(found[method][384].data)) as image:
            assert image.format == form


def test_the_best_file_is_not_missed(peers: ModuleType) -> None:
    """Bisection of qualities against all of them."""
    picture = drawn("two").resize((16, 16))
    files = [peers._webp(picture, quality) for quality in range(peers.TOP + 1)]
    for budget, data in peers._largest(peers._webp, picture, (60, 90, 150)).items():
        assert len(data) == max(len(f) for f in files if len(f) <= budget)


def test_hashes_show_the_colours_of_a_picture(peers: ModuleType) -> None:
    picture = Image.new("RGB", (64, 64), (200, 60, 30))
    for method, files in peers.search(picture, (64,), ()).items():
        if method in ("thumbhash", "blurhash"):
            middle = files[64].picture((64, 64)).getpixel((32, 32))
            assert np.abs(np.subtract(middle, (200, 60, 30))).max() < 20, (method, middle)


def test_kept_files_are_not_searched_again(
    peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = peers.kept_search(drawn(1), (64,), (4,), tmp_path)
    monkeypatch.delattr(peers, "search")
    assert peers.kept_search(drawn(1), (64,), (4,), tmp_path) == first
    with pytest.raises(NameError):
        peers.kept_search(drawn(2), (64,), (4,), tmp_path)


def test_tiles_compare_files_with_every_peer(
    run: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    rows = run("judge,tiles")
    alone = {(row["method"], row["bytes"]): row for row in rows}
    again = run("tiles", "--model", tmp_path / "colours")
    table = {(row["method"], row["bytes"]): row for row in again}
    assert all(table[key] == row for key, row in alone.items())
    ours = [table["polytok:colours", budget] for budget in BUDGETS]
    assert all(row["file_bytes"] <= row["bytes"] for row in ours)
    assert ours[0]["psnr"] < ours[1]["psnr"]
    nothing, colour = table["webp", 32], table["mean-colour", 32]
    assert nothing["share_with_file"] == 0 and nothing["psnr"] == colour["psnr"]
    best = table["all", 128]
    assert best["psnr"] >= max(table[m, 128]["psnr"] for m in ("direct", "small", "hash"))
    for row in ours:
        gain = row["psnr"] - table["small+hash", row["bytes"]]["psnr"]
        mean, low, high = row["over small+hash"]["psnr"]
        assert mean == pytest.approx(gain, abs=0.02) and low <= mean <= high
    text = (tmp_path / "out" / "image_rd_tiles.json").read_text()
    assert str(tmp_path) not in text and '"accuracy"' in text


def test_photos_are_cut_into_tiles(
    run: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    rows = run("judge,kodak", "--model", tmp_path / "colours")
    found = {(row["method"], row["bytes"]): row for row in rows}
    assert not any("hash" in method for method, _ in found)
    few, more, most = (found["polytok:colours", budget] for budget in (64, 128, 512))
    # All of one tile's tokens take less than 128 bytes: what shows more has more tiles.
    assert few["file_bytes"] <= 64 and 128 < most["file_bytes"] <= 512
    assert few["psnr"] < more["psnr"] < most["psnr"]


def test_searched_files_are_nearer(
    run: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    bench: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = replace(bench.TILES, budgets=(64,))
    monkeypatch.setattr(bench, "TILES", setting)
    monkeypatch.setattr(bench, "SEARCHED", replace(setting, effort=1))
    more = ("--model", "one-d-piece-tiny.free", "--limit", 2)
    plain, searched = (
        next(row for row in run(f"judge,{part}", *more) if row["method"].startswith("polytok:"))
        for part in ("tiles", "searched")
    )
    assert searched["psnr"] > plain["psnr"] and searched["file_bytes"] <= 64


def test_prefixes_plot_and_sheet(
    run: Callable[..., list[dict[str, Any]]], tmp_path: Path, bench: ModuleType
) -> None:
    rows = run("judge,tiles,prefixes", "--model", tmp_path / "colours")
    assert [row["tokens"] for row in rows] == [*range(1, 17), *range(24, 65, 8)]
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 1 and rows[0]["has_tail_drop"]
    run("plot,sheet", "--model", tmp_path / "colours")
    assert (tmp_path / "out" / "image_rate_distortion.png").stat().st_size > 10_000
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 128
    with pytest.raises(PolytokError, match="no model"):
        run("sheet")


def test_searched_codes_are_set_beside_the_encoders(
    run: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    bench: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "EFFORTS", (0, 1))
    rows = run("efforts", "--model", "one-d-piece-tiny.free", "--limit", 2)
    assert [(row["tokens"], row["effort"]) for row in rows] == [(16, 0), (16, 1), (64, 0), (64, 1)]
    assert rows[1]["psnr"] > rows[0]["psnr"] and rows[3]["psnr"] > rows[2]["psnr"]
    assert all(row["pictures"] == 2 and row["seconds"] > 0 for row in rows)
    tables = importlib.import_module("_tables_images").TABLES
    text = tables["image-efforts"](tmp_path / "out")
    assert text.count("| drawn: one-d-piece-tiny.free | 2 | ") == 4


def test_a_missing_judge_and_unknown_parts_are_told(
    run: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PolytokError, match="run --parts judge first"):
        run("tiles")
    with pytest.raises(SystemExit):
        run("pictures")
    assert "unknown parts: pictures" in capsys.readouterr().err


def test_a_file_wins_over_none_and_sources_count_once(bench: ModuleType) -> None:
    def tried(psnr: list[float], has_file: list[bool]) -> Any:
        scores = {name: np.array(psnr) for name in bench.SCORES}
        return bench.Tried(scores, np.array(has_file), 1.0)

    one = tried([10.0, 20.0, 12.0], [True, True, False])
    other = tried([11.0, 19.0, 9.0], [True, True, True])
    assert bench._best([one, other]).scores["psnr"].tolist() == [11, 20, 9]
    gain = bench.over(one, [other], ["a", "a", "b"])
    assert gain["psnr"][0] == pytest.approx((0 + 3) / 2)
    assert gain["perceptual"][0] == pytest.approx(-(0 + 3) / 2)
    # The strongest of several is what counts, score by score: here the one of higher mean.
    assert bench.over(other, [other, one], ["a", "a", "b"])["psnr"][0] == pytest.approx(-1.5)


def test_tables_name_what_was_measured(
    run: Callable[..., list[dict[str, Any]]], tmp_path: Path, bench: ModuleType
) -> None:
    tables = importlib.import_module("_tables_images").TABLES
    for make in tables.values():
        assert "not measured yet" in make(tmp_path)
    run("judge,tiles", "--model", tmp_path / "colours")
    run("prefixes", "--model", tmp_path / "colours")
    text = tables["image-rate"](tmp_path / "out")
    assert text.splitlines()[0] == "| PSNR, dB | 32 B | 64 B | 128 B |"
    assert "| drawn: **colours** |" in text
    assert "| drawn: WebP | – | – |" in text
    assert text.count("drawn: mean colour") == 1
    gains = tables["image-gain"](tmp_path / "out").splitlines()[2:]
    assert len(gains) == 2 * len(BUDGETS) and all(row.count("[") == 3 for row in gains)
    assert "| drawn: colours | yes | 8 16 32 64 |" in tables["image-prefixes"](tmp_path / "out")
    assert "parameters" in tables["image-judge"](tmp_path / "out")
