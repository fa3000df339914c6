"""Image tokenizers learn from recipes, through each of their stages, and load again."""

from __future__ import annotations

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from polytok.core import registry
from polytok.core.errors import (
    ConfigError,
    PolytokError,
    SignalError,
    UnknownNameError,
    WeightsError,
)
from polytok.data.images import read_labelled
from polytok.metrics import psnr
from polytok.systems import api
from polytok.systems.classics import vqgan
from polytok.systems.image.codec import ImageCodec
from polytok.systems.image.titok import STAGES, TiTok, preset
from polytok.systems.images import ImageValidation, code_use
from polytok.training import Recipe

ROOT = Path(__file__).parents[3]
RECIPES = sorted(
    p
    for name in ("titok", "one_d_piece", "vqgan")
    for p in (ROOT / "recipes" / name).glob("*.toml")
)
SAMPLES = 192
VQGAN_CODES = vqgan.preset("vqgan-tiny").codebook_size
FAST = {
    "train.batch_size": 16,
    "train.lr": 2e-3,
    "train.warmup_samples": 0,
    "train.ema_decay": 0.0,
    "train.precision": "fp32",
    "train.device": "cpu",
    "train.validate_every": 0,
    "train.start_batches": 2,
    "data.num_val": 8,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tones that run into each other, 32 pixels a side."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "tones.zip"
    along = np.linspace(0, 1, 32)
    with ZipFile(path, "w") as out:
        for i in range(48):
            first, second = rng.integers(0, 256, (2, 3))
            ramp = (along[:, None] if i % 2 else along[None]) * np.ones((32, 32))
            tones = first + ramp[..., None] * (second - first)
            file = BytesIO()
            Image.fromarray(tones.astype(np.uint8)).save(file, "PNG")
            out.writestr(f"{'rows' if i % 2 else 'columns'}/{i}.png", file.getvalue())
    return path


def train(name: str, run: Path, data: Path, **changes: Any) -> ImageCodec:
    """Run a recipe of the package on the tones and load what it made."""
    values = {**FAST, "data.train": str(data), "data.val": str(data), **changes}
    texts = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    result = api.train(ROOT / "recipes" / f"{name}.toml", run, texts)
    assert result.is_complete and not result.skipped
    return api.load(run)


def scores(run: Path) -> dict[str, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(row["val"] for row in reversed(rows) if "val" in row)


def stage(name: str, samples: int = SAMPLES) -> dict[str, object]:
    return {"name": name, "samples": samples}


@pytest.fixture(scope="module")
def teacher(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("vqgan") / "run"
    train("vqgan/tiny", run, pictures, stages=[stage("warm", 480), stage("reconstruct", 480)])
    return run


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_recipes_read_and_name_stages_and_presets(path: Path) -> None:
    recipe = Recipe.read(path)
    module = registry.system_of(recipe.preset).load()
    assert recipe.plan(module.STAGES)
    assert module.preset(recipe.preset)
    assert recipe.sampling.keys() <= {"shift", "teacher", "teacher_samples", "perceptual"}


def test_a_small_vqgan_learns_to_show_tones(teacher: Path, pictures: Path) -> None:
    codec = api.load_codec(teacher, modality="image")
    assert scores(teacher)["psnr"] > 17  # grey alone has 11
    again = ImageValidation(read_labelled(pictures, 32), 8)(codec.model)
    assert again["psnr"] == pytest.approx(scores(teacher)["psnr"], abs=1e-3)


@pytest.mark.parametrize(("recipe", "name"), [("titok/tiny", "direct"), ("vqgan/tiny", "warm")])
def test_a_perceptual_network_is_made_on_the_spot_and_declared(
    recipe: str, name: str, pictures: Path, tmp_path: Path
) -> None:
    changes = {"sampling.perceptual": "small", "sampling.perceptual_samples": 640}
    codec = train(recipe, tmp_path, pictures, stages=[stage(name, 32)], **changes)
    told = json.loads((tmp_path / "perceptual.json").read_text())
    assert (told["network"], told["classes"]) == ("SmallMaps", ["columns", "rows"])
    assert told["samples"] == 640 and told["accuracy_of_last_batch"] > 0.9
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["losses"]["perceptual"] < 4 for row in rows if "losses" in row)
    assert not any("criteria" in name for name in codec.model.state_dict())


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        ("titok/tiny", ("direct", "direct-adversarial")),
        ("vqgan/tiny", ("reconstruct", "adversarial")),
    ],
)
def test_a_critic_joins_late(
    recipe: str, names: tuple[str, str], pictures: Path, tmp_path: Path
) -> None:
    """It learns beside the decoder, and what ships holds nothing of it."""
    stages = [stage(name, 32) for name in names]
    codec = train(
        recipe,
        tmp_path,
        pictures,
        stages=stages,
        **{"sampling.critic_width": 32, "train.log_every": 16},
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    heard = {row["stage"]: "critic" in row["metrics"] for row in rows if "metrics" in row}
    assert heard == {names[0]: False, names[1]: True}
    assert all("adversarial" in row["losses"] for row in rows if row.get("stage") == names[1])
    assert not any("critic" in name for name in codec.model.state_dict())


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"sampling.shfit": 1}, UnknownNameError, "did you mean 'shift'"),
        ({"sampling.shift": -1}, ConfigError, "shift=-1 is negative"),
        (
            {"sampling.perceptual": "small", "sampling.perceptual_samples": 0},
            ConfigError,
            "learns from 0 samples",
        ),
        ({"config.size": 64}, SignalError, "is 32x32, not 64x64"),
        ({"stages": [stage("proxy")]}, ConfigError, "stage 'proxy' needs a teacher: set config"),
        (
            {
                "stages": [stage("proxy")],
                "config.pixels": "vqgan-tiny",
                "sampling.teacher_samples": 0,
            },
            ConfigError,
            "teacher_samples=0 is not a positive",
        ),
        ({"sampling.teacher": "x"}, ConfigError, "'x' has no use: config.pixels names no"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(
    pictures: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        train("titok/tiny", tmp_path / "run", pictures, **changes)
    assert not (tmp_path / "run").exists()


def test_another_teacher_than_the_named_one_is_refused(
    teacher: Path, pictures: Path, tmp_path: Path
) -> None:
    changes = {"sampling.teacher": str(teacher), "config.pixels": "maskgit-vqgan-tiny"}
    with pytest.raises(WeightsError, match="is a vqgan-tiny, not the maskgit-vqgan-tiny"):
        train("titok/proxy", tmp_path / "run", pictures, **changes)


def test_a_teacher_is_trained_on_the_spot_once_and_its_cost_declared(
    pictures: Path, tmp_path: Path
) -> None:
    given = {
        "data.prepared": str(tmp_path / "prepared"),
        "sampling.teacher_samples": 96,
        "stages": [stage("proxy", 32)],
    }
    with pytest.raises(PolytokError, match="is not complete; run again to continue"):
        train(
            "titok/proxy", tmp_path / "run", pictures, **given, **{"train.time_limit_minutes": 0.0}
        )
    first = train("titok/proxy", tmp_path / "run", pictures, **given)
    told = json.loads((tmp_path / "run" / "teacher.json").read_text())
    assert (told["preset"], told["samples"]) == ("vqgan-tiny", 96)
    assert told["seconds"] > 0 and told["psnr"] > 5
    trained = api.load_codec(told["folder"], modality="image").model
    assert torch.equal(first.model.pixels.codes, trained.codebook)
    weights = Path(told["folder"]) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    train("titok/proxy", tmp_path / "again", pictures, **given)
    assert weights.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "again" / "teacher.json").read_text()) == told
    others = {**given, "sampling.teacher_samples": 32}
    train("titok/proxy", tmp_path / "other", pictures, **others)
    assert len(list((tmp_path / "prepared").iterdir())) == 2


def test_use_of_codes_is_counted_over_all_pictures() -> None:
    class Model:
        class bottleneck:  # noqa: N801
            vocab_sizes = (8,)

    found = code_use(torch.tensor([0, 0, 3, 3]), Model())
    assert found == {"codes_used": pytest.approx(0.25), "perplexity": pytest.approx(2.0)}


def test_a_code_learns_from_a_teacher_and_then_rests_while_pixels_are_tuned(
    teacher: Path, pictures: Path, tmp_path: Path
) -> None:
    given = {"sampling.teacher": str(teacher)}
    stages = [stage("proxy-warm"), stage("proxy", 480)]
    before = train("titok/proxy", tmp_path / "codes", pictures, stages=stages, **given)
    again = {"init": str(tmp_path / "codes"), "stages": [stage("pixels")], **given}
    after = train("titok/proxy", tmp_path / "pixels", pictures, **again)
    rows = (tmp_path / "codes" / "metrics.jsonl").read_text().splitlines()
    losses = [row["losses"]["ce"] for row in map(json.loads, rows) if "losses" in row]
    assert losses[-1] < math.log(VQGAN_CODES)  # what knowing nothing costs
    changed = {
        name.split(".")[0]
        for name, value in after.model.state_dict().items()
        if not torch.equal(value, before.model.state_dict()[name])
    }
    assert changed == {"from_code", "decoder", "head", "pixels"}


def test_a_codebook_that_has_learnt_is_not_started_anew(pictures: Path) -> None:
    images = read_labelled(pictures, 32).images(slice(0, 16))
    model = TiTok(preset("titok-tiny"))
    codes = model.bottleneck.embedding.weight

    def started(**options: bool) -> bool:
        for name, value in options.items():
            setattr(model, name, value)
        first = codes.detach().clone()
        model.start_stage(STAGES[0], [{"image": images}])
        return not torch.equal(first, codes)

    assert not started(is_quantized=False)
    assert not started(is_quantized=True, is_encoder_frozen=True)
    assert started(is_encoder_frozen=False)
    model.bottleneck.steps += 1
    assert not started()


def test_one_d_piece_beats_the_mean_colour_with_every_prefix(
    pictures: Path, tmp_path: Path
) -> None:
    stages = [stage("warm", 480), stage("direct", 960)]
    codec = train("one_d_piece/cifar10", tmp_path / "run", pictures, stages=stages)
    found = scores(tmp_path / "run")
    images = read_labelled(pictures, 32).images(torch.linspace(0, 47, 8).round().long())
    grey = images.mean((0, 2, 3), keepdim=True).expand_as(images)
    floor = float(psnr(grey, images).mean())
    prefixes = [found[f"psnr_{k}"] for k in (1, 2, 4, 8)]
    assert min(*prefixes, found["psnr"]) > floor
    assert codec.decode(codec.encode(Image.new("RGB", (48, 32), (200, 30, 60))), tokens=1)


def test_continuous_tokens_train_and_load_as_a_model(pictures: Path, tmp_path: Path) -> None:
    changes = {"config.bottleneck": "gaussian", "config.code_dim": 4, "stages": [stage("direct")]}
    model = train("titok/tiny", tmp_path / "run", pictures, **changes)
    assert isinstance(model, TiTok)
    with torch.no_grad():
        codes = model.encode({"image": read_labelled(pictures, 32).images(slice(0, 2))})
    assert codes.latents is not None and codes.latents.shape == (2, 8, 4)
    assert scores(tmp_path / "run")["psnr"] > 0
