"""Counts of all categories at any step, and the pairs that beat a merge, against slow ones."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from polytok.systems.text.data_mixture_inference.counting import count_pairs
from polytok.systems.text.data_mixture_inference.ledger import Ledger
from systems.text.data_mixture_inference.corpora import corpus, plain_counts, trained

TARGET = trained([corpus("a"), corpus("b")], 40)
TEXTS = [corpus("a", words=300, seed=3), corpus("b", words=500, seed=3)]


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    found = [count_pairs([[t[:900]], [t[900:]]], TARGET, name=t[:2]) for t in TEXTS]
    return Ledger(found, TARGET)


@pytest.fixture(scope="module")
def states() -> list[list[Counter[tuple[str, str]]]]:
    parts = [part for t in TEXTS for part in (t[:900], t[900:])]
    return [plain_counts(Counter(p.split()), TARGET.merges)[:-1] for p in parts]


def test_counts_at_any_step(ledger: Ledger, states: list[list[Counter[tuple[str, str]]]]) -> None:
    table, rng = TARGET.table(), np.random.default_rng(0)
    places, steps = rng.integers(len(ledger.pairs), size=300), rng.integers(40, size=300)
    found = ledger.counts(ledger.pairs[places], steps)
    pairs = [table.pair(int(p)) for p in ledger.pairs[places]]
    wanted = [[s[t][p] for s in states] for p, t in zip(pairs, steps, strict=True)]
    assert found.tolist() == wanted
    own = [[s[t][m] for s in states] for t, m in enumerate(TARGET.merges)]
    assert ledger.own.tolist() == own
    assert ledger.counts(np.array([2**40]), np.array([3])).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_every_pair_that_beats_a_merge_is_found(
    seed: int, ledger: Ledger, states: list[list[Counter[tuple[str, str]]]]
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.random(4) / 1000
    thresholds = rng.random(40) * 0.02 + 0.001
    thresholds[rng.integers(40, size=5)] = np.inf
    allowance = rng.random(len(ledger.pairs)) * 0.002
    found = ledger.rivals(weights, thresholds, allowance, 1e-9)
    table = TARGET.table()
    excess: dict[tuple[str, str], float] = {}
    for place, key in enumerate(ledger.pairs.tolist()):
        pair = table.pair(key)
        for t in range(40):
            value = sum(w * s[t][pair] for w, s in zip(weights, states, strict=True))
            over = value - allowance[place] - thresholds[t]
            if over > 1e-9:
                excess[pair] = max(excess.get(pair, 0.0), over)
    best: dict[tuple[str, str], float] = {}
    for place, step, over in zip(found.pairs, found.steps, found.excess, strict=True):
        pair = table.pair(int(ledger.pairs[place]))
        value = sum(w * s[step][pair] for w, s in zip(weights, states, strict=True))
        assert over == pytest.approx(value - allowance[place] - thresholds[step])
        best[pair] = max(best.get(pair, 0.0), float(over))
    assert best == {p: pytest.approx(e) for p, e in excess.items()}
    assert best
