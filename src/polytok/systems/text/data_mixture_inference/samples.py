"""Text samples of categories: files cut into parts, read piece by piece."""

from __future__ import annotations

import codecs
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from polytok.core.errors import SignalError

# Pre-tokenizers slow down on long texts; shorter ones would meet more borders.
_PIECE = 8192
_PROBE = 65536


@dataclass(frozen=True)
class Slice:
    """The lines of a file that begin at bytes ``start`` to ``stop``."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True)
class Category:
    """A named sample: parts of about equal size, each a run of slices.

    Args:
        skipped: files that are no UTF-8 text, left out.
    """

    name: str
    parts: tuple[tuple[Slice, ...], ...]
    skipped: tuple[Path, ...] = ()


def find_categories(
    sources: Sequence[str | os.PathLike[str]],
    *,
    num_parts: int = 8,
    max_bytes: int | None = None,
) -> tuple[Category, ...]:
    """Find categories: each ``NAME=PATH`` or path is one, or a folder of folders and text files.

    Args:
        sources: a folder that holds folders or several files becomes one category for each entry,
            unless it is named.
        num_parts: of each category; its parts are what a bootstrap draws.
        max_bytes: read of each category, spread over its parts.

    Raises:
        SignalError: a path is missing or holds no text, or two categories have one name.
    """
    named: dict[str, Path] = {}
    for source in sources:
        for name, path in _named(str(source)):
            if name in named:
                raise SignalError(f"category {name!r} is given twice: {named[name]} and {path}")
            named[name] = path
    return tuple(_category(n, p, num_parts, max_bytes) for n, p in named.items())


def _named(source: str) -> Iterator[tuple[str, Path]]:
    name, is_named, rest = source.partition("=")
    if Path(source).exists():
        is_named = ""
    path = Path(rest if is_named else source)
    if is_named and not (name and rest):
        raise SignalError(f"{source!r} is not NAME=PATH")
    if not path.exists():
        raise SignalError(f"{path}: no such file or folder")
    if is_named or not path.is_dir():
        yield (name if is_named else path.stem), path
        return
    entries = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    if not entries:
        raise SignalError(f"{path} is empty; it should hold a file or folder for each category")
    for entry in entries:
        yield (entry.name if entry.is_dir() else entry.stem), entry


def _category(name: str, path: Path, num_parts: int, max_bytes: int | None) -> Category:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    files = [p for p in files if not p.name.startswith(".")]
    readable = [_is_text(p) for p in files]
    texts = list(itertools.compress(files, readable))
    skipped = tuple(p for p, is_text in zip(files, readable, strict=True) if not is_text)
    if not texts:
        what = f"only files that are no UTF-8 text ({skipped[0]})" if skipped else "no files"
        raise SignalError(f"category {name!r}: {path} holds {what}")
    sizes = [p.stat().st_size for p in texts]
    total = sum(sizes)
    if not total:
        raise SignalError(f"category {name!r}: {path} has no bytes")
    bounds = [total * i // num_parts for i in range(num_parts + 1)]
    budget = None if max_bytes is None else max(1, max_bytes // num_parts)
    parts = []
    for low, high in itertools.pairwise(bounds):
        stop = high if budget is None else min(high, low + budget)
        parts.append(tuple(_slices(texts, sizes, low, stop)))
    return Category(name, tuple(parts), skipped)


def _slices(files: Sequence[Path], sizes: Sequence[int], low: int, high: int) -> Iterator[Slice]:
    """Where bytes ``low`` to ``high`` of files one after the other are."""
    offset = 0
    for path, size in zip(files, sizes, strict=True):
        start, stop = max(low - offset, 0), min(high - offset, size)
        if start < stop:
            yield Slice(path, start, stop)
        offset += size


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_PROBE)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < _PROBE)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def read(slices: Iterable[Slice], *, by_line: bool = False) -> Iterator[str]:
    """Pieces of text of some thousand characters that end at line ends, or lines.

    Raises:
        SignalError: the text is not UTF-8.
    """
    for slice_ in slices:
        yield from _batches(_lines(slice_), 1 if by_line else _PIECE)


def pieces(documents: Iterable[str]) -> Iterator[str]:
    """Cut documents at line ends into pieces of some thousand characters."""
    for document in documents:
        # Python's splitlines would also cut at characters that end no line of a file.
        yield from _batches(StringIO(document, newline="\n"), _PIECE)


def _batches(lines: Iterable[str], size: int) -> Iterator[str]:
    """Join lines until they have ``size`` characters."""
    held: list[str] = []
    length = 0
    for line in lines:
        held.append(line)
        length += len(line)
        if length >= size:
            yield "".join(held)
            held, length = [], 0
    if held:
        yield "".join(held)


def _lines(slice_: Slice) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with slice_.path.open("rb") as file:
            if slice_.start:
                # The line that holds the byte before belongs to the slice before.
                file.seek(slice_.start - 1)
                file.readline()
            is_inside = False
            while (is_inside or file.tell() < slice_.stop) and (line := file.readline(_PROBE)):
                # A long line comes in several pieces, all of them of this slice.
                is_inside = not line.endswith(b"\n")
                if text := decoder.decode(line):
                    yield text
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise SignalError(f"{slice_.path} is no UTF-8 text") from None


def split_documents(documents: Iterable[str], num_parts: int) -> tuple[tuple[str, ...], ...]:
    """Cut a list of documents into parts of about equal size, in order."""
    listed = [documents] if isinstance(documents, str) else list(documents)
    if len(listed) < num_parts:
        listed = [line for text in listed for line in StringIO(text, newline="\n")]
    sizes = [len(d) for d in listed]
    total, done = sum(sizes), 0
    parts: list[list[str]] = [[] for _ in range(num_parts)]
    for document, size in zip(listed, sizes, strict=True):
        parts[min(num_parts - 1, done * num_parts // max(total, 1))].append(document)
        done += size
    return tuple(tuple(p) for p in parts)
