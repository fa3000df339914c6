"""Files of the authors' programs: both ways, and read as they write them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from polytok.core.errors import SignalError
from polytok.systems.text.data_mixture_inference import count_pairs, solve
from polytok.systems.text.data_mixture_inference.official import (
    is_official,
    read_counts,
    read_solution,
    solution,
    write_counts,
)
from systems.text.data_mixture_inference.corpora import corpus, plain_counts, trained

TARGET = trained([corpus("a"), corpus("b")], 40)
TEXTS = {"a": corpus("a", words=300, seed=2), "b": corpus("b", words=400, seed=2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As their program writes it: the pairs whose counts differ from the step before."""
    lines = [" ".join(m) for m in TARGET.merges]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")
    for name, text in TEXTS.items():
        states = plain_counts(Counter(text.split()), TARGET.merges)[:-1]
        records, before = [], Counter[tuple[str, str]]()
        for now in states:
            changed = {p for p in now | before if now[p] != before[p]}
            records.append({" ".join(p): now[p] for p in changed})
            before = now
        (tmp_path / name).mkdir()
        (tmp_path / name / "all_pair_counts.json").write_text(json.dumps(records))
        (tmp_path / name / "meta.json").write_text(json.dumps({"byte_count": len(text)}))
    return tmp_path


def test_their_counts_are_ours(folder: Path) -> None:
    assert is_official(folder)
    target, found = read_counts(folder)
    assert target.merges == TARGET.merges
    for theirs in found:
        ours = count_pairs(TEXTS[theirs.name], TARGET)
        for name in ("pairs", "steps", "parts", "changes", "bytes"):
            assert np.array_equal(getattr(theirs, name), getattr(ours, name)), name
    ours_solved = solve([count_pairs(t, TARGET, name=n) for n, t in TEXTS.items()], TARGET)
    assert solve(found, target).pair_share == ours_solved.pair_share


def test_our_counts_can_be_theirs(folder: Path, tmp_path: Path) -> None:
    _, found = read_counts(folder)
    parts = [count_pairs([[t[:500]], [t[500:]]], TARGET, name=n) for n, t in TEXTS.items()]
    whole = [count_pairs(t, TARGET, name=n) for n, t in TEXTS.items()]
    out = tmp_path / "out"
    write_counts(out, TARGET, whole, {"a": 3, "b": 1})
    for name in TEXTS:
        ours, theirs = (
            json.loads((root / name / "all_pair_counts.json").read_text()) for root in (out, folder)
        )
        assert ours == theirs
    assert json.loads((out / "meta.json").read_text()) == {"byte_count": {"a": 3, "b": 1}}
    meta = json.loads((out / "a" / "meta.json").read_text())
    assert meta == {"byte_count": len(TEXTS["a"]), "pairs": found[0].num_pairs.sum()}
    # Parts are summed; the text was cut in the midst of a word, so only sizes can be compared.
    write_counts(out, TARGET, parts)
    first = json.loads((out / "b" / "all_pair_counts.json").read_text())[0]
    assert sum(first.values()) == parts[1].num_pairs.sum()


def test_solutions_have_their_fields(folder: Path, tmp_path: Path) -> None:
    target, found = read_counts(folder)
    result = solve(found, target)
    fields = solution(result)
    assert fields.keys() >= {
        "lang_vals",
        "viol_vals",
        "pair_viol_vals",
        "missing_merges",
        "timing",
    }
    assert list(fields["lang_vals"].values()) == sorted(fields["lang_vals"].values())
    assert len(fields["viol_vals"]) == 40
    path = tmp_path / "solution_pairs_40.json"
    path.write_text(json.dumps(fields))
    assert read_solution(path) == result.pair_share


def test_damaged_files_are_refused(folder: Path) -> None:
    counts, meta = folder / "a" / "all_pair_counts.json", folder / "a" / "meta.json"
    whole = counts.read_text()
    for text, words in (
        ("[", "damaged"),
        ("{}", "no list"),
        ("[]", "no merge"),
        ('[{"a b": "x"}]', "damaged counts"),
        ('[{"ab": 1}]', "damaged counts"),
        ('[["a b", 1]]', "damaged counts"),
        ('[{"a qq": 1}]', "'qq'"),
    ):
        counts.write_text(text)
        with pytest.raises(SignalError, match=words):
            read_counts(folder)
    counts.write_text(whole)
    meta.write_text("{}")
    with pytest.raises(SignalError, match="byte_count"):
        read_counts(folder)
    with pytest.raises(SignalError, match="lang_vals"):
        read_solution(meta)
