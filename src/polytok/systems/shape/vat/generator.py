"""VAT's generator: next-scale codes from text, images, both or nothing (card vat 3.6, 3.7).

VAR's transformer with condition tokens as a prefix and their pooled vectors in every block. The
inputs of a scale are the sum of the scales before it, as the tokenizer's own quantizer makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from polytok.bottlenecks import MultiScaleVQ
from polytok.core import hub
from polytok.core.config import from_dict
from polytok.core.contracts import Batch, Stage, StepContext, StepOutput
from polytok.core.errors import ConfigError, UnknownNameError
from polytok.generators import (
    AdaptiveTransformer,
    CodebookHead,
    DraftConditioner,
    DraftExpert,
    Generator,
    Guide,
    ScaleOrder,
    SlotConditioner,
)
from polytok.layers import Frozen
from polytok.networks.pretrained import (
    HFImageTower,
    HFTextTower,
    SmallImageConfig,
    SmallImageTower,
    SmallTextConfig,
    SmallTextTower,
    Tower,
)
from polytok.systems.codec import require_weights

if TYPE_CHECKING:
    from polytok.systems.shape.generation import ShapeGenerator
    from polytok.systems.shape.vat.generator_training import VATGeneratorTraining
    from polytok.training import Recipe

STAGES = (
    Stage(
        name="generate",
        weights={"ce": 1.0, "draft": 0.5},
        options={"is_drafting": False, "hidden": ()},
    ),
    # What a picture leads to expect, without codes: a hundredth of the work of the other stage.
    # A caption would give the shape away.
    Stage(
        name="see",
        weights={"draft": 1.0},
        options={"is_drafting": True, "hidden": ("text",)},
    ),
)


@dataclass(frozen=True, kw_only=True)
class VATGeneratorConfig:
    """Sizes and choices of a VAT generator.

    Args:
        tokenizer: weights tag or folder of the tokenizer whose codes are drawn.
        tokenizer_weights: their fingerprint; others are refused. "" before training.
        dim, depth, num_heads: of the transformer. dropout: on what its blocks add.
        condition_dropout: probability of each modality to be hidden from a training sample.
        scale_balance: how much more a slot of a small scale counts in training, see
            :class:`ScaleOrder` (ours; VAR's 0 by default).
        is_drafted: whether a draft of the latents is read from the conditions, from which towers
            learn and which can steer sampling (ours, not the paper's).
        text, image: towers trained along; None leaves the modality out.
        text_model, image_model: Hugging Face ids of frozen towers to use instead.
    """

    tokenizer: str = "vat-512b-small.shapes1"
    tokenizer_weights: str = ""
    dim: int = 192
    depth: int = 6
    num_heads: int = 3
    dropout: float = 0.1
    condition_dropout: float = 0.1
    scale_balance: float = 0.0
    is_drafted: bool = False
    text: SmallTextConfig | None = None
    image: SmallImageConfig | None = None
    text_model: str = ""
    image_model: str = ""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        for name in ("dropout", "condition_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not within [0, 1)")
        for name in ("text", "image"):
            if getattr(self, name) is not None and getattr(self, f"{name}_model"):
                raise ConfigError(f"{name} and {name}_model are both set; choose one tower")


SMALL = VATGeneratorConfig(
    dim=160,
    depth=5,
    num_heads=5,
    dropout=0.05,
    is_drafted=True,
    text=SmallTextConfig(),
    image=SmallImageConfig(stem="conv"),
)
# Depth, width and heads of the card's table (3.6), by the parameters of blocks without modulation.
SIZES = {
    "8m": (6, 320, 5),
    "28m": (8, 512, 8),
    "60m": (12, 640, 10),
    "120m": (12, 896, 14),
    "0.5b": (24, 1280, 20),
    "1.5b": (30, 2048, 32),
}

PRESETS: dict[str, VATGeneratorConfig] = {
    "vat-512b-small-gen": SMALL,
    "vat-512b-tiny-gen": VATGeneratorConfig(
        tokenizer="vat-512b-tiny",
        dim=32,
        depth=2,
        num_heads=2,
        dropout=0.0,
        is_drafted=True,
        text=SmallTextConfig(vocab_size=300, max_tokens=8, dim=32, num_layers=1, num_heads=1),
        image=SmallImageConfig(size=32, patch=8, dim=32, num_layers=1, num_heads=1),
    ),
} | {
    f"vat-512b-gen-{name}": VATGeneratorConfig(
        tokenizer="vat-512b",
        depth=depth,
        dim=dim,
        num_heads=heads,
        text=SmallTextConfig(dim=256, num_layers=4, num_heads=4),
        image=SmallImageConfig(size=128, patch=16, dim=256, num_layers=6, num_heads=4),
    )
    for name, (depth, dim, heads) in SIZES.items()
}


def preset(name: str) -> VATGeneratorConfig:
    """Return the configuration of a preset.

    Raises:
        UnknownNameError: no such preset.
    """
    if name not in PRESETS:
        raise UnknownNameError("VAT generator preset", name, PRESETS)
    return PRESETS[name]


class VATGenerator(Generator):
    """The assembly of a VAT generator over a tokenizer's quantizer, which stays as it is."""

    process: ScaleOrder
    conditioner: SlotConditioner
    is_drafting = False

    def __init__(self, config: VATGeneratorConfig, quantizer: MultiScaleVQ) -> None:
        frozen = Frozen(quantizer)
        process = ScaleOrder(quantizer, balance=config.scale_balance)
        net = AdaptiveTransformer(
            dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            levels=process.levels().tolist(),
            num_start=process.slots[0],
            embed=nn.Linear(quantizer.embedding.weight.shape[1], config.dim),
            dropout=config.dropout,
        )
        super().__init__(
            net,
            CodebookHead(config.dim, quantizer.embedding.weight),
            process,
            Guide(),
            _conditioner(config, quantizer),
            condition_dropout=config.condition_dropout,
        )
        # Moves along with the model, and is none of its weights.
        self.quantizer = frozen
        self.config = config

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """One step: loss ``ce``, and ``draft``, the squared error of the draft where there is one.

        In the stage ``see`` the loss ``draft`` alone, without running the net.

        Raises:
            ConfigError: that is asked of a model without drafts.
        """
        conditioner = self.conditioner
        if not isinstance(conditioner, DraftConditioner):
            if self.is_drafting:
                raise ConfigError("there is no draft to train: is_drafted is off")
            return super().forward(batch, ctx)
        if self.is_drafting:
            out = StepOutput(losses={}, output={"cond": self.condition(batch)})
        else:
            out = super().forward(batch, ctx)
        with torch.no_grad():
            latents = self._quantizer.embed(self.process.split(batch["ids"]))
        out.losses["draft"] = F.mse_loss(conditioner.expected(out.output["cond"]), latents)
        return out

    @torch.no_grad()
    def expert(self, prompt: Batch, branch: str, count: int, strength: float) -> DraftExpert:
        """What the draft of a prompt's branch says of ids, for ``count`` items.

        Raises:
            ConfigError: the model has no drafts, or the strength is out of range.
        """
        conditioner = self.conditioner
        if not isinstance(conditioner, DraftConditioner):
            raise ConfigError(f"draft={strength}: this model drafts nothing")
        cond = conditioner.branch(conditioner.encode(prompt), branch, count)
        return DraftExpert(conditioner.expected(cond), self._quantizer, strength)

    @property
    def _quantizer(self) -> MultiScaleVQ:
        quantizer = self.quantizer.module
        assert isinstance(quantizer, MultiScaleVQ)
        return quantizer

    def tower(self, modality: str) -> Tower | None:
        """The tower of a modality, ``text`` or ``image``; None where there is none."""
        return self.conditioner.tower(modality)


def _conditioner(config: VATGeneratorConfig, quantizer: MultiScaleVQ) -> SlotConditioner:
    towers = _towers(config)
    if not config.is_drafted:
        return SlotConditioner(towers, config.dim)
    return DraftConditioner(
        towers,
        config.dim,
        num_heads=config.num_heads,
        count=quantizer.slots[-1],
        code_dim=quantizer.embedding.weight.shape[1],
    )


def _towers(config: VATGeneratorConfig) -> dict[str, Tower]:
    towers: dict[str, Tower] = {}
    if config.text_model:
        towers["text"] = HFTextTower(config.text_model)
    elif config.text is not None:
        towers["text"] = SmallTextTower(config.text)
    if config.image_model:
        towers["image"] = HFImageTower(config.image_model)
    elif config.image is not None:
        towers["image"] = SmallImageTower(config.image)
    return towers


def prepare_training(recipe: Recipe) -> VATGeneratorTraining:
    """Build the model and sources of a recipe; see ``generator_training``."""
    # Only training needs it, and it is built on this module.
    from polytok.systems.shape.vat import generator_training

    return generator_training.prepare_training(recipe)


def load_model(folder: Path, info: hub.Info, *, name: str, device: str = "cpu") -> ShapeGenerator:
    """Build the generator of a folder with its tokenizer.

    Raises:
        WeightsError: the tokenizer it names has other weights now.
    """
    from polytok.systems import api
    from polytok.systems.shape.generation import ShapeGenerator

    config = from_dict(VATGeneratorConfig, info.config)
    codec = api.load_codec(config.tokenizer, device=device, modality="shape")
    require_weights(codec, config.tokenizer_weights, name)
    model = VATGenerator(config, codec.model.bottleneck.quantizer)
    hub.load_weights(model, folder)
    return ShapeGenerator(model.to(device), codec, name=name, weights=hub.fingerprint(folder))
