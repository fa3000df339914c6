"""Sentences from files, as word ids: examples, the vocabulary, and given word vectors."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from polytok.core.config import from_dict, to_dict
from polytok.core.contracts import Batch
from polytok.core.errors import PolytokError, SignalError, WeightsError, one_line
from polytok.core.files import write_text

StrPath = str | PathLike[str]
VOCABULARY = "vocabulary.json"
PAD, UNKNOWN = "<pad>", "<unk>"
WORD = re.compile(r"\w+|[^\w\s]")
TABLES = {".tsv": "\t", ".csv": ","}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A sentence, its class if known, and for pairs the query."""

    text: str
    label: str | None = None
    query: str | None = None


def words_of(text: str) -> list[str]:
    """Split a text into lower-case words and single punctuation marks."""
    return WORD.findall(text.lower())


def read_examples(path: StrPath) -> list[Example]:
    """Read a table (.tsv, .csv: columns text, and where they are label and query) or plain lines.

    Lines without any word are refused in a table and skipped in plain text.

    Raises:
        SignalError: the file cannot be read, has no column ``text``, or no sentences.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SignalError(f"cannot read {path}: {one_line(error)}") from error
    if "\0" in text:
        raise SignalError(f"cannot read {path}: it is no text")
    if path.suffix.lower() in TABLES:
        found = list(_rows(path, text, TABLES[path.suffix.lower()]))
    else:
        found = [Example(text=line) for line in text.splitlines() if words_of(line)]
    if not found:
        raise SignalError(f"{path} has no sentences")
    return found


def _rows(path: Path, text: str, delimiter: str) -> Iterator[Example]:
    lines = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
    try:
        head = [name.strip().lower() for name in next(lines, [])]
        if "text" not in head:
            raise SignalError(f"{path}: its first line has no column 'text', but {head}")
        for row in lines:
            if not row:
                continue
            where = f"{path}, line {lines.line_num}"
            if len(row) != len(head):
                raise SignalError(f"{where}: {len(row)} columns, not {len(head)}")
            values = dict(zip(head, row, strict=True))
            query, label = values.get("query"), values.get("label", "").strip()
            if not words_of(values["text"]) or (query is not None and not words_of(query)):
                raise SignalError(f"{where}: a text without words")
            yield Example(text=values["text"], label=label or None, query=query)
    except csv.Error as error:
        raise SignalError(f"{path}, line {lines.line_num}: {one_line(error)}") from error


@dataclass(frozen=True)
class Vocabulary:
    """The words and classes that a model knows, by number; word 0 is padding, 1 any other.

    Args:
        words: with the two special ones first. labels: sorted.
        max_length: longer texts are cut.
    """

    words: tuple[str, ...]
    labels: tuple[str, ...]
    max_length: int

    @staticmethod
    def build(
        examples: Iterable[Example], *, size: int, min_count: int, max_length: int
    ) -> Vocabulary:
        """Take the most frequent words, ties in alphabetical order, and every label."""
        counts: Counter[str] = Counter()
        labels: set[str] = set()
        for example in examples:
            counts.update(words_of(example.text))
            counts.update(words_of(example.query or ""))
            labels |= {example.label} if example.label else set()
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        kept = [word for word, count in ranked if count >= min_count][: size - 2]
        return Vocabulary((PAD, UNKNOWN, *kept), tuple(sorted(labels)), max_length)

    def ids(self, text: str) -> list[int]:
        """The ids of a text's words, cut to ``max_length``.

        Raises:
            SignalError: it has none.
        """
        words = words_of(text)[: self.max_length]
        if not words:
            raise SignalError(f"{text[:40]!r} has no words")
        return [self._index.get(word, 1) for word in words]

    def label_id(self, label: str) -> int:
        """The number of a class.

        Raises:
            SignalError: training has not seen it.
        """
        if label not in self.labels:
            raise SignalError(f"label {label!r} is not one of {', '.join(self.labels)}")
        return self.labels.index(label)

    def row(self, example: Example, length: int | None = None) -> dict[str, Tensor]:
        """tokens and mask (T,), label (), and for pairs query and query_mask (T,)."""
        tokens, mask = _padded(self.ids(example.text), length or self.max_length)
        label = -1 if example.label is None else self.label_id(example.label)
        row = {"tokens": tokens, "mask": mask, "label": torch.tensor(label)}
        if example.query is not None:
            query, query_mask = _padded(self.ids(example.query), length or self.max_length)
            row |= {"query": query, "query_mask": query_mask}
        return row

    def batch(self, examples: Sequence[Example]) -> Batch:
        """A batch as long as its longest text."""
        texts = [t for e in examples for t in (e.text, e.query) if t is not None]
        length = min(self.max_length, max(len(words_of(text)) for text in texts))
        rows = [self.row(example, length) for example in examples]
        if any(row.keys() != rows[0].keys() for row in rows):
            raise SignalError("some examples have a query and others none")
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def save(self, folder: StrPath) -> None:
        """Write vocabulary.json."""
        write_text(Path(folder) / VOCABULARY, json.dumps(to_dict(self), ensure_ascii=False) + "\n")

    @staticmethod
    def load(folder: StrPath) -> Vocabulary:
        """Read vocabulary.json.

        Raises:
            WeightsError: it is missing or damaged.
        """
        path = Path(folder) / VOCABULARY
        try:
            return from_dict(Vocabulary, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise WeightsError(f"cannot read {path}: {one_line(error)}") from error

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


def _padded(ids: list[int], length: int) -> tuple[Tensor, Tensor]:
    tokens = torch.zeros(length, dtype=torch.int64)
    tokens[: len(ids)] = torch.tensor(ids)
    return tokens, torch.arange(length) < len(ids)


def read_vectors(path: StrPath, words: Sequence[str], dim: int) -> dict[int, Tensor]:
    """Vectors (dim,) by word number from lines ``word v1 .. v_dim`` (the .vec form of fastText).

    A first line of two numbers, as fastText writes, is skipped.

    Raises:
        SignalError: the file cannot be read, a vector has another size or a value that is not
            finite, or it has none of the words.
    """
    index = {word: i for i, word in enumerate(words)}
    found: dict[int, Tensor] = {}
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                word, *values = line.split()
                if number == 1 and len(values) == 1:
                    continue
                if word not in index:
                    continue
                vector = torch.tensor([float(v) for v in values])
                if len(vector) != dim or not bool(vector.isfinite().all()):
                    raise SignalError(f"{path}, line {number}: not {dim} finite numbers")
                found[index[word]] = vector
    except (OSError, ValueError) as error:
        if isinstance(error, PolytokError):
            raise
        raise SignalError(f"cannot read {path}: {one_line(error)}") from error
    if not found:
        raise SignalError(f"{path} has none of the {len(words)} words")
    return found
