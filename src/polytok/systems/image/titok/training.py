"""How TiTok is trained: its stages, its samples, its scores (card titok 3.5)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from polytok.core import hub, registry
from polytok.core.config import override, to_dict
from polytok.core.contracts import Stage
from polytok.core.errors import ConfigError, PolytokError, WeightsError
from polytok.core.seeding import derive
from polytok.layers import Frozen
from polytok.networks.critics import BlurPatchCritic, BlurPatchCriticConfig
from polytok.systems.image.titok.config import TiTokConfig, preset
from polytok.systems.image.titok.model import PixelTokenizer, TiTok, build_pixel_tokenizer
from polytok.systems.images import ImageTraining, ready
from polytok.training import ADVERSARIAL, Adversary, Recipe, StageBudget

# The published sum of the KL has weight 1e-6; ours is a mean over 32 tokens of 16 channels.
KL_WEIGHT = 5e-4
TEACHER_SAMPLES = 120_000
LECAM = 1e-3  # weight in the critic's loss
BOTTLENECK = {"vq/commit": 0.25, "vq/codebook": 1.0, "kl": KL_WEIGHT}

# "warm" and "direct" ask for pixels, "proxy-warm" and "proxy" for the codes of a teacher, after
# which "pixels" tunes the decoder and what makes pixels of the codes. "direct-adversarial" and
# "adversarial" go on from "direct" and "pixels" with a critic. The warm ones do not quantize
# yet: in a short run a fresh encoder would leave all but a few codes unused for good.
_PROXY = ("encoder.*", "to_code.*", "bottleneck.*", "from_code.*", "decoder.*", "head.*")
_DECODER = {"objective": "pixels", "is_quantized": True, "is_encoder_frozen": True}
STAGES = (
    Stage(
        name="warm",
        weights={"mse": 1.0, "perceptual": 0.1, **BOTTLENECK},
        options={"objective": "pixels", "is_quantized": False, "is_encoder_frozen": False},
    ),
    Stage(
        name="direct",
        weights={"mse": 1.0, "perceptual": 0.1, **BOTTLENECK},
        options={"objective": "pixels", "is_quantized": True, "is_encoder_frozen": False},
    ),
    Stage(
        name="proxy-warm",
        train=_PROXY,
        weights={"ce": 1.0, **BOTTLENECK},
        options={"objective": "codes", "is_quantized": False, "is_encoder_frozen": False},
    ),
    Stage(
        name="proxy",
        train=_PROXY,
        weights={"ce": 1.0, **BOTTLENECK},
        options={"objective": "codes", "is_quantized": True, "is_encoder_frozen": False},
    ),
    Stage(
        name="pixels",
        train=("from_code.*", "decoder.*", "head.*", "pixels.*"),
        weights={"mse": 1.0, "perceptual": 0.1},
        options=_DECODER,
    ),
    Stage(
        name="direct-adversarial",
        train=("from_code.*", "decoder.*", "head.*"),
        weights={"mse": 1.0, "perceptual": 0.1, ADVERSARIAL: 0.01},
        options=_DECODER,
    ),
    Stage(
        name="adversarial",
        train=("from_code.*", "decoder.*", "head.*", "pixels.*"),
        weights={"mse": 1.0, "perceptual": 0.1, ADVERSARIAL: 0.01},
        options=_DECODER,
    ),
)


def prepare_training(recipe: Recipe) -> ImageTraining:
    """Build the model and read the pictures of a recipe, see :func:`prepare`."""
    return prepare(recipe, preset(recipe.preset))


def prepare(recipe: Recipe, config: TiTokConfig) -> ImageTraining:
    """Build the model of a configuration, changed by the recipe, and read the recipe's pictures.

    ``sampling`` takes the fields of :class:`polytok.systems.images.ImageSampling`, and ``teacher``:
    weights tag or folder of the tokenizer that ``pixels`` of the configuration names. Stages that
    ask for its codes need it, and a model that starts from nothing takes over its codes and its
    decoder. Without a name such stages get one that is trained first, see :func:`train_teacher`,
    for ``teacher_samples``.

    Raises:
        UnknownNameError: a key is unknown.
        ConfigError: a stage needs a teacher and ``pixels`` names none, or the pictures do not fit.
        WeightsError: the teacher is another tokenizer than the configuration names.
        PolytokError: the training of a teacher was interrupted.
    """
    config = override(config, **recipe.config)
    sampling: dict[str, Any] = dict(recipe.sampling)
    name = str(sampling.pop("teacher", ""))
    samples = sampling.pop("teacher_samples", TEACHER_SAMPLES)
    proxies = [stage.name for stage in recipe.stages if stage.name.startswith("proxy")]
    if proxies and not config.pixels:
        raise ConfigError(f"stage {proxies[0]!r} needs a teacher: set config.pixels")
    told: dict[str, Any] = {}
    if proxies and not name:
        name, told = train_teacher(replace(recipe, sampling=sampling), config.pixels, samples)
    torch.manual_seed(recipe.train.seed)
    model = TiTok(config)
    teacher = load_teacher(name, config)
    if teacher is not None and model.pixels is not None:
        model.pixels.start(teacher)
        model.teacher = Frozen(teacher)
    training = ready(
        model,
        replace(recipe, sampling=sampling),
        size=config.size,
        prefixes=prefixes_of(config),
        stages=STAGES,
        critic=build_adversary,
    )
    if told:
        training.networks["teacher"] = told
    return training


def train_teacher(recipe: Recipe, pixels: str, samples: int) -> tuple[str, dict[str, Any]]:
    """Train the tokenizer ``pixels`` on a recipe's pictures, as the recipe trains, or go on.

    It lies in ``data.prepared``, in a folder of its own for every way to make it. A sixth of the
    samples warms it up if it has such a stage.

    Returns:
        Its folder, and what it is and what it took: samples, seconds of training, PSNR of ``val``
        in dB.

    Raises:
        ConfigError: ``samples`` is not a positive whole number.
        PolytokError: it was interrupted.
    """
    from polytok.systems import api

    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise ConfigError(f"teacher_samples={samples!r} is not a positive whole number")
    names = [stage.name for stage in registry.system_of(pixels).load().STAGES]
    warm = samples // 6 if "warm" in names else 0
    budgets = (
        StageBudget(name="warm", samples=warm),
        StageBudget(name="reconstruct", samples=samples - warm),
    )
    own = replace(
        recipe,
        preset=pixels,
        stages=tuple(budget for budget in budgets if budget.samples),
        init="",
        config={},
    )
    values = to_dict(replace(own, train=replace(own.train, time_limit_minutes=None)))
    key = f"{derive(recipe.train.seed, json.dumps(values, sort_keys=True)):016x}"[:8]
    folder = Path(recipe.data.prepared) / f"teacher-{pixels}-{key}"
    result = api.train_recipe(own, folder)
    if not result.is_complete:
        raise PolytokError(f"the teacher in {folder} is not complete; run again to continue")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    paces = [r for r in records if "samples_per_second" in r]
    starts = [0, *(r["samples"] for r in paces)]
    seconds = sum(
        (r["samples"] - s) / r["samples_per_second"] for r, s in zip(paces, starts, strict=False)
    )
    scores = [r["val"]["psnr"] for r in records if "val" in r]
    told = {"preset": pixels, "folder": str(folder), "samples": result.samples}
    return str(folder), {**told, "seconds": round(seconds, 1), "psnr": (scores or [None])[-1]}


def build_adversary(width: int) -> Adversary:
    """TiTok's critic of the second stage, of a width or as published."""
    config = BlurPatchCriticConfig(width=width) if width else None
    return Adversary(BlurPatchCritic(config), regularisation=LECAM)


def prefixes_of(config: TiTokConfig) -> list[int]:
    """The powers of two below the number of tokens, if prefixes are learnt."""
    if config.tail_drop is None:
        return []
    return [1 << i for i in range((config.num_latents - 1).bit_length())]


def load_teacher(name: str, config: TiTokConfig) -> PixelTokenizer | None:
    """The tokenizer ``config.pixels`` with trained weights; None without a name.

    Raises:
        ConfigError: the configuration has no use for one.
        WeightsError: it is not of the preset that the configuration names.
    """
    from polytok.systems import api

    if not name:
        return None
    if not config.pixels:
        raise ConfigError(f"sampling.teacher={name!r} has no use: config.pixels names no tokenizer")
    folder = api.find_weights(name)[0]
    if (found := hub.read_info(folder).preset) != config.pixels:
        raise WeightsError(f"{name} is a {found}, not the {config.pixels} that pixels names")
    teacher = build_pixel_tokenizer(config.pixels)
    hub.load_weights(teacher, folder)
    return teacher
