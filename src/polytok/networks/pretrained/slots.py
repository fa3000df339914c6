"""The slot that a condition tower fills: signals -> batch tensors -> tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polytok.core.errors import PolytokError, SignalError


@dataclass(frozen=True, kw_only=True)
class TowerOutput:
    """What a generator reads of a condition.

    Args:
        tokens: (B, m, dim); those outside the mask mean nothing.
        mask: (B, m) bool, True = valid.
        pooled: (B, dim), one vector for the whole condition.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class Tower(nn.Module):
    """Turns a condition into tokens; ``dim`` is their width."""

    dim: int

    def prepare(self, signals: Sequence[Any]) -> dict[str, Tensor]:
        """Turn a list of B signals into what batches hold: CPU tensors that start with B.

        Raises:
            SignalError: a signal is of the wrong kind or cannot be used.
        """
        raise TypeError(f"{type(self).__name__} must define prepare")

    def forward(self, inputs: dict[str, Tensor]) -> TowerOutput:
        """Read the tower's keys of a batch; others may be there.

        Raises:
            PolytokError: a key is missing, or its tensor is of another shape or dtype.
        """
        raise TypeError(f"{type(self).__name__} must define forward")


def listed(signals: Sequence[Any], kind: type, name: str) -> list[Any]:
    """Check that signals are a list of ``kind``, described as ``name``.

    Raises:
        SignalError: it is empty, no list, or holds something else.
    """
    if isinstance(signals, (str, kind)):
        raise SignalError(f"a list of {name} is needed, got one {type(signals).__name__}")
    found = list(signals)
    if not found:
        raise SignalError(f"a list of {name} is needed, got an empty one")
    for i, signal in enumerate(found):
        if not isinstance(signal, kind):
            raise SignalError(f"item {i} of a list of {name} is of type {type(signal).__name__}")
    return found


def taken(inputs: dict[str, Tensor], key: str, shape: Sequence[int | None]) -> Tensor:
    """The tensor of a key, checked against ``shape``; None stands for any size.

    Raises:
        PolytokError: the key is missing or the shape is another.
    """
    if key not in inputs:
        raise PolytokError(
            f"the batch has no {key!r} (keys: {', '.join(sorted(inputs)) or 'none'})"
        )
    found = inputs[key]
    if found.ndim != len(shape) or any(
        want not in (None, got) for want, got in zip(shape, found.shape, strict=True)
    ):
        wanted = ", ".join("*" if n is None else str(n) for n in shape)
        raise PolytokError(f"{key} has shape {tuple(found.shape)}, not ({wanted})")
    return found


def taken_text(inputs: dict[str, Tensor], max_tokens: int) -> tuple[Tensor, Tensor]:
    """Ids ``text`` (B, n) and their ``text_mask`` (B, n), n at most ``max_tokens``.

    Raises:
        PolytokError: one is missing, or of another shape or dtype.
    """
    ids = taken(inputs, "text", (None, None))
    if ids.shape[1] > max_tokens:
        raise PolytokError(f"text has {ids.shape[1]} tokens, more than {max_tokens}")
    mask = taken(inputs, "text_mask", ids.shape)
    if ids.dtype != torch.int64 or mask.dtype != torch.bool:
        raise PolytokError(
            f"text and its mask are {ids.dtype} and {mask.dtype}, not int64 and bool"
        )
    return ids, mask


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean (B, D) of the tokens (B, m, D) where ``mask`` (B, m) is True; 0 where it never is."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
