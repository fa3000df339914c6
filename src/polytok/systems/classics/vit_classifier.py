"""ViT classifier: a small vision transformer for 32-pixel images, the subject of token reduction.

"An image is worth 16x16 words" (arXiv 2010.11929) at CIFAR size, with the early convolutions of
arXiv 2106.14881 instead of one large patch projection. The network is timm's own
``VisionTransformer``, so whatever reduces timm models reduces this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytok.core import hub
from polytok.core.config import from_dict, override
from polytok.core.contracts import Batch, Stage, StepContext, StepOutput
from polytok.core.errors import ConfigError, UnknownNameError
from polytok.data.images import AugmentedImages, LabelledImages, read_labelled
from polytok.networks.pretrained.optional import import_hf
from polytok.training import Recipe


@dataclass(frozen=True, kw_only=True)
class ViTClassifierConfig:
    """Sizes of the network.

    Args:
        size: pixels a side. stride: pixels a side of a token, a power of two.
        num_classes: outputs. label_smoothing: of the loss, in [0, 1).
    """

    size: int = 32
    stride: int = 4
    num_classes: int = 10
    dim: int = 96
    num_layers: int = 9
    num_heads: int = 2
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.stride < 2 or self.stride & (self.stride - 1) or self.size % self.stride:
            raise ConfigError(
                f"stride={self.stride} is not a power of two >= 2 that divides size={self.size}"
            )
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")


PRESETS = {
    "vit-classifier-tiny": ViTClassifierConfig(
        size=16, num_classes=3, dim=32, num_layers=2, num_heads=2
    ),
    "vit-classifier-cifar": ViTClassifierConfig(),
}

# A step on half of the tokens costs little more than half, and what it teaches lasts.
STAGES = (
    Stage(name="sparse", weights={"ce": 1.0}, options={"vit.patch_drop.prob": 0.5}),
    Stage(name="classify", weights={"ce": 1.0}, options={"vit.patch_drop.prob": 0.0}),
)

EVAL_BATCH = 250


def preset(name: str) -> ViTClassifierConfig:
    """The configuration of a preset.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]


def _convolution(width: int, wider: int, *, stride: int) -> list[nn.Module]:
    # Batch norm learns several times faster here than a group norm, which would know no batch.
    convolution = nn.Conv2d(width, wider, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(wider), nn.ReLU(inplace=True)]


class ConvStem(nn.Module):
    """Image (B, 3, H, W) to tokens (B, N, D) by convolutions, as timm's patch embedding.

    Args:
        img_size, patch_size, in_chans, embed_dim: as timm passes them; ``patch_size`` is the
            stride, a power of two.
    """

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **_: Any
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        depth = patch_size.bit_length()
        widths = [embed_dim // 3, embed_dim * 2 // 3, *[embed_dim] * max(1, depth - 2)][-depth:]
        layers: list[nn.Module] = []
        for i, (width, wider) in enumerate(zip([in_chans, *widths], widths, strict=False)):
            layers += _convolution(width, wider, stride=1 + (i > 0))
            if i == 1:  # the most work is worth doing where tokens are not yet far apart
                layers += _convolution(wider, wider, stride=1)
        self.layers = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))
        nn.utils.convert_conv2d_weight_memory_format(self.layers, torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        return self.layers(image).flatten(2).transpose(1, 2)


def build_vit(config: ViTClassifierConfig) -> nn.Module:
    """timm's vision transformer with a convolutional stem and a class token.

    Raises:
        PolytokError: timm is not installed.
    """
    timm = import_hf("timm.models.vision_transformer")
    vit: nn.Module = timm.VisionTransformer(
        img_size=config.size,
        patch_size=config.stride,
        num_classes=config.num_classes,
        embed_dim=config.dim,
        depth=config.num_layers,
        num_heads=config.num_heads,
        embed_layer=ConvStem,
        patch_drop_rate=0.5,
    )
    # The stage "sparse" alone drops patches, see STAGES.
    vit.patch_drop.prob = 0.0  # type: ignore[union-attr]
    return vit


class ViTClassifier(nn.Module):
    """Image in [0, 1] to class scores; ``vit`` is the plain timm model behind it."""

    def __init__(self, config: ViTClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.vit = build_vit(config)

    def logits(self, image: Tensor) -> Tensor:
        """Class scores (B, num_classes) of images (B, 3, H, W) in [0, 1]."""
        return self.vit(image * 2 - 1)

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """Cross-entropy ``ce`` and ``accuracy`` of ``batch["image"]`` and ``batch["label"]``."""
        logits = self.logits(batch["image"]).float()
        label = batch["label"]
        loss = F.cross_entropy(logits, label, label_smoothing=self.config.label_smoothing)
        accuracy = (logits.argmax(-1) == label).float().mean()
        return StepOutput(
            losses={"ce": loss}, metrics={"accuracy": accuracy}, output={"logits": logits}
        )


@torch.no_grad()
def accuracy(
    logits: Callable[[Tensor], Tensor], data: LabelledImages, *, batch_size: int = EVAL_BATCH
) -> float:
    """Share of images whose highest score is their label, in [0, 1]."""
    hits = 0
    for start in range(0, len(data), batch_size):
        items = slice(start, start + batch_size)
        hits += int((logits(data.images(items)).argmax(-1) == data.labels[items]).sum())
    return hits / len(data)


@dataclass
class ViTClassifierTraining:
    """A run that is ready to start: what :func:`polytok.training.fit` takes."""

    model: ViTClassifier
    source: AugmentedImages
    validate: Callable[[ViTClassifier], Mapping[str, float]] | None


def prepare_training(recipe: Recipe) -> ViTClassifierTraining:
    """Build the model and read the labelled images of a recipe.

    ``sampling`` takes ``shift`` and ``erase`` of :class:`AugmentedImages`, and ``held_out``:
    training images kept back to choose by, when the recipe names no other validation images.

    Raises:
        ConfigError: the data has another number of classes, or a sampling key is unknown.
    """
    config = override(preset(recipe.preset), **recipe.config)
    torch.manual_seed(recipe.train.seed)
    model = ViTClassifier(config)
    # On a CPU the backward pass of fused attention costs more than all the rest of a step.
    is_fused = recipe.train.device != "cpu" and torch.accelerator.is_available()
    for block in model.vit.get_submodule("blocks").children():
        block.get_submodule("attn").fused_attn = is_fused  # type: ignore[assignment]
    if recipe.init:
        hub.load_weights(model, Path(recipe.init))
    options = dict(recipe.sampling)
    held_out = int(options.pop("held_out", 0))
    unknown = set(options) - {"shift", "erase"}
    if unknown:
        raise ConfigError(
            f"unknown sampling key {sorted(unknown)[0]!r} (known: erase, held_out, shift)"
        )
    train = read_labelled(recipe.data.train, config.size)
    val = read_labelled(recipe.data.val, config.size) if recipe.data.val else None
    if held_out:
        train, val = train.split(held_out, seed=recipe.train.seed)
    if len(train.classes) != config.num_classes:
        raise ConfigError(
            f"{recipe.data.train} has {len(train.classes)} classes, not {config.num_classes}"
        )
    source = AugmentedImages(train, seed=recipe.train.seed, **options)

    def validate(model: ViTClassifier) -> dict[str, float]:
        assert val is not None
        return {"accuracy": accuracy(model.logits, val)}

    return ViTClassifierTraining(model, source, validate if val is not None else None)


def load_model(folder: Path, info: hub.Info, *, name: str, device: str = "cpu") -> ViTClassifier:
    """Build the model of a folder and fill it with its weights."""
    model = ViTClassifier(from_dict(ViTClassifierConfig, info.config))
    hub.load_weights(model, folder)
    return model.to(device).eval()
