"""The part of a SentencePiece model file that names its pieces (a protocol buffer)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from polytok.core.errors import SignalError

NORMAL = 1
"""The type of a piece that training made; others are unknown, control, user-defined or byte."""

_KINDS = {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}

# Numbers of the fields of ModelProto, SentencePiece, TrainerSpec and NormalizerSpec.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE = 3
_NAME = 1


@dataclass(frozen=True)
class SentencePieceModel:
    """What a model file says.

    Args:
        kind: ``BPE``, ``Unigram``, ``Word`` or ``Char``.
        pieces: text, score and type of each.
        normalizer: name of the rule, such as ``nmt_nfkc`` or ``identity``.
    """

    kind: str
    pieces: tuple[tuple[str, float, int], ...]
    normalizer: str


def parse(data: bytes, path: os.PathLike[str]) -> SentencePieceModel:
    """Read a model file.

    Raises:
        SignalError: it is no SentencePiece model.
    """
    pieces: list[tuple[str, float, int]] = []
    kind, normalizer = 1, ""
    try:
        for number, value in _fields(data):
            if number == _PIECES and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == _TRAINER and isinstance(value, bytes):
                kind = int(dict(_fields(value)).get(_MODEL_TYPE, kind))
            elif number == _NORMALIZER and isinstance(value, bytes):
                name = dict(_fields(value)).get(_NAME, b"")
                normalizer = name.decode() if isinstance(name, bytes) else ""
    except (IndexError, ValueError, struct.error):
        pieces = []
    if not pieces or kind not in _KINDS:
        raise SignalError(
            f"{path} is no tokenizer (known: tokenizer.json, merges.txt, tiktoken, SentencePiece)"
        )
    return SentencePieceModel(_KINDS[kind], tuple(pieces), normalizer)


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(_fields(data))
    text, score = fields.get(_TEXT, b""), fields.get(_SCORE, b"\0\0\0\0")
    if not isinstance(text, bytes) or not isinstance(score, bytes):
        raise ValueError
    return text.decode(), float(struct.unpack("<f", score)[0]), int(fields.get(_TYPE, NORMAL))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and raw values of the fields of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire, -1)
        if size < 0 or at + size > len(data):
            raise ValueError
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError
