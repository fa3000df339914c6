"""What a tokenizer knows, read from its JSON and written over bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from polytok.core.errors import SignalError
from polytok.systems.text._shared import BYTE_ALPHABET, to_bytes, to_chars

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILL_SCORE = -100_000.0
"""Unigram score of bytes that a vocabulary lacks: used when nothing else covers them."""

WHITESPACE = tuple(to_chars(c.encode()) for c in (" ", "\n", "\t"))
MAX_RUN = 15

_MODELS = ("BPE", "Unigram", "WordPiece")
_ALPHABET = frozenset(BYTE_ALPHABET)


@dataclass(frozen=True)
class Token:
    """One id of a vocabulary.

    Args:
        text: byte characters of a ``piece``; the name of a ``special`` token; a name that no text
            contains for a ``dead`` one, whose id nothing reaches.
        score: log-probability of a piece of a Unigram model.
        added: the token's entry among the added tokens, if it is one.
    """

    text: str
    kind: Literal["piece", "special", "dead"] = "piece"
    score: float = 0.0
    added: Mapping[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens over bytes in the order of their ids, and how the model joins them.

    Args:
        model: ``BPE``, ``Unigram`` or ``WordPiece``.
        merges: pairs of byte characters, for BPE.
        num_original: ids below it are the tokenizer's own; the others were added.
        has_prefix: whether a text starts as if a space stood before it.
        normalizer, pre_tokenizer, decoder, post_processor: the tokenizer's own, as JSON.
        is_byte_level: whether it was one already, so that its own parts still fit.
    """

    model: str
    tokens: tuple[Token, ...]
    merges: tuple[tuple[str, str], ...]
    num_original: int
    has_prefix: bool
    is_byte_level: bool
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any] | None
    decoder: dict[str, Any] | None
    post_processor: dict[str, Any] | None
    ignore_merges: bool = False

    @property
    def specials(self) -> dict[str, int]:
        """Ids of the special tokens by name, in the order of their ids."""
        return {t.text: i for i, t in enumerate(self.tokens) if t.kind == "special"}

    @property
    def pieces(self) -> set[str]:
        """Byte characters of every piece."""
        return {t.text for t in self.tokens if t.kind == "piece"}


def read(tokenizer: Tokenizer) -> Vocabulary:
    """Read a tokenizer, with the 256 bytes that its vocabulary may lack after its own ids.

    Raises:
        SignalError: its model cannot be written over bytes.
    """
    data = json.loads(tokenizer.to_str())
    model = data["model"]
    kind = model.get("type")
    if kind not in _MODELS:
        raise SignalError(
            f"a {kind} tokenizer cannot be written over bytes; {', '.join(_MODELS)} can"
        )
    if kind == "BPE" and (
        model.get("end_of_word_suffix") or model.get("continuing_subword_prefix")
    ):
        raise SignalError(
            "a BPE tokenizer that marks the ends of words cannot be written over bytes"
        )
    is_byte_level = any(part.get("type") == "ByteLevel" for part in _parts(data["pre_tokenizer"]))
    writer = _Writer.of(data, is_byte_level)
    tokens = _tokens(tokenizer, data, writer)
    merges: tuple[tuple[str, str], ...] = ()
    if kind == "BPE":
        pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        merges = tuple((writer.form(a), writer.form(b)) for a, b in pairs)
    own = Vocabulary(
        model=kind,
        tokens=tokens,
        merges=merges,
        num_original=len(tokens),
        has_prefix=writer.has_prefix,
        is_byte_level=is_byte_level,
        normalizer=data["normalizer"],
        pre_tokenizer=data["pre_tokenizer"],
        decoder=data["decoder"],
        post_processor=data["post_processor"],
        ignore_merges=bool(model.get("ignore_merges")),
    )
    return _with_bytes(own if is_byte_level else _with_characters(own))


def with_specials(vocabulary: Vocabulary, source: Vocabulary) -> Vocabulary:
    """Put the special tokens of ``source`` at their ids there, in place of the vocabulary's own.

    One whose id lies beyond the end comes last. All other tokens keep their order.

    Raises:
        SignalError: the source frames texts with a token that is no special one.
    """
    wanted = source.specials
    tokens = [t for t in vocabulary.tokens if t.kind != "special" and t.text not in wanted]
    for index in wanted.values():
        tokens.insert(index, source.tokens[index])
    try:
        frame = _renumbered(
            source.post_processor, {t.text: i for i, t in enumerate(tokens) if t.kind == "special"}
        )
    except KeyError as error:
        raise SignalError(
            f"the model's tokenizer frames texts with {error.args[0]!r}, which is no special token"
        ) from None
    return replace(vocabulary, tokens=tuple(tokens), num_original=len(tokens), post_processor=frame)


def with_whitespace(vocabulary: Vocabulary) -> Vocabulary:
    """Replace all tokens with two or more of space, newline and tab by one fixed set of runs.

    The set is a character and a run of 1 to 15 of one character, each of the three: what
    tokenizers are sampled with in training, so a network has seen its tokens.
    """
    runs = whitespace_runs()
    wanted = set(runs)

    def kept(token: Token, index: int) -> Token:
        is_free = token.kind != "piece" or token.text in wanted or not has_run(token.text)
        return token if is_free else Token(f"<unused_{index}>", "dead")

    tokens = [kept(token, index) for index, token in enumerate(vocabulary.tokens)]
    there = {t.text for t in tokens}
    tokens += [Token(run) for run in runs if run not in there]
    tokens = [replace(t, score=0.0) if t.text in wanted else t for t in tokens]
    merges = vocabulary.merges
    if vocabulary.model == "BPE":
        merges = (*(m for m in merges if not has_run(m[0] + m[1])), *_run_merges())
    return replace(vocabulary, tokens=tuple(tokens), merges=merges)


def whitespace_runs() -> list[str]:
    """The 135 runs of whitespace, in byte characters."""
    return [
        first + char * count
        for char in WHITESPACE
        for count in range(1, MAX_RUN + 1)
        for first in WHITESPACE
    ]


def has_run(text: str) -> bool:
    """Whether byte characters hold two or more of space, newline and tab."""
    return sum(text.count(char) for char in WHITESPACE) > 1


@dataclass(frozen=True)
class _Writer:
    """How a tokenizer's strings become byte characters."""

    is_byte_level: bool
    space: str | None
    prefix: str | None
    has_prefix: bool
    bytes_by_name: Mapping[str, str]

    @staticmethod
    def of(data: Mapping[str, Any], is_byte_level: bool) -> _Writer:
        model = data["model"]
        prefix = model.get("continuing_subword_prefix") if model["type"] == "WordPiece" else None
        space, has_prefix = None, prefix is not None
        for part in (*_parts(data["normalizer"]), *_parts(data["pre_tokenizer"])):
            if part.get("type") == "Metaspace":
                space = part["replacement"]
                has_prefix |= part.get("prepend_scheme", "always") != "never"
            elif _is_space(part):
                space = part["content"]
            elif part.get("type") == "Prepend":
                has_prefix = True
            elif part.get("type") == "ByteLevel":
                has_prefix |= part.get("add_prefix_space", False)
        names = {f"<0x{b:02X}>": char for b, char in enumerate(BYTE_ALPHABET)}
        return _Writer(
            is_byte_level=is_byte_level,
            space=space,
            prefix=prefix,
            has_prefix=has_prefix,
            bytes_by_name=names if model.get("byte_fallback") else {},
        )

    def form(self, token: str) -> str:
        """Byte characters of a token of the model."""
        if self.is_byte_level:
            return token if _ALPHABET.issuperset(token) else to_chars(token.encode())
        if token in self.bytes_by_name:
            return self.bytes_by_name[token]
        if self.space is not None:
            token = token.replace(self.space, " ")
        if self.prefix is not None:
            starts = token.startswith(self.prefix)
            token = token.removeprefix(self.prefix) if starts else f" {token}"
        return to_chars(token.encode())


def _tokens(tokenizer: Tokenizer, data: Mapping[str, Any], writer: _Writer) -> tuple[Token, ...]:
    added = {entry["content"]: entry for entry in data["added_tokens"]}
    names = {index: name for name, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    scores: dict[str, float] = {}
    if data["model"]["type"] == "Unigram":
        scores = {
            name: FILL_SCORE if name in writer.bytes_by_name else s
            for name, s in data["model"]["vocab"]
        }
    # Bytes by name come last: where a character has its own token, text reaches that one.
    order = sorted(
        range(max(names, default=-1) + 1), key=lambda i: names.get(i, "") in writer.bytes_by_name
    )
    found: dict[int, Token] = {}
    taken: set[str] = set()
    for index in order:
        name = names.get(index, "")
        entry = added.get(name)
        if entry is not None and entry["special"]:
            token = Token(name, "special", FILL_SCORE, entry)
        else:
            form = writer.form(name) if entry is None else to_chars(name.encode())
            token = Token(form, "piece", scores.get(name, 0.0), entry)
        if not token.text or token.text in taken:
            token = Token(f"<unused_{index}>", "dead", FILL_SCORE)
        taken.add(token.text)
        found[index] = token
    return tuple(found[index] for index in range(len(order)))


def _with_bytes(vocabulary: Vocabulary) -> Vocabulary:
    there = vocabulary.pieces
    fill = [Token(char, "piece", FILL_SCORE) for char in BYTE_ALPHABET if char not in there]
    return replace(vocabulary, tokens=(*vocabulary.tokens, *fill))


def _with_characters(vocabulary: Vocabulary) -> Vocabulary:
    """Let the bytes of each character that is a token join first, as the character was whole."""
    if vocabulary.model != "BPE":
        return vocabulary
    there = vocabulary.pieces
    merges: dict[tuple[str, str], None] = {}
    parts: dict[str, None] = {}
    for form in sorted(form for form in there if _is_character(form)):
        for end in range(1, len(form)):
            merges[form[:end], form[end]] = None
            parts[form[: end + 1]] = None
    extra = [Token(part) for part in parts if part not in there]
    return replace(
        vocabulary,
        tokens=(*vocabulary.tokens, *extra),
        merges=(*merges, *vocabulary.merges),
    )


def _is_character(form: str) -> bool:
    """Whether byte characters are one character of two or more bytes."""
    return 2 <= len(form) <= 4 and len(to_bytes(form).decode(errors="replace")) == 1


def _run_merges() -> Iterator[tuple[str, str]]:
    """Merges that join any run of one whitespace character, then a character before such a run.

    Powers of two come first, then the parts of a sum of them, largest last part first; so a run
    of n <= 15 becomes one token whatever pairs the model meets on the way.
    """
    counts = sorted(range(2, MAX_RUN + 2), key=lambda n: (n & (n - 1) != 0, -(n & -n), n))
    counts = sorted(counts, key=lambda n: n if n & (n - 1) == 0 else MAX_RUN + 2)
    for char in WHITESPACE:
        for count in counts:
            last = count // 2 if count & (count - 1) == 0 else count & -count
            yield char * (count - last), char * last
    for char in WHITESPACE:
        for count in range(MAX_RUN, 0, -1):
            for first in WHITESPACE:
                if first != char:
                    yield first, char * count


def _parts(component: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A normaliser or pre-tokenizer and all those it is a sequence of."""
    if component is None:
        return
    yield component
    for name in ("normalizers", "pretokenizers"):
        for part in component.get(name, ()):
            yield from _parts(part)


def _is_space(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "Replace" and part.get("pattern") == {"String": " "}


def _renumbered(component: Any, ids: Mapping[str, int]) -> Any:
    """A post-processor with the ids that its tokens have now."""
    if not isinstance(component, dict):
        return component
    out = {key: _renumbered(value, ids) for key, value in component.items()}
    for name in ("sep", "cls"):
        if name in out:
            out[name] = [out[name][0], ids[out[name][0]]]
    if "processors" in out:
        out["processors"] = [_renumbered(part, ids) for part in out["processors"]]
    for entry in out.get("special_tokens", {}).values():
        entry["ids"] = [ids[token] for token in entry["tokens"]]
    return out


def without_spaces(normalizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The parts of a normaliser that do more than stand for spaces."""
    return [
        dict(part)
        for part in _parts(normalizer)
        if part["type"] not in ("Sequence", "Prepend") and not _is_space(part)
    ]
