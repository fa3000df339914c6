"""Saving a reduced model writes the plain one and a small file, and both load back."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import polytok
from polytok.core.errors import PolytokError, WeightsError
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers import reduction_of
from polytok.reducers.baselines import UniformOrder
from polytok.reducers.families import FAMILIES
from reducers.models import image, logits, tiny_deit, tiny_hf

DEIT = next(f for f in FAMILIES if f.name == "DeiT")


class Mine(UniformOrder):
    """Somebody's own method."""


@torch.no_grad()
def test_transformers_models_save_themselves(tmp_path: Path) -> None:
    model = tiny_hf()
    plain = logits(model(image(DEIT)))
    polytok.reduce(model, "mctf", r=3, pooling="size", restore="grid")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "ViTForImageClassification"
    ]
    untouched = import_hf("transformers").ViTForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(untouched.eval()(image(DEIT))), plain)
    _check_loaded(tmp_path, model)


@pytest.mark.parametrize("is_older", [False, True], ids=["new-folder", "over-another"])
def test_what_goes_to_the_hub_is_reduced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_older: bool
) -> None:
    uploaded = hub_that_remembers(monkeypatch)
    model = tiny_hf()
    if is_older:
        polytok.reduce(model, "evit", keep=0.25)
        model.save_pretrained(tmp_path)
        polytok.unreduce(model)
    polytok.reduce(model, "evit", keep=0.5)
    model.save_pretrained(str(tmp_path), push_to_hub=True, repo_id="somebody/reduced")
    assert {"config.json", "model.safetensors", "reduction.json"} <= uploaded.keys()
    assert uploaded["reduction.json"] == (tmp_path / "reduction.json").read_bytes()
    _check_loaded(tmp_path, model)
    saved = uploaded.pop("reduction.json")
    model.push_to_hub("somebody/reduced")
    assert uploaded["reduction.json"] == saved
    polytok.unreduce(model)
    uploaded.clear()
    model.push_to_hub("somebody/plain")
    assert "config.json" in uploaded and "reduction.json" not in uploaded


def hub_that_remembers(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What transformers commits from here on, by name; nothing leaves this machine."""
    uploaded: dict[str, bytes] = {}

    def create_commit(*, operations: list[Any], **_: Any) -> None:
        for operation in operations:
            uploaded[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()

    def create_repo(repo_id: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    api = SimpleNamespace(create_repo=create_repo, create_commit=create_commit)
    card = SimpleNamespace(save=lambda path: Path(path).write_text("card"))
    # Releases reach the hub by one of these names.
    for module in ("transformers.utils.hub", "transformers.modeling_utils"):
        for name, fake in (
            ("hf_api", lambda: api),
            ("create_repo", create_repo),
            ("create_commit", create_commit),
            ("create_and_tag_model_card", lambda *_, **__: card),
        ):
            monkeypatch.setattr(import_hf(module), name, fake, raising=False)
    return uploaded


@torch.no_grad()
def test_bare_transformers_models_too(tmp_path: Path) -> None:
    model = tiny_hf().vit
    polytok.reduce(model, "evit", keep=0.5)
    polytok.reducers.save(model, tmp_path)
    _check_loaded(tmp_path, model)


@torch.no_grad()
def test_timm_models_are_saved_as_timm_does(tmp_path: Path) -> None:
    model = tiny_deit()
    plain = model(image(DEIT))
    polytok.reduce(model, "diffrate", keep={1: 0.6}, prune_share=0.25)
    polytok.reducers.save(model, tmp_path)
    untouched = import_hf("timm").create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(untouched.eval()(image(DEIT)), plain)
    _check_loaded(tmp_path, model)


def _check_loaded(folder: Path, model: nn.Module) -> None:
    loaded = polytok.reducers.load(folder)
    assert str(reduction_of(loaded)) == str(reduction_of(model))
    assert torch.equal(logits(loaded(image(DEIT))), logits(model(image(DEIT))))


@torch.no_grad()
def test_a_reduction_alone_goes_onto_any_plain_model(tmp_path: Path) -> None:
    model = tiny_deit()
    polytok.reduce(model, "evit", keep=0.5, fuse=False)
    polytok.reducers.write_reduction(model, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["reduction.json"]
    other = polytok.reducers.load(tmp_path, tiny_deit())
    assert torch.equal(other(image(DEIT)), model(image(DEIT)))


def test_what_cannot_be_saved_or_loaded_is_refused(tmp_path: Path) -> None:
    model = tiny_deit()
    with pytest.raises(PolytokError, match="not reduced"):
        polytok.reducers.save(model, tmp_path)
    polytok.reduce(model, Mine(), keep=0.5)
    with pytest.raises(PolytokError, match="Mine has no name to load it by"):
        polytok.reducers.write_reduction(model, tmp_path)
    wrapped = nn.Sequential(model)
    with pytest.raises(PolytokError, match="no name in timm or transformers"):
        polytok.reducers.save(wrapped, tmp_path)
    with pytest.raises(WeightsError, match=r"reduction\.json"):
        polytok.reducers.load(tmp_path)
    for text in ("{", "{}", '{"format_version": 1, "metod": 1}'):
        (tmp_path / "reduction.json").write_text(text)
        with pytest.raises(WeightsError, match=r"reduction\.json"):
            polytok.reducers.load(tmp_path)
    polytok.unreduce(model)
    polytok.reduce(model, "evit", keep=0.5)
    polytok.reducers.write_reduction(model, tmp_path)
    with pytest.raises(WeightsError, match="cannot build the model"):
        polytok.reducers.load(tmp_path)
    stale = (
        (tmp_path / "reduction.json")
        .read_text()
        .replace('"format_version": 1', '"format_version": 9')
    )
    (tmp_path / "reduction.json").write_text(stale)
    with pytest.raises(WeightsError, match="format 9"):
        polytok.reducers.load(tmp_path, tiny_deit())


@torch.no_grad()
def test_taken_away_through_the_inner_model(tmp_path: Path) -> None:
    model, x = tiny_hf(), image(DEIT)
    kinds = [type(m) for m in model.modules()]
    plain = logits(model(x))
    polytok.reduce(model, "evit", keep=0.5)
    polytok.unreduce(model.vit)
    assert torch.equal(logits(model(x)), plain)
    model.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "reduction.json").exists()
    polytok.reduce(model, "evit", keep=0.5)
    model.save_pretrained(tmp_path / "reduced")
    _check_loaded(tmp_path / "reduced", model)
    polytok.unreduce(model)
    assert [type(m) for m in model.modules()] == kinds
