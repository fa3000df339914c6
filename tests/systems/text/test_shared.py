"""Bytes as characters, against the library that defined them."""

from __future__ import annotations

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from polytok.core.errors import SignalError
from polytok.systems.text._shared import BYTE_ALPHABET, to_bytes, to_chars


def test_every_byte_has_a_character_of_its_own() -> None:
    assert set(BYTE_ALPHABET) == set(ByteLevel.alphabet())
    assert to_bytes("".join(BYTE_ALPHABET)) == bytes(range(256))


@pytest.mark.parametrize("text", ["a b\n", "żółw 日本語 🙂", "\x00\x7f\xad"])
def test_text_is_written_as_the_library_does(text: str) -> None:
    pretokens = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert to_chars(text.encode()) == "".join(piece for piece, _ in pretokens)
    assert to_bytes(to_chars(text.encode())) == text.encode()


def test_other_characters_are_refused() -> None:
    with pytest.raises(SignalError, match="日"):
        to_bytes("a日")
