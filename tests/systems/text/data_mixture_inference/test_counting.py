"""Transcripts of pair counts: against a recount, and what they keep on disk."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polytok.core.errors import PolytokError, SignalError
from polytok.systems.text._tokenizer_file import TokenizerFile
from polytok.systems.text.data_mixture_inference.counting import (
    PairTranscript,
    Target,
    count_pairs,
)
from polytok.systems.text.data_mixture_inference.inference import target_of
from systems.text.data_mixture_inference.corpora import (
    WORDS,
    corpus,
    plain_counts,
    trained,
)

TARGET = trained([corpus("a"), corpus("b")], 60)


@pytest.fixture(scope="module")
def transcript() -> PairTranscript:
    return count_pairs([[corpus("a", words=400)], [corpus("c", words=300)]], TARGET, name="x")


def states(found: PairTranscript, part: int) -> list[Counter[tuple[str, str]]]:
    """Counts before each merge, added up from the changes."""
    table, sums = TARGET.table(), Counter[tuple[str, str]]()
    out = []
    for step in range(found.num_merges):
        here = (found.steps == step) & (found.parts == part)
        for key, change in zip(found.pairs[here].tolist(), found.changes[here], strict=True):
            sums[table.pair(key)] += int(change)
        out.append(+sums)
    return out


def test_counts_are_those_of_a_recount(transcript: PairTranscript) -> None:
    for part, text in enumerate([corpus("a", words=400), corpus("c", words=300)]):
        wanted = plain_counts(Counter(text.split()), TARGET.merges)[:-1]
        assert states(transcript, part) == wanted


def test_the_number_of_pairs_never_grows(transcript: PairTranscript) -> None:
    by_step = np.zeros(transcript.num_merges)
    np.add.at(by_step, transcript.steps, transcript.changes)
    assert by_step[0] == transcript.num_pairs.sum()
    assert (by_step[1:] <= 0).all()
    assert by_step.sum() >= 0


def test_only_what_changes_is_kept(transcript: PairTranscript) -> None:
    assert (transcript.changes != 0).all()
    keys = np.stack([transcript.pairs, transcript.steps, transcript.parts])
    assert np.unique(keys, axis=1).shape == keys.shape
    assert (np.lexsort(keys[::-1]) == np.arange(keys.shape[1])).all()


def test_sizes_are_those_of_the_text(transcript: PairTranscript) -> None:
    texts = [corpus("a", words=400), corpus("c", words=300)]
    assert transcript.bytes.tolist() == [len(t) for t in texts]
    assert transcript.words.tolist() == [len(t.split()) for t in texts]
    letters = [sum(len(w) for w in t.split()) for t in texts]
    assert (transcript.num_pairs == np.subtract(letters, transcript.words)).all()
    assert (transcript.tokens < letters).all()


def test_parts_add_up_to_the_whole() -> None:
    texts = [corpus("a", words=300), corpus("b", words=200)]
    whole, parts = count_pairs(texts, TARGET), count_pairs([[t] for t in texts], TARGET)
    merged = states(whole, 0)
    assert merged == [a + b for a, b in zip(states(parts, 0), states(parts, 1), strict=True)]


def test_documents_do_not_touch() -> None:
    apart, joined = (count_pairs(d, TARGET).num_pairs.tolist() for d in (["ab", "cd"], ["abcd"]))
    assert (apart, joined) == ([2], [3])


def test_files_hold_everything(transcript: PairTranscript, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    transcript.save(path)
    found = PairTranscript.load(path)
    assert vars(found).keys() == vars(transcript).keys()
    for name, value in vars(transcript).items():
        assert np.array_equal(getattr(found, name), value), name
        assert type(getattr(found, name)) is type(value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_damaged_files_are_refused(transcript: PairTranscript, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    transcript.save(path)
    whole = path.read_bytes()
    for data in (b"", b"no", whole[: len(whole) // 2], whole[:30] + b"\xff" * 40 + whole[70:]):
        path.write_bytes(data)
        with pytest.raises(SignalError, match=r"x\.npz"):
            PairTranscript.load(path)
    np.savez(path, head=np.array(["object"], object))
    with pytest.raises(SignalError, match=r"x\.npz"):
        PairTranscript.load(path)
    with pytest.raises(SignalError, match="no such file"):
        PairTranscript.load(tmp_path / "y.npz")


@pytest.mark.parametrize(
    "change",
    [
        {"steps": -1},
        {"steps": 60},
        {"parts": 2},
        {"pairs": -5},
        {"changes": "short"},
    ],
)
def test_arrays_must_fit_each_other(
    change: dict[str, object], transcript: PairTranscript, tmp_path: Path
) -> None:
    for name, value in change.items():
        array = getattr(transcript, name).copy()
        bad = array[1:] if value == "short" else np.where(np.arange(len(array)) == 3, value, array)
        replace(transcript, **{name: bad.astype(array.dtype)}).save(tmp_path / "x.npz")
    with pytest.raises(SignalError, match="damaged"):
        PairTranscript.load(tmp_path / "x.npz")


def test_targets_are_bpe_with_merges() -> None:
    for kind in ("Unigram", "WordPiece"):
        with pytest.raises(SignalError, match=kind):
            Target.of(TokenizerFile(model=kind, vocab={"a": 0}))
    with pytest.raises(SignalError, match="no merges"):
        Target.of(TokenizerFile(model="BPE", vocab={}))
    with pytest.raises(PolytokError, match="num_merges=0"):
        Target.of(TokenizerFile(model="BPE", vocab={}, merges=(("a", "b"),)), num_merges=0)


def test_runs_of_blanks_can_be_left_out() -> None:
    merges = [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("t", "h")]
    assert target_of(merges, drop_runs=True).merges == (("t", "h"),)
    assert target_of(merges).merges == tuple(merges)


def test_targets_have_a_fingerprint_of_what_counts_depend_on() -> None:
    again = Target.from_dict(TARGET.as_dict())
    assert again == TARGET
    assert again.fingerprint == TARGET.fingerprint
    others = [
        replace(TARGET, merges=TARGET.merges[:-1]),
        replace(TARGET, rules=replace(WORDS, pre_tokenizer=None)),
        replace(TARGET, alphabet=frozenset("ab")),
        replace(TARGET, suffix="</w>"),
    ]
    assert len({t.fingerprint for t in [TARGET, *others]}) == 5
    with pytest.raises(SignalError, match="damaged"):
        Target.from_dict({"merges": [["a"]]})


@pytest.mark.parametrize("text", ["", " ", "x", "\n\n", "a\x00b", "🙂", "one line"])
def test_any_text_is_counted(text: str) -> None:
    found = count_pairs(text, TARGET)
    assert found.bytes.tolist() == [len(text.encode())]
    assert found.num_pairs.sum() == sum(len(w) - 1 for w in text.split())
