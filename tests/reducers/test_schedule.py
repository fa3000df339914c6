"""Every grammar of schedules, their counts, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytok.core.errors import ConfigError, PolytokError
from polytok.reducers import Rule, Schedule
from polytok.reducers.methods import method, schedule_of


def test_published_counts_of_evit() -> None:
    schedule = Schedule.ratios({3: 0.7, 6: 0.7, 9: 0.7})
    kept = schedule.resolve(196, 12, extra=1)
    assert kept == (196,) * 3 + (138, 139, 139, 98, 99, 99, 70, 71, 71)


def test_published_counts_of_mctf() -> None:
    reducer = method("mctf")[1]
    kept = reducer.schedule(12).resolve(196, 12, least=reducer.least)
    assert [n + 1 for n in kept] == [197, *range(181, 20, -16)]


@given(st.integers(1, 400), st.floats(0.01, 1), st.integers(0, 1))
def test_ratios_round_up_and_extra_tokens_count_next(n: int, ratio: float, extra: int) -> None:
    kept = Schedule.ratios([ratio, ratio]).resolve(n, 2, extra=extra)
    first = min(math.ceil(round(ratio * n, 9)), n)
    after = first if first == n else first + extra
    assert kept == (first, min(math.ceil(round(ratio * after, 9)), after))


@pytest.mark.parametrize(
    ("schedule", "kept"),
    [
        (Schedule.ratios(0.5, [1, 2]), (10, 5, 3)),
        (Schedule.ratios(0.5, [1, 2], rounding="floor"), (10, 5, 2)),
        (Schedule.ratios([1.0, 0.7, 0.7]), (10, 7, 5)),
        (Schedule.removals(2, range(3)), (8, 6, 4)),
        (Schedule.removals({1: 3}), (10, 7, 7)),
        (Schedule.removals([0, 1, 2]), (10, 9, 7)),
        (Schedule.removals((2, -1.0), range(3)), (6, 4, 4)),
        (Schedule.removals((2, 1.0), range(3)), (10, 8, 4)),
        (Schedule.removals(0.25, [0, 2]), (8, 8, 6)),
        (Schedule.counts({0: 9, 2: 3}), (9, 9, 3)),
        (Schedule.counts([11, 6, 4], prefix=1), (10, 5, 3)),
        (Schedule(), (10, 10, 10)),
    ],
)
def test_every_grammar(schedule: Schedule, kept: tuple[int, ...], tmp_path: Path) -> None:
    assert schedule.resolve(10, 3) == kept
    schedule.save(tmp_path / "schedule.json")
    assert Schedule.load(tmp_path / "schedule.json") == schedule
    assert str(schedule)


def test_removals_stop_at_the_least_and_ratios_are_refused() -> None:
    half = method("tome")[1].least
    assert Schedule.removals(9, [0]).resolve(10, 1, least=half) == (5,)
    with pytest.raises(ConfigError, match="keeps at least 5"):
        Schedule.ratios([0.3]).resolve(10, 1, least=half)


def test_softening_reaches_both_ends_in_few_levels() -> None:
    schedule = Schedule.ratios({1: 0.5})
    assert schedule.softened(0) == schedule
    assert schedule.softened(1).resolve(10, 2) == (10, 10)
    levels = {schedule.softened(i / 999, steps=10).rules[0].value for i in range(1000)}
    assert len(levels) == 11 and min(levels) == 0.5
    assert Schedule.removals({1: 8}).softened(0.5).rules[0].value == 4
    with pytest.raises(ConfigError, match="absolute counts"):
        Schedule.counts({1: 3}).softened(0.5)
    with pytest.raises(ConfigError, match=r"share=2 is not within \[0, 1\]"):
        schedule.softened(2)


@pytest.mark.parametrize("bad", [0.0, -0.5, 1.01, float("nan"), "0.5", True, None])
def test_keep_outside_its_range_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError):
        Schedule.ratios({1: bad})


def test_other_bad_schedules_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers 0\.\.2"):
        Schedule.ratios({3: 0.5}).resolve(10, 3)
    with pytest.raises(ConfigError, match="blocks count from 0"):
        Schedule.ratios({-1: 0.5})
    with pytest.raises(ConfigError, match="'two' is not an integer"):
        Schedule.ratios({"two": 0.5})
    with pytest.raises(ConfigError, match="must rise"):
        Schedule(rules=(Rule(layer=1, unit="ratio", value=1), Rule(layer=1, unit="ratio", value=1)))
    with pytest.raises(ConfigError, match="slope"):
        Schedule.removals((2, 3.0), range(3))
    with pytest.raises(ConfigError, match="integer >= 1"):
        Schedule.counts({0: 0})
    with pytest.raises(ConfigError, match="count nan of layer 1 is not an integer"):
        Rule(layer=1, unit="count", value=math.nan)
    with pytest.raises(ConfigError, match=r"would remove 1 of the patches"):
        Schedule.removals((0.5, 1.0), range(3))
    assert Schedule.removals((0.5, 0.5), range(2)).resolve(100, 2) == (75, 19)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    for text in ("", "[]", '{"rules": [{"layer": 0}]}', '{"rule": []}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(PolytokError, match=r"bad\.json"):
            Schedule.load(tmp_path / "bad.json")
    with pytest.raises(PolytokError, match=r"missing\.json"):
        Schedule.load(tmp_path / "missing.json")


def test_one_number_is_for_the_methods_own_layers() -> None:
    evit, tome = method("evit")[1], method("tome")[1]
    assert schedule_of(evit, 12, keep=0.5) == Schedule.ratios({3: 0.5, 6: 0.5, 9: 0.5})
    assert schedule_of(tome, 12, r=4) == Schedule.removals([4] * 12)
    assert schedule_of(evit, 9).rules[0].layer == 2
    with pytest.raises(ConfigError, match="give one of keep, r"):
        schedule_of(evit, 12, keep=0.5, r=3)
