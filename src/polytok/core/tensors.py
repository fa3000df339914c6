"""Which tensors of a file do not fit a model: every fault at once, in one line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from polytok.core.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor


def check_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Compare names, shapes, and whether tensors hold floats; their dtypes may differ otherwise.

    Args:
        what: starts the message, such as the name of the file.

    Raises:
        WeightsError: tensors are missing, unknown, of another shape, or are no floats where floats
            are wanted or the other way round; all of them are named.
    """
    both = wanted.keys() & found
    faults = {
        "missing": wanted.keys() - found,
        "unknown": found.keys() - wanted,
        "of another shape": {
            f"{k} {tuple(found[k].shape)} instead of {tuple(wanted[k].shape)}"
            for k in both
            if found[k].shape != wanted[k].shape
        },
        "of another kind": {
            f"{k} {_dtype(found[k])} instead of {_dtype(wanted[k])}"
            for k in both
            if found[k].is_floating_point() != wanted[k].is_floating_point()
        },
    }
    if any(faults.values()):
        texts = [f"{len(v)} {k} ({', '.join(runs(v))})" for k, v in faults.items() if v]
        raise WeightsError(f"{what}: tensors {', '.join(texts)}")


def runs(names: Iterable[str]) -> list[str]:
    """Sort names, and write those that differ in one number as one: ``layer.{0-2,5}.bias``."""
    found = [tuple(name.split(".")) for name in names]
    for place in range(max(map(len, found), default=0)):
        alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
        kept = []
        for parts in found:
            if place < len(parts) and parts[place].isdecimal():
                alike[(*parts[:place], "", *parts[place + 1 :])].append(int(parts[place]))
            else:
                kept.append(parts)
        for parts, numbers in alike.items():
            kept.append((*parts[:place], _ranges(numbers), *parts[place + 1 :]))
        found = kept
    return sorted(".".join(parts) for parts in found)


def _ranges(numbers: list[int]) -> str:
    """Numbers as text: ``7``, ``{0-2}``, ``{0-2,5}``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
