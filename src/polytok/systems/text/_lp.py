"""Linear programs that grow: sparse rows and columns over HiGHS, kept warm where highspy is there.

minimise c x  subject to  low <= A x <= high,  lower <= x <= upper
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytok.core.errors import PolytokError

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Solver = Literal["auto", "highspy", "scipy"]


@dataclass(frozen=True)
class LPSolution:
    """An optimum: ``values`` (columns,), ``duals`` (rows,) >= 0 for rows at their low bound."""

    values: Floats
    duals: Floats
    objective: float


class LinearProgram(Protocol):
    """What both solvers offer; rows may name the columns that exist."""

    name: str

    def add_columns(self, costs: ArrayLike, *, lower: float = 0, upper: float = np.inf) -> None:
        """Add one column per cost, without entries in the rows so far."""

    def add_rows(
        self, starts: ArrayLike, columns: ArrayLike, values: ArrayLike, low: float, high: float
    ) -> None:
        """Add rows; row i has the entries from ``starts[i]`` to ``starts[i + 1]``, or the end."""

    def solve(self) -> LPSolution:
        """Find an optimum.

        Raises:
            PolytokError: there is none, or the solver did not find it.
        """


def linear_program(solver: Solver = "auto") -> LinearProgram:
    """An empty program; ``auto`` takes highspy, which goes on from the last basis, if it is there.

    Raises:
        PolytokError: highspy is asked for and not installed, or the name is unknown.
    """
    if solver not in ("auto", "highspy", "scipy"):
        raise PolytokError(f"unknown solver {solver!r} (known: auto, highspy, scipy)")
    has_highspy = importlib.util.find_spec("highspy") is not None
    if solver == "highspy" and not has_highspy:
        raise PolytokError("solver 'highspy' needs the extra: pip install polytok[text]")
    return _Highspy() if has_highspy and solver != "scipy" else _Scipy()


class _Highspy:
    """A model that lives in the solver; each solve starts from the basis of the one before."""

    name = "highspy"

    def __init__(self) -> None:
        import highspy

        self._api = highspy
        with _silent_stdout():
            self._model: Any = highspy.Highs()
        self._model.setOptionValue("output_flag", False)
        self._model.setOptionValue("threads", 1)

    def add_columns(self, costs: ArrayLike, *, lower: float = 0, upper: float = np.inf) -> None:
        costs = np.asarray(costs, np.float64)
        count = len(costs)
        none, empty = np.empty(0, np.int32), np.empty(0)
        low, high = np.full(count, float(lower)), np.full(count, float(upper))
        starts = np.zeros(count, np.int32)
        self._model.addCols(count, costs, low, high, 0, starts, none, empty)

    def add_rows(
        self, starts: ArrayLike, columns: ArrayLike, values: ArrayLike, low: float, high: float
    ) -> None:
        starts, columns = np.asarray(starts, np.int32), np.asarray(columns, np.int32)
        count, values = len(starts), np.asarray(values, np.float64)
        lows, highs = np.full(count, float(low)), np.full(count, float(high))
        self._model.addRows(count, lows, highs, len(columns), starts, columns, values)

    def solve(self) -> LPSolution:
        self._model.run()
        status = self._model.getModelStatus()
        if status != self._api.HighsModelStatus.kOptimal:
            raise PolytokError(f"no optimum: {self._model.modelStatusToString(status)}")
        found = self._model.getSolution()
        return LPSolution(
            np.array(found.col_value),
            np.array(found.row_dual),
            float(self._model.getObjectiveValue()),
        )


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """HiGHS names its version on stdout when first made, which would spoil what a pipe carries."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)


class _Scipy:
    """Rows and columns in lists, handed over whole for each solve."""

    name = "scipy"

    def __init__(self) -> None:
        self._costs: list[Floats] = []
        self._bounds: list[Floats] = []
        # Sizes of rows, then columns and values of all entries, then limits of rows.
        self._rows: list[tuple[Ints, Ints, Floats, Floats]] = []

    def add_columns(self, costs: ArrayLike, *, lower: float = 0, upper: float = np.inf) -> None:
        costs = np.asarray(costs, np.float64)
        self._costs.append(costs)
        self._bounds.append(np.tile([float(lower), float(upper)], (len(costs), 1)))

    def add_rows(
        self, starts: ArrayLike, columns: ArrayLike, values: ArrayLike, low: float, high: float
    ) -> None:
        starts, columns = np.asarray(starts, np.int32), np.asarray(columns, np.int32)
        sizes = np.diff(np.append(starts, len(columns))).astype(np.int32)
        limits = np.tile([float(low), float(high)], (len(starts), 1))
        self._rows.append((sizes, columns, np.asarray(values, np.float64), limits))

    def solve(self) -> LPSolution:
        from scipy import sparse
        from scipy.optimize import linprog

        costs = np.concatenate(self._costs)
        sizes, columns, values, limits = (np.concatenate(p) for p in zip(*self._rows, strict=True))
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        matrix = sparse.csr_array((values, columns, indptr), shape=(len(sizes), len(costs)))
        low, high = limits.T
        is_equal = low == high
        above, below = np.isfinite(low) & ~is_equal, np.isfinite(high) & ~is_equal
        found = linprog(
            costs,
            A_ub=sparse.vstack([-matrix[above], matrix[below]]),
            b_ub=np.concatenate([-low[above], high[below]]),
            A_eq=matrix[is_equal] if is_equal.any() else None,
            b_eq=low[is_equal] if is_equal.any() else None,
            bounds=np.concatenate(self._bounds),
            method="highs",
        )
        if found.status != 0:
            raise PolytokError(f"no optimum: {found.message}")
        duals = np.zeros(len(sizes))
        one_sided = found.ineqlin.marginals
        duals[above] = -one_sided[: above.sum()]
        duals[below] += one_sided[above.sum() :]
        if is_equal.any():
            duals[is_equal] = found.eqlin.marginals
        return LPSolution(found.x, duals, float(found.fun))


def rows_of(parts: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[Ints, Ints, Floats]:
    """Starts, columns and values of rows given as (columns, values) each."""
    columns = [np.asarray(c, np.int32) for c, _ in parts]
    starts = np.cumsum([0, *map(len, columns)], dtype=np.int32)[:-1]
    values = np.concatenate([np.asarray(v, np.float64) for _, v in parts])
    return starts, np.concatenate(columns), values
