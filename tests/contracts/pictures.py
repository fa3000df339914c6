"""An image tokenizer that needs no training: the mean colour of every patch, in a fixed palette."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.core import hub
from polytok.core.config import from_dict
from polytok.core.contracts import (
    Batch,
    Bottleneck,
    Codes,
    Level,
    Tokenizer,
    TokenizerSpec,
)
from polytok.core.registry import System
from polytok.systems.image.codec import ImageCodec

SYSTEM = System(
    name="patch-colours",
    kind="tokenizer",
    modality="image",
    title="Mean colours of patches",
    paper="none",
    target="contracts.pictures",
    presets=("patch-colours-tiny", "patch-colours-whole"),
)


@dataclass(frozen=True, kw_only=True)
class PatchColoursConfig:
    """``patches`` a side, of ``patch`` pixels; ``shades`` of each of red, green and blue."""

    patches: int = 4
    patch: int = 4
    shades: int = 5
    has_prefixes: bool = True


class Palette(Bottleneck):
    """All colours whose red, green and blue are multiples of 1 / (shades - 1)."""

    usage: Tensor

    def __init__(self, shades: int) -> None:
        super().__init__()
        steps = torch.linspace(0, 1, shades)
        self.colours = nn.Parameter(torch.cartesian_prod(steps, steps, steps))
        # As if training had seen mostly dark colours.
        frequency = torch.exp(-6 * self.colours.detach().sum(-1))
        self.register_buffer("usage", frequency / frequency.sum())

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (len(self.colours),)

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        return F.embedding(indices[0], self.colours)


class PatchColours(Tokenizer):
    """``image`` -> one id per patch, those of the diagonal first; missing ones are their mean."""

    bottleneck: Palette

    def __init__(self, config: PatchColoursConfig) -> None:
        super().__init__()
        self.config, self.side = config, config.patches * config.patch
        self.bottleneck = Palette(config.shades)
        self.spec = TokenizerSpec(
            modality="image",
            output="image",
            levels=(Level(vocab=config.shades**3, count=config.patches**2),),
            prefix="tokens" if config.has_prefixes else None,
            value_range=(0.0, 1.0),
        )
        y, x = torch.meshgrid(*[torch.arange(config.patches)] * 2, indexing="ij")
        self.order = ((x - y) % config.patches * config.patches + y).flatten().argsort()

    def encode(self, batch: Batch, *, rng: torch.Generator | None = None) -> Codes:
        image = batch["image"]
        assert image.shape[1:] == (3, self.side, self.side), image.shape
        assert image.min() >= 0 and image.max() <= 1
        colours = F.avg_pool2d(image, self.config.patch).flatten(2).mT[:, self.order]
        return Codes(indices=(torch.cdist(colours, self.bottleneck.colours).argmin(-1),))

    def decode(
        self, codes: Codes, *, cond: Batch | None = None, rng: torch.Generator | None = None
    ) -> Batch:
        found = self.bottleneck.embed(codes.indices)
        colours = found.mean(1, keepdim=True).repeat(1, self.config.patches**2, 1)
        colours[:, self.order[: found.shape[1]]] = found
        small = colours.mT.unflatten(2, (self.config.patches, self.config.patches))
        return {
            "image": small.repeat_interleave(self.config.patch, 2).repeat_interleave(
                self.config.patch, 3
            )
        }


def load_model(folder: Path, info: hub.Info, *, name: str, device: str = "cpu") -> ImageCodec:
    """Build the tokenizer of a folder; what ``polytok.load`` calls."""
    model = PatchColours(from_dict(PatchColoursConfig, info.config))
    hub.load_weights(model, folder)
    return ImageCodec(model, size=model.side, name=name, weights=hub.fingerprint(folder))


def save(folder: Path, **changes: object) -> str:
    """Write a model folder; returns the fingerprint of its weights."""
    config = from_dict(PatchColoursConfig, dict(changes))
    preset = SYSTEM.presets[0 if config.has_prefixes else 1]
    return hub.save_pretrained(
        PatchColours(config), config, folder, system=SYSTEM.name, preset=preset
    )
