"""What systems of images share: the check of a batch, the reading of pictures, scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensor

from polytok.bottlenecks import VectorQuantizer
from polytok.core import hub
from polytok.core.config import from_dict, to_dict
from polytok.core.contracts import (
    Batch,
    BottleneckOutput,
    Codes,
    Stage,
    Tokenizer,
    TokenizerSpec,
)
from polytok.core.errors import ConfigError, PolytokError, SignalError
from polytok.core.files import write_text
from polytok.core.seeding import torch_rng
from polytok.data.images import LabelledImages, read_labelled
from polytok.data.pictures import INDEX, PictureSamples, Split, read_pictures
from polytok.losses import PerceptualLoss
from polytok.metrics import psnr
from polytok.networks.pretrained import SmallMaps, SmallMapsConfig
from polytok.training import ADVERSARIAL, Adversary, Recipe, SampleSource

VAL_BATCH = 32
TEACHER_BATCH, TEACHER_LR = 64, 3e-3
# Of a value range: half a step of 8 bits. Pictures of 8 bits lie within their range in any dtype,
# so this, or a rounding of the dtype if that is more, is for what computing with them adds.
SLACK = 0.5 / 255


def images_of(batch: Batch, size: int, allowed: tuple[float, float]) -> Tensor:
    """``batch["image"]`` (B, 3, size, size), floats within ``allowed``, a spec's ``value_range``.

    Raises:
        SignalError: there are none, they have another size, they are no floats, or values are NaN
            or further outside the range than half a step of 8 bits or a rounding of their dtype.
    """
    image = batch.get("image")
    if not isinstance(image, Tensor):
        raise SignalError("a batch of images needs image (B, 3, H, W)")
    if image.ndim != 4 or image.shape[1:] != (3, size, size):
        raise SignalError(f"images are {tuple(image.shape[1:])}, not (3, {size}, {size})")
    if not image.is_floating_point():
        raise SignalError(
            f"images are {image.dtype}, not floats within [{allowed[0]:g}, {allowed[1]:g}]"
        )
    _check_values(image, allowed)
    return image


def _check_values(image: Tensor, allowed: tuple[float, float]) -> None:
    if not _has_values(image):
        return
    # One pass over the values, and one wait where they lie on an accelerator.
    low, high = torch.stack(image.detach().aminmax()).tolist()
    least, most = allowed
    slack = max(SLACK, torch.finfo(image.dtype).eps) * (most - least)
    if not (low >= least - slack and high <= most + slack):  # which NaN fails
        raise SignalError(
            f"images have values from {low:g} to {high:g}; they must lie within "
            f"[{least:g}, {most:g}]"
        )


def check_ids(codes: Codes, spec: TokenizerSpec) -> None:
    """Refuse ids that a tokenizer does not have, before they are looked up.

    Raises:
        PolytokError: there are other levels than the spec's, or ids outside a vocabulary.
    """
    if len(codes.indices) != len(spec.levels):
        raise PolytokError(f"codes of {len(codes.indices)} levels, not {len(spec.levels)}")
    for ids, level in zip(codes.indices, spec.levels, strict=True):
        if not _has_values(ids):
            continue
        low, high = torch.stack(ids.aminmax()).tolist()
        if low < 0 or high >= level.vocab:
            raise PolytokError(f"ids from {low} to {high} are not within 0..{level.vocab - 1}")


def _has_values(tensor: Tensor) -> bool:
    """Whether there is any value to look at, which traced and empty tensors do not have."""
    return bool(tensor.numel()) and not tensor.is_meta and not isinstance(tensor, FakeTensor)


def scalars(stats: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of the statistics of a bottleneck can be logged: those that are one number."""
    return {k: v for k, v in stats.items() if isinstance(v, Tensor) and v.ndim == 0}


def unquantized(quantizer: VectorQuantizer, z: Tensor) -> BottleneckOutput:
    """What the decoder gets of (B, N, d) while codes rest: the vectors that are compared with them.

    A fresh encoder gives all images nearly the same vectors, which one code serves. It must say
    something before its vectors are worth coding.
    """
    z = z.float()
    latents = F.normalize(z, dim=-1) if quantizer.metric == "cosine" else z
    return BottleneckOutput(latents=latents, is_exact=False)


def start_codebook(quantizer: VectorQuantizer, vectors: Iterable[Tensor]) -> None:
    """Start a codebook that no step has used by k-means over batches of vectors (B, N, d)."""
    if not int(quantizer.steps):
        with torch.no_grad():
            quantizer.start(torch.cat(list(vectors)), rng=torch_rng(0, "codebook"))


@dataclass
class ImageTraining:
    """A run that is ready to start: what :func:`polytok.training.fit` takes.

    Args:
        networks: what there is to say of networks that were trained for this run, by name.
    """

    model: Any
    source: SampleSource
    validate: Callable[[Any], Mapping[str, float]] | None
    adversary: Adversary | None = None
    networks: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def write_files(self, folder: Path) -> None:
        """Declare in ``NAME.json`` the networks that were trained for this run."""
        for name, told in self.networks.items():
            write_text(folder / f"{name}.json", json.dumps(dict(told), indent=2) + "\n")


@dataclass(frozen=True, kw_only=True)
class ImageSampling:
    """How training pictures are changed.

    Args:
        shift: pixels a picture may move each way, see :class:`PictureSamples`.
        perceptual: ``small`` adds the loss ``perceptual``, by the maps of :func:`small_teacher`.
        perceptual_samples: that it learns from.
        critic_width: channels of the critic of adversarial stages; 0 = as published.
    """

    shift: int = 3
    perceptual: Literal["", "small"] = ""
    perceptual_samples: int = 20_000
    critic_width: int = 0


def ready(
    model: Tokenizer,
    recipe: Recipe,
    *,
    size: int,
    prefixes: Sequence[int] = (),
    stages: Sequence[Stage] = (),
    critic: Callable[[int], Adversary] | None = None,
) -> ImageTraining:
    """Fill a model with what its recipe starts from, and read the recipe's pictures.

    ``[data]`` names folders of :func:`polytok.data.pictures.prepare_pictures`, or zips and folders
    laid out as ``class/name.jpg``; ``[sampling]`` takes the fields of :class:`ImageSampling`.

    Args:
        size: pixels a side. prefixes: numbers of tokens that are scored besides all of them.
        stages: of the system. critic: builds, of a width, what its adversarial stages listen to.

    Raises:
        UnknownNameError: a sampling key is unknown.
        ConfigError: the pictures have another size, or a sampling value is wrong.
    """
    from polytok.systems import api

    if recipe.init:
        hub.load_weights(model, api.find_weights(recipe.init)[0])
    sampling = from_dict(ImageSampling, recipe.sampling)
    train = read_split(recipe.data.train, "train", size)
    source = PictureSamples(train, seed=recipe.train.seed, shift=sampling.shift)
    validate = None
    if recipe.data.val:
        pictures = read_split(recipe.data.val, "val", size)
        validate = ImageValidation(pictures, recipe.data.num_val, prefixes)
    training = ImageTraining(model, source, validate)
    if sampling.perceptual:
        net, training.networks["perceptual"] = small_teacher(
            train, sampling.perceptual_samples, seed=recipe.train.seed
        )
        criteria: Any = model.criteria
        criteria["perceptual"] = PerceptualLoss(net)
    budgets = {budget.name: budget.samples for budget in recipe.stages}
    heard = [s for s in stages if s.weights.get(ADVERSARIAL) and budgets.get(s.name)]
    if heard and critic is not None:
        training.adversary = critic(sampling.critic_width)
    return training


def small_teacher(
    images: LabelledImages, samples: int, *, seed: int
) -> tuple[SmallMaps, dict[str, Any]]:
    """A small classifier of the training pictures, made on the spot, and what to declare of it.

    It stands in where no pretrained network is at hand: its distances mean something on pictures
    like these alone.

    Raises:
        ConfigError: the pictures have one class, or ``samples`` is not positive.
    """
    if len(images.classes) < 2 or samples < 1:
        raise ConfigError(
            f"perceptual='small' learns from {samples} samples of {len(images.classes)} classes; "
            "two classes are needed"
        )
    rng = torch_rng(seed, "teacher")
    net = SmallMaps(SmallMapsConfig(num_classes=len(images.classes)))
    steps = -(-samples // TEACHER_BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), TEACHER_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    correct = 0
    for _ in range(steps):
        picks = torch.randint(len(images), (TEACHER_BATCH,), generator=rng)
        scores, labels = net(images.images(picks)), images.labels[picks]
        optimizer.zero_grad()
        F.cross_entropy(scores, labels).backward()
        optimizer.step()
        schedule.step()
        correct = int((scores.argmax(-1) == labels).sum())
    found = {
        "network": "SmallMaps",
        **to_dict(net.config),
        "classes": list(images.classes),
        "samples": steps * TEACHER_BATCH,
        "seed": seed,
        "accuracy_of_last_batch": correct / TEACHER_BATCH,
    }
    return net, found


def read_split(path: str, split: Split, size: int) -> LabelledImages:
    """Read pictures of ``size`` pixels a side; ``split`` is one of a folder of made pictures.

    Raises:
        SignalError, PolytokError: they cannot be read. ConfigError: they have another size.
    """
    if not any(Path(path).glob(f"*/{INDEX}")):
        return read_labelled(path, size)
    pictures = read_pictures(path, split)
    if (found := pictures.pixels.shape[-1]) != size:
        raise ConfigError(f"{path} has pictures of {found} pixels a side, not {size}")
    return pictures


class ImageValidation:
    """Scores of a tokenizer on fixed pictures.

    ``psnr`` in dB, the mean over pictures, of whole codes; ``psnr_k`` of the first k tokens;
    ``codes_used``: share of the codebook that occurs; ``perplexity``: exp of the entropy of codes.

    Args:
        count: score at most so many, evenly spread over those there are.
        prefixes: the k.
    """

    def __init__(self, pictures: LabelledImages, count: int, prefixes: Sequence[int] = ()) -> None:
        picks = torch.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().long()
        self.images, self.prefixes = pictures.images(picks), tuple(prefixes)

    @torch.no_grad()
    def __call__(self, model: Tokenizer) -> dict[str, float]:
        device = next(model.parameters()).device
        scores: dict[str, list[Tensor]] = {}
        ids = []
        for image in self.images.split(VAL_BATCH):
            codes = model.encode({"image": image.to(device)})
            shown = {"psnr": codes, **{f"psnr_{k}": codes.prefix(tokens=k) for k in self.prefixes}}
            for name, some in shown.items():
                decoded = model.decode(some)["image"].cpu()
                scores.setdefault(name, []).append(psnr(decoded, image))
            ids += [level.flatten().cpu() for level in codes.indices]
        means = {name: float(torch.cat(values).mean()) for name, values in scores.items()}
        return means | (code_use(torch.cat(ids), model) if ids else {})


def code_use(ids: Tensor, model: Tokenizer) -> dict[str, float]:
    """How evenly codes (n,) use the codebook of a tokenizer of one vocabulary."""
    counts = torch.bincount(ids, minlength=model.bottleneck.vocab_sizes[0]).double()
    share = counts[counts > 0] / counts.sum()
    return {
        "codes_used": float((counts > 0).double().mean()),
        "perplexity": float((-(share * share.log()).sum()).exp()),
    }
