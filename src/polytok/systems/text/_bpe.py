"""Byte-pair encoding over whole corpora: one pass of arrays per merge, counting and training.

Legend: a symbol is an int id; a pair is the int ``left * PAIR + right``.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytok.core.errors import PolytokError
from polytok.systems.text._tokenizer_file import Merge

Ints = NDArray[np.int64]
Positions = NDArray[np.int32]

PAIR = 1 << 24
_CHARS = 0x110000
# Characters stand for themselves, plus one plane each for "inside a word" and "at its end".
_INSIDE, _END, _MERGED = _CHARS, 2 * _CHARS, 4 * _CHARS
_EDGE, _GONE = -1, -2


class MergeTable:
    """The symbols of a merge list: the same numbers for any text, so that counts can be compared.

    Args:
        merges: pairs of tokens, in order.
        prefix, suffix: what the file writes before tokens inside a word and after those at its end.
        alphabet: characters that are symbols at all; None for every one.

    Raises:
        PolytokError: there are more merges than ids (12 million).
    """

    def __init__(
        self,
        merges: Sequence[Merge],
        *,
        prefix: str = "",
        suffix: str = "",
        alphabet: Collection[str] | None = None,
    ) -> None:
        if len(merges) > PAIR - _MERGED:
            raise PolytokError(f"{len(merges)} merges are more than {PAIR - _MERGED}")
        self.prefix, self.suffix = prefix, suffix
        self.alphabet = None if alphabet is None else np.array(sorted(map(ord, alphabet)), np.int32)
        self.tokens: list[str] = []
        self._ids: dict[str, int] = {}
        self.triples = [self._triple(*merge) for merge in merges]

    def _triple(self, left: str, right: str) -> tuple[int, int, int]:
        ids = self.id(left), self.id(right)
        return *ids, self._merged(left + right.removeprefix(self.prefix))

    def id(self, token: str) -> int:
        """The id of a side of a merge; a token of unknown origin gets one that no text holds."""
        if token in self._ids:
            return self._ids[token]
        plane = 0
        if self.prefix and token.startswith(self.prefix):
            token, plane = token.removeprefix(self.prefix), _INSIDE
        if self.suffix and token.endswith(self.suffix):
            token, plane = token.removesuffix(self.suffix), plane + _END
        return ord(token) + plane if len(token) == 1 else self._merged(token)

    def _merged(self, token: str) -> int:
        if token not in self._ids:
            self._ids[token] = _MERGED + len(self.tokens)
            self.tokens.append(token)
        return self._ids[token]

    def append(self, left: int, right: int) -> int:
        """Add a merge by the ids of its sides; returns the id of the token it makes."""
        merge = self.token(left), self.token(right)
        self.triples.append(self._triple(*merge))
        return self.triples[-1][2]

    def token(self, symbol: int) -> str:
        """What a symbol is written as."""
        if symbol >= _MERGED:
            return self.tokens[symbol - _MERGED]
        plane, char = divmod(symbol, _CHARS)
        return self.prefix * (plane & 1) + chr(char) + self.suffix * (plane >> 1)

    def pair(self, key: int) -> Merge:
        """The two tokens of a pair."""
        left, right = divmod(key, PAIR)
        return self.token(left), self.token(right)

    def symbols(self, words: Sequence[str]) -> tuple[NDArray[np.int32], Ints]:
        """Ids of the characters of all words (an edge for those outside the alphabet), lengths."""
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        ids = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), "<i4").copy()
        outside = None if self.alphabet is None else ~np.isin(ids, self.alphabet)
        filled = lengths[lengths > 0]
        ends = np.cumsum(filled) - 1
        if self.prefix:
            ids += _INSIDE
            ids[ends - filled + 1] -= _INSIDE
        if self.suffix:
            ids[ends] += _END
        if outside is not None:
            ids[outside] = _EDGE
        return ids, lengths


class Segmentation:
    """A corpus as a table of words, cut into symbols that merges join.

    All words lie in one chain of symbols with an edge between any two. Positions of every pair are
    kept by the symbol that came last to it, so a merge touches the places it changes and no others.

    Args:
        words: the distinct words.
        counts: (words, parts) how often each occurs in each part of the corpus.
        table: the symbols; :meth:`merge` takes ids of it.
    """

    def __init__(self, words: Sequence[str], counts: Ints, table: MergeTable) -> None:
        ids, lengths = table.symbols(words)
        size = len(ids) + len(lengths) + 1
        word = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        at = np.arange(len(ids)) + word + 1
        self._counts, self._word = counts, np.zeros(size, np.int32)
        self._word[at] = word
        self._symbols = np.full(size, _EDGE, np.int32)
        self._symbols[at] = ids
        self._next = np.arange(1, size + 1, dtype=np.int32)
        self._before = np.arange(-1, size - 1, dtype=np.int32)
        left, right = self._symbols[:-1], self._symbols[1:]
        places = np.flatnonzero((left >= 0) & (right >= 0)).astype(np.int32)
        keys = left[places].astype(np.int64) * PAIR + right[places]
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], places[order]
        self._on_left: dict[int, list[tuple[Positions, Positions]]] = {}
        self._on_right: dict[int, list[tuple[Positions, Positions]]] = {}
        self.num_tokens: Ints = lengths @ counts

    def pair_counts(self) -> tuple[Ints, Ints]:
        """Pairs before any merge (pairs,), ascending, and their counts (pairs, parts)."""
        if not len(self._keys):
            return self._keys, self._counts[:0]
        starts = np.flatnonzero(np.diff(self._keys, prepend=-1))
        amounts = np.zeros((len(starts), self._counts.shape[1]), np.int64)
        for part, counts in enumerate(self._counts.T):
            amounts[:, part] = np.add.reduceat(counts[self._word[self._places]], starts)
        return self._keys[starts], amounts

    def merge(self, left: int, right: int, new: int) -> tuple[Ints, Ints]:
        """Join every ``left right`` to ``new``, leftmost first.

        Returns:
            Pairs whose counts change (pairs,) and by what in each part (pairs, parts), or by 0.
        """
        at = self._find(left, right)
        if not len(at):
            return self._keys[:0], self._counts[:0]
        symbols, following = self._symbols, self._next
        second = following[at]
        after, weights = following[second], self._counts[self._word[at]]
        joined = weights.sum(axis=0)
        self.num_tokens -= joined
        old_left, old_right = symbols[self._before[at]], symbols[after]
        symbols[at], symbols[second] = new, _GONE
        following[at], self._before[after] = after, at
        before = self._before[at]
        new_left, has_left = symbols[before], old_left >= 0
        # Where the next symbols were joined too, the pair between is the left one of theirs.
        has_right = (old_right >= 0) & (symbols[after] == old_right)
        self._keep(self._on_left, new, new_left[has_left], before[has_left])
        self._keep(self._on_right, new, old_right[has_right], at[has_right])
        return _summed(
            [
                (np.full(1, left), np.full(1, right), -joined[None]),
                (old_left[has_left], left, -weights[has_left]),
                (new_left[has_left], new, weights[has_left]),
                (right, old_right[has_right], -weights[has_right]),
                (new, old_right[has_right], weights[has_right]),
            ]
        )

    def _find(self, left: int, right: int) -> Positions:
        """Where a pair starts, without those that overlap one before."""
        key = left * PAIR + right
        first, last = np.searchsorted(self._keys, [key, key + 1])
        found = [self._places[first:last]]
        for side, symbol, other in ((self._on_left, right, left), (self._on_right, left, right)):
            for neighbours, places in side.get(symbol, ()):
                first, last = np.searchsorted(neighbours, [other, other + 1])
                found.append(places[first:last])
        at = np.concatenate(found)
        at = at[(self._symbols[at] == left) & (self._symbols[self._next[at]] == right)]
        if left != right or len(at) < 2:
            return at
        at.sort()
        index = np.arange(len(at))
        is_start = np.ones(len(at), bool)
        is_start[1:] = at[1:] != self._next[at[:-1]]
        start = np.maximum.accumulate(np.where(is_start, index, 0))
        return at[(index - start) % 2 == 0]

    @staticmethod
    def _keep(
        side: dict[int, list[tuple[Positions, Positions]]],
        symbol: int,
        neighbours: Positions,
        places: Positions,
    ) -> None:
        if len(places):
            order = np.argsort(neighbours, kind="stable")
            side.setdefault(symbol, []).append((neighbours[order], places[order]))


def _summed(parts: Sequence[tuple[ArrayLike, ArrayLike, Ints]]) -> tuple[Ints, Ints]:
    """Distinct pairs and the sums of their changes."""
    keys = np.concatenate([np.multiply(a, PAIR, dtype=np.int64) + b for a, b, _ in parts])
    amounts = np.concatenate([w for _, _, w in parts])
    order = np.argsort(keys)
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[starts], np.add.reduceat(amounts[order], starts, axis=0)


def train_bpe(
    words: Mapping[str, int], num_merges: int, *, min_frequency: int = 1
) -> tuple[Merge, ...]:
    """Learn merges: the most frequent pair, again and again; of equals the one of lowest ids.

    The order of Hugging Face's trainer, whose ids are characters by code point, then merges.

    Args:
        words: pre-tokens and how often each occurs.
        num_merges: at most; fewer when no pair is left.
        min_frequency: of a pair that is still merged, at least 1.
    """
    table = MergeTable(())
    frequency = np.fromiter(words.values(), np.int64, len(words))
    text = Segmentation(list(words), frequency[:, None], table)
    keys, amounts = text.pair_counts()
    counts = dict(zip(keys.tolist(), amounts[:, 0].tolist(), strict=True))
    heap = [(-count, key) for key, count in counts.items()]
    heapq.heapify(heap)
    merges: list[Merge] = []
    while heap and len(merges) < num_merges:
        count, key = heapq.heappop(heap)
        now = counts[key]
        if now != -count:
            # Counts that fell since are put back where they belong; those that rose are in anew.
            if 0 < now < -count:
                heapq.heappush(heap, (-now, key))
            continue
        if now < min_frequency:
            break
        left, right = divmod(key, PAIR)
        merges.append(table.pair(key))
        new = table.append(left, right)
        keys, amounts = text.merge(left, right, new)
        for changed, by in zip(keys.tolist(), amounts[:, 0].tolist(), strict=True):
            counts[changed] = counts.get(changed, 0) + by
            if by > 0:
                heapq.heappush(heap, (-counts[changed], changed))
    return tuple(merges)
