"""Pair counts of a category while the target's merges are applied: only what changes is kept."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytok.core.errors import PolytokError, SignalError
from polytok.core.files import atomic_path
from polytok.systems.text._bpe import MergeTable, Segmentation
from polytok.systems.text._tokenizer_file import Merge, TokenizerFile, distinct_merges
from polytok.systems.text.data_mixture_inference.rules import Rules, alphabet_of, rules_of
from polytok.systems.text.data_mixture_inference.samples import pieces

Ints = NDArray[np.int64]

MAX_MERGES = 30_000
"""How many merges the paper uses; later ones are noisy."""


@dataclass(frozen=True)
class Target:
    """A tokenizer under study: its merges and how its training cut text into words.

    Args:
        merges: at most as many as are used, one for each token.
        rules: normalizer and pre-tokenizer.
        alphabet: characters that can be merged; None for all.
        prefix, suffix: of tokens inside a word and at its end.
    """

    merges: tuple[Merge, ...]
    rules: Rules
    alphabet: frozenset[str] | None = None
    prefix: str = ""
    suffix: str = ""

    @staticmethod
    def of(
        file: TokenizerFile, *, num_merges: int = MAX_MERGES, rules: str | None = None
    ) -> Target:
        """Take what is needed of a tokenizer's file.

        Raises:
            SignalError: it is not BPE, or has no merges.
        """
        if file.model != "BPE":
            raise SignalError(f"a {file.model} tokenizer has no merges; only BPE can be read")
        if not file.merges:
            raise SignalError("the tokenizer has no merges")
        if num_merges < 1:
            raise PolytokError(f"num_merges={num_merges} is below 1")
        merges = distinct_merges(file.merges)[:num_merges]
        return Target(merges, rules_of(file, rules), alphabet_of(file), file.prefix, file.suffix)

    def as_dict(self) -> dict[str, Any]:
        """Plain values that :meth:`from_dict` takes."""
        letters = None if self.alphabet is None else "".join(sorted(self.alphabet))
        return {
            "merges": [list(m) for m in self.merges],
            "rules": vars(self.rules),
            "alphabet": letters,
            "prefix": self.prefix,
            "suffix": self.suffix,
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Target:
        """Build a target from the values of :meth:`as_dict`.

        Raises:
            SignalError: they are not of a target.
        """
        try:
            letters = values["alphabet"]
            return Target(
                tuple((str(a), str(b)) for a, b in values["merges"]),
                Rules(**values["rules"]),
                None if letters is None else frozenset(letters),
                str(values["prefix"]),
                str(values["suffix"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SignalError(f"damaged description of a tokenizer: {error!r}") from None

    def table(self) -> MergeTable:
        """Ids of all symbols."""
        return MergeTable(
            self.merges, prefix=self.prefix, suffix=self.suffix, alphabet=self.alphabet
        )

    @property
    def fingerprint(self) -> str:
        """Of all that counts depend on, as hex."""
        values = self.as_dict()
        values["rules"] = [self.rules.normalizer, self.rules.pre_tokenizer]
        text = json.dumps(values, sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class PairTranscript:
    """How the pair counts of one category change, merge by merge.

    An entry says by how much the count of a pair in a part of the sample has changed before a merge
    is chosen; entries are sorted by pair, then step, then part.

    Args:
        name: of the category.
        target: fingerprint of the :class:`Target`.
        num_merges: number of merges applied.
        pairs: (entries,) ids of the target's table. steps: (entries,) 0 for counts of the text
            itself, t for changes by merge t - 1. parts: (entries,). changes: (entries,) not 0.
        bytes: (parts,) of UTF-8 text read. tokens: (parts,) left after all merges.
        words: (parts,) number of words.
    """

    name: str
    target: str
    num_merges: int
    pairs: Ints
    steps: NDArray[np.int32]
    parts: NDArray[np.int32]
    changes: Ints
    bytes: Ints
    tokens: Ints
    words: Ints

    @property
    def num_pairs(self) -> Ints:
        """(parts,) pairs in the text before any merge: what shares are shares of."""
        first = self.steps == 0
        return np.bincount(
            self.parts[first], weights=self.changes[first], minlength=len(self.bytes)
        ).astype(np.int64)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.npz`` without pickles, in one step."""
        head = json.dumps({"name": self.name, "target": self.target, "merges": self.num_merges})
        with atomic_path(path) as aside:
            np.savez_compressed(
                aside,
                head=np.frombuffer(head.encode(), np.uint8),
                pairs=np.diff(self.pairs, prepend=0),
                steps=self.steps,
                parts=self.parts.astype(np.uint16),
                changes=self.changes,
                sizes=np.stack([self.bytes, self.tokens, self.words]),
            )

    @staticmethod
    def load(path: str | os.PathLike[str]) -> PairTranscript:
        """Read what :meth:`save` wrote.

        Raises:
            SignalError: the file is damaged or of another kind.
        """
        try:
            # Given a path, np.load leaves damaged files open.
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                head = json.loads(arrays["head"].tobytes())
                read = {k: arrays[k] for k in ("pairs", "steps", "parts", "changes", "sizes")}
            found = PairTranscript(
                name=str(head["name"]),
                target=str(head["target"]),
                num_merges=int(head["merges"]),
                pairs=np.cumsum(read["pairs"], dtype=np.int64),
                steps=read["steps"].astype(np.int32),
                parts=read["parts"].astype(np.int32),
                changes=read["changes"].astype(np.int64),
                **dict(
                    zip(("bytes", "tokens", "words"), read["sizes"].astype(np.int64), strict=True)
                ),
            )
        except FileNotFoundError:
            raise SignalError(f"{path}: no such file") from None
        except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise SignalError(f"{path} holds no pair counts: {error}") from None
        found._check(path)
        return found

    def _check(self, path: str | os.PathLike[str]) -> None:
        sizes = {len(a) for a in (self.pairs, self.steps, self.parts, self.changes)}
        is_whole = len(sizes) == 1 and len(self.bytes) > 0
        if is_whole and len(self.pairs):
            is_whole = (
                0 <= self.parts.min() <= self.parts.max() < len(self.bytes)
                and 0 <= self.steps.min() <= self.steps.max() < max(self.num_merges, 1)
                and bool((np.diff(self.pairs) >= 0).all())
                and self.pairs[0] >= 0
            )
        if not is_whole:
            raise SignalError(f"{path} is damaged: its arrays do not fit each other")


Words = tuple[Counter[str], int]
"""Words of a part with their counts, and the bytes of its text."""


def count_words(texts: Iterable[str], rules: Rules) -> Words:
    """Cut texts into words, and count them and the bytes."""
    split = rules.splitter()
    words: Counter[str] = Counter()
    size = 0
    for text in texts:
        words.update(split(text))
        size += len(text.encode("utf-8", "surrogatepass"))
    return words, size


def count_pairs(
    parts: Iterable[Iterable[str]] | str, target: Target, *, name: str = ""
) -> PairTranscript:
    """Count the pairs of a sample while the target's merges are applied to it.

    Args:
        parts: documents, or lists of documents that count as parts.
        name: of the category.

    Source: Hayase et al. 2024, section 3 and appendix C.
    """
    listed: list[Iterable[str]] = [parts] if isinstance(parts, str) else list(parts)
    if any(isinstance(p, str) for p in listed):
        # Plain documents, which are strings, make one part.
        listed = [[str(p) for p in listed]]
    return count_word_pairs([count_words(pieces(p), target.rules) for p in listed], target, name)


def count_word_pairs(parts: Sequence[Words], target: Target, name: str = "") -> PairTranscript:
    """Count pairs of words that :func:`count_words` counted, part by part."""
    index: dict[str, int] = {}
    for words, _ in parts:
        for word in words:
            index.setdefault(word, len(index))
    counts = np.zeros((len(index), len(parts)), np.int64)
    for part, (words, _) in enumerate(parts):
        rows = np.fromiter((index[w] for w in words), np.int64, len(words))
        counts[rows, part] = np.fromiter(words.values(), np.int64, len(words))
    table = target.table()
    text = Segmentation(list(index), counts, table)
    entries = [_entries(*text.pair_counts(), step=0)]
    for step, (left, right, new) in enumerate(table.triples, start=1):
        changed, by = text.merge(left, right, new)
        if len(changed) and step < len(table.triples):
            entries.append(_entries(changed, by, step))
    pairs, steps, numbers, changes = (np.concatenate(a) for a in zip(*entries, strict=True))
    order = np.lexsort((numbers, steps, pairs))
    return PairTranscript(
        name=name,
        target=target.fingerprint,
        num_merges=len(table.triples),
        pairs=pairs[order],
        steps=steps[order].astype(np.int32),
        parts=numbers[order].astype(np.int32),
        changes=changes[order],
        bytes=np.array([size for _, size in parts], np.int64),
        tokens=text.num_tokens,
        words=counts.sum(axis=0),
    )


def _entries(pairs: Ints, changes: Ints, step: int) -> tuple[Ints, Ints, Ints, Ints]:
    rows, parts = np.nonzero(changes)
    return pairs[rows], np.full(len(rows), step), parts, changes[rows, parts]
