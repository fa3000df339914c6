"""Byte-pair encoding by arrays, against plain programs and Hugging Face's trainer."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from polytok.systems.text._bpe import MergeTable, Segmentation, train_bpe
from systems.text.data_mixture_inference.corpora import corpus, plain_counts

WORDS = st.dictionaries(st.text("ab", min_size=1, max_size=9), st.integers(1, 5), min_size=1)
MERGES = st.sampled_from(
    [
        [("a", "a"), ("aa", "aa"), ("aa", "a"), ("b", "aa")],
        [("a", "b"), ("ab", "ab"), ("abab", "a"), ("b", "a")],
        # A token that is made in two ways.
        [("a", "b"), ("b", "a"), ("a", "ba"), ("ab", "a"), ("aba", "b")],
        [("x", "y"), ("b", "b"), ("bb", "xy"), ("bb", "bb")],
    ]
)


@settings(max_examples=200, deadline=None)
@given(WORDS, MERGES)
def test_changes_add_up_to_a_recount(words: dict[str, int], merges: list[tuple[str, str]]) -> None:
    table = MergeTable(merges)
    amounts = np.array(list(words.values()))[:, None] * [1, 3]
    text = Segmentation(list(words), amounts, table)
    keys, counts = text.pair_counts()
    state = {table.pair(k): c.tolist() for k, c in zip(keys.tolist(), counts, strict=True)}
    states = plain_counts(words, merges)
    for wanted, triple in zip(states, [*table.triples, None], strict=True):
        assert {p: c for p, c in state.items() if any(c)} == {
            p: [n, 3 * n] for p, n in wanted.items()
        }
        if triple:
            keys, changes = text.merge(*triple)
            assert len(set(keys.tolist())) == len(keys)
            for key, change in zip(keys.tolist(), changes.tolist(), strict=True):
                old = state.get(table.pair(key), [0, 0])
                state[table.pair(key)] = [a + b for a, b in zip(old, change, strict=True)]


def test_tokens_are_counted() -> None:
    table = MergeTable([("a", "b")])
    text = Segmentation(["abab", "b"], np.array([[2], [5]]), table)
    assert text.num_tokens.tolist() == [13]
    text.merge(*table.triples[0])
    assert text.num_tokens.tolist() == [9]


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_training_is_that_of_hugging_face(names: str) -> None:
    text = "".join(corpus(n) for n in names)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    wanted = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in merges]
    assert list(train_bpe(Counter(text.split()), len(wanted))) == wanted
    assert len(wanted) > 100


def test_training_stops_when_no_pair_is_left_or_frequent() -> None:
    assert train_bpe({"abc": 2, "ab": 1}, 10) == (("a", "b"), ("ab", "c"))
    assert train_bpe({"abc": 2, "ab": 1}, 10, min_frequency=3) == (("a", "b"),)
    assert train_bpe({"a": 3}, 10) == train_bpe({}, 10) == ()


def test_marks_of_words_are_symbols_of_their_own() -> None:
    table = MergeTable([("a", "##b"), ("ab", "##c")], prefix="##")
    ids, _ = table.symbols(["ab", "b"])
    assert [table.token(i) for i in ids] == ["a", "##b", "b"]
    assert [table.token(t[2]) for t in table.triples] == ["ab", "abc"]
    table = MergeTable([("a", "b</w>")], suffix="</w>")
    ids, _ = table.symbols(["ab", "b"])
    assert [table.token(i) for i in ids] == ["a", "b</w>", "b</w>"]


def test_characters_outside_the_alphabet_part_words() -> None:
    table = MergeTable([("a", "b")], alphabet="ab")
    text = Segmentation(["abxab", "xa"], np.array([[1], [1]]), table)
    keys, counts = text.pair_counts()
    assert [table.pair(k) for k in keys.tolist()] == [("a", "b")]
    assert counts.tolist() == [[2]]
