"""Weights and pictures that official classes were filled and fed with, made again from seeds.

So that stored oracles hold outputs alone. ``RandomState`` gives the same numbers in every NumPy.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from polytok.systems.keymap import KeyMap, check, to_ours, to_theirs

DATA = Path(__file__).parent / "data"


def draw(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of an official name: vectors about 1, or 0 for a bias; else of its fan-in."""
    rng = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode()))
    values = rng.standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return torch.from_numpy(values * np.float32(1.5 / math.sqrt(math.prod(shape[1:]))))
    shift = 0 if name.endswith("bias") else 1
    return torch.from_numpy((shift + 0.1 * values).astype(np.float32))


def pictures(seed: int, count: int, size: int) -> Tensor:
    """Four patches of colour under noise, (count, 3, size, size) in [0, 1]."""
    rng = np.random.RandomState(seed)
    coarse = rng.random_sample((count, 3, 2, 2)) ** 3
    coarse = coarse.repeat(size // 2, 2).repeat(size // 2, 3)
    fine = rng.random_sample((count, 3, size, size))
    return torch.from_numpy((0.8 * coarse + 0.2 * fine).astype(np.float32))


def filled(model: nn.Module, key_map: KeyMap, seed: int) -> nn.Module:
    """Give a model the weights that the official class had under a seed."""
    shapes = {k: tuple(t.shape) for k, t in to_theirs(key_map, model.state_dict()).items()}
    official = {k: draw(seed, k, shape) for k, shape in shapes.items()}
    model.load_state_dict(to_ours(key_map, official))
    return model.eval()


def arrays(name: str, start: str) -> dict[str, Tensor]:
    """The stored arrays under a prefix."""
    with np.load(DATA / name) as found:
        return {
            k.removeprefix(start): torch.from_numpy(found[k])
            for k in found.files
            if k.startswith(start)
        }


def shapes_of(name: str) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of official state dicts, by model; ``a.*3.b`` stands for a.0.b to a.2.b."""
    stored = json.loads((DATA / name).read_text())
    return {
        model: {
            re.sub(r"\*\d+", str(i), key): shape
            for key, shape in rows.items()
            for i in range(int(re.search(r"(?:\*(\d+)|$)", key)[1] or 1))  # type: ignore[index]
        }
        for model, rows in stored.items()
    }


def assert_covered(model: nn.Module, key_map: KeyMap, shapes: dict[str, list[int]]) -> None:
    """The rows take exactly the official tensors to exactly ours; ``model`` is on meta."""
    theirs = {k: torch.empty(shape, device="meta") for k, shape in shapes.items()}
    own = model.state_dict()
    check(key_map, own, theirs, "official")
    found = to_ours(key_map, theirs)
    assert {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in own.items()}
