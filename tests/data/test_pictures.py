"""Folders of pictures: made once, split by family, drawn as their kind says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from polytok.core.errors import ConfigError, PolytokError, UnknownNameError
from polytok.data import pictures
from polytok.data.images import LabelledImages
from polytok.data.picture_sources import KINDS, emoji_family
from polytok.data.pictures import PictureSamples, prepare_pictures, read_pictures, split_of

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><path d="M1 1h6v6H1z"{}/></svg>'
SIZE = 16


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    """Forty families of two icons each, and a brand."""
    root = tmp_path / "icons"
    (root / "svg").mkdir(parents=True)
    names = [f"i{n}{tail}" for n in range(40) for tail in ("", "-outline")]
    rows = [{"name": name, "tags": []} for name in names]
    rows.append({"name": "brand", "tags": ["Math", "Brand / Logo"]})
    for row in rows:
        (root / "svg" / f"{row['name']}.svg").write_text(SVG.format(""))
    (root / "meta.json").write_text(json.dumps(rows))
    return root


def parts(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("part-*"))}


def test_pictures_are_made_once_and_go_on(
    icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "PART", 32)
    out, told = tmp_path / "out", list[tuple[int, int]]()
    index = prepare_pictures(
        "icons", icons, out, size=SIZE, progress=lambda n, of: told.append((n, of))
    )
    assert told == [(32, 80), (64, 80), (80, 80)]
    assert len(index.names) == 80 and "svg/brand.svg" not in index.names
    made = parts(out / "icons")
    (out / "icons" / "part-001.safetensors").unlink()
    with pytest.raises(PolytokError, match="no whole set"):
        read_pictures(out, "train")
    kept = (out / "icons" / "part-000.safetensors").stat().st_mtime_ns
    prepare_pictures("icons", icons, out, size=SIZE)
    assert parts(out / "icons") == made
    assert (out / "icons" / "part-000.safetensors").stat().st_mtime_ns == kept
    with pytest.raises(ConfigError, match="holds other pictures"):
        prepare_pictures("icons", icons, out, size=SIZE, seed=1)


def test_splits_keep_families_together_and_lose_nothing(icons: Path, tmp_path: Path) -> None:
    prepare_pictures("icons", icons, tmp_path / "out", size=SIZE, variants=3)
    found = {s: read_pictures(tmp_path / "out", s) for s in ("train", "val", "test")}
    assert sum(len(d) for d in found.values()) == 80 * 3
    families = [{n.removesuffix(".svg").split("-")[0] for n in d.names} for d in found.values()]
    assert sum(len(f) for f in families) == len(set.union(*families)) == 40
    for split, data in found.items():
        assert data.classes == ("icons/filled", "icons/outline")
        assert data.pixels.shape[1:] == (3, SIZE, SIZE) and data.pixels.dtype == torch.uint8
        for name, label in zip(data.names, data.labels.tolist(), strict=True):
            assert label == name.endswith("-outline.svg")
            assert split_of(f"icons/{Path(name).stem.split('-')[0]}") == split
    plain = read_pictures(tmp_path / "out", "train", plain=True)
    assert plain.names == found["train"].names[::3]
    assert torch.equal(plain.pixels, found["train"].pixels[::3])


def test_one_in_twenty_families_is_held_back_for_tests() -> None:
    splits = [split_of(f"some/{n}") for n in range(20_000)]
    # 1000 expected of each; five standard deviations of a binomial are 154.
    assert all(abs(splits.count(name) - 1000) < 154 for name in ("val", "test"))


def test_the_first_icon_is_plain_and_the_others_stand_out(icons: Path, tmp_path: Path) -> None:
    prepare_pictures("icons", icons, tmp_path / "out", size=SIZE, variants=4, limit=20)
    data = read_pictures(tmp_path / "out", "train")
    values = data.images().unflatten(0, (-1, 4))
    first = values[0, 0]
    assert (values[:, 0] == first).all() and torch.equal(first, first.flip(-1))
    assert (first[:, 0] == 1).all() and (first[:, SIZE // 2, SIZE // 2] == 0).all()
    light = (values[:, 1:] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(2)
    contrast = light.flatten(2).amax(2) - light.flatten(2).amin(2)
    assert contrast.median() > 0.3
    assert len({v.numpy().tobytes() for v in values[:, 1:].flatten(0, 1)}) == 3 * len(values)


def test_emoji_of_all_skins_and_genders_are_one_family(tmp_path: Path) -> None:
    same = {
        emoji_family(f)
        for f in (
            "1f3cb.svg",
            "1f3cb-1f3fd.svg",
            "1f3cb-1f3fd-200d-2640-fe0f.svg",
            "1f3cb-fe0f-200d-2642-fe0f.svg",
        )
    }
    assert same == {"1f3cb"}
    assert emoji_family("1f468-1f3fb-200d-1f692.svg") == emoji_family("1f9d1-200d-1f692.svg")
    root = tmp_path / "emoji"
    root.mkdir()
    rows = [
        ("1f1e6-1f1e8.svg", "regional indicator symbol letter a", "flag"),
        ("1f600.svg", "grinning face", "face"),
        ("1f44d-1f3fb.svg", "thumbs up sign emoji modifier fitzpatrick type-1-2", "person"),
        ("1f34e.svg", "red apple", "thing"),
    ]
    lines = [json.dumps({"file": f, "caption": c}) for f, c, _ in rows]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    groups = {s.name: s.group for s in KINDS["emoji"].find(root)}
    assert groups == {f: f"emoji/{g}" for f, _, g in rows}
    for name in groups:
        (root / name).write_text(SVG.format(' fill="#f00"'))
    prepare_pictures("emoji", root, tmp_path / "out", size=SIZE)
    data = read_pictures(tmp_path / "out", "train", plain=True)
    assert len(data) and (data.pixels[:, :, 8, 8] == torch.tensor([255, 0, 0])).all()


def test_shapes_that_are_not_free_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    (root / "pack").mkdir(parents=True)
    licences = {"pack/Box_A.glb": "CC0-1.0", "pack/BoxTwo.glb": "CC0-1.0", "pack/cone.glb": "MIT"}
    for name in licences:
        trimesh.creation.box((1, 2, 3)).export(root / name)
    rows = [json.dumps({"file": f, "license": x}) for f, x in licences.items()]
    (root / "metadata.jsonl").write_text("\n".join(rows))
    sources = KINDS["shapes"].find(root)
    assert [(s.name, s.family) for s in sources] == [
        ("pack/BoxTwo.glb", "shapes/pack/box"),
        ("pack/Box_A.glb", "shapes/pack/box"),
    ]
    prepare_pictures("shapes", root, tmp_path / "out", size=SIZE)
    data = read_pictures(tmp_path / "out", split_of("shapes/pack/box"), plain=True)
    assert len(data) == 2 and (data.pixels[:, :, 0, 0] == 255).all()
    assert (data.pixels != 255).any(1).flatten(1).float().mean(1).min() > 0.1


def test_photos_are_cropped_square(tmp_path: Path) -> None:
    root = tmp_path / "photos" / "dog"
    root.mkdir(parents=True)
    values = np.zeros((32, 64, 3), np.uint8)
    values[:, 16:48] = (0, 200, 0)
    for n in range(30):
        Image.fromarray(values).save(root / f"{n}.png")
    prepare_pictures("labelled", root.parent, tmp_path / "out", size=8, variants=2)
    data = read_pictures(tmp_path / "out", "train")
    assert data.classes == ("labelled/dog",)
    green = torch.tensor([0, 200, 0], dtype=torch.uint8)[:, None, None]
    assert (data.pixels[::2] == green).all()
    assert not (data.pixels[1::2] == green).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"kind": "iconz"}, UnknownNameError, "did you mean 'icons'"),
        ({"size": 0}, ConfigError, "size=0"),
        ({"variants": 0}, ConfigError, "variants=0"),
        ({"limit": 0}, ConfigError, "limit=0"),
        ({"kind": "photos"}, PolytokError, "has no photos"),
        ({"kind": "emoji"}, PolytokError, r"metadata\.jsonl is missing"),
        ({"source": "nowhere"}, PolytokError, "no such file"),
    ],
)
def test_wrong_requests_are_refused(
    icons: Path, tmp_path: Path, change: dict[str, str | int], error: type[Exception], text: str
) -> None:
    request = {"kind": "icons", "source": icons, "out": tmp_path / "out", "size": SIZE, **change}
    with pytest.raises(error, match=text) as caught:
        prepare_pictures(**request)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_damaged_source_is_named(icons: Path, tmp_path: Path) -> None:
    (icons / "svg" / "i3.svg").write_text("<svg")
    with pytest.raises(PolytokError, match=r"svg/i3\.svg cannot be drawn: not a readable SVG"):
        prepare_pictures("icons", icons, tmp_path / "out", size=SIZE)
    with pytest.raises(PolytokError, match="has no pictures"):
        read_pictures(tmp_path / "none", "train")
    with pytest.raises(UnknownNameError, match="split 'tset'"):
        read_pictures(tmp_path / "out", "tset")  # type: ignore[arg-type]


def test_samples_repeat_and_mirror_only_what_may_be() -> None:
    ramp = torch.arange(24, dtype=torch.uint8).expand(3, 8, 24)
    classes = ("icons/filled", "photos")
    images = LabelledImages(torch.stack([ramp, ramp]), torch.tensor([0, 1]), classes)
    source = PictureSamples(images, shift=2, seed=3)
    falls = {0: 0, 1: 0}
    for n in range(200):
        one, again = source.sample(n), source.sample(n)
        assert all(torch.equal(one[k], again[k]) for k in one) and set(one) == {
            "image", "label", "seed",
        }  # fmt: skip
        row = one["image"][0, 0] * 255
        falls[int(one["label"])] += bool(row[5] > row[6])
        shifts = (row[5] - (18 if row[5] > row[6] else 5)).round()
        assert abs(shifts) <= 2
    assert falls[0] == 0 and 30 < falls[1] < 70
    labels = [int(source.sample(n)["label"]) for n in range(8)]
    assert all(sorted(labels[i : i + 2]) == [0, 1] for i in range(0, 8, 2))
    with pytest.raises(ConfigError, match="shift=-1"):
        PictureSamples(images, shift=-1)
