"""How a masked image generator is trained: codes and classes of pictures, and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from polytok.core import hub
from polytok.core.config import from_dict, override
from polytok.core.contracts import Batch, Tokenizer
from polytok.core.errors import ConfigError, UnknownNameError
from polytok.core.seeding import derive, numpy_rng
from polytok.data.codes import CodeFolder, CodeIndex, missing_passes, write_pass
from polytok.data.images import EpochOrder, LabelledImages
from polytok.data.pictures import PictureSamples, Split
from polytok.systems.classics.maskgit import MaskGIT, MaskGITConfig, preset
from polytok.systems.image.codec import ImageCodec
from polytok.systems.images import ImageTraining, read_split
from polytok.training import Recipe

ENCODE_BATCH = 64
VAL_BATCH = 32
VAL_SEED = 1_000_003


@dataclass(frozen=True, kw_only=True)
class ImageCodeSampling:
    """Which codes of a picture a training sample is drawn from.

    Args:
        passes: codes per picture: the first of the picture as it is, the others moved and, where
            a mirror keeps the meaning, perhaps mirrored; see :class:`PictureSamples`.
        shift: pixels that those may move each way.
    """

    passes: int = 1
    shift: int = 0

    def __post_init__(self) -> None:
        if self.passes < 1 or self.shift < 0:
            raise ConfigError(f"passes={self.passes} must be >= 1 and shift={self.shift} >= 0")


class ImageCodeSource:
    """Sample number n -> ids, seed and class, a pure function of (seed, n).

    Each epoch visits every picture once, in an order of its own; the pass is drawn per sample.

    Args:
        classes: names in the order of their numbers; none leaves the label out.

    Raises:
        UnknownNameError: a picture is of another class.
    """

    def __init__(self, codes: CodeFolder, classes: Sequence[str] = (), *, seed: int = 0) -> None:
        self.codes, self.seed = codes, seed
        self._order = EpochOrder(len(codes), seed)
        self.labels: Tensor | None = None
        if classes:
            numbers = {name: i for i, name in enumerate(classes)}
            for name in codes.index.captions:
                if name not in numbers:
                    raise UnknownNameError("class", name, classes)
            self.labels = torch.tensor([numbers[name] for name in codes.index.captions])

    def __len__(self) -> int:
        return len(self.codes)

    def sample(self, n: int) -> dict[str, Tensor]:
        """Draw sample n: ids (L,), seed (), and label () if there are classes."""
        number = int(numpy_rng(self.seed, "pass", n).integers(self.codes.passes))
        return self.draw(self._order(n), number, n)

    def draw(self, picture: int, number: int, n: int) -> dict[str, Tensor]:
        """A sample of one picture and one pass."""
        out = {
            "ids": self.codes.ids[number, picture].long(),
            "seed": torch.tensor(derive(self.seed, "noise", n)),
        }
        return out if self.labels is None else {**out, "label": self.labels[picture]}


@torch.no_grad()
def encode_images(
    model: Tokenizer,
    pictures: LabelledImages,
    out: Path,
    sampling: ImageCodeSampling,
    *,
    weights: str,
    seed: int = 0,
) -> CodeFolder:
    """Encode pictures in several passes; those that are there already are kept.

    Args:
        weights: fingerprint of the tokenizer.

    Raises:
        ConfigError: ``out`` holds other codes.
    """
    moved = f"moved by {sampling.shift}"
    index = CodeIndex(
        weights=weights,
        slots=tuple(level.count or 0 for level in model.spec.levels),
        names=pictures.names,
        captions=tuple(pictures.classes[i] for i in pictures.labels.tolist()),
        aligned=("same", *[moved] * (sampling.passes - 1)),
        seed=seed,
    )
    for number in missing_passes(out, index):
        write_pass(out, number, _encode_pass(model, pictures, sampling.shift, seed, number))
    return CodeFolder(out)


def _encode_pass(
    model: Tokenizer, pictures: LabelledImages, shift: int, seed: int, number: int
) -> Tensor:
    device = next(model.parameters()).device
    seed = derive(seed, "pass", number)
    samples = PictureSamples(pictures, shift=shift, seed=seed)
    order = EpochOrder(len(pictures), seed)
    ids = torch.empty(len(pictures), model.spec.levels[0].count or 0, dtype=torch.int32)
    for start in range(0, len(pictures), ENCODE_BATCH):
        numbers = range(start, min(start + ENCODE_BATCH, len(pictures)))
        if number:
            items = torch.tensor([order(n) for n in numbers])
            image = torch.stack([samples.sample(n)["image"] for n in numbers])
        else:
            items = torch.tensor(numbers)
            image = pictures.images(items)
        found = model.encode({"image": image.to(device)}).indices[0]
        ids[items] = found.to("cpu", torch.int32)
    return ids


class MaskedValidation:
    """Cross-entropy in nats of masked ids of unseen codes, without their class and with it.

    Every picture is masked in one way, always the same.
    """

    def __init__(self, source: ImageCodeSource, count: int) -> None:
        picks = torch.linspace(0, len(source) - 1, min(count, len(source))).round().long()
        rows = [source.draw(picture, 0, picture) for picture in picks.tolist()]
        self.batches: list[Batch] = [
            {k: torch.stack([r[k] for r in part]) for k in part[0]}
            for part in (rows[i : i + VAL_BATCH] for i in range(0, len(rows), VAL_BATCH))
        ]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, MaskGIT)
        branches = {"ce": "null"}
        if "label" in self.batches[0]:
            branches["ce_label"] = "label"
        return {name: self._mean(model, branch) for name, branch in branches.items()}

    def _mean(self, model: MaskGIT, branch: str) -> float:
        device = next(model.parameters()).device
        total, count = 0.0, 0
        for batch in self.batches:
            rngs = [torch.Generator().manual_seed(int(s)) for s in batch["seed"]]
            given = {k: v.to(device) for k, v in batch.items() if k != "seed"}
            example = model.process.corrupt(given, rng=rngs)
            features = model.conditioner.encode(given)
            cond = model.conditioner.branch(features, branch, len(rngs))
            losses = model.head.loss(model.net(example.query, cond), example.target)
            assert example.query.inp is not None
            hidden = example.query.inp.eq(model.config.vocab)
            total += float(losses[hidden].double().sum())
            count += int(hidden.sum())
        return total / count


def prepare_training(recipe: Recipe) -> ImageTraining:
    """Build the model and sources of a recipe; encodes the pictures that have no codes yet.

    ``[data]`` names pictures as a tokenizer's recipe does; ``[sampling]`` has the fields of
    :class:`ImageCodeSampling`.

    Raises:
        WeightsError: the tokenizer has no weights.
        ConfigError: it has others than the recipe says, or other sizes, or the pictures have
            another number of classes.
    """
    from polytok.systems import api

    config = override(preset(recipe.preset), **recipe.config)
    sampling = from_dict(ImageCodeSampling, recipe.sampling)
    codec = api.load_codec(config.tokenizer, modality="image")
    check_tokenizer(config, codec)
    pictures = read_split(recipe.data.train, "train", codec.size)
    config = replace(
        config,
        tokenizer_weights=codec.weights,
        classes=classes_of(config, pictures, recipe.data.train),
    )
    torch.manual_seed(recipe.train.seed)
    model = MaskGIT(config)
    if recipe.init:
        hub.load_weights(model, api.find_weights(recipe.init)[0])
    codes = _codes(recipe, "train", pictures, codec, sampling)
    source = ImageCodeSource(codes, config.classes, seed=recipe.train.seed)
    validate = None
    if recipe.data.val:
        unseen = read_split(recipe.data.val, "val", codec.size)
        codes = _codes(recipe, "val", unseen, codec, ImageCodeSampling())
        held_out = ImageCodeSource(codes, config.classes, seed=VAL_SEED)
        validate = MaskedValidation(held_out, recipe.data.num_val)
    return ImageTraining(model, source, validate)


def check_tokenizer(config: MaskGITConfig, codec: ImageCodec) -> None:
    """Refuse a tokenizer whose codes a configuration does not describe.

    Raises:
        ConfigError: it has other weights than named, or other sizes.
    """
    if config.tokenizer_weights not in ("", codec.weights):
        raise ConfigError(
            f"tokenizer_weights={config.tokenizer_weights}, but {config.tokenizer!r} has "
            f"{codec.weights}"
        )
    level = codec.spec.levels[0]
    if (config.length, config.vocab) != (level.count, level.vocab):
        raise ConfigError(
            f"length={config.length} and vocab={config.vocab}, but {config.tokenizer!r} has "
            f"{level.count} of {level.vocab}"
        )


def classes_of(config: MaskGITConfig, pictures: LabelledImages, path: str) -> tuple[str, ...]:
    """Names of the classes that a generator learns; none for one without.

    Raises:
        ConfigError: the pictures have another number of classes.
    """
    if not config.num_classes:
        return ()
    if len(pictures.classes) != config.num_classes:
        raise ConfigError(
            f"{path} has {len(pictures.classes)} classes, not num_classes={config.num_classes}"
        )
    return pictures.classes


def _codes(
    recipe: Recipe,
    split: Split,
    pictures: LabelledImages,
    codec: ImageCodec,
    sampling: ImageCodeSampling,
) -> CodeFolder:
    """Codes of the pictures of a recipe, made where it keeps what it prepares."""
    path = Path(recipe.data.train if split == "train" else recipe.data.val)
    out = Path(recipe.data.prepared) / f"{path.stem}-{split}-codes-{codec.weights}"
    return encode_images(codec.model, pictures, out, sampling, weights=codec.weights)
