"""Key maps: rows that tie our tensors to those of a foreign checkpoint, by operations that invert.

A row read forwards loads a checkpoint, read backwards it writes one. So the names and shapes that a
checkpoint must have follow from the model alone, and are checked before any tensor is touched.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from polytok.core.tensors import check_tensors

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Op:
    """What a row does: ``load`` takes their tensors to ours, ``save`` takes ours to theirs."""

    load: Callable[[Tensors], Tensors]
    save: Callable[[Tensors], Tensors]

    def inverse(self) -> Op:
        """The operation read the other way."""
        return Op(self.save, self.load)


SAME = Op(lambda tensors: tensors, lambda tensors: tensors)
# Theirs has one more axis, the first, of size 1.
FIRST = Op(lambda tensors: [t[0] for t in tensors], lambda tensors: [t[None] for t in tensors])
# Theirs is a 1x1 convolution, ours the same matrix.
POINTWISE = Op(
    lambda tensors: [t.flatten(1) for t in tensors],
    lambda tensors: [t[:, :, None, None] for t in tensors],
)


def split(*shares: int) -> Op:
    """One tensor of theirs is several of ours, one after the other along its first axis.

    Args:
        shares: size of each part in parts of the sum; (1, 2) gives the first third and the rest.
    """

    def load(tensors: Tensors) -> Tensors:
        (whole,) = tensors
        unit = len(whole) // sum(shares)
        # Copies, because a model file holds no memory twice.
        return [part.clone() for part in whole.split([unit * share for share in shares])]

    return Op(load, lambda tensors: [torch.cat(list(tensors))])


def join(*shares: int) -> Op:
    """Several tensors of theirs are one of ours; the inverse of :func:`split`."""
    return split(*shares).inverse()


def fresh(make: Callable[[], Tensor]) -> Op:
    """Ours alone: running state that no checkpoint holds starts as ``make`` gives it."""
    return Op(lambda _: [make()], lambda _: [])


@dataclass(frozen=True)
class Row:
    """Our keys, their keys, and the operation between them."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    op: Op = SAME


@dataclass(frozen=True)
class KeyMap:
    """All rows of a configuration; every tensor of ours stands in exactly one.

    Args:
        unread: patterns of their keys that follow from the configuration, and may be there or not.
    """

    rows: tuple[Row, ...]
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Official:
    """What ``polytok convert`` needs of a system with official weights.

    Args:
        build: makes the model of a configuration. key_map: gives its rows.
        source: the repositories of the official code.
    """

    build: Callable[[Any], nn.Module]
    key_map: Callable[[Any], KeyMap]
    source: str


def row(ours: str, theirs: str, op: Op = SAME) -> Row:
    """A row of one tensor."""
    return Row((ours,), (theirs,), op)


def rows(names: Mapping[str, str], parts: Iterable[str] = ("weight", "bias")) -> list[Row]:
    """Rows of whole layers, by our name to theirs: one row per part that both have alike."""
    return [row(f"{a}.{part}", f"{b}.{part}") for a, b in names.items() for part in parts]


def under(ours: str, theirs: str, inner: Iterable[Row]) -> list[Row]:
    """The rows of a part of a model, each key below the name of that part."""
    return [
        replace(r, ours=tuple(ours + k for k in r.ours), theirs=tuple(theirs + k for k in r.theirs))
        for r in inner
    ]


def codebook_rows(ours: str, theirs: str, size: int) -> list[Row]:
    """Rows of a :class:`polytok.bottlenecks.VectorQuantizer` without projections.

    Args:
        size: number of codes; how often each is used, a checkpoint does not say. One step counts
            as done, so that training on does not start the codebook anew.
    """
    return [
        row(f"{ours}embedding.weight", f"{theirs}embedding.weight"),
        Row((f"{ours}usage",), (), fresh(lambda: torch.full((size,), 1.0 / size))),
        Row((f"{ours}steps",), (), fresh(lambda: torch.ones((), dtype=torch.int64))),
    ]


def to_ours(key_map: KeyMap, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors from those of a checkpoint that :func:`check` has passed."""
    return {
        key: tensor
        for r in key_map.rows
        for key, tensor in zip(r.ours, r.op.load([theirs[k] for k in r.theirs]), strict=True)
    }


def to_theirs(key_map: KeyMap, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint from ours."""
    return {
        key: tensor
        for r in key_map.rows
        for key, tensor in zip(r.theirs, r.op.save([ours[k] for k in r.ours]), strict=True)
    }


def check(
    key_map: KeyMap, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], what: str
) -> None:
    """Compare a checkpoint with what our tensors, on any device, say it must hold.

    Args:
        what: names the checkpoint and the model in the message.

    Raises:
        WeightsError: tensors do not fit, see :func:`polytok.core.tensors.check_tensors`.
    """
    read = {
        key: tensor
        for key, tensor in theirs.items()
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in key_map.unread)
    }
    check_tensors(to_theirs(key_map, ours), read, what)
