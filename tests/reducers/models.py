"""Tiny models of every family, with random weights that let every part matter."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from polytok.networks.pretrained.optional import import_hf
from polytok.reducers.families import FAMILIES, Family

GRID = 4
# What only the layers of transformers 5 can do is tested there.
IS_NEWER = int(metadata.version("transformers").split(".")[0]) >= 5
DEPTH = 4
WIDTH = {"embed_dim": 48, "depth": DEPTH, "num_heads": 3, "num_classes": 7}
HF_WIDTH = {
    "hidden_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "num_labels": 7,
    "patch_size": 16,
    "image_size": 16 * GRID,
}
WORKING = tuple(f for f in FAMILIES if not f.refused)
# Trees of stages, or sizes that are part of the name.
AS_NAMED = ("swin_tiny_patch4_window7_224",)


def label(family: Family) -> str:
    return f"{family.library}-{family.name}".replace(" ", "-")


def build(family: Family, **options: Any) -> nn.Module:
    """A tiny model of a family, in eval mode."""
    if family.library == "timm":
        width = {} if family.example in AS_NAMED else {**WIDTH, **_size(family)}
        made = import_hf("timm").create_model(family.example, **(width | options))
    else:
        made = _transformers(family, **options)
    return randomized(made)


def image(family: Family, batch: int = 2) -> Tensor:
    """Random images of the family's tiny size."""
    side = GRID * family.patch
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(3))


def logits(out: Any) -> Tensor:
    """The tensor a model's user reads."""
    if isinstance(out, Tensor):
        return out
    return out.logits if "logits" in out else out.last_hidden_state


@torch.no_grad()
def randomized(model: nn.Module) -> nn.Module:
    """Fill every parameter anew, layer scales and biases too, which fresh models have near 0."""
    rng = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = 0.2 * torch.randn(parameter.shape, generator=rng)
        is_gain = parameter.ndim == 1 and name.endswith("weight")
        parameter.copy_(noise + 1 if is_gain else noise)
    return model.eval()


def tiny_deit(**options: Any) -> nn.Module:
    return build(next(f for f in FAMILIES if f.name == "DeiT"), **options)


def tiny_hf(**options: Any) -> nn.Module:
    return build(next(f for f in FAMILIES if f.example == "ViTForImageClassification"), **options)


def _size(family: Family) -> dict[str, Any]:
    return {} if "naflex" in family.example else {"img_size": GRID * family.patch}


def _transformers(family: Family, **options: Any) -> nn.Module:
    transformers = import_hf("transformers")
    made = getattr(transformers, family.example)
    width = dict(HF_WIDTH) | options
    if "Dinov2" in family.example:
        width["mlp_ratio"] = 2
        del width["intermediate_size"]
    config = made.config_class(**width)
    return made(config)
