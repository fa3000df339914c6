"""``polytok reduce``: numbers that agree with the library, pictures, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import polytok
from cli.commands import run
from reducers.models import tiny_deit, tiny_hf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny timm model as a folder, plain."""
    path = tmp_path_factory.mktemp("model")
    model = tiny_deit()
    polytok.reduce(model, "evit", keep=0.5)
    polytok.reducers.save(model, path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_bench_prints_what_it_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--keep", 0.5, "--batch", 2, "--rounds", 2)
    assert run("reduce", "bench", folder, *arguments, "--json") == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["tokens"] == [17, 17, 10, 7, 5] and facts["rounds"] == 2
    assert facts["macs"] < facts["plain_macs"] and facts["speedup"] > 0
    assert facts["noise_range"][0] <= facts["noise_range"][1]
    assert run("reduce", "bench", folder, *arguments, "--keep", "1:0.5,2:1.0") == 0
    out = capsys.readouterr().out
    assert "keep=0.5 in blocks 1" in out and "fewer), counted" in out and "plain against" in out


def test_bench_takes_images_and_transformers_folders(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_hf().save_pretrained(tmp_path / "hf")
    options = ("--method", "tome", "--r", 2, "--rounds", 1, "--batch", 3, "--json")
    assert run("reduce", "bench", tmp_path / "hf", *options, "--images", picture.parent) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["tokens"] == [17, 15, 13, 11, 9] and facts["inputs"].startswith("3 x 3x64x64")


def test_trace_pictures_what_survives(
    folder: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    assert run("reduce", "trace", folder, picture, "-o", out, "--keep", "1:0.5") == 0
    with Image.open(out) as found:
        assert found.size == (128, 64)
    told = capsys.readouterr()
    assert "of 4x4 patches survive block 1: 9" in told.out and "random" not in told.err
    assert run("reduce", "trace", folder, picture, "-o", out) == 2
    assert "use --force" in capsys.readouterr().err
    schedule = tmp_path / "schedule.json"
    polytok.reducers.Schedule.ratios({2: 0.25}).save(schedule)
    assert (
        run("reduce", "trace", folder, picture, "-o", out, "--force", "--schedule", schedule) == 0
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("bench", "deit_smal_patch16_224"), "did you mean 'deit_small_patch16_224'"),
        (("bench", "resnet18"), "no vision transformer of a known family"),
        (("bench", "{folder}", "--keep", "0"), "not within (0, 1]"),
        (("bench", "{folder}", "--keep", "most"), "neither a number nor"),
        (("bench", "{folder}", "--keep", "9:0.5"), "layers 0..3"),
        (("bench", "{folder}", "--keep", "0.5", "--r", "3"), "give one of keep, r"),
        (("bench", "{folder}", "--method", "evti"), "did you mean 'evit'"),
        (("bench", "{folder}", "--schedule", "gone.json"), "gone.json"),
        (("bench", "{folder}", "--images", "{empty}"), "no images"),
        (("bench", "{folder}", "--rounds", "0"), "greater than or equal to 1"),
        (("bench", "{empty}"), "cannot build the model"),
        (("trace", "{folder}", "gone.png", "-o", "{empty}/out.png"), "gone.png"),
        (("trace", "{folder}", "{picture}", "-o", "{empty}/out.txt"), "is not a picture"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:1]),
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...],
    reason: str,
    folder: Path,
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    filled = [a.format(folder=folder, picture=picture, empty=empty) for a in arguments]
    assert run("reduce", *filled) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and told.err.startswith("error: ") and reason in told.err
    assert not told.out and not list(empty.iterdir())


def test_threads_and_models_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        arguments = ("--rounds", 1, "--batch", 1, "--threads", 1, "--keep", 0.3)
        assert run("reduce", "bench", "vit_tiny_patch16_224", *arguments) == 0
    finally:
        torch.set_num_threads(before)
    out = capsys.readouterr().out
    assert "random weights" in out and "threads    1" in out
