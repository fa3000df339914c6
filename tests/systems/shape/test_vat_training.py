"""VAT from a recipe and a folder of meshes to a model that loads, with a stop in between."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from polytok.core import registry
from polytok.core.errors import ConfigError, WeightsError
from polytok.data.prepared import prepare_folder
from polytok.systems import api
from polytok.systems.shape.vat.model import VAT
from polytok.systems.shape.vat.training import STAGES, prepare_training
from polytok.training import Recipe

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted((ROOT / "recipes" / "vat").glob("*.toml"))
TINY = ROOT / "recipes" / "vat" / "tiny.toml"
BATCH = 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four meshes of analytic shapes, prepared in this process."""
    folder = tmp_path_factory.mktemp("shapes")
    meshes = {
        "box.glb": trimesh.creation.box((1, 2, 3)),
        "cube.glb": trimesh.creation.box((2, 2, 2)),
        "ball.glb": trimesh.creation.icosphere(subdivisions=2),
        "egg.ply": trimesh.creation.icosphere(subdivisions=2).apply_scale((1, 2, 1)),
    }
    (folder / "meshes").mkdir()
    for name, mesh in meshes.items():
        mesh.export(folder / "meshes" / name)
    prepare_folder(folder / "meshes", folder / "prepared", processes=1, progress=False)
    return folder / "prepared"


def overrides(prepared: Path, samples: int = 2 * BATCH, **extra: Any) -> list[str]:
    stages = [{"name": s.name, "samples": samples} for s in STAGES]
    rows = {
        "stages": json.dumps(stages),
        "data.train": prepared,
        "data.val": prepared,
        "config.codebook_size": 16,
        "train.batch_size": BATCH,
        "train.log_every": BATCH,
        "train.save_every": BATCH,
        "train.start_batches": 2,
        "train.num_workers": 0,
        "train.device": "cpu",
        **extra,
    }
    return [f"{key}={value}" for key, value in rows.items()]


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_recipe_trains_stops_continues_and_loads(prepared: Path, tmp_path: Path) -> None:
    whole = api.train(TINY, tmp_path / "whole", overrides(prepared))
    assert whole.is_complete and whole.samples == 2 * BATCH * len(STAGES)
    assert whole.skipped == 0

    stopped = api.train(TINY, tmp_path / "parts", overrides(prepared), minutes=0)
    assert not stopped.is_complete and stopped.steps == 1
    model = api.load(tmp_path / "parts")  # a run's folder is a model at any time
    assert model.model.config.codebook_size == 16
    resumed = api.train(TINY, tmp_path / "parts", overrides(prepared))
    assert resumed.is_complete and resumed.steps == whole.steps

    first, second = (api.load(tmp_path / name) for name in ("whole", "parts"))
    assert first.weights == second.weights
    for run in ("whole", "parts"):
        rows = rows_of(tmp_path / run)
        losses = [row for row in rows if "loss" in row]
        assert [row["step"] for row in losses] == list(range(1, whole.steps + 1))
        assert all(math.isfinite(row["loss"]) for row in losses)
        assert [row["stage"] for row in losses[::2]] == [s.name for s in STAGES]
        [scores] = [row["val"] for row in rows if "val" in row]
        assert {"iou_latent", "iou_full", "iou_prefix_1", "cs_iou"} <= scores.keys()
        assert "units" in scores.pop("collapse") and scores.pop("kl_nats") > 0
        assert all(0 <= value <= 1 for value in scores.values())
    spent = [[r["loss"] for r in rows_of(tmp_path / n) if "loss" in r] for n in ("whole", "parts")]
    assert spent[0] == spent[1]
    codes = first.model.encode({"points": torch.rand(1, 512, 3), "normals": torch.rand(1, 512, 3)})
    meta = {"centre": torch.zeros(1, 3), "scale": torch.ones(1)}
    [data] = first.pack(type(codes)(indices=codes.indices, meta=meta))
    assert torch.equal(second.unpack(data).indices[-1], codes.indices[-1])


def test_a_deeper_model_starts_as_the_shallower_one(prepared: Path, tmp_path: Path) -> None:
    api.train(TINY, tmp_path / "run", overrides(prepared), minutes=0)
    old = api.load(tmp_path / "run").model
    recipe = Recipe.read(TINY)
    data = type(recipe.data)(train=str(prepared))

    def started(**layers: int) -> VAT:
        config = {"codebook_size": 16, **layers}
        changes = {"data": data, "config": config, "init": str(tmp_path / "run")}
        return prepare_training(replace(recipe, **changes)).model.eval()

    new = started(encoder_layers=3, decoder_layers=2)
    assert (len(new.encoder.blocks), len(new.decoder.blocks)) == (3, 2)
    points = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    batch = {"points": points, "normals": torch.nn.functional.normalize(points, dim=-1)}
    with torch.no_grad():
        latents = [m.bottleneck.gaussian(m.encoder(**batch)).latents for m in (old, new)]
        logits = [m.field(z)(points) for m, z in zip((old, new), latents, strict=True)]
    assert torch.equal(latents[0], latents[1]) and torch.equal(logits[0], logits[1])
    # What the new blocks lack is only what they add: their way in is as random as that of any.
    assert new.encoder.blocks[2].mlp.up.weight.std() > 0
    with pytest.raises(WeightsError, match="unknown"):
        started(latent_layers=0)


def test_stages_switch_sampling_and_quantization(prepared: Path) -> None:
    values = Recipe.read(TINY)
    assert [b.name for b in values.stages] == [s.name for s in STAGES]
    assert values.plan(STAGES)[0][0].weights["kl"] == 0
    assert [s.options.get("bottleneck.is_quantized") for s in STAGES[:3]] == [False, False, True]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_read_and_name_stages_and_presets(path: Path) -> None:
    recipe = Recipe.read(path)
    assert recipe.plan(registry.system_of(recipe.preset).load().STAGES)
    assert recipe.sampling.keys().isdisjoint({"num_points", "sharp_fraction"})


def test_sampling_that_the_preset_decides_is_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_points under \[config\]"):
        api.train(TINY, tmp_path / "run", overrides(prepared, **{"sampling.num_points": 99}))


def test_runs_are_not_mixed_up(prepared: Path, tmp_path: Path) -> None:
    api.train(TINY, tmp_path / "run", overrides(prepared), minutes=0)
    with pytest.raises(ConfigError, match="seed=1, but the run"):
        api.train(TINY, tmp_path / "run", overrides(prepared, **{"train.seed": 1}))
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(ConfigError, match="another configuration"):
        api.train(TINY, tmp_path / "run", overrides(prepared, **{"config.codebook_size": 32}))
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_validation_repeats_and_does_not_train(prepared: Path) -> None:
    recipe = Recipe.read(TINY)
    data = type(recipe.data)(train=str(prepared), val=str(prepared))
    training = prepare_training(type(recipe)(**{**vars(recipe), "data": data}))
    assert training.validate is not None
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    training.model.eval()
    with torch.no_grad():
        assert training.validate(training.model) == training.validate(training.model)
    assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())
