"""Files of text tokenizers: tokenizer.json, merges.txt, tiktoken ranks and SentencePiece models."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytok.core.errors import SignalError
from polytok.systems.text import _sentencepiece
from polytok.systems.text._shared import to_chars

Merge = tuple[str, str]

METASPACE = "\u2581"
"""The character that SentencePiece writes for a space."""


@dataclass(frozen=True)
class TokenizerFile:
    """What the file of a tokenizer says, in plain values.

    Args:
        model: ``BPE``, ``Unigram``, ``WordPiece`` or ``WordLevel``.
        vocab: token to id; empty where the file lists none (merges.txt).
        merges: pairs of tokens in the order in which training chose them; only of BPE.
        scores: token to log probability; only of Unigram.
        normalizer, pre_tokenizer: the JSON of the ``tokenizers`` library, None for none.
        has_rules: whether the file says at all how text is split; the other formats do not.
        prefix, suffix: what tokens inside a word begin with, and those at its end end with.
        added: tokens that were put in by hand (specials).
        dropped: tokens that no sequence of lower-ranked merges makes (tiktoken, SentencePiece).
    """

    model: str
    vocab: dict[str, int]
    merges: tuple[Merge, ...] = ()
    scores: dict[str, float] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    has_rules: bool = False
    prefix: str = ""
    suffix: str = ""
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def read_tokenizer(source: Any) -> TokenizerFile:
    """Read a tokenizer.

    Args:
        source: a file (``tokenizer.json``, ``merges.txt``, a tiktoken rank file, a SentencePiece
            model), a folder with one of them, or a ``tokenizers.Tokenizer``, also inside a fast
            tokenizer of ``transformers``.

    Raises:
        SignalError: it is missing, of another kind, or damaged.
    """
    source = getattr(source, "backend_tokenizer", source)
    if hasattr(source, "to_str"):
        return _from_json(source.to_str(), "the tokenizer")
    path = _file_of(Path(source))
    data = path.read_bytes()
    if not data.strip():
        raise SignalError(f"{path} is empty")
    if data.lstrip()[:1] == b"{":
        return _from_json(_decoded(data, path), str(path))
    if _is_ranks(data):
        return _from_ranks(data, path)
    if _is_merges(data):
        return _from_merges(_decoded(data, path), path)
    return _from_sentencepiece(data, path)


def _file_of(path: Path) -> Path:
    """The file that a folder holds a tokenizer in."""
    if not path.is_dir():
        if not path.exists():
            raise SignalError(f"{path}: no such tokenizer")
        return path
    names = ("tokenizer.json", "merges.txt", "tokenizer.model")
    found = [path / n for n in names if (path / n).is_file()]
    found += sorted(path.glob("*.tiktoken"))
    if not found:
        raise SignalError(f"{path} holds no {', '.join(names)} or *.tiktoken")
    return found[0]


def _decoded(data: bytes, path: os.PathLike[str]) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SignalError(f"{path} is no tokenizer: not UTF-8 at byte {error.start}") from None


def _from_json(text: str, name: str) -> TokenizerFile:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SignalError(f"{name} is no tokenizer.json: {error}") from None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise SignalError(f"{name} is no tokenizer.json: it has no model")
    vocab = model.get("vocab", {})
    kind = model.get("type") or _guessed_kind(model)
    # Unigram lists pairs of a token and its score; its ids are the order.
    pairs = vocab if isinstance(vocab, list) else []
    try:
        scores = {str(token): float(score) for token, score in pairs} if pairs else None
        ids = {t: i for i, t in enumerate(scores)} if scores else {t: int(vocab[t]) for t in vocab}
        added = tuple(str(t["content"]) for t in content.get("added_tokens") or ())
        merges = tuple(_merge(m, name) for m in model.get("merges") or ())
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, SignalError):
            raise
        raise SignalError(f"{name} has a damaged vocabulary: {error!r}") from None
    return TokenizerFile(
        model=str(kind),
        vocab=ids,
        merges=merges,
        scores=scores,
        normalizer=content.get("normalizer"),
        pre_tokenizer=content.get("pre_tokenizer"),
        has_rules=True,
        prefix=str(model.get("continuing_subword_prefix") or "") if kind == "BPE" else "",
        suffix=str(model.get("end_of_word_suffix") or ""),
        added=added,
    )


def _guessed_kind(model: dict[str, Any]) -> str:
    # Files before version 1.0 of the format do not name the kind.
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"


def _merge(merge: Any, name: str) -> Merge:
    """A merge of either format: ``"a b"`` or ``["a", "b"]``."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    is_pair = isinstance(parts, list) and len(parts) == 2
    if not is_pair or not all(isinstance(p, str) and p for p in parts):
        raise SignalError(f"{name} has a merge that is no pair of tokens: {merge!r}")
    return parts[0], parts[1]


_HEADER = "#version"


def _is_merges(data: bytes) -> bool:
    head = data[:65536].split(b"\n")[:200]
    lines = [x for x in head[:-1] or head if x.strip() and not x.startswith(_HEADER.encode())]
    return b"\0" not in data and bool(lines) and all(len(x.split(b" ")) == 2 for x in lines)


def _from_merges(text: str, path: Path) -> TokenizerFile:
    # Some merges hold characters that Python counts as line ends, so only "\n" parts them.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    body = lines[1:] if lines[0].startswith(_HEADER) else lines
    merges = tuple(_merge(line, str(path)) for line in body if line)
    if not merges:
        raise SignalError(f"{path} lists no merges")
    return TokenizerFile(model="BPE", vocab={}, merges=merges)


def _is_ranks(data: bytes) -> bool:
    parts = data.split(b"\n", 1)[0].split()
    if len(parts) != 2 or not parts[1].isdigit():
        return False
    try:
        return len(base64.b64decode(parts[0], validate=True)) > 0
    except binascii.Error:
        return False


def _from_ranks(data: bytes, path: Path) -> TokenizerFile:
    vocab: dict[str, int] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            vocab[to_chars(base64.b64decode(token, validate=True))] = int(rank)
        except ValueError:
            raise SignalError(f"{path} line {number} is no token and rank") from None
    merges, dropped = merges_of_ranks(vocab)
    return TokenizerFile(model="BPE", vocab=vocab, merges=merges, dropped=dropped)


def _from_sentencepiece(data: bytes, path: Path) -> TokenizerFile:
    model = _sentencepiece.parse(data, path)
    vocab = {token: i for i, (token, _, _) in enumerate(model.pieces)}
    plain = {t: score for t, score, kind in model.pieces if kind == _sentencepiece.NORMAL}
    added = tuple(t for t, _, kind in model.pieces if kind != _sentencepiece.NORMAL)
    # The rules nmt_nfkc and nfkc_cf differ from NFKC in blanks and in case alone.
    normalizer = {"type": "NFKC"} if "nfkc" in model.normalizer else None
    if model.kind != "BPE":
        return TokenizerFile(model.kind, vocab, scores=plain, normalizer=normalizer, added=added)
    # Training gives merge number i the score -i; ties keep the order of the file.
    order = sorted(plain, key=lambda token: -plain[token])
    merges, dropped = merges_of_ranks({token: rank for rank, token in enumerate(order)})
    return TokenizerFile("BPE", vocab, merges, normalizer=normalizer, added=added, dropped=dropped)


def merges_of_ranks(
    ranks: dict[str, int], tokens: Iterable[str] | None = None
) -> tuple[tuple[Merge, ...], tuple[str, ...]]:
    """Merges that make ranked tokens, and the tokens that two lower-ranked ones do not make.

    A token is split by running BPE over its characters with the tokens that rank below it.

    Args:
        ranks: token to rank; those of one character are never made.
        tokens: which to split; None for all.
    """
    wanted = sorted(ranks if tokens is None else tokens, key=ranks.__getitem__)
    merges: list[Merge] = []
    dropped: list[str] = []
    for token in wanted:
        if len(token) == 1:
            continue
        parts = _bpe(token, ranks, below=ranks[token])
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
        else:
            dropped.append(token)
    return tuple(merges), tuple(dropped)


def _bpe(token: str, ranks: dict[str, int], below: int) -> list[str]:
    """Join the neighbours whose union ranks lowest, leftmost first, while it ranks below."""
    parts = list(token)
    joins = [ranks.get(a + b, below) for a, b in itertools.pairwise(parts)]
    while joins and (best := min(joins)) < below:
        i = joins.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del joins[i]
        if i < len(joins):
            joins[i] = ranks.get(parts[i] + parts[i + 1], below)
        if i:
            joins[i - 1] = ranks.get(parts[i - 1] + parts[i], below)
    return parts


def distinct_merges(merges: Sequence[Merge]) -> tuple[Merge, ...]:
    """Keep one merge per token: the one that BPE with the tokens before it really uses.

    Conversions from SentencePiece list every way to split each token.
    """
    options: dict[str, list[Merge]] = {}
    for merge in merges:
        options.setdefault("".join(merge), []).append(merge)
    if len(options) == len(merges):
        return tuple(merges)
    ranks = {token: rank for rank, token in enumerate(options)}
    several = [token for token, ways in options.items() if len(ways) > 1]
    used = set(merges_of_ranks(ranks, several)[0])
    return tuple(next((w for w in ways if w in used), ways[0]) for ways in options.values())


def without_runs(merges: Sequence[Merge]) -> tuple[Merge, ...]:
    """Leave out merges of one repeated blank, which some tokenizers were given by hand."""
    # Space, tab and line end as they are, and as byte-level tokenizers write them.
    blanks = f" \t\n\u0120\u0109\u010a{METASPACE}"

    def is_run(token: str) -> bool:
        return token[0] in blanks and len(set(token)) == 1

    return tuple(m for m in merges if not is_run("".join(m)))
