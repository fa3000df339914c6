"""The lazy linear program: mechanism checks against the whole program and exact mixtures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog

from polytok.core.errors import ConfigError, PolytokError
from polytok.systems.text.data_mixture_inference import (
    PairTranscript,
    SolveConfig,
    Target,
    count_pairs,
    infer_mixture,
    solve,
)
from polytok.systems.text.data_mixture_inference.ledger import Ledger
from polytok.systems.text.data_mixture_inference.solver import MixtureProgram
from systems.text.data_mixture_inference.corpora import WORDS, corpus, plain_counts, trained

EXACT = SolveConfig(relative_gap=0.0)
PARTS = {"a": 1, "b": 3, "c": 2}
SAMPLES = {n: corpus(n, words=900, seed=1) for n in PARTS}


@pytest.fixture(scope="module")
def target() -> Target:
    """Trained on other draws of the categories, so that nothing fits exactly."""
    return trained([corpus(n, words=700 * times) for n, times in PARTS.items()], 50)


@pytest.fixture(scope="module")
def transcripts(target: Target) -> list[PairTranscript]:
    return [count_pairs(text, target, name=name) for name, text in SAMPLES.items()]


def whole_program(target: Target, samples: Sequence[str]) -> tuple[np.ndarray, float]:
    """Shares and objective of the program with a row for every merge and every pair."""
    states = [plain_counts(Counter(s.split()), target.merges)[:-1] for s in samples]
    sizes = [sum(s[0].values()) for s in states]
    steps = len(target.merges)
    pairs = sorted(set().union(*(c for s in states for c in s)))
    place = {p: i for i, p in enumerate(pairs)}
    rows, width = [], len(samples) + steps + len(pairs)
    for t, merge in enumerate(target.merges):
        if not any(s[t][merge] for s in states):
            continue
        for pair in set().union(*(s[t] for s in states)) - {merge}:
            row = np.zeros(width)
            row[: len(samples)] = [
                (s[t][merge] - s[t][pair]) / n for s, n in zip(states, sizes, strict=True)
            ]
            row[len(samples) + t] = row[len(samples) + steps + place[pair]] = 1
            rows.append(row)
    costs = np.append(np.zeros(len(samples)), np.ones(steps + len(pairs)))
    total = np.append(np.ones(len(samples)), np.zeros(steps + len(pairs)))[None]
    found = linprog(costs, -np.array(rows), np.zeros(len(rows)), total, [1.0], method="highs")
    return found.x[: len(samples)], float(found.fun)


def test_lazy_rows_give_the_whole_program(
    target: Target, transcripts: list[PairTranscript]
) -> None:
    shares, objective = whole_program(target, list(SAMPLES.values()))
    for config in (
        EXACT,
        replace(EXACT, rivals_per_merge=1, rows_per_round=3),
        replace(EXACT, solver="scipy"),
    ):
        found = solve(transcripts, target, config=config)
        assert found.fit.misfit == pytest.approx(objective, rel=1e-6)
        assert found.fit.gap < 1e-7
        assert list(found.pair_share.values()) == pytest.approx(shares.tolist(), abs=1e-5)
        slacks = sum(found.merge_slack) + sum(found.pair_slack.values())
        assert slacks == pytest.approx(objective, rel=1e-6)
    assert objective > 1e-3


def test_a_gap_bounds_what_is_left_out(target: Target, transcripts: list[PairTranscript]) -> None:
    _, objective = whole_program(target, list(SAMPLES.values()))
    found = solve(transcripts, target, config=replace(EXACT, relative_gap=0.5, rows_per_round=5))
    assert found.fit.gap > 0
    assert found.fit.misfit - 1e-9 <= objective <= found.fit.misfit + found.fit.gap + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_the_training_text_itself_fits_exactly(seed: int) -> None:
    texts = {n: corpus(n, words=400 * k, seed=seed) for n, k in PARTS.items()}
    target = trained(list(texts.values()), 80)
    found = [count_pairs(t, target, name=n) for n, t in texts.items()]
    sizes = np.array([t.num_pairs.sum() for t in found])
    ledger = Ledger(found, target)
    truth = sizes / sizes.sum()
    # No pair beats any merge under the true shares ...
    thresholds = ledger.own @ ledger.mix() @ truth
    none = np.zeros(len(ledger.pairs))
    assert not len(ledger.rivals(ledger.mix() @ truth, thresholds, none, 1e-12).pairs)
    # ... so that the program has nothing to pay for.
    program = MixtureProgram(ledger, EXACT)
    best = program.solve(ledger.num_merges)
    assert best.objective + best.gap < 1e-8
    assert np.abs(best.shares - truth).max() < 0.1
    assert (program.rows.leads @ ledger.mix() @ truth > -1e-12).all()


def test_one_category_has_everything(target: Target, transcripts: list[PairTranscript]) -> None:
    found = solve(transcripts[:1], target)
    assert found.pair_share == {"a": pytest.approx(1)}
    assert found.byte_share == {"a": pytest.approx(1)}


def test_a_category_given_twice_shares_its_share(
    target: Target, transcripts: list[PairTranscript]
) -> None:
    once = solve(transcripts, target, config=EXACT)
    twice = solve([*transcripts, replace(transcripts[1], name="b2")], target, config=EXACT)
    both = twice.pair_share["b"] + twice.pair_share["b2"]
    assert both == pytest.approx(once.pair_share["b"], abs=1e-5)
    assert twice.fit.misfit == pytest.approx(once.fit.misfit, rel=1e-5)
    assert any("'b' and 'b2' read alike" in c for c in twice.caveats)


def test_the_order_of_categories_does_not_matter(
    target: Target, transcripts: list[PairTranscript]
) -> None:
    once, again = (solve(t, target, config=EXACT) for t in (transcripts, transcripts[::-1]))
    assert again.pair_share == {n: pytest.approx(s, abs=1e-6) for n, s in once.pair_share.items()}


def test_shares_of_bytes_weigh_pairs_by_their_bytes(
    target: Target, transcripts: list[PairTranscript]
) -> None:
    found = solve(transcripts, target)
    weighed = {
        t.name: found.pair_share[t.name] * t.bytes.sum() / t.num_pairs.sum() for t in transcripts
    }
    total = sum(weighed.values())
    assert found.byte_share == {n: pytest.approx(w / total) for n, w in weighed.items()}


def test_shares_by_number_of_merges(target: Target, transcripts: list[PairTranscript]) -> None:
    found = solve(transcripts, target, config=EXACT)
    assert list(found.by_merges) == [6, 12, 25, 50]
    assert found.by_merges[50] == found.byte_share
    first = solve(transcripts, target, num_merges=12, config=EXACT)
    assert first.num_merges == 12
    assert first.byte_share == {
        n: pytest.approx(s, abs=1e-5) for n, s in found.by_merges[12].items()
    }


def test_merges_in_no_category_are_skipped(target: Target) -> None:
    merges = (*target.merges[:20], ("y", "z"), *target.merges[20:30], ("zz", "y"))
    strange = replace(target, merges=merges)
    found = solve([count_pairs(t, strange, name=n) for n, t in SAMPLES.items()], strange)
    plain = replace(target, merges=target.merges[:30])
    wanted = solve([count_pairs(t, plain, name=n) for n, t in SAMPLES.items()], plain)
    assert found.missing_merges == ("y z", "zz y")
    assert any("2 of 32 merges occur in no sample" in c for c in found.caveats)
    assert found.fit.misfit == pytest.approx(wanted.fit.misfit, rel=0.05)


def test_the_first_pair_is_not_missing(target: Target) -> None:
    """The pair of lowest id counts like any other."""
    merges = (("a", "a"), *target.merges[:10])
    strange = replace(target, merges=merges)
    found = solve([count_pairs("aa aab " * 40 + SAMPLES["a"], strange, name="a")], strange)
    assert "a a" not in found.missing_merges


def test_nothing_in_common_says_so(target: Target) -> None:
    found = infer_mixture(target.merges, {"x": "xyz zyx\n" * 9, "y": "uvw\n" * 9}, rules="gpt2")
    assert len(found.missing_merges) == 50
    assert any("say nothing" in c for c in found.caveats)
    assert sum(found.byte_share.values()) == pytest.approx(1)


def test_intervals_follow_the_parts(target: Target) -> None:
    def intervals(words: int) -> float:
        parts = {n: [[corpus(n, words=words, seed=s)] for s in range(6)] for n in PARTS}
        found = solve(
            [count_pairs(p, target, name=n) for n, p in parts.items()], target, resamples=8
        )
        assert found.byte_interval is not None
        for name, (low, high) in found.byte_interval.items():
            assert 0 <= low <= found.byte_share[name] <= high <= 1
        return sum(high - low for low, high in found.byte_interval.values())

    small, large = intervals(60), intervals(3000)
    assert large < small / 2


def test_resampling_is_the_same_for_a_seed(target: Target) -> None:
    parts = [[corpus("a", words=200, seed=s)] for s in range(4)]
    found = [count_pairs(p, target, name=n) for n, p in (("a", parts), ("b", parts[::-1]))]
    one, same = (solve(found, target, resamples=3, seed=5) for _ in range(2))
    assert one.byte_interval == same.byte_interval


def test_what_cannot_be_solved_is_refused(
    target: Target, transcripts: list[PairTranscript]
) -> None:
    other = replace(target, rules=replace(WORDS, normalizer={"type": "NFC"}))
    empty = count_pairs("a\n", target, name="empty")
    for bad, words in (
        ([], "no category"),
        ([transcripts[0], transcripts[0]], "'a' is given twice"),
        ([count_pairs("x", other, name="z")], "another tokenizer"),
        ([transcripts[0], empty], "'empty' has no two characters"),
    ):
        with pytest.raises(PolytokError, match=words):
            solve(bad, target)
    with pytest.raises(PolytokError, match="counted for 50"):
        long = replace(transcripts[0], target=trained([corpus("a")], 60).fingerprint)
        solve([long], trained([corpus("a")], 60))
    for options in ({"num_merges": 0}, {"resamples": 1}, {"resamples": -1}):
        with pytest.raises(PolytokError, match=next(iter(options))):
            solve(transcripts, target, **options)


@pytest.mark.parametrize(
    "values",
    [{"rows_per_round": 0}, {"relative_gap": -1.0}, {"scale": 0.0}, {"max_rounds": 0}],
)
def test_settings_are_checked(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        SolveConfig(**values)  # type: ignore[arg-type]


def test_a_solver_that_stops_early_says_so(
    target: Target, transcripts: list[PairTranscript]
) -> None:
    found = solve(transcripts, target, config=replace(EXACT, max_rounds=1, rows_per_round=2))
    assert any("stopped early" in c for c in found.caveats)
