"""Byte-level conversion: texts come back, splits stay, special tokens keep their places."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from polytok.core.errors import SignalError
from polytok.systems.text._shared import BYTE_ALPHABET
from polytok.systems.text.zett import ByteLevel, byte_level, surface_forms
from polytok.systems.text.zett.bytelevel import unigram
from polytok.systems.text.zett.vocabulary import Token, has_run, whitespace_runs
from systems.text.zett_models import END, TEXTS, TOKENIZERS, bpe, fallback_bpe, wordpiece
from systems.text.zett_models import unigram as metaspace_unigram

CONVERTED = {
    (name, whitespace): byte_level(make(), whitespace=whitespace)
    for name, make in TOKENIZERS.items()
    for whitespace in (False, True)
}
SPECIAL = {
    token.text
    for found in CONVERTED.values()
    for token in found.vocabulary.tokens
    if token.kind == "special"
}
every = pytest.mark.parametrize("case", CONVERTED, ids=lambda c: f"{c[0]}{'-whitespace' * c[1]}")


def decoded(tokenizer: ByteLevel, ids: list[int]) -> str:
    return tokenizer.tokenizer.decode(ids, skip_special_tokens=False)


def encoded(tokenizer: ByteLevel, text: str) -> list[int]:
    return tokenizer.tokenizer.encode(text, add_special_tokens=False).ids


@every
@settings(max_examples=60, deadline=None)
@given(text=st.text().filter(lambda t: not any(name in t for name in SPECIAL)))
def test_any_text_decodes_to_itself(case: tuple[str, bool], text: str) -> None:
    tokenizer = CONVERTED[case]
    assert decoded(tokenizer, encoded(tokenizer, text)) == text


@every
@settings(max_examples=30, deadline=None)
@given(text=st.text(alphabet=" \n\tab▁é日_#<0x41>", max_size=30))
def test_whitespace_and_marks_decode_to_themselves(case: tuple[str, bool], text: str) -> None:
    tokenizer = CONVERTED[case]
    assert decoded(tokenizer, encoded(tokenizer, text)) == text


@every
def test_every_byte_is_a_token_and_ids_are_kept(case: tuple[str, bool]) -> None:
    tokenizer, original = CONVERTED[case], TOKENIZERS[case[0]]()
    assert set(BYTE_ALPHABET) <= tokenizer.vocabulary.pieces
    assert tokenizer.vocabulary.num_original == original.get_vocab_size()
    assert len(tokenizer) == tokenizer.tokenizer.get_vocab_size() == len(tokenizer.lengths)
    assert tokenizer.num_extra == len(tokenizer) - original.get_vocab_size()
    for name, index in tokenizer.vocabulary.specials.items():
        assert original.token_to_id(name) == tokenizer.tokenizer.token_to_id(name) == index


@every
def test_tokens_are_the_bytes_of_the_text(case: tuple[str, bool]) -> None:
    tokenizer = CONVERTED[case]
    for text in TEXTS[:3]:
        prefix = 1 if tokenizer.vocabulary.has_prefix else 0
        total = tokenizer.lengths[encoded(tokenizer, text)].sum()
        assert total == len(text.encode()) + prefix


@pytest.mark.parametrize("text", TEXTS[:3])
def test_a_byte_level_tokenizer_stays_what_it_was(text: str) -> None:
    original = bpe()
    found = byte_level(original)
    assert found.num_extra == 0 and found.notes == ()
    assert found.tokenizer.encode(text).ids == original.encode(text).ids
    again = byte_level(found.tokenizer)
    assert again.tokenizer.to_str() == found.tokenizer.to_str()


@pytest.mark.parametrize("name", ["fallback_bpe", "unigram", "wordpiece"])
def test_converting_twice_changes_nothing(name: str) -> None:
    once = CONVERTED[name, False]
    twice = byte_level(once.tokenizer)
    assert twice.num_extra == 0
    for text in TEXTS[:3]:
        assert encoded(twice, text) == encoded(once, text)


@pytest.mark.parametrize("word", ["playing", "héllo", "日本語", "quick", "नमस्ते"])
def test_characters_join_in_bytes_as_they_did_whole(word: str) -> None:
    """One word splits as in the original, where spaces do not matter."""
    original = fallback_bpe()
    wanted = [
        original.id_to_token(i).replace("▁", " ")
        for i in original.encode(f"{word}", add_special_tokens=False).ids
    ]
    found = CONVERTED["fallback_bpe", False]
    ids = encoded(found, word)
    pieces = [
        bytes(BYTE_ALPHABET.index(c) for c in found.vocabulary.tokens[i].text).decode() for i in ids
    ]
    assert pieces == wanted


def test_word_pieces_know_their_spaces() -> None:
    found = CONVERTED["wordpiece", False]
    tokens = found.tokenizer.encode("the quick fox", add_special_tokens=False).tokens
    assert tokens == ["Ġthe", "Ġquick", "Ġfox"]


@pytest.mark.parametrize(("name", "says"), [("unigram", "NFKC"), ("wordpiece", "BertNormalizer")])
def test_a_dropped_normaliser_is_told_and_may_stay(name: str, says: str) -> None:
    assert [says in note for note in CONVERTED[name, False].notes] == [True]
    kept = byte_level(TOKENIZERS[name](), keep_normalizer=True)
    assert kept.notes == ()
    assert decoded(kept, encoded(kept, "ＡＢ" if name == "unigram" else "AB")) in ("AB", "ab")


def test_splitting_anew_is_told() -> None:
    found = byte_level(bpe(), resplit=True)
    assert any("splitting" in note for note in found.notes)
    for text in TEXTS[:3]:
        assert decoded(found, encoded(found, text)) == text


def test_special_tokens_of_a_model_take_their_places() -> None:
    source = byte_level(metaspace_unigram())
    for make in (bpe, fallback_bpe, wordpiece):
        found = byte_level(make(), specials_of=source)
        assert found.vocabulary.specials == source.vocabulary.specials
        ids = found.tokenizer.encode("the fox").ids
        assert (ids[0], ids[-1]) == (0, 2)
        own = {t.text for t in byte_level(make()).vocabulary.tokens if t.kind == "piece"}
        assert own <= found.vocabulary.pieces
    late = byte_level(metaspace_unigram(), specials_of=byte_level(bpe(380)))
    assert late.vocabulary.specials == {END: 0}


def test_a_special_id_beyond_the_end_comes_last() -> None:
    data = json.loads(bpe().to_str())
    vocab = data["model"]["vocab"]
    far = len(vocab) - 1
    other = next(token for token, index in vocab.items() if index == far)
    vocab[END], vocab[other] = far, 0
    data["added_tokens"][0]["id"] = far
    source = byte_level(Tokenizer.from_str(json.dumps(data)))
    assert source.vocabulary.specials == {END: far}
    small = byte_level(bpe(300), specials_of=source)
    assert small.vocabulary.specials == {END: len(small) - 1}


def test_runs_of_whitespace_become_one_token() -> None:
    runs = whitespace_runs()
    assert len(runs) == len(set(runs)) == 135
    for (_, whitespace), found in CONVERTED.items():
        if not whitespace:
            continue
        assert set(runs) <= found.vocabulary.pieces
        assert {t for t in found.vocabulary.pieces if has_run(t)} == set(runs)
        for char in "\n\t":
            for count in range(2, 16):
                text = f"a{char * (count + 1)}b"
                longest = found.lengths[encoded(found, text)].max()
                assert longest >= count, (char, count)


def test_surface_forms_spell_the_bytes() -> None:
    source = CONVERTED["bpe", False]
    for (_, _), target in CONVERTED.items():
        tokens = target.vocabulary.tokens
        rows, cut = surface_forms(tokens, source, length=256, pad=-1)
        assert cut == 0
        for token, row in zip(tokens, rows, strict=True):
            ids = row[row >= 0]
            if token.kind == "piece":
                assert "".join(source.vocabulary.tokens[i].text for i in ids) == token.text
            elif token.text in source.vocabulary.specials:
                assert ids.tolist() == [source.vocabulary.specials[token.text]]
            else:
                assert len(ids) == 0


def test_long_tokens_are_cut_and_counted() -> None:
    source = CONVERTED["bpe", False]
    tokens = [Token("q" * 9), Token("the"), Token(END, "special"), Token("<x>", "special")]
    rows, cut = surface_forms(tokens, source, length=4, pad=999)
    assert cut == 1 and rows.shape == (4, 4) and rows.dtype == np.int64
    assert list(rows[2]) == [0, 999, 999, 999] and list(rows[3]) == [999] * 4
    empty, cut = surface_forms([], source, length=4, pad=0)
    assert empty.shape == (0, 4) and cut == 0


def changed(tokenizer: Tokenizer, change: dict[str, Any]) -> Tokenizer:
    data = json.loads(tokenizer.to_str())
    data["model"] |= change
    return Tokenizer.from_str(json.dumps(data))


def test_tokenizers_that_do_not_convert_are_refused() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(SignalError, match="a WordLevel tokenizer cannot"):
        byte_level(words)
    with pytest.raises(SignalError, match="ends of words"):
        byte_level(changed(bpe(), {"end_of_word_suffix": "</w>"}))


def test_a_frame_of_ordinary_tokens_is_refused() -> None:
    source = Tokenizer.from_str(metaspace_unigram().to_str())
    data = json.loads(source.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] != "</s>"]
    with pytest.raises(SignalError, match="frames texts with '</s>'"):
        byte_level(bpe(), specials_of=byte_level(Tokenizer.from_str(json.dumps(data))))


def test_an_id_that_nothing_reaches_stays_and_is_marked() -> None:
    data = json.loads(fallback_bpe().to_str())
    assert "A" not in data["model"]["vocab"] and "a" in data["model"]["vocab"]
    tokens = CONVERTED["fallback_bpe", False].vocabulary.tokens
    vocab = data["model"]["vocab"]
    assert tokens[vocab["<0x41>"]] == Token("A")
    assert tokens[vocab["<0x61>"]].kind == "dead"
    assert tokens[vocab["a"]] == Token("a")


def test_an_empty_tokenizer_has_the_bytes() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = byte_level(tokenizer)
    assert len(found) == found.num_extra == 256
    assert [found.vocabulary.tokens[i].text for i in encoded(found, "aé")] == ["a", "Ã", "©"]


def test_a_sampled_unigram_frames_texts_as_its_model() -> None:
    source = CONVERTED["unigram", False]
    pieces = [(char, -9.0) for char in BYTE_ALPHABET] + [("Ġthe", -1.0)]
    found = unigram(pieces, source)
    assert found.vocabulary.specials == source.vocabulary.specials
    assert found.tokenizer.encode("the").tokens == ["<s>", "Ġthe", "</s>"]
