"""timm and transformers, imported when a model of theirs is wanted."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType

import torch

from polytok.core.errors import PolytokError, one_line

# What torchvision describes to torch as it is imported, before it looks whether they exist.
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_declared = torch.library.Library("torchvision", "FRAGMENT")


def import_hf(module: str) -> ModuleType:
    """Import a module of the extra ``hf``: timm, transformers, or one of theirs.

    Raises:
        PolytokError: it is not installed, or cannot be imported.
    """
    settle_torchvision()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = one_line(error)
        raise PolytokError(f"{module} needs its extra: pip install 'polytok[hf]' ({reason})") from (
            error
        )


@cache
def settle_torchvision() -> None:
    """Let timm and transformers import a torchvision that was built for another torch.

    Its compiled operators do not load beside a torch of another build, such as one for CPUs alone,
    and its import then fails on operators that neither library calls. Where they are missing,
    their signatures are declared; a call of one still fails, with torch's own words.

    Raises:
        PolytokError: torchvision is there and cannot be imported for another reason.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise PolytokError(f"torchvision cannot be imported: {one_line(error)}") from error
        for name in _OPERATORS:
            _declared.define(name + _SCHEMA)
        importlib.import_module("torchvision")
