"""The front door: loading by every kind of name, files that know their weights, overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts import pictures
from polytok.core import hub, registry
from polytok.core.contracts import Codes
from polytok.core.errors import (
    ConfigError,
    FormatError,
    PolytokError,
    UnknownNameError,
    WeightsError,
)
from polytok.systems import api
from polytok.systems.image.codec import ImageCodec
from polytok.systems.shape.codec import ShapeCodec
from polytok.systems.shape.vat import VAT, preset

TINY = "vat-512b-tiny"
SMALL = "vat-512b-small"
TAG = "vat-512b-small.shapes2"


def save_tiny(folder: Path, seed: int) -> str:
    """Write a model folder with random weights; returns its fingerprint."""
    torch.manual_seed(seed)
    return hub.save_pretrained(VAT(preset(TINY)), preset(TINY), folder, system="vat", preset=TINY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "tiny", 0)
    return tmp_path / "tiny"


@pytest.fixture
def shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder as the shipped weights of a preset; returns the fingerprint."""
    fingerprint = hub.fingerprint(folder)
    row = registry.Weights(preset=SMALL, path=folder.name, fingerprint=fingerprint)
    monkeypatch.setattr(registry, "WEIGHTS", {TAG: row})
    monkeypatch.setattr(api, "SHIPPED", folder.parent)
    return fingerprint


def random_codes(codec: ShapeCodec, count: int = 1) -> Codes:
    return Codes(
        indices=tuple(torch.randint(lv.vocab, (count, lv.count or 1)) for lv in codec.spec.levels),
        meta={"centre": torch.randn(count, 3), "scale": torch.rand(count) + 0.5},
    )


def test_a_folder_loads_with_its_own_weights(folder: Path) -> None:
    codec = api.load(folder)
    assert codec.name == str(folder) and codec.weights == hub.fingerprint(folder)
    assert not codec.model.training
    assert not any(p.requires_grad for p in codec.model.parameters())
    torch.manual_seed(0)
    for name, value in VAT(preset(TINY)).state_dict().items():
        assert torch.equal(codec.model.state_dict()[name], value), name


def test_a_preset_loads_with_weights_that_are_named(folder: Path) -> None:
    assert api.load(TINY, weights=folder).weights == hub.fingerprint(folder)
    with pytest.raises(WeightsError, match=f"holds weights of {TINY}, not of {SMALL}"):
        api.load(SMALL, weights=folder)


def test_shipped_weights_load_by_tag_and_by_preset(shipped: str) -> None:
    for name in (TAG, SMALL):
        codec = api.load(name)
        assert codec.name == TAG and codec.weights == shipped


def test_names_that_nothing_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'vat-512b-small'"):
        api.load("vat-512b-smal")
    with pytest.raises(UnknownNameError):
        api.load("/no/such/folder")
    monkeypatch.setattr(registry, "WEIGHTS", {})
    with pytest.raises(WeightsError, match="no trained weights"):
        api.load(SMALL)
    with pytest.raises(WeightsError, match="no trained weights"):
        api.load(TINY)


def test_a_hub_repository_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(repository: str) -> Path:
        asked.append(repository)
        return folder

    monkeypatch.setattr(hub, "download", download)
    assert api.load("someone/shapes").name == "someone/shapes"
    assert asked == ["someone/shapes"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"system": "vta"}, UnknownNameError, "did you mean 'vat'"),
        ({"format_version": 99}, WeightsError, "format 99"),
        ({"system": None}, WeightsError, "config.json"),
        ({"config": {"dimm": 64}}, UnknownNameError, "did you mean 'dim'"),
        ({"config": {"slots": [1, 4]}}, WeightsError, "missing"),
    ],
)
def test_wrong_configurations(
    folder: Path, change: dict[str, Any], error: type[PolytokError], text: str
) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(error, match=text) as caught:
        api.load(folder)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot read"):
        api.load(folder)
    weights.unlink()
    with pytest.raises(WeightsError, match="cannot read"):
        api.load(folder)


def test_codecs_of_every_modality_load_save_and_open(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.SYSTEMS, pictures.SYSTEM.name, pictures.SYSTEM)
    pictures.save(tmp_path / "patches")
    codec = api.load_codec(tmp_path / "patches", modality="image")
    codes = codec.encode(torch.rand(3, 20, 30))
    path = tmp_path / "a.ptk"
    assert api.save(codes, path, codec) == path.stat().st_size
    back, found = api.open(path, tmp_path / "patches")
    assert isinstance(found, ImageCodec) and torch.equal(back.indices[0], codes.indices[0])
    assert found.decode(back)[0].size == (30, 20)
    with pytest.raises(FormatError, match="a code of image, not of shape"):
        api.unpack(path.read_bytes(), folder)
    for name, wanted, given in (
        (tmp_path / "patches", "shape", "image"),
        (folder, "image", "shape"),
    ):
        match = f"is a tokenizer of {given}s .*; a tokenizer of {wanted}s is needed here"
        with pytest.raises(WeightsError, match=match):
            api.load_codec(name, modality=wanted)


def test_models_of_another_kind_are_named(folder: Path, tmp_path: Path) -> None:
    """Before their weights are read, so a folder with a config.json is enough."""
    for system, words in (
        ("vat-gen", r"is a generator \(vat-gen\)"),
        ("vit-classifier", r"is a model \(vit-classifier\)"),
        ("evit", r"is a reducer \(evit\)"),
    ):
        hub.write_info(tmp_path, preset(TINY), system=system, preset="any")
        with pytest.raises(WeightsError, match=f"{words}; a tokenizer is needed here"):
            api.load_codec(tmp_path)
        assert api.system_of(tmp_path).name == system
    with pytest.raises(WeightsError, match=r"is a tokenizer \(vat\); a generator is needed here"):
        api.load_generator(folder)


def test_save_and_open_know_the_weights(shipped: str, tmp_path: Path) -> None:
    codec = api.load(TAG)
    codes = random_codes(codec)
    path = tmp_path / "a.ptk"
    size = api.save(codes, path, codec)
    assert size == path.stat().st_size <= 512
    back, found = api.open(path)
    assert found.name == TAG and found.weights == shipped
    assert all(torch.equal(a, b) for a, b in zip(back.indices, codes.indices, strict=True))
    assert all(torch.equal(back.meta[k], codes.meta[k]) for k in codes.meta)
    assert api.unpack(path.read_bytes()).indices[0].equal(codes.indices[0])
    assert api.pack(codes) == [path.read_bytes()]


def test_save_keeps_what_is_there(folder: Path, tmp_path: Path) -> None:
    codec, path = api.load(folder), tmp_path / "a.ptk"
    path.write_bytes(b"mine")
    with pytest.raises(PolytokError, match=r"a\.ptk"):
        api.save(random_codes(codec), path, codec, force=False)
    assert path.read_bytes() == b"mine"
    with pytest.raises(ConfigError, match="one item, got 2"):
        api.save(random_codes(codec, 2), path, codec)
    assert path.read_bytes() == b"mine"


def test_files_of_unknown_weights(folder: Path, shipped: str, tmp_path: Path) -> None:
    stranger = save_tiny(tmp_path / "other", 1)
    assert stranger != shipped
    codec = api.load(tmp_path / "other")
    [data] = codec.pack(random_codes(codec))
    with pytest.raises(WeightsError, match=f"{stranger}.*{TAG}") as caught:
        api.unpack(data)
    assert "\n" not in str(caught.value)
    assert len(api.unpack(data, tmp_path / "other")) == 1
    with pytest.raises(WeightsError, match=f"{stranger}.*{shipped}"):
        api.unpack(data, folder)


def test_files_that_are_no_codes(tmp_path: Path) -> None:
    path = tmp_path / "a.ptk"
    path.write_bytes(b"solid cube")
    with pytest.raises(FormatError, match=r"not a \.ptk file"):
        api.open(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.lr", "not of the form"),
        ("nowhere.lr=1", "has no nowhere"),
        ("preset.name=1", "has no preset"),
    ],
)
def test_overrides_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        api._set({"train": {"lr": 1.0}, "preset": "a"}, text)


def test_overrides_are_json_else_text() -> None:
    values: dict[str, Any] = {"train": {}, "data": {"train": "a"}}
    for text in ("train.lr=1e-3", "train.compile=true", "data.train=x/y=z.zip", "preset=a"):
        api._set(values, text)
    assert values == {
        "train": {"lr": 1e-3, "compile": True},
        "data": {"train": "x/y=z.zip"},
        "preset": "a",
    }


def test_overrides_are_checked_like_the_recipe(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "vat" / "tiny.toml"
    with pytest.raises(UnknownNameError, match="did you mean 'batch_size'"):
        api.train(recipe, tmp_path / "run", ["train.batch_sise=3"])
    with pytest.raises(ConfigError, match="lr='fast'"):
        api.train(recipe, tmp_path / "run", ["train.lr=fast"])
    with pytest.raises(UnknownNameError, match="preset"):
        api.train(recipe, tmp_path / "run", ["preset=vat-1kb"])
    with pytest.raises(ConfigError, match="cannot read recipe"):
        api.train(tmp_path / "no.toml", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [SMALL, "vat-512b-small.shapes1", "vat-512b-small.shapes2"])
def test_weights_have_their_own_entropy_coder(name: str) -> None:
    codec = api.load_codec(name)
    prior = api.prior_of(codec)
    tag = name if "." in name else registry.SYSTEMS["vat"].default_weights[SMALL]
    wanted = [row for row in registry.WEIGHTS.values() if row.draws == tag][-1]
    assert prior.fingerprint == wanted.fingerprint


def test_generators_draw_codes_of_the_weights_they_name() -> None:
    rows = [row for row in registry.WEIGHTS.values() if row.draws]
    assert rows
    for row in rows:
        config = hub.read_info(api.SHIPPED / row.path).config
        assert config["tokenizer_weights"] == registry.WEIGHTS[row.draws].fingerprint
