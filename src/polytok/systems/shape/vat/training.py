"""How VAT is trained: its stages, its samples, its scores (card vat 3.5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytok.core import hub
from polytok.core.config import from_dict, override
from polytok.core.contracts import Batch, Stage, Tokenizer
from polytok.core.errors import ConfigError
from polytok.data.prepared import PreparedFolder, prepare_folder
from polytok.data.shapes import ShapeSampling, ShapeSource
from polytok.layers import Block
from polytok.metrics.collapse import LossScale, record_moments, reports_of
from polytok.systems.shape.vat.config import preset
from polytok.systems.shape.vat.model import VAT
from polytok.training import Recipe

# The card's 1e-3 is a choice of its own and collapsed short runs: sigma went to 1, the latents fell
# silent. Three times less holds.
KL_WEIGHT = 3e-4

# "warm" trains on means alone: a fresh encoder says nothing, and noise on top of nothing teaches
# the decoder to ignore the latents. The KL rests too, or it would open sigma wide unopposed.
# "continuous" and "quantized" are the card's two phases.
STAGES = (
    Stage(
        name="warm",
        weights={"rec": 1.0, "kl": 0.0},
        options={"is_sampled": False, "bottleneck.is_quantized": False},
    ),
    Stage(
        name="continuous",
        weights={"rec": 1.0, "kl": KL_WEIGHT},
        options={"is_sampled": True, "bottleneck.is_quantized": False},
    ),
    Stage(
        name="quantized",
        weights={"rec": 1.0, "kl": KL_WEIGHT, "vq": 1.0},
        options={
            "is_sampled": True,
            "bottleneck.is_quantized": True,
            "bottleneck.quantizer.restart_every": 200,
        },
    ),
    Stage(
        name="settle",
        weights={"rec": 1.0, "kl": KL_WEIGHT, "vq": 1.0},
        options={"bottleneck.quantizer.restart_every": 0},
    ),
)

VAL_SEED = 1_000_003
VAL_BATCH = 16
CALIBRATION_START = 1 << 40  # numbers no run reaches


@dataclass
class VATTraining:
    """A run that is ready to start: what :func:`polytok.training.fit` takes."""

    model: VAT
    source: ShapeSource
    validate: Callable[[Tokenizer], Mapping[str, float]] | None


def prepare_training(recipe: Recipe) -> VATTraining:
    """Build the model and the sources of a recipe; prepares the data first where it is missing.

    Raises:
        ConfigError: a sampling key is set that the preset's configuration decides.
    """
    from polytok.systems import api

    config = override(preset(recipe.preset), **recipe.config)
    torch.manual_seed(recipe.train.seed)
    model = VAT(config)
    if recipe.init:
        # Weights of fewer blocks will do: the new ones come last and add nothing at first.
        lacks = hub.load_weights(model, api.find_weights(recipe.init)[0], lacking=["*.blocks.*"])
        for name, module in model.named_modules():
            if isinstance(module, Block) and f"{name}.mlp.down.weight" in lacks:
                module.silence()
    taken = {"num_points", "sharp_fraction"} & set(recipe.sampling)
    if taken:
        raise ConfigError(f"set {', '.join(sorted(taken))} under [config], not under [sampling]")
    shared = {"num_points": config.num_points, "sharp_fraction": config.sharp_fraction}
    sampling = from_dict(ShapeSampling, {**recipe.sampling, **shared})
    train = prepared_folder(recipe.data.train, recipe.data.prepared)
    source = ShapeSource(PreparedFolder(train), sampling, seed=recipe.train.seed)
    validate = None
    if recipe.data.val:
        folder = PreparedFolder(prepared_folder(recipe.data.val, recipe.data.prepared))
        validate = Validation(folder, shared, recipe.data.num_val)
    return VATTraining(model=model, source=source, validate=validate)


def prepared_folder(source: str, root: str) -> Path:
    """A prepared folder itself, or where the meshes of ``source`` are prepared."""
    path = Path(source)
    if path.is_dir() and next(path.rglob("*.safetensors"), None):
        return path
    out = Path(root) / path.stem
    prepare_folder(path, out)
    return out


class Validation:
    """Scores on fixed samples of unseen shapes, without augmentation.

    IoU on volume queries of the full code, of every prefix of scales and of the mean latent;
    ``cs_iou`` is the mean over the prefixes 1..K-1. The rest says what the Gaussian bottleneck
    carries, see :func:`polytok.metrics.collapse_report`: shares of units, nats a unit, a sentence.
    """

    def __init__(self, store: PreparedFolder, shared: dict[str, float], count: int) -> None:
        sampling = from_dict(
            ShapeSampling,
            {
                **shared,
                "num_volume": 1024,
                "num_near": 1024,
                "rotate": False,
                "mirror": False,
                "stretch": 0.0,
                "mix": 0.0,
            },
        )
        source = ShapeSource(store, sampling, seed=VAL_SEED)
        samples = [source.sample(n) for n in range(min(count, len(store)))]
        self.batches = [
            {k: torch.stack([s[k] for s in part]) for k in part[0]}
            for part in (samples[i : i + VAL_BATCH] for i in range(0, len(samples), VAL_BATCH))
        ]
        self.num_volume = sampling.num_volume

    def __call__(self, tokenizer: Tokenizer) -> dict[str, Any]:
        assert isinstance(tokenizer, VAT)
        with record_moments(tokenizer) as moments:
            rows = [self._score(tokenizer, batch) for batch in self.batches]
        scores = {key: float(torch.cat([r[key] for r in rows]).mean()) for key in rows[0]}
        [report] = reports_of(moments).values()
        return {
            **scores,
            "active_units": float(report.active.mean()),
            "collapsed_units": float(report.collapsed.mean()),
            "kl_nats": float(report.kl.mean()),
            "collapse": report.cause,
        }

    def _score(self, model: VAT, batch: Batch) -> dict[str, Tensor]:
        device = next(model.parameters()).device
        batch = {k: v.to(device) for k, v in batch.items()}
        hidden = model.encoder(batch["points"], batch["normals"])
        latents = model.bottleneck.gaussian(hidden).latents
        scores = self._iou(model, latents, batch, "latent")
        if not model.bottleneck.is_quantized:
            return scores
        out = model.bottleneck.quantizer(latents)
        prefixes = out.stats["prefixes"]
        scores |= self._iou(model, out.latents, batch, "full")
        per_level = [
            self._iou(model, p, batch, f"prefix_{k + 1}") for k, p in enumerate(prefixes[:-1])
        ]
        for score in per_level:
            scores |= {k: v for k, v in score.items() if not k.startswith("near")}
        scores["cs_iou"] = torch.stack(
            [score[f"iou_prefix_{k + 1}"] for k, score in enumerate(per_level)]
        ).mean(0)
        return scores

    def _iou(self, model: VAT, latents: Tensor, batch: Batch, name: str) -> dict[str, Tensor]:
        guess = model.field(latents)(batch["queries"]) > 0
        truth = batch["sdf"] < 0
        both, either = (guess & truth).float(), (guess | truth).float()
        split = self.num_volume

        def ratio(part: slice) -> Tensor:
            return both[:, part].sum(1) / either[:, part].sum(1).clamp(min=1)

        return {
            f"iou_{name}": ratio(slice(0, split)),
            f"near_iou_{name}": ratio(slice(split, None)),
        }


def loss_scale(model: VAT, elements: int, weight: float = KL_WEIGHT) -> LossScale:
    """The beta-ELBO that the training loss amounts to, for targets of so many queries.

    The overlap term of the loss is left out: it adds to what a direction gains.
    """
    return LossScale(
        weight=weight,
        error="cross_entropy",
        reduction="mean",
        elements=elements,
        kl_reduction="mean",
        units=model.config.num_latents * model.config.code_dim,
    )


@torch.no_grad()
def calibrate_level(model: VAT, source: ShapeSource, *, count: int = 256) -> float:
    """Shift the field's zero level to where it overlaps training shapes best; returns the shift.

    An uncertain field is cautious: where inside and outside are both likely it says outside, and
    thin shapes vanish. One constant, chosen on ``count`` training samples, mends the mean.
    """
    model.eval()
    values, truths = [], []
    for start in range(0, count, VAL_BATCH):
        samples = [source.sample(CALIBRATION_START + start + n) for n in range(VAL_BATCH)]
        batch = {k: torch.stack([s[k] for s in samples]) for k in samples[0]}
        latents = model.bottleneck.gaussian(
            model.encoder(batch["points"], batch["normals"])
        ).latents
        codes = model.bottleneck.quantizer(latents).latents
        volume = slice(0, source.sampling.num_volume)
        values.append(model.field(codes)(batch["queries"])[:, volume])
        truths.append(batch["sdf"][:, volume] < 0)
    value, truth = torch.cat(values), torch.cat(truths)
    shifts = torch.quantile(value.flatten()[:100_000], torch.linspace(0.5, 0.999, 200))

    def overlap(level: Tensor) -> Tensor:
        guess = value > level
        either = (guess | truth).sum(1)
        return ((guess & truth).sum(1) / either.clamp(min=1))[either > 0].mean()

    candidates = torch.cat([shifts, torch.zeros(1)])
    best = candidates[torch.stack([overlap(c) for c in candidates]).argmax()]
    head = model.decoder.head[-1]
    assert isinstance(head, torch.nn.Linear)
    head.bias.sub_(best)
    return float(-best)
