"""Both solvers of growing linear programs find the same optimum, also of what is added later."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from polytok.core.errors import PolytokError
from polytok.systems.text._lp import LinearProgram, Solver, linear_program, rows_of

SOLVERS: tuple[Solver, ...] = ("scipy", "highspy")


def program(solver: Solver) -> LinearProgram:
    if solver == "highspy":
        pytest.importorskip("highspy")
    return linear_program(solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_program_grows(solver: Solver) -> None:
    lp = program(solver)
    lp.add_columns([-1.0, -2.0], upper=4.0)
    lp.add_rows([0], [0, 1], [1.0, 1.0], 5.0, 5.0)
    first = lp.solve()
    assert first.values == pytest.approx([1, 4])
    assert first.objective == pytest.approx(-9)
    lp.add_columns([1.0])
    lp.add_rows(*rows_of([([1, 2], [-1, 1]), ([0], [1])]), -3.0, np.inf)
    second = lp.solve()
    assert second.values == pytest.approx([1, 4, 1])
    assert second.objective == pytest.approx(-8)
    assert second.duals[1:] == pytest.approx([1, 0])


@pytest.mark.parametrize("seed", range(3))
def test_solvers_agree(seed: int) -> None:
    found = []
    for solver in SOLVERS:
        lp, rng = program(solver), np.random.default_rng(seed)
        lp.add_columns(rng.random(8) + 0.1)
        for _ in range(3):
            matrix = rng.random((5, 8))
            rows = rows_of([(np.arange(8), row) for row in matrix])
            lp.add_rows(*rows, 1.0, np.inf)
            found.append(lp.solve())
    for one, other in zip(found[:3], found[3:], strict=True):
        assert one.objective == pytest.approx(other.objective)
        assert one.values == pytest.approx(other.values, abs=1e-7)
        assert one.duals == pytest.approx(other.duals, abs=1e-7)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_program_without_optimum_is_refused(solver: Solver) -> None:
    lp = program(solver)
    lp.add_columns([1.0], upper=1.0)
    lp.add_rows([0], [0], [1.0], 2.0, np.inf)
    with pytest.raises(PolytokError, match="no optimum"):
        lp.solve()


def test_solvers_are_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PolytokError, match="gurobi"):
        linear_program("gurobi")  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert linear_program().name == "scipy"
    with pytest.raises(PolytokError, match=r"polytok\[text\]"):
        linear_program("highspy")


def test_nothing_is_printed() -> None:
    code = (
        "from polytok.systems.text._lp import linear_program\n"
        "lp = linear_program()\n"
        "lp.add_columns([1.0], lower=2.0)\n"
        "lp.add_rows([0], [0], [1.0], 0.0, 5.0)\n"
        "print(lp.solve().objective)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("2.0\n", "")
