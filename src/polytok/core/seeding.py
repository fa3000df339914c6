"""Seeds: every random draw of the library takes a generator made here."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *keys: int | str) -> int:
    """Derive a 63-bit seed that depends on ``seed`` and every key, the same on any machine."""
    text = "/".join(str(k) for k in (seed, *keys)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def numpy_rng(seed: int, *keys: int | str) -> np.random.Generator:
    """Return a NumPy generator for ``derive(seed, *keys)``."""
    return np.random.default_rng(derive(seed, *keys))


def torch_rng(seed: int, *keys: int | str, device: str = "cpu") -> torch.Generator:
    """Return a torch generator for ``derive(seed, *keys)``."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *keys))
