"""Any tokenizer as a byte-level one, and how it spells the tokens of another."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from polytok.core.errors import SignalError
from polytok.systems.text._shared import BYTE_ALPHABET
from polytok.systems.text.zett.vocabulary import (
    FILL_SCORE,
    Token,
    Vocabulary,
    read,
    with_specials,
    with_whitespace,
    without_spaces,
)

# GPT-2's way of splitting, with combining marks among the letters, which Indic scripts need.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class ByteLevel:
    """A tokenizer over bytes.

    Args:
        tokenizer: what encodes and decodes.
        vocabulary: its tokens; ids from ``num_original`` on were added by the conversion.
        notes: what the conversion lost, one sentence each.
    """

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.vocabulary.tokens)

    @property
    def num_extra(self) -> int:
        """How many tokens the conversion added."""
        return len(self) - self.vocabulary.num_original

    @cached_property
    def lengths(self) -> np.ndarray:
        """Bytes of each token (V,) int64; 0 for those that are not text."""
        tokens = self.vocabulary.tokens
        return np.array([len(t.text) if t.kind == "piece" else 0 for t in tokens], np.int64)

    def spell(self, text: str) -> list[int]:
        """Ids of byte characters by the model alone, without splitting them first."""
        return [token.id for token in self.tokenizer.model.tokenize(text)]


def byte_level(
    tokenizer: Tokenizer,
    *,
    specials_of: ByteLevel | None = None,
    resplit: bool = False,
    keep_normalizer: bool = False,
    whitespace: bool = False,
) -> ByteLevel:
    """Rewrite a BPE, Unigram or WordPiece tokenizer over bytes; any text then decodes to itself.

    A byte-level tokenizer keeps its ids and its way of splitting texts. Of others, tokens and
    merges or scores are rewritten, spaces become real, and texts are split as GPT-2 does.

    Args:
        specials_of: take the special tokens, with names and ids, and the frame around texts of
            this tokenizer, as a model trained with it needs.
        resplit: split as GPT-2 does whatever the tokenizer does itself (the published way).
        keep_normalizer: go on lower-casing, composing and so on; else that is dropped, with a note.
        whitespace: exchange its tokens of whitespace for the fixed set of training.

    Raises:
        SignalError: its model cannot be written over bytes, or its vocabulary is inconsistent.
    """
    vocabulary = read(tokenizer)
    if whitespace:
        vocabulary = with_whitespace(vocabulary)
    if specials_of is not None:
        vocabulary = with_specials(vocabulary, specials_of.vocabulary)
    return build(vocabulary, resplit=resplit, keep_normalizer=keep_normalizer)


def build(
    vocabulary: Vocabulary, *, resplit: bool = False, keep_normalizer: bool = False
) -> ByteLevel:
    """Make the tokenizer of a vocabulary; see :func:`byte_level`."""
    is_own = vocabulary.is_byte_level and not resplit
    notes: list[str] = []
    normalizers = without_spaces(vocabulary.normalizer)
    if normalizers and not (is_own or keep_normalizer):
        lost = ", ".join(part["type"] for part in normalizers)
        notes.append(f"its normaliser ({lost}) is dropped: texts are taken as they are")
        normalizers = []
    if vocabulary.has_prefix:
        normalizers.append({"type": "Prepend", "prepend": " "})
    normalizer = {"type": "Sequence", "normalizers": normalizers} if normalizers else None
    if vocabulary.is_byte_level and resplit:
        notes.append("its own way of splitting texts is replaced by that of GPT-2")
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {**token.added, "id": index}
            for index, token in enumerate(vocabulary.tokens)
            if token.added is not None
        ],
        "normalizer": vocabulary.normalizer if is_own else normalizer,
        "pre_tokenizer": vocabulary.pre_tokenizer if is_own else split_json(),
        "post_processor": vocabulary.post_processor,
        "decoder": (is_own and vocabulary.decoder) or _decoder(vocabulary.has_prefix),
        "model": _model(vocabulary),
    }
    try:
        made = Tokenizer.from_str(json.dumps(data))
    except Exception as error:
        raise SignalError(f"the tokenizer's parts do not fit together: {error}") from error
    return ByteLevel(made, vocabulary, tuple(notes))


def split_json() -> dict[str, Any]:
    """The pre-tokenizer of every converted and sampled tokenizer, as JSON."""
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
        ],
    }


def unigram(pieces: Sequence[tuple[str, float]], like: ByteLevel) -> ByteLevel:
    """A Unigram tokenizer of byte characters with scores, framed by the special tokens of ``like``.

    Pieces must hold the 256 bytes, each piece once.
    """
    source = like.vocabulary
    plain = Vocabulary(
        model="Unigram",
        tokens=tuple(Token(text, "piece", score) for text, score in pieces),
        merges=(),
        num_original=len(pieces),
        has_prefix=source.has_prefix,
        is_byte_level=False,
        normalizer=None,
        pre_tokenizer=None,
        decoder=None,
        post_processor=None,
    )
    return build(with_specials(plain, source))


def surface_forms(
    tokens: Iterable[Token], source: ByteLevel, *, length: int, pad: int
) -> tuple[np.ndarray, int]:
    """How the source tokenizer spells tokens: rows of its ids, and how many rows were cut.

    Args:
        tokens: N tokens of another tokenizer. length: ids kept of each. pad: fills the rest.

    Returns:
        (N, length) int64. A special token that the source has too is spelt by its id there; one
        that it lacks, and an id that nothing reaches, are rows of ``pad``.
    """
    specials = source.vocabulary.specials
    rows, num_cut = [], 0
    for token in tokens:
        ids: list[int] = []
        if token.kind == "piece":
            ids = source.spell(token.text)
        elif token.kind == "special" and token.text in specials:
            ids = [specials[token.text]]
        num_cut += len(ids) > length
        rows.append((ids + [pad] * length)[:length])
    return np.array(rows, np.int64).reshape(-1, length), num_cut


def _model(vocabulary: Vocabulary) -> dict[str, Any]:
    tokens = vocabulary.tokens
    ids = {token.text: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise SignalError("two ids of the vocabulary have one and the same token")
    if vocabulary.model == "Unigram":
        scores = [[t.text, t.score if t.kind == "piece" else FILL_SCORE] for t in tokens]
        return {"type": "Unigram", "unk_id": None, "vocab": scores, "byte_fallback": False}
    if vocabulary.model == "WordPiece":
        return {
            "type": "WordPiece",
            "unk_token": BYTE_ALPHABET[0],
            "continuing_subword_prefix": "",
            "max_input_chars_per_word": 1 << 30,
            "vocab": ids,
        }
    merges = dict.fromkeys(
        m for m in vocabulary.merges if all(part in ids for part in (*m, m[0] + m[1]))
    )
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": vocabulary.ignore_merges,
        "vocab": ids,
        "merges": [list(m) for m in merges],
    }


def _decoder(has_prefix: bool) -> dict[str, Any]:
    plain = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    if not has_prefix:
        return plain
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {"type": "Sequence", "decoders": [plain, {"type": "Fuse"}, strip]}
