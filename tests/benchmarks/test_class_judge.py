"""The convolutional judge of classes, on pictures of one colour each."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from polytok.core.errors import PolytokError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 60), "red": (210, 30, 40)}


def test_a_judge_learns_classes_and_comes_back_from_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    judges = importlib.import_module("_class_judge")
    monkeypatch.setattr(judges, "BATCH", 16)
    for name, colour in COLOURS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(16):
            noisy = torch.tensor(colour) + torch.randint(-20, 20, (32, 32, 3))
            picture = Image.fromarray(noisy.clamp(0, 255).byte().numpy())
            picture.save(tmp_path / "images" / name / f"{i}.png")
    images, out = tmp_path / "images", tmp_path / "judge.safetensors"
    judges.main(["--train", str(images), "--test", str(images), "--epochs", "8", "--out", str(out)])
    kept = importlib.import_module("_image_judges")
    judge, told = kept.load_judge(out, judges.ClassJudge, "it")
    assert told["accuracy"] == 1.0 and told["classes"] == sorted(COLOURS)
    found = judges.read_labelled(images, judges.SIZE)
    assert judges.accuracy(judge, found) == 1.0
    patches = torch.nn.functional.unfold(found.images(), 2).transpose(1, 2).flatten(0, 1)
    weight = judge.whiten.weight[: judges.FILTERS].flatten(1)
    spread = (patches @ weight.T).T.cov()
    # Whitened: no two filters go together, and none is louder than one.
    assert (spread - spread.diag().diag()).abs().max() < 0.05 and spread.diag().max() < 1.05


def test_a_missing_judge_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    generation = importlib.import_module("masked_generation")
    with pytest.raises(PolytokError, match="missing"):
        generation.load_judge(str(tmp_path / "none.safetensors"))
