"""How text is cut: a tokenizer's own rules, or those of its family, against known encodings."""

from __future__ import annotations

import pytest
from tokenizers import pre_tokenizers

from polytok.core.errors import SignalError, UnknownNameError
from polytok.systems.text._tokenizer_file import TokenizerFile
from polytok.systems.text.data_mixture_inference import target_of
from polytok.systems.text.data_mixture_inference.rules import Rules, alphabet_of, rules_of

BYTES = TokenizerFile(model="BPE", vocab={}, merges=(("Ġ", "t"), ("1", "2"), ("12", "34")))


def words(file: TokenizerFile, text: str, name: str | None = None) -> list[str]:
    return rules_of(file, name).splitter()(text)


def test_own_rules_come_first() -> None:
    own = {"type": "Whitespace"}
    file = TokenizerFile("BPE", {}, BYTES.merges, pre_tokenizer=own, has_rules=True)
    assert rules_of(file).name == "its own"
    assert words(file, "a b, c") == ["a", "b", ",", "c"]
    assert words(file, "a b, c", "gpt2") == ["a", "Ġb", ",", "Ġc"]
    bare = TokenizerFile("BPE", {}, BYTES.merges, has_rules=True)
    assert words(bare, "a b") == ["a b"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gpt2", ["It", "'s", "Ġ12345", "!!", "ĊĠ", "ĠHELLOworld"]),
        ("cl100k", ["It", "'s", "Ġ", "123", "45", "!!Ċ", "Ġ", "ĠHELLOworld"]),
        ("o200k", ["It's", "Ġ", "123", "45", "!!Ċ", "Ġ", "ĠHELLOworld"]),
    ],
)
def test_families_of_bytes(name: str, wanted: list[str]) -> None:
    assert words(BYTES, "It's 12345!!\n  HELLOworld", name) == wanted


def test_gpt2_is_the_byte_level_of_the_library() -> None:
    text = "Don't stop: 3.14, naïve\n\n\tcode_x  = 日本"
    own = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert words(BYTES, text, "gpt2") == [w for w, _ in own]


def test_files_without_rules_get_those_their_numbers_show() -> None:
    assert rules_of(BYTES).name == "gpt2"
    short = TokenizerFile("BPE", {}, (("1", "2"), ("12", "3")))
    assert rules_of(short).name == "cl100k"


def test_sentencepiece_cuts_words_numbers_and_lines() -> None:
    normalizer = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            {"type": "NFKC"},
        ],
    }
    merges = (("▁", "t"), ("a", "b"))
    file = TokenizerFile("BPE", {}, merges, normalizer=normalizer, has_rules=True)
    assert rules_of(file).name == "sentencepiece"
    text = "The cat, ﬁne\nno 12\t  x"
    wanted = ["▁The", "▁cat", ",", "▁fine", "▁no", "▁", "1", "2", "▁", "▁x"]
    assert words(file, text) == wanted
    numbers = TokenizerFile("BPE", {}, (*merges, ("1", "2")), has_rules=True)
    assert "▁12" in words(numbers, text)


def test_rules_can_be_given() -> None:
    split = pre_tokenizers.WhitespaceSplit()
    for given in (split, {"type": "WhitespaceSplit"}):
        target = target_of(BYTES, pre_tokenizer=given)
        assert target.rules.name == "given"
        assert target.rules.splitter()("a b, c") == ["a", "b,", "c"]
    nfc = target_of(BYTES, normalizer={"type": "NFC"})
    assert nfc.rules.splitter()("e\u0301") == ["Ã©"]


def test_bad_rules_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'gpt2'"):
        rules_of(BYTES, "gtp2")
    with pytest.raises(SignalError, match="'given' are not to be used"):
        Rules("given", None, {"type": "Nonsense"}).splitter()


def test_alphabets_are_what_the_vocabulary_has() -> None:
    assert alphabet_of(BYTES) is None
    file = TokenizerFile("BPE", {"a": 0, "b</w>": 1, "ab</w>": 2}, (("a", "b</w>"),), suffix="</w>")
    assert alphabet_of(file) == {"a", "b"}
