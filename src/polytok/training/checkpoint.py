"""Checkpoints: one safetensors file per state, JSON for the rest in its header."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from polytok.core.errors import WeightsError
from polytok.core.files import atomic_path
from polytok.training.ema import WeightAverage

FORMAT = "polytok-training-1"
NAME = re.compile(r"step-(\d{9})\.safetensors")


def save_state(folder: Path, step: int, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
    """Write a checkpoint aside, rename it, and keep the newest two."""
    header = {"format": FORMAT, "notes": json.dumps(notes)}
    with atomic_path(folder / f"step-{step:09d}.safetensors") as aside:
        save_file(_separate(tensors), aside, metadata=header)
    for old in checkpoints(folder)[:-2]:
        old.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints in a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*") if NAME.fullmatch(p.name))


def tidy(folder: Path) -> None:
    """Remove files that a killed process left half written in a run's folder."""
    for pattern in (".*.part.safetensors", "checkpoints/.*.part.safetensors"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint: its tensors, and its notes.

    Raises:
        WeightsError: the file is damaged or is no training checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read checkpoint {path}: {error}") from error
    if header.get("format") != FORMAT:
        raise WeightsError(f"{path} is no training checkpoint of this version of polytok")
    return tensors, json.loads(header["notes"])


def pack_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> dict[str, Tensor]:
    """Collect the tensors that a run continues from."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= pack_moments("optimizer/", model, optimizer)
    if average is not None:
        tensors |= {f"average/{name}": value for name, value in average.average.items()}
    return tensors


def unpack_state(
    tensors: dict[str, Tensor],
    notes: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
) -> None:
    """Put the tensors of :func:`pack_state` back.

    Raises:
        WeightsError: they belong to another model.
    """
    state = part(tensors, "model/")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"the checkpoint belongs to another model: {error}") from error
    unpack_moments("optimizer/", tensors, model, optimizer)
    if average is not None:
        saved = part(tensors, "average/")
        average.load(saved or state, notes["average_updates"])


def pack_moments(
    prefix: str, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """What an optimiser keeps of every parameter, as ``prefix/key/parameter``."""
    return {
        f"{prefix}{key}/{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def unpack_moments(
    prefix: str,
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put the tensors of :func:`pack_moments` back."""
    for name, parameter in model.named_parameters():
        moments = {
            key: tensors[f"{prefix}{key}/{name}"].to(parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{prefix}{key}/{name}" in tensors
        }
        if moments:
            optimizer.state[parameter] = moments


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names start with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def save_weights(path: Path, model: nn.Module) -> None:
    """Write a model's state as a plain safetensors file in one step."""
    with atomic_path(path) as aside:
        save_file(_separate(model.state_dict()), aside)


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as the format wants them."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        where = value.untyped_storage().data_ptr()
        out[name] = value.clone() if where in seen else value
        seen.add(where)
    return out
