"""A reduction on disk: the plain model, and a small ``reduction.json`` beside it."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from polytok.core.config import from_dict, to_dict
from polytok.core.errors import PolytokError, UnknownNameError, WeightsError, one_line
from polytok.core.files import write_text
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers.methods import method, method_names
from polytok.reducers.reduction import core_of, reduction_of
from polytok.reducers.schedule import Schedule

FILE = "reduction.json"
FORMAT = 1

StrPath = str | PathLike[str]


@dataclass(frozen=True, kw_only=True)
class SavedReduction:
    """What ``reduction.json`` says."""

    format_version: int
    method: str
    options: Any
    schedule: Schedule
    restore: str


def write_reduction(model: nn.Module, folder: StrPath) -> None:
    """Write ``reduction.json`` of a reduced model, in one step.

    Raises:
        PolytokError: nothing is applied, or a reducer that has no name.
    """
    found = reduction_of(model)
    if found.method not in method_names() or type(method(found.method)[1]) is not type(
        found.reducer
    ):
        raise PolytokError(
            f"{type(found.reducer).__name__} has no name to load it by; "
            f"methods by name can be saved: {', '.join(method_names())}"
        )
    saved = SavedReduction(
        format_version=FORMAT,
        method=found.method,
        options=to_dict(found.reducer),
        schedule=found.schedule,
        restore=found.restore,
    )
    write_text(Path(folder) / FILE, json.dumps(to_dict(saved), indent=1) + "\n")


def save(model: nn.Module, folder: StrPath) -> None:
    """Write a reduced timm or transformers model: its plain form, and ``reduction.json``.

    Raises:
        PolytokError: nothing is applied, or the model has no name to be built by.
    """
    core = core_of(model)
    write: Any = getattr(model, "save_pretrained", None)
    if write is not None:
        write(folder)
        return
    if model is not core or not getattr(core, "pretrained_cfg", None):
        raise PolytokError(
            f"{type(model).__name__} has no name in timm or transformers to be built by; save its "
            "state dict, and the reduction with polytok.reducers.write_reduction(model, folder)"
        )
    import_hf("timm.models").save_for_hf(model, str(folder), safe_serialization=True)
    write_reduction(model, folder)


def load(folder: StrPath, model: nn.Module | None = None) -> nn.Module:
    """Read what :func:`save` wrote; or apply only its reduction, to a plain ``model``.

    Raises:
        WeightsError: a file is missing or damaged, or the model cannot be built.
        PolytokError: the reduction does not fit the model.
    """
    from polytok.reducers.api import reduce

    path = Path(folder) / FILE
    try:
        saved = from_dict(SavedReduction, json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {one_line(error)}") from error
    if saved.format_version != FORMAT:
        raise WeightsError(f"{path} has format {saved.format_version}; this program reads {FORMAT}")
    options = from_dict(type(method(saved.method)[1]), saved.options)
    model = _built(Path(folder)) if model is None else model
    kwargs: dict[str, Any] = {"schedule": saved.schedule, "restore": saved.restore}
    return reduce(model, saved.method, **kwargs, **to_dict(options))


def build(name: str, *, is_pretrained: bool = False) -> nn.Module:
    """Make a plain model by name, in eval mode.

    Args:
        name: of timm's; a class of transformers', with its default configuration; a folder that
            either wrote; or, pretrained, an id of the Hugging Face hub.
        is_pretrained: download weights; else they are random, but for folders.

    Raises:
        UnknownNameError: neither library knows the name.
        WeightsError: the weights cannot be had.
    """
    if Path(name).is_dir():
        return _built(Path(name))
    timm = import_hf("timm")
    try:
        if timm.is_model(name):
            made = timm.create_model(name, pretrained=is_pretrained)
        elif is_pretrained and "/" in name:
            made = import_hf("transformers").AutoModel.from_pretrained(name)
        else:
            kind: Any = getattr(import_hf("transformers"), name, None)
            if getattr(kind, "config_class", None) is None:
                close = difflib.get_close_matches(name, timm.list_models(), 3, 0.8)
                raise UnknownNameError("model", name, close)
            made = kind(kind.config_class())
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"cannot get the weights of {name!r}: {one_line(error)}") from error
    model: nn.Module = made.eval()
    return model


def _built(folder: Path) -> nn.Module:
    """The plain model of a folder that timm or transformers wrote, in eval mode."""
    try:
        config = json.loads((folder / "config.json").read_text())
        if "architecture" in config:
            made = import_hf("timm").create_model(f"local-dir:{folder}", pretrained=True)
        else:
            transformers = import_hf("transformers")
            made = getattr(transformers, config["architectures"][0]).from_pretrained(folder)
    except (OSError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"cannot build the model of {folder}: {one_line(error)}") from error
    model: nn.Module = made.eval()
    return model
