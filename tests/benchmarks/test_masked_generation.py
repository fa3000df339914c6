"""The benchmark of masked generation, on pictures of 16 pixels and models of a few units."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from contracts import pictures
from contracts.pictures import SYSTEM
from polytok.core import hub, registry
from polytok.core.config import override
from polytok.core.errors import ConfigError
from polytok.systems.classics.maskgit import MaskGIT
from polytok.systems.classics.maskgit import preset as generator_preset

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CLASSES = ("blue", "green", "red")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(registry.SYSTEMS, SYSTEM.name, SYSTEM)
    return importlib.import_module("masked_generation")


def save_generator(root: Path, num_classes: int = 3) -> Path:
    weights = pictures.save(root / "tokenizer")
    config = override(
        generator_preset("maskgit-tiny"),
        tokenizer=str(root / "tokenizer"),
        tokenizer_weights=weights,
        vocab=125,
        length=16,
        num_classes=num_classes,
        classes=CLASSES[:num_classes],
    )
    torch.manual_seed(0)
    folder = root / f"generator-{num_classes}"
    hub.save_pretrained(MaskGIT(config), config, folder, system="maskgit", preset="maskgit-tiny")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """A generator and a classifier with random weights, and images of three colours."""
    classifiers = importlib.import_module("polytok.systems.classics.vit_classifier")
    torch.manual_seed(1)
    config = classifiers.preset("vit-classifier-tiny")
    model, folder = classifiers.ViTClassifier(config), tmp_path / "classifier"
    hub.save_pretrained(
        model, config, folder, system="vit-classifier", preset="vit-classifier-tiny"
    )
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 3)):
        for name in CLASSES:
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 5, (4, 4, 3)).repeat(4, 0).repeat(4, 1) * 63.75
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    paths = {"generator": save_generator(tmp_path), "classifier": folder}
    paths |= {name: tmp_path / name for name in ("train", "val")}
    return {name: str(path) for name, path in paths.items()}


def arguments(folders: dict[str, str], out: Path, *more: object) -> list[str]:
    named = [part for name, path in folders.items() for part in (f"--{name}", path)]
    return [*named, "--out", str(out), "--count", "6", *map(str, more)]


def test_rows_are_measured_once_and_say_what_they_are(
    bench: ModuleType, folders: dict[str, str], tmp_path: Path
) -> None:
    out, page = tmp_path / "out", tmp_path / "sheet.png"
    bench.main(arguments(folders, out, "--steps", "1,4,32", "--sheet", page))
    stored = json.loads((out / "masked_generation.json").read_text())
    rows = {row["set"]: row for row in stored["rows"]}
    # 32 steps are more than there are ids, and are left out.
    assert rows.keys() == {*bench.REFERENCES, "steps 001", "steps 004"}
    for steps in (1, 4):
        row = rows[f"steps {steps:03d}"]
        assert row["passes"] == steps
        # Two micro-batches of 4 for 6 images; guidance doubles all steps but the first.
        assert row["rows_per_image"] == pytest.approx(8 * (2 * steps - 1) / 6, rel=1e-4)
        assert row["feature_distance"] > 0 and 0 <= row["class_agreement"] <= 1
    # The codes of these pictures lose nothing, so decoded val is val.
    assert rows["decoded"]["feature_distance"] == pytest.approx(0, abs=1e-3)
    assert rows["copies"]["tokenizer_error"] == pytest.approx(0, abs=0.01)
    assert str(tmp_path) not in (out / "masked_generation.json").read_text()
    with Image.open(page) as sheet:
        assert sheet.width > 4 * bench.SHEET_PIXELS
    stamp = (out / "masked_generation.json").read_bytes()
    bench.main(arguments(folders, out, "--steps", "1,4"))
    assert (out / "masked_generation.json").read_bytes() == stamp


def test_a_generator_without_classes_has_no_agreement(
    bench: ModuleType, folders: dict[str, str], tmp_path: Path
) -> None:
    folders["generator"] = str(save_generator(tmp_path, num_classes=0))
    bench.main(arguments(folders, tmp_path, "--steps", "2"))
    stored = json.loads((tmp_path / "masked_generation.json").read_text())
    assert all("class_agreement" not in row for row in stored["rows"])
    row = next(row for row in stored["rows"] if row["set"] == "steps 002")
    assert row["rows_per_image"] == pytest.approx(8 * 2 / 6, rel=1e-4)


def test_a_copy_is_found_where_it_lies(bench: ModuleType, folders: dict[str, str]) -> None:
    images = bench.read_split(folders["train"], "train", 16)
    order = torch.tensor([7, 2, 11])
    distance, place = bench.nearest(images.images(order), images)
    assert torch.equal(place, order)
    assert float(distance.max()) < 1e-3
    moved = images.images(order) + 0.25
    assert bench.nearest(moved, images)[0].max() <= 0.25 + 1e-4


def test_models_and_images_that_do_not_belong_together_are_refused(
    bench: ModuleType, folders: dict[str, str], tmp_path: Path
) -> None:
    two = {**folders, "generator": str(save_generator(tmp_path, num_classes=2))}
    with pytest.raises(ConfigError, match="blue"):
        bench.main(arguments(two, tmp_path))
    with pytest.raises(ConfigError, match="no classifier"):
        bench.main(arguments({**folders, "classifier": str(tmp_path / "tokenizer")}, tmp_path))
