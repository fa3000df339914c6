"""Tokenizers of known mixture: what the method can be checked against."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polytok.core.errors import PolytokError
from polytok.core.seeding import numpy_rng
from polytok.systems.text._bpe import train_bpe
from polytok.systems.text._shared import BYTE_ALPHABET
from polytok.systems.text._tokenizer_file import Merge, TokenizerFile
from polytok.systems.text.data_mixture_inference.counting import Words, count_words
from polytok.systems.text.data_mixture_inference.rules import Rules, rules_of
from polytok.systems.text.data_mixture_inference.samples import (
    Category,
    Slice,
    find_categories,
    read,
)

_BLOCK = 8192


@dataclass(frozen=True)
class Synthesis:
    """A tokenizer trained on a known mixture, and text that it has not seen.

    Args:
        merges: in order. rules: under which they were learnt.
        byte_count: bytes of training text by category.
        samples: the other text, cut into parts.
    """

    merges: tuple[Merge, ...]
    rules: Rules
    byte_count: dict[str, int]
    samples: tuple[Category, ...]

    @property
    def truth(self) -> dict[str, float]:
        """Shares of bytes."""
        total = sum(self.byte_count.values())
        return {name: size / total for name, size in self.byte_count.items()}

    def tokenizer_json(self) -> dict[str, Any]:
        """The tokenizer as Hugging Face reads it."""
        tokens = dict.fromkeys([*BYTE_ALPHABET, *(a + b for a, b in self.merges)])
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": self.rules.normalizer,
            "pre_tokenizer": self.rules.pre_tokenizer,
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
            "model": {
                "type": "BPE",
                "vocab": {token: i for i, token in enumerate(tokens)},
                "merges": [list(merge) for merge in self.merges],
            },
        }


def synthesize(
    sources: Sequence[str],
    *,
    shares: dict[str, float] | None = None,
    num_merges: int = 3000,
    total_bytes: int = 4_000_000,
    sample_bytes: int | None = None,
    num_parts: int = 8,
    rules: str = "gpt2",
    seed: int = 0,
) -> Synthesis:
    """Train a byte-level BPE tokenizer on a mixture of categories, on half of each one's text.

    Every category is cut into blocks of 8 KB at line ends; a random half trains, over and over
    where more is wanted than there is, and the other half makes the samples.

    Args:
        sources: as for :func:`find_categories`.
        shares: by category; None draws them from a flat Dirichlet distribution.
        total_bytes: of training text.
        sample_bytes: at most, of each sample; None for all.
        num_parts: of each sample.

    Raises:
        PolytokError: shares do not name the categories or are not shares, a category is too short
            to be halved, or a number is out of range.
    """
    if min(num_merges, total_bytes, num_parts) < 1:
        raise PolytokError(
            f"num_merges={num_merges}, total_bytes={total_bytes}, num_parts={num_parts}: need >= 1"
        )
    found = rules_of(TokenizerFile(model="BPE", vocab={}), rules)
    if not is_byte_rules(found):
        raise PolytokError(f"rules {rules!r} are not of bytes; a mixture is trained on bytes")
    categories = [_blocks(source) for source in find_categories(sources, num_parts=1)]
    weights = _weights([c.name for c in categories], shares, seed)
    words: Counter[str] = Counter()
    sizes: dict[str, int] = {}
    samples = []
    for category in categories:
        order = numpy_rng(seed, "blocks", category.name).permutation(len(category.parts))
        half = len(order) // 2
        wanted = round(total_bytes * weights[category.name])
        part, sizes[category.name] = _training_words(category, order[:half], wanted, found)
        words.update(part)
        samples.append(_sample(category, order[half:], num_parts, sample_bytes))
    merges = train_bpe(words, num_merges)
    if not merges:
        raise PolytokError("the training text has no two characters side by side")
    return Synthesis(merges, found, sizes, tuple(samples))


def is_byte_rules(rules: Rules) -> bool:
    """Whether words come out as characters that stand for bytes."""
    return '"ByteLevel"' in json.dumps(rules.pre_tokenizer)


def _blocks(category: Category) -> Category:
    """The same text in parts of about 8 KB."""
    slices = [
        Slice(s.path, low, min(low + _BLOCK, s.stop))
        for part in category.parts
        for s in part
        for low in range(s.start, s.stop, _BLOCK)
    ]
    if len(slices) < 2:
        raise PolytokError(
            f"category {category.name!r} has less than {_BLOCK:,} bytes; "
            "one half is to train and the other to be a sample"
        )
    return replace(category, parts=tuple((s,) for s in slices))


def _weights(names: list[str], shares: dict[str, float] | None, seed: int) -> dict[str, float]:
    if shares is None:
        drawn = numpy_rng(seed, "shares").dirichlet(np.ones(len(names)))
        return dict(zip(names, drawn.tolist(), strict=True))
    if set(shares) != set(names):
        raise PolytokError(f"shares of {sorted(shares)}, but the categories are {sorted(names)}")
    total = sum(shares.values())
    if min(shares.values()) < 0 or not 0 < total < float("inf"):
        raise PolytokError(f"shares {shares} are not all >= 0 with a positive sum")
    return {name: share / total for name, share in shares.items()}


def _training_words(category: Category, order: Any, wanted: int, rules: Rules) -> Words:
    words: Counter[str] = Counter()
    size = 0
    blocks: dict[int, Words] = {}
    for block in itertools.cycle(order.tolist()):
        if size >= wanted:
            break
        if block not in blocks:
            blocks[block] = count_words(read(category.parts[block]), rules)
        found, bytes_ = blocks[block]
        words.update(found)
        size += bytes_
        if not any(bytes_ for _, bytes_ in blocks.values()) and len(blocks) == len(order):
            break
    return words, size


def _sample(category: Category, order: Any, num_parts: int, limit: int | None) -> Category:
    if limit is not None:
        order = order[: max(1, limit // _BLOCK)]
    parts: list[list[Slice]] = [[] for _ in range(min(num_parts, len(order)))]
    for i, block in enumerate(order.tolist()):
        parts[i % len(parts)] += category.parts[block]
    return replace(category, parts=tuple(map(tuple, parts)))
