"""A tokenizer's splits by scores: the Unigram model that comes nearest to it (card section 4)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from polytok.core.errors import SignalError
from polytok.systems.text._lp import linear_program, rows_of
from polytok.systems.text.zett.bytelevel import ByteLevel, build
from polytok.systems.text.zett.vocabulary import FILL_SCORE

MARGIN, PULL = 1e-3, 0.01
UNUSED_SHARE = 1e-9  # prior share of a piece that the texts do not have


@dataclass(frozen=True)
class Unigramified:
    """A Unigram tokenizer and how far it is the old one.

    Args:
        agreement: share of words, each as often as it occurs, that it splits as the old one does.
        prior_agreement: the same with scores straight from counts. rounds: programs solved.
    """

    tokenizer: ByteLevel
    agreement: float
    prior_agreement: float
    rounds: int


def unigramify(
    tokenizer: ByteLevel, texts: Iterable[str], *, max_words: int = 100_000, rounds: int = 16
) -> Unigramified:
    """Find scores under which a tokenizer's own splits of frequent words are the best ones.

    A linear program: one score per piece, and one slack per split that competes; the tokenizer's
    split has to win by 1e-3 less its slack. The least is sought of slack, each as often as its word
    occurs, plus 0.01 times the distance of the scores from logs of substring shares. Competitors
    are the splits that win under the scores so far, one more per word and round.

    Args:
        tokenizer: any over bytes; ids and special tokens stay. texts: what words are frequent in.
        rounds: most competitors per word.

    Raises:
        SignalError: the texts hold no word.
    """
    words = dict(_words(tokenizer, texts).most_common(max_words))
    if not words:
        raise SignalError("the texts hold no word to split")
    tokens = tokenizer.vocabulary.tokens
    ids = {t.text: i for i, t in enumerate(tokens) if t.kind == "piece"}
    wanted = {word: tuple(tokenizer.spell(word)) for word in words}
    prior = _prior(words, ids, len(tokens))
    longest = max(map(len, ids))

    def agreement(scores: np.ndarray) -> float:
        right = sum(n for w, n in words.items() if _best(w, ids, scores, longest) == wanted[w])
        return right / sum(words.values())

    program = linear_program()
    # Scores are the prior plus one column less another, so that their sum is the distance.
    program.add_columns(np.full(2 * len(tokens), PULL))
    program.add_columns([0.0], lower=1.0, upper=1.0)
    scores, num_columns, count = prior, 2 * len(tokens) + 1, 0
    for _ in range(rounds):
        rivals = [(w, _best(w, ids, scores, longest)) for w in words]
        # No scores tell two orders of the same pieces apart.
        rivals = [(w, found) for w, found in rivals if sorted(found) != sorted(wanted[w])]
        if not rivals:
            break
        program.add_columns([float(words[w]) for w, _ in rivals])
        parts = [
            _row(wanted[w], found, prior, num_columns + i) for i, (w, found) in enumerate(rivals)
        ]
        program.add_rows(*rows_of(parts), MARGIN, math.inf)
        num_columns += len(rivals)
        values = program.solve().values
        scores = prior + values[: len(tokens)] - values[len(tokens) : 2 * len(tokens)]
        count += 1
    made = replace(
        tokenizer.vocabulary,
        model="Unigram",
        merges=(),
        tokens=tuple(replace(t, score=float(s)) for t, s in zip(tokens, scores, strict=True)),
    )
    return Unigramified(build(made), agreement(scores), agreement(prior), count)


def _words(tokenizer: ByteLevel, texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in texts, in byte characters, split as the tokenizer does."""
    inner = tokenizer.tokenizer
    counts: Counter[str] = Counter()
    for text in texts:
        if inner.normalizer is not None:
            text = inner.normalizer.normalize_str(text)
        assert inner.pre_tokenizer is not None
        counts.update(word for word, _ in inner.pre_tokenizer.pre_tokenize_str(text))
    return counts


def _prior(words: Mapping[str, int], ids: Mapping[str, int], size: int) -> np.ndarray:
    """Logs of each piece's share of count x length over all substrings that are pieces."""
    shares = np.full(size, 0.0)
    longest = max(map(len, ids))
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(start + longest, len(word)) + 1):
                index = ids.get(word[start:end])
                if index is not None:
                    shares[index] += count * (end - start)
    scores = np.log(np.maximum(shares / shares.sum(), UNUSED_SHARE))
    is_piece = np.zeros(size, bool)
    is_piece[list(ids.values())] = True
    return np.where(is_piece, scores, FILL_SCORE)


def _best(word: str, ids: Mapping[str, int], scores: np.ndarray, longest: int) -> tuple[int, ...]:
    """The split of a word with the largest sum of scores (Viterbi)."""
    best = [0.0] + [-math.inf] * len(word)
    last: list[tuple[int, int]] = [(0, 0)] * (len(word) + 1)
    for end in range(1, len(word) + 1):
        for start in range(max(end - longest, 0), end):
            index = ids.get(word[start:end])
            if index is not None and best[start] + scores[index] > best[end]:
                best[end], last[end] = best[start] + scores[index], (start, index)
    path: list[int] = []
    end = len(word)
    while end:
        end, index = last[end]
        path.append(index)
    return tuple(reversed(path))


def _row(
    own: Sequence[int], rival: Sequence[int], prior: np.ndarray, slack: int
) -> tuple[list[int], list[float]]:
    """Score of a word's own split less the rival's, plus slack: columns and values."""
    size = len(prior)
    weights = Counter(own)
    weights.subtract(Counter(rival))
    entries = {i: float(n) for i, n in weights.items() if n}
    constant = float(sum(n * prior[i] for i, n in entries.items()))
    columns = [*entries, *(size + i for i in entries), 2 * size, slack]
    values = [*entries.values(), *(-n for n in entries.values()), constant, 1.0]
    return columns, values
