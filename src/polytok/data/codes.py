"""Folders of codes: what a generator learns from, made once from prepared signals."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from polytok.core.config import from_dict, to_dict
from polytok.core.errors import PolytokError, one_line
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
    """

    weights: str
    slots: tuple[int, ...]
    names: tuple[str, ...]
    captions: tuple[str, ...]
    aligned: tuple[str, ...]


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


def write_index(folder: Path, index: CodeIndex) -> None:
    """Write the index, once every pass is there."""
    write_text(folder / INDEX, json.dumps(to_dict(index)) + "\n")


def missing_passes(folder: Path, count: int) -> Sequence[int]:
    """Passes that are still to be made."""
    return [a for a in range(count) if not pass_path(folder, a).is_file()]
