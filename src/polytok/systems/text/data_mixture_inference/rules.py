"""How text becomes words before merges: the tokenizer's own rules, or those of its family."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polytok.core.errors import SignalError, UnknownNameError, one_line
from polytok.systems.text._tokenizer_file import METASPACE, TokenizerFile

Json = dict[str, Any]
Splitter = Callable[[str], list[str]]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_CL100K = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    + _SPACES
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|" + _SPACES
)
# SentencePiece trains on words of one line each, cut at blanks, with punctuation apart.
_PUNCTUATION = r" ?[^\s\p{L}\p{N}\p{M}]+"


def _split(pattern: Json, behavior: str = "Isolated") -> Json:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def _byte_level(*, use_regex: bool) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _sequence(*parts: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(parts)}


_METASPACE: Json = {
    "type": "Metaspace",
    "replacement": METASPACE,
    "prepend_scheme": "first",
    "split": True,
}

PRE_TOKENIZERS: dict[str, Json] = {
    "gpt2": _byte_level(use_regex=True),
    "cl100k": _sequence(_split({"Regex": _CL100K}), _byte_level(use_regex=False)),
    "o200k": _sequence(_split({"Regex": _O200K}), _byte_level(use_regex=False)),
    "sentencepiece": _sequence(
        _split({"Regex": _PUNCTUATION}),
        _METASPACE,
        _split({"String": "\n"}, "Removed"),
        _split({"String": "\t"}, "Removed"),
    ),
}
"""Pre-tokenizers by family, as JSON of the ``tokenizers`` library.

``gpt2``, ``cl100k`` and ``o200k`` are the published patterns of those encodings.
"""

# A line of a SentencePiece corpus is a text of its own, so it begins with a blank.
_LINE_STARTS: Json = {"type": "Replace", "pattern": {"String": "\n"}, "content": "\n "}
_DIGITS: Json = {"type": "Digits", "individual_digits": True}


@dataclass(frozen=True)
class Rules:
    """A normalizer and a pre-tokenizer as JSON, and where they come from."""

    name: str
    normalizer: Json | None
    pre_tokenizer: Json | None

    def splitter(self) -> Splitter:
        """A function from a text to its words.

        Raises:
            SignalError: the ``tokenizers`` library does not take the rules.
        """
        from tokenizers import Tokenizer

        content: Json = {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "model": {"type": "BPE", "vocab": {}, "merges": []},
        }
        try:
            made = Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises bare Exceptions
            raise SignalError(
                f"rules {self.name!r} are not to be used: {one_line(error)}"
            ) from None
        normalize = made.normalizer.normalize_str if made.normalizer else _unchanged
        pre_tokenizer = made.pre_tokenizer
        if pre_tokenizer is None:
            return lambda text: [normalize(text)]
        return lambda text: [w for w, _ in pre_tokenizer.pre_tokenize_str(normalize(text))]


def _unchanged(text: str) -> str:
    return text


def rules_of(file: TokenizerFile, name: str | None = None) -> Rules:
    """The rules under which a tokenizer was trained.

    Its file's own, where it has them. Tokenizers of SentencePiece split words only in training, and
    merges.txt and tiktoken files say nothing: they get the rules of their family.

    Args:
        name: rules of a family, whatever the file says.

    Raises:
        UnknownNameError: no family has that name.
    """
    if name is not None and name not in PRE_TOKENIZERS:
        raise UnknownNameError("rules", name, PRE_TOKENIZERS)
    tokens = [left + right for left, right in file.merges]
    is_metaspace = any(METASPACE in token for token in tokens)
    if name == "sentencepiece" or (name is None and is_metaspace):
        return _sentencepiece(file, tokens)
    if name is not None:
        return Rules(name, file.normalizer, PRE_TOKENIZERS[name])
    if file.has_rules:
        return Rules("its own", file.normalizer, file.pre_tokenizer)
    name = "gpt2" if _longest_number(tokens) != 3 else "cl100k"
    return Rules(name, file.normalizer, PRE_TOKENIZERS[name])


def _sentencepiece(file: TokenizerFile, tokens: list[str]) -> Rules:
    parts = list(PRE_TOKENIZERS["sentencepiece"]["pretokenizers"])
    if _longest_number(tokens) < 2:
        parts.append(_DIGITS)
    kept = [n for n in _flat(file.normalizer) if not _writes_blanks(n)]
    normalizer = {"type": "Sequence", "normalizers": [*kept, _LINE_STARTS]}
    return Rules("sentencepiece", normalizer, _sequence(*parts))


def _flat(normalizer: Json | None) -> list[Json]:
    if normalizer is None:
        return []
    if normalizer.get("type") == "Sequence":
        return [n for part in normalizer.get("normalizers", ()) for n in _flat(part)]
    return [normalizer]


def _writes_blanks(normalizer: Json) -> bool:
    """Whether a normalizer does what Metaspace does here."""
    return METASPACE in (normalizer.get("prepend"), normalizer.get("content"))


def _longest_number(tokens: list[str]) -> int:
    """Digits of the longest token that is a number; 1 when no merge makes one."""
    numbers = (len(t) for t in tokens if t.isascii() and t.isdigit())
    return max(numbers, default=1)


def alphabet_of(file: TokenizerFile) -> frozenset[str] | None:
    """Characters that the tokenizer knows as symbols; None when its file does not say."""
    if not file.vocab:
        return None
    bare = (t.removeprefix(file.prefix).removesuffix(file.suffix) for t in file.vocab)
    return frozenset(t for t in (*bare, *file.vocab) if len(t) == 1)
