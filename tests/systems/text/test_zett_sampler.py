"""Sampled tokenizers: they cover any text, repeat, and follow the counts of substrings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytok.core.errors import ConfigError, SignalError
from polytok.core.seeding import numpy_rng
from polytok.systems.text._shared import BYTE_ALPHABET, to_chars
from polytok.systems.text.zett import byte_level
from polytok.systems.text.zett.sampler import SamplerConfig, TokenizerSampler
from polytok.systems.text.zett.vocabulary import has_run, whitespace_runs
from systems.text.zett_models import TEXTS, bpe, unigram

SIZES = {"size_mean": 500.0, "size_min": 450, "size_max": 500}


def texts(n: int) -> Sequence[str]:
    return [TEXTS[(n + i) % 3] for i in range(2)]


def sampler(like: Any = bpe, **change: Any) -> TokenizerSampler:
    config = SamplerConfig(**{**SIZES, "queue": 3, **change})
    return TokenizerSampler(texts, byte_level(like()), config)


SAMPLED = sampler().sample(5, numpy_rng(0))


@settings(max_examples=100, deadline=None)
@given(text=st.text().filter(lambda t: "<|endoftext|>" not in t))
def test_a_sampled_tokenizer_covers_any_text(text: str) -> None:
    ids = SAMPLED.tokenizer.encode(text).ids
    assert SAMPLED.tokenizer.decode(ids) == text
    assert SAMPLED.lengths[ids].sum() == len(text.encode())


def test_bytes_and_whitespace_are_always_there() -> None:
    made = sampler(noise_median=1e-2)
    for n in range(4):
        found = made.sample(n, numpy_rng(n)).vocabulary
        assert set(BYTE_ALPHABET) | set(whitespace_runs()) <= found.pieces
        assert len(found.pieces) == len([t for t in found.tokens if t.kind == "piece"])


def test_the_same_number_gives_the_same_tokenizer() -> None:
    first = sampler()
    for n in (9, 3, 4):
        first.sample(n, numpy_rng(n))
    again = sampler().sample(4, numpy_rng(4)).vocabulary.tokens
    assert first.sample(4, numpy_rng(4)).vocabulary.tokens == again
    assert first.sample(4, numpy_rng(5)).vocabulary.tokens != again


def test_without_noise_the_best_substrings_win() -> None:
    """Against a plain count of the substrings from every 4th character of every word."""
    made = sampler(noise_median=0.0, queue=2)
    scores: Counter[bytes] = Counter()
    for n in (7, 6):
        for text in texts(n):
            for word, _ in made._split.pre_tokenize_str(text):
                for start in range(0, len(word), 4):
                    data = word[start:].encode()
                    for length in range(1, min(15, len(data)) + 1):
                        scores[data[:length]] += length
    total, kept = sum(scores.values()), {}
    for data, score in scores.items():
        text = to_chars(data)
        if len(data) > 1 and not has_run(text):
            kept[text] = score
    found = made.sample(7, numpy_rng(0)).vocabulary
    fixed = {*BYTE_ALPHABET, *whitespace_runs()}
    drawn = {t.text: t.score for t in found.tokens if t.kind == "piece" and t.text not in fixed}
    assert len(drawn) == 500 - len(fixed)
    for text, value in drawn.items():
        assert value == pytest.approx(math.log(kept[text] / total))
    assert min(kept[text] for text in drawn) >= max(s for t, s in kept.items() if t not in drawn)


def test_some_tokenizers_are_bpe_of_the_texts() -> None:
    made = sampler(bpe_share=1.0)
    first, again = (made.sample(n, numpy_rng(n)) for n in (8, 9))
    assert first.vocabulary.model == "BPE" and first.vocabulary.merges
    assert first is again
    assert sampler(bpe_share=1.0).sample(9, numpy_rng(0)).vocabulary == again.vocabulary
    assert first.vocabulary.specials == byte_level(bpe()).vocabulary.specials
    assert len(first) <= 501
    for text in TEXTS[:3]:
        ids = first.tokenizer.encode(text).ids
        assert first.tokenizer.decode(ids) == text
    found = sampler(unigram, bpe_share=1.0).sample(3, numpy_rng(0))
    assert found.tokenizer.decode(found.tokenizer.encode("the fox").ids) == "the fox"
    models = {sampler(bpe_share=0.5).sample(3, numpy_rng(n)).vocabulary.model for n in range(12)}
    assert models == {"BPE", "Unigram"}


def test_more_noise_changes_more_tokens() -> None:
    plain = sampler(noise_median=0.0).sample(5, numpy_rng(1)).vocabulary.pieces
    little, much = (
        sampler(noise_median=m, noise_sigma=0.1).sample(5, numpy_rng(1)).vocabulary.pieces
        for m in (1e-5, 1e-2)
    )
    assert len(plain & much) < len(plain & little)


def test_sizes_stay_within_bounds() -> None:
    made = sampler(size_mean=475.0, size_std=40.0)
    sizes = [len(made.sample(5, numpy_rng(n)).vocabulary.pieces) for n in range(20)]
    assert min(sizes) >= 450 and max(sizes) <= 500 and len(set(sizes)) > 3


def test_special_tokens_and_prefix_are_those_of_the_model() -> None:
    found = sampler(unigram).sample(5, numpy_rng(0))
    assert found.vocabulary.specials == byte_level(unigram()).vocabulary.specials
    ids = found.tokenizer.encode("the fox").ids
    assert found.tokenizer.decode(ids) == "the fox"
    assert (ids[0], ids[-1]) == (0, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"size_min": 100},
        {"size_min": 600},
        {"stride": 0},
        {"queue": 0},
        {"max_length": 0},
        {"bpe_share": 2.0},
    ],
)
def test_wrong_values_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        sampler(**change)


def test_texts_without_words_are_refused() -> None:
    made = TokenizerSampler(lambda n: [""], byte_level(bpe()), SamplerConfig(**SIZES))
    with pytest.raises(SignalError, match="no words"):
        made.sample(0, np.random.default_rng(0))
