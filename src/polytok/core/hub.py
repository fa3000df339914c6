"""Model folders: config.json beside model.safetensors, local or on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytok.core.config import from_dict, to_dict
from polytok.core.errors import WeightsError, one_line
from polytok.core.files import atomic_path, write_text
from polytok.core.tensors import check_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

StrPath = str | PathLike[str]
FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Info:
    """What config.json says: the system, its preset, and the values of its configuration."""

    format_version: int
    system: str
    preset: str
    config: dict[str, Any]


def write_info(folder: StrPath, config: Any, *, system: str, preset: str) -> None:
    """Write config.json for a configuration dataclass."""
    info = Info(format_version=FORMAT, system=system, preset=preset, config=to_dict(config))
    write_text(Path(folder) / CONFIG, json.dumps(to_dict(info), indent=2) + "\n")


def read_info(folder: StrPath) -> Info:
    """Read config.json.

    Raises:
        WeightsError: it is missing, damaged, or of another format.
    """
    path = Path(folder) / CONFIG
    try:
        info = from_dict(Info, json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {one_line(error)}") from error
    if info.format_version != FORMAT:
        raise WeightsError(f"{path} has format {info.format_version}; this program reads {FORMAT}")
    return info


def save_pretrained(
    module: nn.Module,
    config: Any,
    folder: StrPath,
    *,
    system: str,
    preset: str,
    dtype: torch.dtype | None = None,
) -> str:
    """Write a model folder; returns the fingerprint of its weights.

    Args:
        dtype: of floating-point parameters on disk, such as ``torch.bfloat16``; buffers keep
            theirs.
    """
    parameters = {name for name, _ in module.named_parameters()}
    tensors = {
        name: t.to(dtype) if dtype and name in parameters else t
        for name, t in module.state_dict().items()
    }
    return save_tensors(tensors, config, folder, system=system, preset=preset)


def save_tensors(
    tensors: Mapping[str, torch.Tensor], config: Any, folder: StrPath, *, system: str, preset: str
) -> str:
    """Write a model folder of a state dict; returns the fingerprint of its weights."""
    from safetensors.torch import save_file

    with atomic_path(Path(folder) / WEIGHTS) as aside:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, aside)
    # Last, because a folder is a model once it has a configuration.
    write_info(folder, config, system=system, preset=preset)
    return fingerprint(folder)


def load_weights(
    module: nn.Module, folder: StrPath, *, lacking: Sequence[str] = (), unused: Sequence[str] = ()
) -> list[str]:
    """Fill a module with the tensors of a model folder, in the module's own dtypes.

    Args:
        lacking: globs of names that the file may lack; these tensors stay as they are.
        unused: globs of names in the file that are passed over.

    Returns:
        Names that the file lacks, sorted.

    Raises:
        WeightsError: the file is missing or damaged, or names or shapes differ, or some of its
            tensors hold no floats where floats are wanted; all tensors that do not fit are named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read {path}: {one_line(error)}") from error
    tensors = {n: t for n, t in tensors.items() if not any(fnmatchcase(n, g) for g in unused)}
    own = module.state_dict()
    lacks = sorted(own.keys() - tensors)
    may_lack = {name for name in lacks if any(fnmatchcase(name, glob) for glob in lacking)}
    check_tensors({n: t for n, t in own.items() if n not in may_lack}, tensors, str(path))
    found = {n: t.to(own[n].dtype) for n, t in tensors.items()}
    module.load_state_dict(found, strict=not lacks)
    return lacks


def fingerprint(folder: StrPath) -> str:
    """The first 4 bytes of the SHA-256 of model.safetensors, as 8 hex digits.

    Raises:
        WeightsError: the file cannot be read.
    """
    path = Path(folder) / WEIGHTS
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error


def download(repository: str, revision: str | None = None) -> Path:
    """Fetch config.json and model.safetensors of a Hugging Face repository; nothing else.

    Raises:
        WeightsError: it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=[CONFIG, WEIGHTS])
        )
    except Exception as error:
        raise WeightsError(
            f"cannot fetch {repository!r} from the hub: {one_line(error)}"
        ) from error
