"""Codes of prepared shapes, samples of them, and a short run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh

from polytok.core import hub
from polytok.core.errors import ConfigError, PolytokError
from polytok.data.prepared import PreparedFolder, prepare_folder
from polytok.data.views import render_folder
from polytok.networks.pretrained import SmallTextTower
from polytok.signals.mesh import ViewSampling
from polytok.systems.shape.vat import VAT
from polytok.systems.shape.vat import preset as tokenizer_preset
from polytok.systems.shape.vat.generator import STAGES, VATGenerator, preset
from polytok.systems.shape.vat.generator_training import (
    Backdrops,
    CodeSampling,
    CodeSource,
    GeneratorValidation,
    encode_shapes,
    prepare_training,
)
from polytok.training import Recipe, TrainConfig, fit
from polytok.training.recipe import DataRecipe, StageBudget

SAMPLING = CodeSampling(aligned=2, distorted=1)


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    meshes = tmp_path_factory.mktemp("meshes")
    trimesh.creation.box((1, 2, 3)).export(meshes / "box.glb")
    trimesh.creation.cone(1, 2).export(meshes / "cone.glb")
    rows = (
        '{"file": "box.glb", "caption": "random object"}',
        '{"file": "cone.glb", "caption": "cone of cones"}',
    )
    (meshes / "metadata.jsonl").write_text("\n".join(rows))
    return meshes


@pytest.fixture(scope="module")
def store(meshes: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    out = tmp_path_factory.mktemp("prepared")
    prepare_folder(meshes, out, processes=1, progress=False)
    return PreparedFolder(out)


@pytest.fixture(scope="module")
def tokenizer() -> VAT:
    torch.manual_seed(1)
    return VAT(tokenizer_preset("vat-512b-tiny")).eval()


def test_passes_are_made_once_and_belong_to_their_settings(
    store: PreparedFolder, tokenizer: VAT, tmp_path: Path
) -> None:
    codes = encode_shapes(tokenizer, store, tmp_path, SAMPLING, weights="00c0ffee", seed=0)
    assert tuple(codes.ids.shape) == (3, 2, 30)
    assert codes.index.aligned == ("same", "mirrored", "none")
    assert codes.index.captions == ("random object", "cone of cones")
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = encode_shapes(tokenizer, store, tmp_path, SAMPLING, weights="00c0ffee", seed=0)
    assert torch.equal(again.ids, codes.ids)
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="other codes"):
        encode_shapes(tokenizer, store, tmp_path, SAMPLING, weights="00c0ffee", seed=1)


def test_samples_repeat_and_know_which_captions_say_nothing(
    store: PreparedFolder, tokenizer: VAT, tmp_path: Path
) -> None:
    codes = encode_shapes(tokenizer, store, tmp_path, SAMPLING, weights="00c0ffee", seed=0)
    model = VATGenerator(preset("vat-512b-tiny-gen"), tokenizer.bottleneck.quantizer)
    source = CodeSource(codes, text=model.tower("text"), seed=3)
    for n in range(6):
        one, two = source.sample(n), source.sample(n)
        assert all(torch.equal(one[key], two[key]) for key in one)
        rows = codes.ids.long()[:, int(one["has_text"])]  # the cone is the second, and has one
        assert bool((rows == one["ids"]).all(1).any())


def test_the_share_of_aligned_passes_is_as_asked(
    store: PreparedFolder, tokenizer: VAT, tmp_path: Path
) -> None:
    codes = encode_shapes(tokenizer, store, tmp_path, SAMPLING, weights="00c0ffee", seed=0)
    distorted = codes.ids[2].long()
    assert not any(bool((codes.ids[:2, i].long() == distorted[i]).all(1).any()) for i in range(2))
    for share, low, high in ((0.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.5, 0.35, 0.65)):
        source = CodeSource(codes, aligned_share=share)
        drawn = [source.sample(n)["ids"] for n in range(200)]
        found = [bool((distorted == ids).all(1).any()) for ids in drawn]
        assert low <= sum(found) / len(found) <= high
    with pytest.raises(ConfigError, match="aligned_share=2"):
        CodeSampling(aligned_share=2.0)
    with pytest.raises(ConfigError, match="aligned=0 and distorted=0"):
        CodeSampling(aligned=0, distorted=0)


def test_a_mirrored_code_goes_with_a_mirrored_picture_and_a_distorted_one_with_none(
    store: PreparedFolder, tokenizer: VAT, meshes: Path, tmp_path: Path
) -> None:
    codes = encode_shapes(tokenizer, store, tmp_path / "c", SAMPLING, weights="00c0ffee", seed=0)
    sampling = ViewSampling(count=1, size=32)
    views = render_folder(meshes, tmp_path / "v", codes.index.names, sampling, processes=1)
    white = Backdrops(plain=1.0)
    source = CodeSource(codes, views=views, backdrops=white)
    same, mirrored, distorted = (source.draw(1, number, 5) for number in range(3))
    assert torch.equal(same["image"], mirrored["image"].flip(-1))
    assert not torch.equal(same["image"], mirrored["image"])
    assert [bool(s["has_image"]) for s in (same, mirrored, distorted)] == [True, True, False]
    # Behind the object all is white, and where it is opaque nothing depends on the backdrop.
    opacity = torch.from_numpy(views.pictures[1, 0, 1])
    assert bool((same["image"][:, opacity == 0] == 1).all())
    other = CodeSource(codes, views=views, backdrops=Backdrops(plain=0.0)).draw(1, 0, 5)["image"]
    assert torch.equal(other[:, opacity == 255], same["image"][:, opacity == 255])
    assert not bool((other[:, opacity == 0] == 1).all())
    with pytest.raises(ConfigError, match="not of the shapes"):
        other_views = render_folder(
            meshes, tmp_path / "w", codes.index.names[:1], sampling, processes=1
        )
        CodeSource(codes, views=other_views)


def test_a_short_run_lowers_the_loss(store: PreparedFolder, tokenizer: VAT, tmp_path: Path) -> None:
    codes = encode_shapes(tokenizer, store, tmp_path / "c", SAMPLING, weights="00c0ffee", seed=0)
    torch.manual_seed(0)
    model = VATGenerator(preset("vat-512b-tiny-gen"), tokenizer.bottleneck.quantizer)
    before = {k: v.clone() for k, v in tokenizer.state_dict().items()}
    source = CodeSource(codes, text=model.tower("text"))
    validation = GeneratorValidation(source, 2)
    model.eval()
    with torch.no_grad():
        start = validation(model)
    assert set(start) == {
        *("ce", "ce_text", "draft", "draft_text"),
        *(f"ce_scale_{k}" for k in range(1, 5)),
    }
    config = TrainConfig(batch_size=4, lr=1e-2, num_workers=0, ema_decay=0.0, device="cpu")
    generate = next(s for s in STAGES if s.name == "generate")
    fit(model, [(generate, 160)], source, config, tmp_path / "run")
    with torch.no_grad():
        assert validation(model)["ce"] < start["ce"] - 0.5
    assert all(torch.equal(v, before[k]) for k, v in tokenizer.state_dict().items())


def test_what_a_picture_leads_to_expect_is_learnt_without_codes_or_captions(
    store: PreparedFolder, tokenizer: VAT, meshes: Path, tmp_path: Path
) -> None:
    codes = encode_shapes(tokenizer, store, tmp_path / "c", SAMPLING, weights="00c0ffee", seed=0)
    sampling = ViewSampling(count=1, size=32)
    views = render_folder(meshes, tmp_path / "v", codes.index.names, sampling, processes=1)
    torch.manual_seed(0)
    model = VATGenerator(preset("vat-512b-tiny-gen"), tokenizer.bottleneck.quantizer)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    source = CodeSource(codes, text=model.tower("text"), views=views, aligned_share=1.0)
    validation = GeneratorValidation(source, 2)
    see, generate = (next(s for s in STAGES if s.name == n) for n in ("see", "generate"))
    train = TrainConfig(batch_size=4, lr=1e-2, num_workers=0, ema_decay=0.0, device="cpu")
    train = replace(train, weight_decay=0.0)
    with torch.no_grad():
        start = validation(model.eval())
    fit(model, [(see, 160), (generate, 0)], source, train, tmp_path / "run")
    with torch.no_grad():
        end = validation(model)
    assert set(end) == {"draft", "draft_text", "draft_image"}
    assert end["draft_image"] < 0.5 * start["draft_image"]
    same = {k for k, v in model.state_dict().items() if torch.equal(v, before[k])}
    assert {k for k in before if k.startswith(("net.", "head."))} <= same
    assert "conditioner.towers.text.embed.weight" in same
    assert "conditioner.towers.image.embed.weight" not in same
    fit(model, [(generate, 4)], source, train, tmp_path / "next")
    with torch.no_grad():
        assert set(validation(model)) > {"ce", "ce_image", "draft"}


def test_a_run_starts_from_the_weights_its_recipe_names(
    meshes: Path, tokenizer: VAT, tmp_path: Path
) -> None:
    base = tmp_path / "tokenizer"
    hub.save_pretrained(tokenizer, tokenizer.config, base, system="vat", preset="vat-512b-tiny")
    recipe = Recipe(
        preset="vat-512b-tiny-gen",
        data=DataRecipe(train=str(meshes), prepared=str(tmp_path / "prepared")),
        stages=(StageBudget(name="generate", samples=4),),
        config={"tokenizer": str(base), "image": None, "is_drafted": False},
        sampling={"aligned": 1, "distorted": 0},
    )
    one = prepare_training(recipe).model
    with torch.no_grad():
        one.head.proj.weight.add_(1.0)
    hub.save_pretrained(one, one.config, tmp_path / "one", system="vat-gen", preset=recipe.preset)
    two = prepare_training(replace(recipe, init=str(tmp_path / "one"))).model
    assert all(torch.equal(v, one.state_dict()[k]) for k, v in two.state_dict().items())
    with pytest.raises(PolytokError):
        prepare_training(replace(recipe, init=str(base)))
    # A model with drafts goes on from one without.
    three = prepare_training(
        replace(recipe, init=str(tmp_path / "one"), config={**recipe.config, "is_drafted": True})
    ).model.state_dict()
    assert all(torch.equal(v, three[k]) for k, v in one.state_dict().items())
    # And with another tower, which starts anew.
    tower = {"text": {"dim": 16, "num_heads": 1}}
    other = prepare_training(
        replace(recipe, init=str(tmp_path / "one"), config={**recipe.config, **tower})
    ).model
    four, read = other.state_dict(), other.tower("text")
    first = one.tower("text")
    assert isinstance(read, SmallTextTower)
    assert isinstance(first, SmallTextTower)
    assert read.tokenizer.merges == first.tokenizer.merges != ()
    assert torch.equal(four["net.start"], one.state_dict()["net.start"])
    assert four["conditioner.to_tokens.text.weight"].shape == (32, 16)
    assert any(k.startswith("conditioner.draft.") for k in three)
