"""Random tokenizers: Unigram models of the substrings of recent texts, with noise (card 2d)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from polytok.core.errors import ConfigError, SignalError
from polytok.core.seeding import numpy_rng
from polytok.systems.text._shared import BYTE_ALPHABET, to_chars
from polytok.systems.text.zett.bytelevel import SPLIT, ByteLevel, build, unigram
from polytok.systems.text.zett.vocabulary import has_run, read, whitespace_runs, with_specials

# Odd multipliers that spread bits; two of a million substrings meet once in 10^7 tables.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_OFFSET = np.uint64(0xD6E8FEB86659FD93)

BPE_USES = 8  # samples that share one BPE, which costs more than a step to train


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How tokenizers are drawn.

    Args:
        size_mean, size_std, size_min, size_max: tokens, whitespace and bytes among them.
        noise_median, noise_sigma: of the log-normal deviation of the noise on probabilities;
            a median of 0 for none.
        max_length: longest substring in bytes. stride: characters between two starts in a word.
        queue: batches of texts that a tokenizer is made of.
        bpe_share: of tokenizers that are BPE of the same texts instead (ours, not the paper's: few
            texts give substrings that split words otherwise than most tokenizers in use do).
    """

    size_mean: float = 32_768.0
    size_std: float = 0.0
    size_min: int = 16_384
    size_max: int = 32_768
    noise_median: float = 1e-5
    noise_sigma: float = 4.0
    max_length: int = 15
    stride: int = 4
    queue: int = 16
    bpe_share: float = 0.0

    def __post_init__(self) -> None:
        fewest = len(BYTE_ALPHABET) + len(whitespace_runs())
        if not fewest <= self.size_min <= self.size_max:
            raise ConfigError(
                f"size_min={self.size_min}, size_max={self.size_max} must rise from {fewest}, the "
                "bytes and runs of whitespace that every tokenizer has"
            )
        for name in ("max_length", "stride", "queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.bpe_share <= 1:
            raise ConfigError(f"bpe_share={self.bpe_share} is not within [0, 1]")


@dataclass(frozen=True)
class _Table:
    """Substrings of some texts by their hash, in its order.

    Args:
        keys: (S,) uint64. scores: (S,) count x length. starts, lengths: (S,) where one stands.
        data: the texts' bytes that ``starts`` count in.
    """

    keys: np.ndarray
    scores: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    data: bytes


class TokenizerSampler:
    """Draws tokenizer n from batches n - queue + 1 .. n of texts, the same for the same n.

    Args:
        texts: gives batch n of texts, for any integer n.
        like: the tokenizer whose special tokens every drawn one has.
    """

    def __init__(
        self, texts: Callable[[int], Sequence[str]], like: ByteLevel, config: SamplerConfig
    ) -> None:
        self.texts, self.like, self.config = texts, like, config
        self._split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
        self._table = lru_cache(maxsize=config.queue + 1)(self._read)
        self._bpe = lru_cache(maxsize=1)(self._train_bpe)

    def sample(self, n: int, rng: np.random.Generator) -> ByteLevel:
        """Draw tokenizer ``n``; ``rng`` decides its size and noise.

        Raises:
            SignalError: the texts have no substrings.
        """
        config = self.config
        if config.bpe_share and rng.random() < config.bpe_share:
            return self._bpe(n // BPE_USES)
        size = self._size(rng)
        tables = [self._table(n - age) for age in range(config.queue)]
        keys, where, inverse = np.unique(
            np.concatenate([t.keys for t in tables]), return_index=True, return_inverse=True
        )
        if not len(keys):
            raise SignalError("the texts hold no words to make a tokenizer of")
        scores = np.concatenate([t.scores for t in tables]).astype(np.float64)
        shares = np.bincount(inverse.ravel(), scores) / scores.sum()
        noised = shares
        if config.noise_median:
            std = rng.lognormal(math.log(config.noise_median), config.noise_sigma)
            noised = shares + rng.normal(0.0, std, len(shares))
        return unigram(self._pieces(tables, where, noised, size, float(shares.min())), self.like)

    def _size(self, rng: np.random.Generator) -> int:
        """Tokens of the next tokenizer."""
        config = self.config
        drawn = rng.normal(config.size_mean, config.size_std)
        return int(np.clip(drawn, config.size_min, config.size_max))

    def _train_bpe(self, group: int) -> ByteLevel:
        """A BPE of the queue of texts at the start of a group of samples."""
        n, size = group * BPE_USES, self._size(numpy_rng(group, "bpe"))
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [self._split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=list(BYTE_ALPHABET), show_progress=False
        )
        prefix = " " if self.like.vocabulary.has_prefix else ""
        texts = (prefix + text for age in range(self.config.queue) for text in self.texts(n - age))
        made.train_from_iterator(texts, trainer)
        plain = replace(read(made), has_prefix=self.like.vocabulary.has_prefix)
        return build(with_specials(plain, self.like.vocabulary), resplit=True)

    def _pieces(
        self,
        tables: Sequence[_Table],
        where: np.ndarray,
        noised: np.ndarray,
        size: int,
        least: float,
    ) -> list[tuple[str, float]]:
        """Bytes, runs of whitespace, and the best substrings that are neither."""
        pieces = dict.fromkeys(BYTE_ALPHABET, math.log(least))
        pieces.update(dict.fromkeys(whitespace_runs(), 0.0))
        ends = np.cumsum([len(t.keys) for t in tables])
        # A few more than are wanted, as some are bytes or whitespace.
        few = min(2 * size, len(noised))
        best = np.argpartition(-noised, few - 1)[:few]
        for index in best[np.argsort(-noised[best], kind="stable")]:
            if len(pieces) >= size or noised[index] <= 0:
                break
            part = int(np.searchsorted(ends, where[index], side="right"))
            table = tables[part]
            row = int(where[index] - (ends[part - 1] if part else 0))
            start, length = int(table.starts[row]), int(table.lengths[row])
            text = to_chars(table.data[start : start + length])
            if length > 1 and not has_run(text):
                pieces[text] = math.log(float(noised[index]))
        return list(pieces.items())

    def _read(self, n: int) -> _Table:
        """The substrings of batch ``n``, each once."""
        data, starts, ends = self._words(self.texts(n))
        lengths = np.arange(1, self.config.max_length + 1)
        fits = starts[:, None] + lengths <= ends[:, None]
        keys = _hashes(data, starts, self.config.max_length)[fits]
        at = np.broadcast_to(starts[:, None], fits.shape)[fits]
        size = np.broadcast_to(lengths, fits.shape)[fits]
        unique, first, counts = np.unique(keys, return_index=True, return_counts=True)
        return _Table(unique, counts * size[first], at[first], size[first], data)

    def _words(self, texts: Sequence[str]) -> tuple[bytes, np.ndarray, np.ndarray]:
        """Bytes of all texts; where substrings start, and where the word of each start ends."""
        parts: list[bytes] = []
        starts: list[int] = []
        ends: list[int] = []
        offset = 0
        prefix = " " if self.like.vocabulary.has_prefix else ""
        for text in texts:
            for word, _ in self._split.pre_tokenize_str(prefix + text):
                data = word.encode()
                # Continuation bytes are 10xxxxxx: the others are where characters begin.
                firsts = [i for i, byte in enumerate(data) if byte & 0xC0 != 0x80]
                begins = firsts[:: self.config.stride]
                starts += [offset + i for i in begins]
                offset += len(data)
                ends += [offset] * len(begins)
                parts.append(data)
        return b"".join(parts), np.array(starts, np.int64), np.array(ends, np.int64)


def _hashes(data: bytes, starts: np.ndarray, longest: int) -> np.ndarray:
    """A hash of the 1 .. ``longest`` bytes from each start on (S, longest); past the end: zeros."""
    padded = np.frombuffer(data + b"\0" * longest, np.uint8).astype(np.uint64)
    state = np.zeros(len(starts), np.uint64)
    out = np.empty((len(starts), longest), np.uint64)
    for k in range(longest):
        state = (state + padded[starts + k] + np.uint64(1)) * _FACTOR
        state ^= state >> np.uint64(29)
        state = state * _OFFSET
        state ^= state >> np.uint64(32)
        out[:, k] = state
    return out
