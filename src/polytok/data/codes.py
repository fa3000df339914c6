"""Folders of codes: what a generator learns from, made once from prepared signals."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytok.core.config import from_dict, to_dict
from polytok.core.errors import ConfigError, PolytokError, one_line
from polytok.core.files import atomic_path, write_text

INDEX = "codes.json"


@dataclass(frozen=True, kw_only=True)
class CodeIndex:
    """What a folder of codes holds.

    Args:
        weights: fingerprint of the tokenizer. slots: ids per level.
        names, captions: of every signal, in order.
        aligned: per pass, how its codes relate to pictures of the signals: ``same``, ``mirrored``
            (in x), or ``none`` where the signal was distorted.
        stretch: how far, see ``ShapeSampling``. seed: of every pass's draws.
    """

    weights: str
    slots: tuple[int, ...]
    names: tuple[str, ...]
    captions: tuple[str, ...]
    aligned: tuple[str, ...]
    stretch: float = 0.0
    seed: int = 0


class CodeFolder:
    """Codes (passes, n, L) int32 with names and captions, whole in memory.

    Raises:
        PolytokError: there are none, a pass is missing, or files do not fit the index.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        root = Path(folder)
        try:
            self.index = from_dict(CodeIndex, json.loads((root / INDEX).read_text()))
            parts = [load_file(pass_path(root, a))["ids"] for a in range(self.passes)]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise PolytokError(f"{folder} has no codes: {one_line(error)}") from error
        shape = (len(self.index.names), sum(self.index.slots))
        for part in parts:
            if tuple(part.shape) != shape:
                raise PolytokError(f"{folder} has codes {tuple(part.shape)} instead of {shape}")
        self.ids: Tensor = torch.stack(parts)

    @property
    def passes(self) -> int:
        return len(self.index.aligned)

    def __len__(self) -> int:
        return len(self.index.names)


def pass_path(folder: Path, number: int) -> Path:
    """Where pass ``number`` of a folder of codes lies."""
    return folder / f"pass-{number:02d}.safetensors"


def write_pass(folder: Path, number: int, ids: Tensor) -> None:
    """Write one pass (n, L), whole or not at all."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(pass_path(folder, number)) as aside:
        save_file({"ids": ids.to(torch.int32).contiguous()}, aside)


def missing_passes(folder: Path, index: CodeIndex) -> Sequence[int]:
    """Passes of ``index`` that are still to be made in a folder, which gets the index first.

    Raises:
        ConfigError: the folder holds other codes, which would be mistaken for these.
    """
    path = folder / INDEX
    if not path.is_file() and pass_path(folder, 0).is_file():
        raise ConfigError(f"{folder} holds codes without {INDEX}; use another folder")
    keep_index(path, index, "codes")
    return [a for a in range(len(index.aligned)) if not pass_path(folder, a).is_file()]


def keep_index(path: Path, index: Any, what: str) -> None:
    """Write what a folder is to hold, a dataclass, where nothing says so yet.

    Raises:
        ConfigError: the folder holds something else, called ``what``.
    """
    told = to_dict(index)
    if not path.is_file():
        write_text(path, json.dumps(told) + "\n")
    elif json.loads(path.read_text()) != told:
        raise ConfigError(f"{path.parent} holds other {what}; use another folder, or remove it")
