"""The mixture as a linear program whose rows are found as they are needed.

Shares of pairs ``x`` (K,) explain a list of merges when every merge beats every rival pair at its
step. What does not fit is paid for: ``v`` for a merge that comes out of order, ``u`` for a pair
that the samples hold too often all along.

    minimise   sum v + sum u
    subject to sum x = 1,  x . (own count - rival's count) / D + v + u >= 0  for steps and rivals

Source: Hayase et al. 2024 (arXiv 2407.16607), section 3; here the rows are found for all steps at
once, by range minima, instead of by a walk with a priority queue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from polytok.core.errors import ConfigError
from polytok.systems.text._lp import LinearProgram, Solver, linear_program
from polytok.systems.text.data_mixture_inference.ledger import Ledger, Rivals

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class SolveConfig:
    """How the program is solved.

    Args:
        rivals_per_merge: most new rows of one merge in a round, as in the paper.
        rows_per_round: most new rows of a round (the paper: 100).
        relative_gap: stop when the objective is known to this share of itself.
        resample_gap: the same for resamples, whose spread is far larger.
        tolerance: share of pairs by which a rival may exceed a merge.
        max_rounds: of solving and looking for rivals.
        scale: what shares of pairs are multiplied by, to suit the solver's tolerances.
        solver: highspy where it is installed (``auto``), or one by name.
    """

    rivals_per_merge: int = 10
    rows_per_round: int = 2000
    relative_gap: float = 0.02
    resample_gap: float = 0.05
    tolerance: float = 1e-9
    max_rounds: int = 400
    scale: float = 1e4
    solver: Solver = "auto"

    def __post_init__(self) -> None:
        for name in ("rivals_per_merge", "rows_per_round", "max_rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"SolveConfig.{name}={getattr(self, name)} is below 1")
        for name in ("relative_gap", "resample_gap", "tolerance"):
            if getattr(self, name) < 0:
                raise ConfigError(f"SolveConfig.{name}={getattr(self, name)} is negative")
        if not self.scale > 0:
            raise ConfigError(f"SolveConfig.scale={self.scale} is not positive")


@dataclass(frozen=True)
class Optimum:
    """A solution of the program.

    Args:
        shares: (K,) of pairs, sum 1.
        merge_slack: (T,). pair_slack: (pairs of the ledger,).
        objective: of the rows found, a lower bound. gap: what all other rows could add at most.
        rounds: of solving.
    """

    shares: Floats
    merge_slack: Floats
    pair_slack: Floats
    objective: float
    gap: float
    rounds: int


@dataclass(frozen=True)
class _Rows:
    """Rows in the program, which say how far a merge leads its rival.

    Args:
        pairs: (R,) the rivals, by their place in the ledger. steps: (R,).
        leads: (R, S) own counts less the rival's.
    """

    pairs: Ints
    steps: Ints
    leads: Floats

    def joined(self, other: _Rows) -> _Rows:
        mine, theirs = vars(self), vars(other)
        return _Rows(**{k: np.concatenate([mine[k], theirs[k]]) for k in mine})

    def where(self, is_kept: NDArray[np.bool_]) -> _Rows:
        return _Rows(**{k: v[is_kept] for k, v in vars(self).items()})


class MixtureProgram:
    """The program of a ledger, with the rows found so far; it can be solved again and again.

    Args:
        mix: (S, K) from counts of sources to shares of categories; None for all parts alike.
    """

    def __init__(self, ledger: Ledger, config: SolveConfig, mix: Floats | None = None) -> None:
        self.ledger, self.config = ledger, config
        self.mix = ledger.mix() if mix is None else mix
        none = np.zeros(0, np.int64)
        self.rows = _Rows(none, none, np.zeros((0, len(ledger.category))))
        self._own = ledger.own @ self.mix
        self._step_columns = np.full(ledger.num_merges, -1)
        self._pair_columns = np.full(len(ledger.pairs), -1)
        count = len(ledger.names)
        self._num_columns = count
        self._matters = np.zeros(0, bool)
        self._lp: LinearProgram = linear_program(config.solver)
        self._lp.add_columns(np.zeros(count), upper=1.0)
        self._lp.add_rows([0], np.arange(count), np.ones(count), 1.0, 1.0)
        self._best = Optimum(
            np.full(count, 1 / count),
            np.zeros(ledger.num_merges),
            np.zeros(len(ledger.pairs)),
            objective=0.0,
            gap=np.inf,
            rounds=0,
        )

    def solve(self, num_merges: int, progress: Progress | None = None) -> Optimum:
        """Add rows of the first ``num_merges`` merges and solve until no rival matters any more."""
        rounds = self._best.rounds
        while True:
            rivals = self._rivals(num_merges)
            self._best = replace(self._best, gap=self._gap(rivals, num_merges))
            if progress:
                progress(self._told(num_merges))
            spent = self._best.rounds - rounds
            if self._best.gap <= self._allowed_gap() or spent >= self.config.max_rounds:
                return self._best
            chosen = self._chosen(rivals)
            if not len(chosen):
                return self._best
            self._add(self._rows_of(rivals.pairs[chosen], rivals.steps[chosen]))
            self._resolve()

    def start_from(self, other: MixtureProgram) -> None:
        """Take over the rows that matter in another program of the same ledger."""
        rows = other.rows.where(other._matters)
        if len(rows.pairs):
            self._add(rows)
            self._resolve()

    def _add(self, rows: _Rows) -> None:
        self.rows = self.rows.joined(rows)
        size, count = self.mix.shape[1], len(rows.pairs)
        columns = np.empty((count, size + 2), np.int64)
        columns[:, :size] = np.arange(size)
        columns[:, size] = self._columns(self._step_columns, rows.steps)
        columns[:, size + 1] = self._columns(self._pair_columns, rows.pairs)
        values = np.ones((count, size + 2))
        values[:, :size] = rows.leads @ self.mix * self.config.scale
        is_entry = values != 0
        starts = np.cumsum(is_entry.sum(axis=1)) - is_entry.sum(axis=1)
        self._lp.add_rows(starts, columns[is_entry], values[is_entry], 0.0, np.inf)

    def _columns(self, known: Ints, wanted: Ints) -> Ints:
        """Columns of slacks, new ones where there are none yet."""
        distinct = np.unique(wanted)
        new = distinct[known[distinct] < 0]
        known[new] = self._num_columns + np.arange(len(new))
        self._num_columns += len(new)
        self._lp.add_columns(np.ones(len(new)))
        return known[wanted]

    def _resolve(self) -> None:
        found = self._lp.solve()
        self._matters = found.duals[1:] > 0
        count = self.mix.shape[1]
        shares = np.clip(found.values[:count], 0.0, 1.0)
        slacks = np.maximum(found.values, 0.0) / self.config.scale
        best = self._best
        self._best = Optimum(
            shares / shares.sum(),
            np.where(self._step_columns >= 0, slacks[self._step_columns], 0.0),
            np.where(self._pair_columns >= 0, slacks[self._pair_columns], 0.0),
            objective=max(found.objective, 0.0) / self.config.scale,
            gap=np.inf,
            rounds=best.rounds + 1,
        )

    def _rivals(self, num_merges: int, raised: Floats | None = None) -> Rivals:
        """Pairs that beat a merge in spite of all slacks, and of those ``raised`` for merges."""
        best = self._best
        thresholds = self._own @ best.shares + best.merge_slack
        if raised is not None:
            thresholds += raised
        thresholds[self.ledger.is_missing] = np.inf
        thresholds[num_merges:] = np.inf
        return self.ledger.rivals(
            self.mix @ best.shares, thresholds, best.pair_slack, self.config.tolerance
        )

    def _gap(self, rivals: Rivals, num_merges: int) -> float:
        """What it costs at most to mend every row: more slack for each rival, or for its merge."""
        by_pairs = _sum_of_largest(rivals.pairs, rivals.excess)
        if by_pairs <= self._allowed_gap() or not len(rivals.pairs):
            return by_pairs
        # Where many rivals beat one merge, its own slack mends them all.
        sums = np.bincount(rivals.steps, rivals.excess, self.ledger.num_merges)
        largest = np.zeros(self.ledger.num_merges)
        np.maximum.at(largest, rivals.steps, rivals.excess)
        raised = np.where(sums > 2 * largest, largest, 0.0)
        left = self._rivals(num_merges, raised)
        return min(by_pairs, float(raised.sum()) + _sum_of_largest(left.pairs, left.excess))

    def _allowed_gap(self) -> float:
        return self.config.relative_gap * self._best.objective

    def _chosen(self, rivals: Rivals) -> Ints:
        """Rivals that become rows: the clearest of each merge, then the clearest of all."""
        width = len(self.ledger.pairs)
        known = self.rows.steps * width + self.rows.pairs
        is_new = ~np.isin(rivals.steps * width + rivals.pairs, known)
        order = np.lexsort((-rivals.excess, rivals.steps))
        order = order[is_new[order]]
        steps = rivals.steps[order]
        first = np.searchsorted(steps, steps)
        order = order[np.arange(len(order)) - first < self.config.rivals_per_merge]
        clearest = np.argsort(-rivals.excess[order], kind="stable")
        return order[clearest[: self.config.rows_per_round]]

    def _rows_of(self, pairs: Ints, steps: Ints) -> _Rows:
        ledger = self.ledger
        leads = ledger.own[steps] - ledger.counts(ledger.pairs[pairs], steps)
        return _Rows(pairs, steps, leads)

    def _told(self, num_merges: int) -> str:
        best = self._best
        return (
            f"{num_merges:,} merges, round {best.rounds}: misfit {best.objective:.5f}, "
            f"at most {best.gap:.5f} more"
        )


def _sum_of_largest(places: Ints, values: Floats) -> float:
    """Sum over places of the largest value at each."""
    order = np.lexsort((values, places))
    is_last = np.diff(places[order], append=-1) != 0
    return float(values[order][is_last].sum())


def solve_path(
    ledger: Ledger,
    config: SolveConfig,
    merges: Sequence[int],
    progress: Progress | None = None,
) -> tuple[MixtureProgram, list[Optimum]]:
    """Solve for growing numbers of merges; each goes on from the one before."""
    program = MixtureProgram(ledger, config)
    return program, [program.solve(count, progress) for count in merges]


def resampled_shares(
    program: MixtureProgram, *, draws: int, rng: np.random.Generator, progress: Progress | None
) -> Floats:
    """Shares of pairs (draws, K) when the parts of every category are drawn with replacement."""
    ledger = program.ledger
    config = replace(program.config, relative_gap=program.config.resample_gap)
    shares = []
    for draw in range(draws):
        again = MixtureProgram(ledger, config, ledger.mix(_drawn_parts(ledger, rng)))
        again.start_from(program)
        shares.append(again.solve(ledger.num_merges).shares)
        if progress:
            progress(f"resample {draw + 1} of {draws}")
    return np.stack(shares)


def _drawn_parts(ledger: Ledger, rng: np.random.Generator) -> Floats:
    """How often each source is drawn (S,): as many parts of each category as have any pair."""
    times = np.zeros(len(ledger.category))
    for category in range(len(ledger.names)):
        sources = np.flatnonzero((ledger.category == category) & (ledger.num_pairs > 0))
        times[sources] = rng.multinomial(len(sources), np.full(len(sources), 1 / len(sources)))
    return times
