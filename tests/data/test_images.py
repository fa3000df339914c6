"""Labelled images: read whole, split without overlap, augmented the same for the same number."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from PIL import Image

from polytok.core.errors import ConfigError, SignalError
from polytok.data.images import AugmentedImages, LabelledImages, read_labelled

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def png(colour: tuple[int, int, int], size: int = 8) -> bytes:
    file = BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "colours.zip"
    with ZipFile(path, "w") as out:
        out.writestr("readme.txt", "not an image")
        for name, colour in COLOURS.items():
            for i in range(4):
                out.writestr(f"{name}/{i}.png", png(colour))
    return path


@pytest.fixture
def images(archive: Path) -> LabelledImages:
    return read_labelled(archive, 8)


def test_labels_follow_folders_and_values_survive(images: LabelledImages) -> None:
    assert images.classes == ("blue", "green", "red")
    assert len(images) == 12
    for label, name in enumerate(images.classes):
        pixels = images.images(images.labels == label)
        want = torch.tensor(COLOURS[name]).float()[:, None, None] / 255
        assert torch.equal(pixels, want.expand(4, 3, 8, 8))


def test_a_folder_reads_like_its_zip(archive: Path, images: LabelledImages, tmp_path: Path) -> None:
    ZipFile(archive).extractall(tmp_path / "colours")
    again = read_labelled(tmp_path / "colours", 8)
    assert torch.equal(again.pixels, images.pixels)
    assert torch.equal(again.labels, images.labels)


def test_a_split_is_a_partition_and_repeats() -> None:
    pixels = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 4, 4)
    data = LabelledImages(pixels, torch.arange(10) % 2, ("a", "b"))
    rest, part = data.split(3, seed=5)
    ids = [d.pixels[:, 0, 0, 0].tolist() for d in (rest, part)]
    assert sorted(ids[0] + ids[1]) == list(range(10))
    assert len(ids[1]) == 3
    assert ids[1] == data.split(3, seed=5)[1].pixels[:, 0, 0, 0].tolist()
    with pytest.raises(ConfigError, match="held_out=10"):
        data.split(10)


def test_samples_repeat_and_every_epoch_sees_each_image_once(images: LabelledImages) -> None:
    source = AugmentedImages(images, shift=1, erase=0.5, seed=3)
    again = AugmentedImages(images, shift=1, erase=0.5, seed=3)
    for n in (0, 13, 5):
        ours, theirs = source.sample(n), again.sample(n)
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    for epoch in range(2):
        labels = [int(source.sample(epoch * 12 + i)["label"]) for i in range(12)]
        assert sorted(labels) == [0] * 4 + [1] * 4 + [2] * 4


def test_without_augmentation_an_image_is_itself_or_its_mirror(images: LabelledImages) -> None:
    source = AugmentedImages(images, shift=0, erase=0.0)
    for n in range(12):
        sample = source.sample(n)
        stored = images.images()[images.labels == sample["label"]][0]
        assert torch.equal(sample["image"], stored)


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(SignalError, match=r"is 8x8, not 16x16"):
        read_labelled(archive, 16)
    with pytest.raises(SignalError, match=r"not a readable zip or folder"):
        read_labelled(tmp_path / "none.zip", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SignalError, match=r"no images of the form"):
        read_labelled(tmp_path / "empty", 8)
    (tmp_path / "bad" / "cat").mkdir(parents=True)
    (tmp_path / "bad" / "cat" / "0.jpg").write_bytes(png((1, 2, 3))[:40])
    with pytest.raises(SignalError, match=r"cat/0.jpg: not a readable image"):
        read_labelled(tmp_path / "bad", 8)
