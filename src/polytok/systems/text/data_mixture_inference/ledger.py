"""Counts of all categories side by side: which pair would have beaten which merge, and when.

Legend: G groups (a pair from the step where its count changes to the next), S sources (a part of a
category), K categories, T merges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polytok.core.errors import PolytokError
from polytok.systems.text._bpe import PAIR
from polytok.systems.text.data_mixture_inference.counting import PairTranscript, Target

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rivals:
    """Pairs that beat a merge: (n,) each; ``excess`` is by how much, in shares of pairs."""

    pairs: Ints
    steps: Ints
    excess: Floats


class Ledger:
    """Transcripts of every category over one list of merges.

    Args:
        transcripts: one per category, of the same target.
        target: whose merges they count.
        num_merges: only the first so many.

    Raises:
        PolytokError: there is no transcript, two have one name, or they are of another target or
            shorter.
    """

    def __init__(
        self, transcripts: Sequence[PairTranscript], target: Target, num_merges: int | None = None
    ) -> None:
        _check(transcripts, target, num_merges)
        self.names = tuple(t.name for t in transcripts)
        self.num_merges = min(num_merges or len(target.merges), len(target.merges))
        widths = [len(t.bytes) for t in transcripts]
        self.category = np.repeat(np.arange(len(widths)), widths)
        self.bytes = np.concatenate([t.bytes for t in transcripts])
        self.num_pairs = np.concatenate([t.num_pairs for t in transcripts])
        totals = np.bincount(self.category, self.num_pairs)
        if not totals.all():
            empty = self.names[int(np.argmin(totals))]
            raise PolytokError(f"category {empty!r} has no two characters side by side to count")
        firsts = np.cumsum([0, *widths])
        kept = [t.steps < self.num_merges for t in transcripts]
        pairs = np.concatenate([t.pairs[k] for t, k in zip(transcripts, kept, strict=True)])
        steps = np.concatenate([t.steps[k] for t, k in zip(transcripts, kept, strict=True)])
        sources = [t.parts[k] + f for t, k, f in zip(transcripts, kept, firsts[:-1], strict=True)]
        changes = [t.changes[k] for t, k in zip(transcripts, kept, strict=True)]
        order = np.lexsort((steps, pairs))
        pairs, steps = pairs[order], steps[order]
        self._sources = np.concatenate(sources)[order].astype(np.int32)
        self._changes = np.concatenate(changes)[order].astype(np.float64)
        is_new_pair = np.diff(pairs, prepend=-1) != 0
        is_new_group = is_new_pair | (np.diff(steps, prepend=-1) != 0)
        self.pairs = pairs[is_new_pair]
        self._pair_starts = np.append(np.flatnonzero(is_new_pair), len(pairs))
        group_starts = np.flatnonzero(is_new_group)
        self._group_ends = np.append(group_starts[1:], len(pairs)) - 1
        self._group_pairs = (np.cumsum(is_new_pair) - 1)[group_starts]
        self._group_steps = steps[group_starts].astype(np.int64)
        # A group lasts until the next one of its pair, or for ever.
        is_last = np.diff(self._group_pairs, append=-1) != 0
        ends = np.append(self._group_steps[1:], 0)
        self._group_stops = np.where(is_last, self.num_merges, ends)
        self._steps = steps
        triples = target.table().triples[: self.num_merges]
        self.merges = np.array([left * PAIR + right for left, right, _ in triples], np.int64)
        self.own = self.counts(self.merges, np.arange(self.num_merges))
        self.is_missing = ~self.own.any(axis=1)

    def mix(self, times: Floats | None = None) -> Floats:
        """What one occurrence in each source is in shares of pairs of each category (S, K).

        Args:
            times: (S,) how often each source counts; None for once.
        """
        times = np.ones(len(self.category)) if times is None else times
        totals = np.bincount(self.category, times * self.num_pairs)
        out = np.zeros((len(self.category), len(self.names)))
        out[np.arange(len(times)), self.category] = times / totals[self.category]
        return out

    def counts(self, pairs: Ints, steps: Ints) -> Floats:
        """Counts (n, S) of pairs when the merges of steps were chosen."""
        out = np.zeros((len(pairs), len(self.category)))
        if not len(self.pairs):
            return out
        rows = np.minimum(np.searchsorted(self.pairs, pairs), len(self.pairs) - 1)
        for i in np.flatnonzero(self.pairs[rows] == pairs):
            first, last = self._pair_starts[rows[i] : rows[i] + 2]
            last = first + np.searchsorted(self._steps[first:last], steps[i], side="right")
            out[i] = np.bincount(
                self._sources[first:last], self._changes[first:last], len(self.category)
            )
        return out

    def rivals(
        self, weights: Floats, thresholds: Floats, allowance: Floats, tolerance: float
    ) -> Rivals:
        """Find every pair that beats a merge, each group of it at the merge it beats most clearly.

        Args:
            weights: (S,) what one occurrence in each source counts in the mixture.
            thresholds: (T,) what a pair must not exceed at each step; infinite for none.
            allowance: (pairs,) by how much each pair may exceed all of them.
            tolerance: excess that is none.
        """
        totals = np.cumsum(weights[self._sources] * self._changes)
        before = np.append(0.0, totals)[self._pair_starts[:-1]]
        values = totals[self._group_ends] - (before + allowance)[self._group_pairs]
        lowest = _range_minima(thresholds)
        level = np.frexp(self._group_stops - self._group_steps)[1] - 1
        # Two ranges of 2^level steps cover those of a group.
        first = lowest[level, self._group_steps]
        last = lowest[level, self._group_stops - (1 << level)]
        steps = np.where(thresholds[first] <= thresholds[last], first, last)
        excess = values - thresholds[steps]
        found = np.flatnonzero(excess > tolerance)
        return Rivals(self._group_pairs[found], steps[found], excess[found])


def _range_minima(values: Floats) -> Ints:
    """Row i holds where the 2^i values from each position on are lowest."""
    rows = [np.arange(len(values))]
    while 2 ** len(rows) <= len(values):
        half, last = 2 ** (len(rows) - 1), rows[-1]
        later = np.append(last[half:], last[len(last) - half :])
        rows.append(np.where(values[last] <= values[later], last, later))
    return np.stack(rows)


def _check(transcripts: Sequence[PairTranscript], target: Target, num_merges: int | None) -> None:
    if not transcripts:
        raise PolytokError("no category is given")
    names = [t.name for t in transcripts]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise PolytokError(f"category {min(twice)!r} is given twice")
    wanted = min(num_merges or len(target.merges), len(target.merges))
    for t in transcripts:
        if t.target != target.fingerprint:
            raise PolytokError(f"the counts of category {t.name!r} are of another tokenizer")
        if t.num_merges < wanted:
            raise PolytokError(
                f"category {t.name!r} is counted for {t.num_merges} merges, not for {wanted}"
            )
