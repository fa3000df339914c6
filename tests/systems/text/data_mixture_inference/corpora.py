"""Small corpora with words of their own, and slow plain programs that tests compare with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from polytok.systems.text._bpe import train_bpe
from polytok.systems.text.data_mixture_inference.counting import Target
from polytok.systems.text.data_mixture_inference.rules import Rules

WORDS = Rules("given", None, {"type": "WhitespaceSplit"})
"""Words are what blanks part, without them."""

LETTERS = {"a": "abcdefgh", "b": "efghijkl", "c": "acegikmo"}


def corpus(name: str, *, words: int = 3000, seed: int = 0) -> str:
    """Text of a category: words of its own letters, few of them frequent."""
    fixed, rng = (np.random.default_rng([ord(name[0]), n]) for n in (0, seed + 1))
    letters = list(LETTERS[name])
    vocabulary = ["".join(fixed.choice(letters, fixed.integers(2, 7))) for _ in range(120)]
    ranks = np.minimum(rng.zipf(1.4, words), len(vocabulary)) - 1
    return " ".join(vocabulary[r] for r in ranks) + "\n"


def trained(texts: Sequence[str], num_merges: int) -> Target:
    """A tokenizer trained on texts."""
    counts = Counter(word for text in texts for word in text.split())
    return Target(train_bpe(counts, num_merges), WORDS)


def plain_merge(word: Sequence[str], left: str, right: str) -> list[str]:
    """Join ``left right`` in a word, leftmost first."""
    out: list[str] = []
    rest = list(word)
    while rest:
        if rest[:2] == [left, right]:
            out.append(left + right)
            rest = rest[2:]
        else:
            out.append(rest.pop(0))
    return out


def plain_counts(
    words: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> list[Counter[tuple[str, str]]]:
    """Counts of all pairs before each merge and after the last, each by a new look at all words."""
    cut = {word: list(word) for word in words}
    states = []
    for left, right in [*merges, ("", "")]:
        counts: Counter[tuple[str, str]] = Counter()
        for word, parts in cut.items():
            for pair in pairwise(parts):
                counts[pair] += words[word]
        states.append(counts)
        cut = {word: plain_merge(parts, left, right) for word, parts in cut.items()}
    return states
