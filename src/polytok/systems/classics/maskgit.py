"""MaskGIT: all ids of an image in a few parallel steps (arXiv 2202.04200), over 1-D tokens.

The generator of TiTok (arXiv 2406.07550) and One-D-Piece (arXiv 2501.10064): every step predicts
all masked ids, keeps those it is surest of and masks the others again. Official weights, of
bytedance/1d-tokenizer and turingmotors/One-D-Piece (Apache-2.0), come in by ``polytok convert``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from polytok.core import hub
from polytok.core.config import from_dict
from polytok.core.contracts import Batch, Codes, Stage
from polytok.core.errors import ConfigError, UnknownNameError
from polytok.generators import (
    CategoricalHead,
    ClassConditioner,
    FallingSampling,
    Generator,
    Guide,
    Known,
    MaskedOrder,
    Net,
    PostNormTransformer,
    Rng,
    SkipTransformer,
    constant,
    generate,
    lagging,
    power_cosine,
)
from polytok.generators.guide import Schedule
from polytok.systems.codec import require_weights
from polytok.systems.keymap import KeyMap, Official, Op, Row, join, row, rows, split, under

if TYPE_CHECKING:
    from polytok.systems.image.generation import ImageGenerator
    from polytok.systems.images import ImageTraining
    from polytok.training import Recipe

STAGES = (Stage(name="generate", weights={"ce": 1.0}),)

GUIDANCE: dict[str, Schedule] = {
    "constant": constant,
    "linear": lagging,
    "power-cosine": power_cosine(3.0),
}


@dataclass(frozen=True, kw_only=True)
class MaskGITConfig:
    """Sizes and choices of a masked generator.

    Args:
        tokenizer: weights tag or folder of the image tokenizer whose codes are drawn.
        tokenizer_weights: their fingerprint; others are refused. "" before training.
        vocab, length: ids of the tokenizer, and how many an image has.
        num_classes: conditions; 0 for a generator without any. classes: their names, if known.
        net: ``bert`` (post-norm) or ``uvit`` (long skips, ``depth`` without the middle block).
        dropout: of ``bert``; ``uvit`` has none.
        condition_dropout: probability of a training sample's class to be hidden.
        smoothing: of the labels in training.
        visible: weight in training of an id that is shown, where a masked one has 1.
        steps, temperature, cfg: of sampling, unless others are asked for. The temperature is that
            of the Gumbel noise on ids and on which of them stay; cfg is w of (1 + w) c - w u.
        guidance: share of cfg by step: ``constant``, ``linear`` (none at first) or
            ``power-cosine``, for which papers give 1 + w.
        flatness: softmax temperature at the first and the last step.
    """

    vocab: int
    length: int
    tokenizer: str = ""
    tokenizer_weights: str = ""
    num_classes: int = 1000
    classes: tuple[str, ...] = ()
    net: Literal["bert", "uvit"] = "bert"
    dim: int = 768
    depth: int = 24
    num_heads: int = 16
    dropout: float = 0.1
    condition_dropout: float = 0.1
    smoothing: float = 0.1
    visible: float = 0.1
    steps: int = 8
    temperature: float = 4.5
    cfg: float = 3.0
    guidance: Literal["constant", "linear", "power-cosine"] = "linear"
    flatness: tuple[float, float] = (1.3, 0.5)

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")
        for name in ("vocab", "length", "depth"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("dropout", "condition_dropout", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not within [0, 1)")
        if self.net == "uvit" and self.dropout:
            raise ConfigError(f"dropout={self.dropout}: net='uvit' has none; set it to 0")
        if self.num_classes < 0 or (self.classes and len(self.classes) != self.num_classes):
            raise ConfigError(
                f"num_classes={self.num_classes} does not fit {len(self.classes)} classes"
            )
        check_cfg(self.cfg)


def check_cfg(cfg: float) -> None:
    """Refuse a strength of guidance that is out of range.

    Raises:
        ConfigError: it is negative or not finite.
    """
    if not 0 <= cfg < math.inf:
        raise ConfigError(f"cfg={cfg} is not a finite number of at least 0")


def _published(tokenizer: str, length: int, **changes: object) -> MaskGITConfig:
    config = MaskGITConfig(tokenizer=tokenizer, vocab=4096, length=length)
    return replace(config, **changes)  # type: ignore[arg-type]


def _one_d_piece(size: str, temperature: float, cfg: float) -> MaskGITConfig:
    return _published(
        f"one-d-piece-{size}-256",
        256,
        steps=16,
        temperature=temperature,
        cfg=cfg,
        guidance="power-cosine",
        flatness=(1.0, 1.0),
    )


PRESETS: dict[str, MaskGITConfig] = {
    "maskgit-tiny": MaskGITConfig(
        tokenizer="one-d-piece-micro",
        vocab=256,
        length=16,
        num_classes=3,
        dim=32,
        depth=2,
        num_heads=2,
    ),
    "one-d-piece-tiny-gen": MaskGITConfig(
        tokenizer="one-d-piece-tiny",
        vocab=4096,
        length=64,
        num_classes=0,
        dim=128,
        depth=4,
        num_heads=2,
        steps=16,
    ),
    # Sampling as the official configurations have it; power-cosine ones less 1, see ``cfg``.
    "titok-l32-gen": _published("titok-l32", 32, temperature=9.5, cfg=4.5),
    "titok-b64-gen": _published("titok-b64", 64, temperature=11.0, cfg=3.0),
    "titok-s128-gen": _published(
        "titok-s128",
        128,
        net="uvit",
        dim=1024,
        depth=20,
        dropout=0.0,
        steps=64,
        temperature=2.8,
        cfg=5.9,
        guidance="power-cosine",
    ),
    "one-d-piece-s-256-gen": _one_d_piece("s", temperature=3.0, cfg=11.5),
    "one-d-piece-b-256-gen": _one_d_piece("b", temperature=2.5, cfg=7.5),
    "one-d-piece-l-256-gen": _one_d_piece("l", temperature=3.0, cfg=4.5),
}


def preset(name: str) -> MaskGITConfig:
    """The configuration of a preset.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]


class MaskGIT(Generator):
    """The generator of a configuration.

    Training batches hold ids (B, length), seed (B,) and, if there are classes, label (B,).
    """

    process: MaskedOrder
    conditioner: ClassConditioner

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__(
            _net(config),
            CategoricalHead(config.dim, config.vocab, smoothing=config.smoothing),
            _order(config),
            guide_of(config),
            ClassConditioner(config.num_classes, config.dim),
            condition_dropout=config.condition_dropout,
            sampling=_sampling(config),
        )
        self.config = config

    def draw(
        self,
        prompt: Batch,
        *,
        count: int,
        rng: Rng,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        known: Known | None = None,
    ) -> Codes:
        """Draw ``count`` codes, with what the configuration says where nothing is asked for.

        Args:
            prompt: label (B,) int64, or nothing.

        Raises:
            ConfigError: a number is out of range.
        """
        changed = replace(
            self.config,
            cfg=self.config.cfg if cfg is None else cfg,
            temperature=self.config.temperature if temperature is None else temperature,
        )
        return generate(
            self.net,
            self.head,
            _order(changed),
            guide_of(changed) if "label" in prompt else Guide(),
            self.conditioner,
            prompt,
            count=count,
            rng=rng,
            steps=steps,
            known=known,
            sampling=_sampling(changed),
        )


def guide_of(config: MaskGITConfig) -> Guide:
    """Guidance by the class."""
    if not config.num_classes:
        return Guide()
    return Guide(shares={"label": 1.0}, strength=config.cfg, schedule=GUIDANCE[config.guidance])


def _net(config: MaskGITConfig) -> Net:
    sizes = {
        "dim": config.dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "vocab": config.vocab,
        "length": config.length,
    }
    if config.net == "uvit":
        return SkipTransformer(**sizes)
    return PostNormTransformer(**sizes, dropout=config.dropout)


def _order(config: MaskGITConfig) -> MaskedOrder:
    return MaskedOrder(
        config.length,
        config.vocab,
        schedule="arccos",
        temperature=config.temperature,
        num_steps=config.steps,
        visible=config.visible,
    )


def _sampling(config: MaskGITConfig) -> FallingSampling:
    return FallingSampling(temperature=config.temperature, flatness=config.flatness)


def prepare_training(recipe: Recipe) -> ImageTraining:
    """Build the model and sources of a recipe; see ``maskgit_training``."""
    # Only training needs it, and it is built on this module.
    from polytok.systems.classics import maskgit_training

    return maskgit_training.prepare_training(recipe)


def load_model(folder: Path, info: hub.Info, *, name: str, device: str = "cpu") -> ImageGenerator:
    """Build the generator of a folder with its tokenizer.

    Raises:
        WeightsError: the tokenizer it names has other weights now.
    """
    from polytok.systems import api
    from polytok.systems.image.generation import ImageGenerator

    config = from_dict(MaskGITConfig, info.config)
    codec = api.load_codec(config.tokenizer, device=device, modality="image")
    require_weights(codec, config.tokenizer_weights, name)
    model = MaskGIT(config)
    hub.load_weights(model, folder)
    return ImageGenerator(model.to(device), codec, name=name, weights=hub.fingerprint(folder))


def _placed(tensors: list[Tensor]) -> list[Tensor]:
    places, kinds = tensors
    return [(places + kinds[0])[None]]


def _unplaced(tensors: list[Tensor]) -> list[Tensor]:
    (places,) = tensors
    return [places[0], places.new_zeros(2, places.shape[-1])]


# All tokens are of the first of BERT's two kinds, so its vector is a part of every place.
PLACES = Op(_placed, _unplaced)  # type: ignore[arg-type]


def key_map(config: MaskGITConfig) -> KeyMap:
    """Rows between our tensors and the official ones; one table holds ids, mask and classes."""
    found = _skip_rows(config) if config.net == "uvit" else _post_norm_rows(config)
    return KeyMap(tuple(found), unread=("model.embeddings.position_ids",))


def _embedding(config: MaskGITConfig, theirs: str) -> Row:
    ours = ("net.inputs.embed.weight", "conditioner.embedding.weight")
    return Row(ours, (theirs,), split(config.vocab + 1, config.num_classes + 1))


def _post_norm_rows(config: MaskGITConfig) -> list[Row]:
    parts = [f"attention.self.{part}" for part in ("query", "key", "value")]
    block = [
        Row((f"qkv.{kind}",), tuple(f"{part}.{kind}" for part in parts), join(1, 1, 1))
        for kind in ("weight", "bias")
    ]
    block += rows(
        {
            "out": "attention.output.dense",
            "norm_attention": "attention.output.LayerNorm",
            "mlp.up": "intermediate.dense",
            "mlp.down": "output.dense",
            "norm_mlp": "output.LayerNorm",
        }
    )
    start = "model.embeddings."
    places = (f"{start}position_embeddings.weight", f"{start}token_type_embeddings.weight")
    found = [
        _embedding(config, f"{start}word_embeddings.weight"),
        Row(("net.inputs.positions",), places, PLACES),
        *rows({"net.norm": f"{start}LayerNorm", "head.proj": "model.lm_head"}),
    ]
    for i in range(config.depth):
        found += under(f"net.blocks.{i}.", f"model.encoder.layer.{i}.", block)
    return found


def _skip_rows(config: MaskGITConfig) -> list[Row]:
    block = [
        row("attention.qkv.weight", "attn.qkv.weight"),
        *rows(
            {
                "norm_attention": "norm1",
                "attention.out": "attn.proj",
                "norm_mlp": "norm2",
                "mlp.up": "mlp.fc1",
                "mlp.down": "mlp.fc2",
            }
        ),
    ]
    found = [
        _embedding(config, "embeddings.weight"),
        row("net.inputs.positions", "pos_embed"),
        *under("net.middle.", "mid_block.", block),
        *rows({"net.norm": "norm", "head.proj": "lm_head"}),
    ]
    for i in range(config.depth // 2):
        found += under(f"net.early.{i}.", f"in_blocks.{i}.", block)
        found += under(f"net.late.{i}.", f"out_blocks.{i}.", block)
        found += rows({f"net.joins.{i}": f"out_blocks.{i}.skip_linear"})
    return found


OFFICIAL = Official(
    build=MaskGIT, key_map=key_map, source="bytedance/1d-tokenizer, turingmotors/One-D-Piece"
)
