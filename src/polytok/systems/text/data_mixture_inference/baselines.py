"""What the method is measured against: guesses, and what a vocabulary shows at first sight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from polytok.core.errors import PolytokError
from polytok.systems.text._bpe import MergeTable, Segmentation, train_bpe
from polytok.systems.text.data_mixture_inference.counting import PairTranscript, Target, Words
from polytok.systems.text.data_mixture_inference.ledger import Ledger

Shares = dict[str, float]


def uniform_shares(names: Sequence[str]) -> Shares:
    """The same share for every category."""
    return {name: 1 / len(names) for name in names}


def random_shares(names: Sequence[str], rng: np.random.Generator) -> Shares:
    """A point of the simplex, all alike likely."""
    return dict(zip(names, rng.dirichlet(np.ones(len(names))).tolist(), strict=True))


def token_classification(transcripts: Sequence[PairTranscript], target: Target) -> Shares:
    """TC: give each token to the category where it is most frequent, and count tokens.

    A token's frequency is that of its merge when it is made, in shares of pairs.
    """
    ledger = Ledger(transcripts, target)
    own = (ledger.own @ ledger.mix())[~ledger.is_missing]
    votes = np.bincount(own.argmax(axis=1), minlength=len(ledger.names)) if len(own) else None
    if votes is None:
        return uniform_shares(ledger.names)
    return dict(zip(ledger.names, (votes / votes.sum()).tolist(), strict=True))


def encoding_efficiency(
    transcripts: Sequence[PairTranscript], words: Sequence[Words], num_merges: int
) -> dict[str, float]:
    """Bytes per token of each category under the tokenizer, over those under one of its own.

    Args:
        transcripts: one per category. words: of the same samples.
        num_merges: of the tokenizers that are trained on each sample alone.
    """
    out = {}
    for transcript, (counts, size) in zip(transcripts, words, strict=True):
        merges = train_bpe(counts, num_merges)
        table = MergeTable(merges)
        frequency = np.fromiter(counts.values(), np.int64, len(counts))
        text = Segmentation(list(counts), frequency[:, None], table)
        for triple in table.triples:
            text.merge(*triple)
        alone = size / max(1, int(text.num_tokens[0]))
        mixed = float(transcript.bytes.sum() / max(1, transcript.tokens.sum()))
        out[transcript.name] = mixed / alone
    return out


def efficiency_shares(efficiency: Mapping[str, float], slope: float) -> Shares:
    """TEE: shares proportional to a power of the efficiency."""
    logs = np.log(np.array(list(efficiency.values()))) * slope
    raw = np.exp(logs - logs.max())
    return dict(zip(efficiency, (raw / raw.sum()).tolist(), strict=True))


def fitted_slope(
    efficiencies: Sequence[Mapping[str, float]], truths: Sequence[Mapping[str, float]]
) -> float:
    """The power of :func:`efficiency_shares` that fits logs of known shares best.

    Raises:
        PolytokError: there is no mixture.
    """
    if not efficiencies:
        raise PolytokError("no known mixture to fit to")
    x, y = [], []
    for efficiency, truth in zip(efficiencies, truths, strict=True):
        logs = np.log([[efficiency[n], max(truth[n], 1e-6)] for n in efficiency])
        logs -= logs.mean(axis=0)
        x += logs[:, 0].tolist()
        y += logs[:, 1].tolist()
    return float(np.dot(x, y) / max(np.dot(x, x), 1e-12))
