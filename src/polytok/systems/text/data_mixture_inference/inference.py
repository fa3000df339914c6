"""From counts, or from texts, to the shares of a tokenizer's training text."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytok.core.errors import PolytokError
from polytok.core.seeding import numpy_rng
from polytok.systems.text._tokenizer_file import TokenizerFile, read_tokenizer, without_runs
from polytok.systems.text.data_mixture_inference.counting import (
    MAX_MERGES,
    PairTranscript,
    Target,
    count_pairs,
)
from polytok.systems.text.data_mixture_inference.ledger import Ledger
from polytok.systems.text.data_mixture_inference.result import Fit, MixtureResult, byte_shares
from polytok.systems.text.data_mixture_inference.rules import Rules
from polytok.systems.text.data_mixture_inference.samples import split_documents
from polytok.systems.text.data_mixture_inference.solver import (
    Optimum,
    Progress,
    SolveConfig,
    resampled_shares,
    solve_path,
)

Floats = NDArray[np.float64]

FEW_PAIRS = 100_000
"""A category with fewer pairs than that comes with a caveat."""

_FRACTIONS = (0.125, 0.25, 0.5, 1.0)
_Z95 = 1.96
_ALIKE = 0.999


def target_of(
    tokenizer: Any,
    *,
    num_merges: int = MAX_MERGES,
    rules: str | None = None,
    normalizer: Any = None,
    pre_tokenizer: Any = None,
    drop_runs: bool = False,
) -> Target:
    """What is needed of a tokenizer under study.

    Args:
        tokenizer: a path, a ``tokenizers.Tokenizer``, a :class:`TokenizerFile`, or merges.
        rules: of a family (``gpt2``, ``cl100k``, ``o200k``, ``sentencepiece``) in place of its own.
        normalizer, pre_tokenizer: in place of its own; JSON or objects of ``tokenizers``.
        drop_runs: leave out merges of repeated blanks, which some tokenizers were given by hand.

    Raises:
        SignalError: it cannot be read or is not BPE.
    """
    if isinstance(tokenizer, (list, tuple)):
        file = TokenizerFile(model="BPE", vocab={}, merges=tuple((a, b) for a, b in tokenizer))
    else:
        file = tokenizer if isinstance(tokenizer, TokenizerFile) else read_tokenizer(tokenizer)
    if drop_runs:
        file = replace(file, merges=without_runs(file.merges))
    target = Target.of(file, num_merges=num_merges, rules=rules)
    if normalizer is None and pre_tokenizer is None:
        return target
    own = target.rules
    given = Rules(
        "given",
        own.normalizer if normalizer is None else _json(normalizer),
        own.pre_tokenizer if pre_tokenizer is None else _json(pre_tokenizer),
    )
    return replace(target, rules=given)


def _json(rules: Any) -> dict[str, Any]:
    if isinstance(rules, dict):
        return rules
    return dict(json.loads(rules.__getstate__()))


def infer_mixture(
    tokenizer: Any,
    samples: Mapping[str, Iterable[str] | str],
    *,
    num_merges: int = MAX_MERGES,
    num_parts: int = 8,
    rules: str | None = None,
    normalizer: Any = None,
    pre_tokenizer: Any = None,
    resamples: int = 0,
    seed: int = 0,
    config: SolveConfig | None = None,
    progress: Progress | None = None,
) -> MixtureResult:
    """Infer in which shares categories of text were in a tokenizer's training text.

    Args:
        tokenizer: see :func:`target_of`.
        samples: documents of every category that may have been in it.
        num_merges: at most; late ones are noisy.
        num_parts: that each sample is cut into, for the bootstrap.
        resamples: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap.
        progress: called with a line now and then.

    Raises:
        PolytokError: the tokenizer is not BPE, a sample has no text, or a number is out of range.

    Example:
        >>> merges = [("t", "h"), ("th", "e"), ("e", "i")]
        >>> texts = {"en": "the then they " * 9, "de": "ein kein mein die " * 9}
        >>> sorted(infer_mixture(merges, texts, rules="gpt2").byte_share)
        ['de', 'en']

    Source: Hayase et al. 2024 (arXiv 2407.16607).
    """
    if num_parts < 1:
        raise PolytokError(f"num_parts={num_parts} is below 1")
    if not samples:
        raise PolytokError("no category is given")
    target = target_of(
        tokenizer,
        num_merges=num_merges,
        rules=rules,
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
    )
    transcripts = []
    for name, documents in samples.items():
        if progress:
            progress(f"counting {name}")
        transcripts.append(count_pairs(split_documents(documents, num_parts), target, name=name))
    return solve(
        transcripts, target, resamples=resamples, seed=seed, config=config, progress=progress
    )


def solve(
    transcripts: Sequence[PairTranscript],
    target: Target,
    *,
    num_merges: int | None = None,
    resamples: int = 0,
    seed: int = 0,
    config: SolveConfig | None = None,
    progress: Progress | None = None,
) -> MixtureResult:
    """Infer shares from counts.

    Args:
        transcripts: one per category. target: whose merges they count.
        num_merges: only the first so many; None for all counted.
        resamples: of the parts of every category; each costs about a solve. 0 for no intervals.

    Raises:
        PolytokError: no category, two of one name, or counts of another tokenizer.
    """
    if num_merges is not None and num_merges < 1:
        raise PolytokError(f"num_merges={num_merges} is below 1")
    if resamples < 0 or resamples == 1:
        raise PolytokError(f"resamples={resamples}: need 0 for no intervals, or at least 2")
    start = time.perf_counter()
    ledger = Ledger(transcripts, target, num_merges)
    path = sorted({max(1, int(ledger.num_merges * f)) for f in _FRACTIONS})
    program, optima = solve_path(ledger, config or SolveConfig(), path, progress)
    ratio = _bytes_per_pair(ledger)
    best = optima[-1]
    bytes_ = byte_shares(best.shares, ratio)
    interval = None
    if resamples:
        rng = numpy_rng(seed, "mixture", "parts")
        drawn = resampled_shares(program, draws=resamples, rng=rng, progress=progress)
        error = _Z95 * byte_shares(drawn, ratio).std(axis=0, ddof=1)
        interval = {
            name: (max(0.0, float(share - e)), min(1.0, float(share + e)))
            for name, share, e in zip(ledger.names, bytes_, error, strict=True)
        }
    fit = _fit(ledger, best)
    return MixtureResult(
        byte_share=_named(ledger, bytes_),
        pair_share=_named(ledger, best.shares),
        byte_interval=interval,
        by_merges={
            n: _named(ledger, byte_shares(o.shares, ratio))
            for n, o in zip(path, optima, strict=True)
        },
        fit=fit,
        merge_slack=tuple(best.merge_slack.tolist()),
        pair_slack=_pair_slack(ledger, target, best),
        missing_merges=tuple(" ".join(target.merges[t]) for t in np.flatnonzero(ledger.is_missing)),
        rounds=best.rounds,
        seconds=time.perf_counter() - start,
        caveats=tuple(_caveats(ledger, target, fit, interval is not None)),
    )


def _named(ledger: Ledger, values: Floats) -> dict[str, float]:
    return dict(zip(ledger.names, values.tolist(), strict=True))


def _bytes_per_pair(ledger: Ledger) -> Floats:
    return np.bincount(ledger.category, ledger.bytes) / np.bincount(
        ledger.category, ledger.num_pairs
    )


def _fit(ledger: Ledger, best: Optimum) -> Fit:
    is_free = best.merge_slack[~ledger.is_missing] <= 0
    slackless = float(is_free.mean()) if len(is_free) else 0.0
    return Fit(misfit=best.objective, gap=best.gap, slackless=slackless)


def _pair_slack(ledger: Ledger, target: Target, best: Optimum) -> dict[str, float]:
    table = target.table()
    slack = best.pair_slack
    order = np.argsort(-slack, kind="stable")[: np.count_nonzero(slack)]
    return {" ".join(table.pair(int(ledger.pairs[i]))): float(slack[i]) for i in order}


def _caveats(ledger: Ledger, target: Target, fit: Fit, has_interval: bool) -> list[str]:
    out = []
    if target.rules.name not in ("its own", "given"):
        out.append(f"text was cut into words by the rules of {target.rules.name!r}")
    missing = int(ledger.is_missing.sum())
    if missing == ledger.num_merges:
        out.append("no merge occurs in any sample; the shares say nothing")
    elif missing:
        out.append(f"{missing:,} of {ledger.num_merges:,} merges occur in no sample")
    totals = np.bincount(ledger.category, ledger.num_pairs)
    out += [
        f"category {name!r} has only {int(total):,} pairs; its share is rough"
        for name, total in zip(ledger.names, totals, strict=True)
        if total < FEW_PAIRS
    ]
    out += [
        f"categories {a!r} and {b!r} read alike; only the sum of their shares is known"
        for a, b in _alike(ledger)
    ]
    if fit.gap > 0.1 * fit.misfit and fit.gap > 1e-6:
        out.append(f"the solver stopped early: up to {fit.gap:.3g} of misfit was left out")
    if has_interval and np.bincount(ledger.category).min() < 2:
        out.append("a category of one part does not vary in the intervals")
    return out


def _alike(ledger: Ledger) -> list[tuple[str, str]]:
    """Pairs of categories whose counts of the merges point the same way."""
    own = ledger.own @ ledger.mix()
    norms = np.linalg.norm(own, axis=0)
    directions = own / np.where(norms > 0, norms, 1.0)
    cosines = directions.T @ directions
    rows, columns = np.nonzero(np.triu(cosines > _ALIKE, k=1))
    return [(ledger.names[i], ledger.names[j]) for i, j in zip(rows, columns, strict=True)]
