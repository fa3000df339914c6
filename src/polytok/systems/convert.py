"""Foreign checkpoints in, model folders out. Here alone are files read that may hold pickles."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytok.core import hub, registry
from polytok.core.errors import PolytokError, WeightsError, one_line
from polytok.systems import api
from polytok.systems.keymap import Official, check, to_ours

HEAD = 64  # bytes that tell what a file is


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion wrote: ``tensors`` and ``parameters`` count, ``weights`` is the print."""

    preset: str
    folder: str
    tensors: int
    parameters: int
    weights: str


def convert(
    preset: str,
    source: hub.StrPath,
    folder: hub.StrPath,
    *,
    tokenizer: hub.StrPath | None = None,
    force: bool = False,
) -> Converted:
    """Turn an official checkpoint into a folder that :func:`polytok.load` takes.

    Args:
        preset: the official model that the file belongs to.
        source: a ``.safetensors`` file, or a ``.bin``, ``.pt`` or ``.pth`` file of tensors alone.
        folder: gets config.json and model.safetensors, whole or not at all.
        tokenizer: of a generator, the converted tokenizer whose codes it draws.
        force: replace a model that is there.

    Raises:
        UnknownNameError: there is no such preset. WeightsError: it has no official weights, or the
            file is no checkpoint, or that of another model. PolytokError: a model is there already.
    """
    system = registry.system_of(preset)
    module = system.load()
    official: Official | None = getattr(module, "OFFICIAL", None)
    if official is None:
        raise WeightsError(f"no official weights of {preset!r} are known")
    if not force and any((Path(folder) / name).exists() for name in (hub.CONFIG, hub.WEIGHTS)):
        raise PolytokError(f"{folder} holds a model already; use --force to replace it")
    config = _joined(module.preset(preset), preset, tokenizer)
    theirs = read_checkpoint(source)
    try:
        what = f"{source} is no checkpoint of {preset} (by {official.source})"
        _check(official, config, theirs, what)
    except WeightsError as error:
        for other in system.presets:
            if _fits(official, module.preset(other), theirs):
                raise WeightsError(f"{source} is that of {other}, not of {preset}") from error
        raise
    ours = to_ours(official.key_map(config), theirs)
    weights = hub.save_tensors(ours, config, folder, system=system.name, preset=preset)
    return Converted(
        preset=preset,
        folder=str(folder),
        tensors=len(ours),
        parameters=sum(t.numel() for t in ours.values()),
        weights=weights,
    )


def _joined(config: Any, preset: str, tokenizer: hub.StrPath | None) -> Any:
    """The configuration of a generator with its tokenizer; others have none."""
    if not hasattr(config, "tokenizer_weights"):
        if tokenizer is not None:
            raise PolytokError(f"{preset} is no generator and draws no codes of a tokenizer")
        return config
    if tokenizer is None:
        raise PolytokError(
            f"{preset} draws codes of {config.tokenizer}: convert that first, and name its folder "
            "with --tokenizer"
        )
    where, name = api.find_weights(tokenizer)
    if (found := hub.read_info(where).preset) != config.tokenizer:
        raise WeightsError(f"{name} holds {found}, but {preset} draws codes of {config.tokenizer}")
    # Whole, so that the generator finds it from any folder.
    name = str(Path(name).resolve()) if Path(name).is_dir() else name
    return replace(config, tokenizer=name, tokenizer_weights=hub.fingerprint(where))


def _check(official: Official, config: Any, theirs: Mapping[str, Tensor], what: str) -> None:
    with torch.device("meta"):
        own = official.build(config).state_dict()
    check(official.key_map(config), own, theirs, what)


def _fits(official: Official, config: Any, theirs: Mapping[str, Tensor]) -> bool:
    try:
        _check(official, config, theirs, "")
    except WeightsError:
        return False
    return True


def read_checkpoint(path: hub.StrPath) -> dict[str, Tensor]:
    """Read the tensors of a file; what it is, its content says, not its name.

    Raises:
        WeightsError: it is missing, damaged, or holds anything but named tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    if head.lstrip().startswith(b"<"):
        raise WeightsError(f"{path} is a web page, not a checkpoint")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer; the weights are not in it")
    # A safetensors file begins with 8 bytes of length and a JSON object.
    found = _read_safetensors(path) if head[8:9] == b"{" else _read_pickle(path)
    if not isinstance(found, Mapping) or not found:
        raise WeightsError(f"{path} holds no named tensors")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor")
    return dict(found)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged: {one_line(error)}") from error


def _read_pickle(path: Path) -> Any:
    # Only files in torch's zip format can be mapped into memory.
    is_zip = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            # What torch finds odd about a pickle says less than whether it can be read.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        # torch names what it would have had to import and call.
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if name is not None:
            raise WeightsError(
                f"{path} holds objects besides tensors ({name[1]}); such files are not opened"
            ) from error
        raise WeightsError(f"{path} is no checkpoint: {one_line(error, 120)}") from error
    except Exception as error:
        # What a damaged file raises depends on where it is damaged.
        raise WeightsError(f"{path} is damaged or no checkpoint: {one_line(error, 120)}") from error
