"""BPE as Unigram: the scores reproduce the splits of the words they were made of."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from polytok.core.errors import SignalError
from polytok.systems.text.zett import byte_level, unigramify
from systems.text.zett_models import TEXTS, bpe, unigram


def test_frequent_words_are_split_as_before() -> None:
    """Source text under a small BPE: many words of several pieces, which counts alone get wrong."""
    texts = Path(argparse.__file__).read_text().splitlines(keepends=True)
    source = byte_level(bpe(400))
    found = unigramify(source, texts)
    assert found.rounds >= 1
    assert found.prior_agreement < 0.96 < 0.98 < found.agreement
    assert found.tokenizer.vocabulary.model == "Unigram"
    assert found.tokenizer.vocabulary.specials == source.vocabulary.specials
    same = 0
    for text in texts[:400]:
        ids = found.tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
        assert found.tokenizer.tokenizer.decode(ids) == text
        same += ids == source.tokenizer.encode(text, add_special_tokens=False).ids
    assert same >= 340


def test_a_tokenizer_that_is_unigram_already_keeps_its_splits() -> None:
    found = unigramify(byte_level(unigram()), TEXTS)
    assert found.agreement >= 0.98


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(SignalError, match="no word"):
        unigramify(byte_level(bpe()), [""])
