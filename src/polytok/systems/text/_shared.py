"""Bytes as printable characters: how byte-level tokenizers write the tokens of their vocabulary."""

from __future__ import annotations

from polytok.core.errors import SignalError


def _alphabet() -> tuple[str, ...]:
    # Bytes that print stand for themselves; the others, in order, take the characters from 256 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (b for b in range(256) if b not in printable)
    moved = {b: 256 + i for i, b in enumerate(others)}
    return tuple(chr(moved.get(b, b)) for b in range(256))


BYTE_ALPHABET = _alphabet()
"""The 256 characters that stand for the bytes 0..255 (the byte-level BPE of GPT-2)."""

_BYTE_OF = {char: byte for byte, char in enumerate(BYTE_ALPHABET)}


def to_chars(data: bytes) -> str:
    """Write bytes with one printable character each."""
    return "".join(BYTE_ALPHABET[b] for b in data)


def to_bytes(chars: str) -> bytes:
    """Read bytes that :func:`to_chars` wrote.

    Raises:
        SignalError: a character stands for no byte.
    """
    try:
        return bytes(_BYTE_OF[c] for c in chars)
    except KeyError as error:
        raise SignalError(
            f"{error.args[0]!r} is not one of the 256 characters that stand for bytes"
        ) from None
