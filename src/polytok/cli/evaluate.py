"""Scores of a tokenizer over a folder or zip of signals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from polytok.cli import show
from polytok.cli.kinds import Kind, Row
from polytok.core.errors import PolytokError, one_line
from polytok.core.files import opened_folder
from polytok.metrics import bootstrap_mean
from polytok.systems.codec import Codec


def evaluate(
    source: Path,
    codec: Codec,
    kind: Kind,
    *,
    every: int,
    limit: int | None,
    seed: int,
    options: dict[str, Any],
) -> Row:
    """Encode and decode every signal and score it.

    Files that cannot be read have no truth to score against: they are listed as failures only.
    Scores of a prefix are summed up if all rows have one of that length.

    Returns:
        rows per signal, means with 95% bootstrap intervals, failures, conventions.

    Raises:
        PolytokError: the source has no such files, or none of them can be read.
    """
    rows: list[Row] = []
    failures: list[Row] = []
    with opened_folder(source) as root:
        found = (p for p in root.rglob("*") if p.suffix.lower() in kind.EXTENSIONS)
        files = sorted(found)[::every][:limit]
        if not files:
            raise PolytokError(f"{source} has no {kind.NOUN}s")
        for path in show.progress(files, "evaluating"):
            name = path.relative_to(root).as_posix()
            try:
                truth = kind.read(path)
            except (PolytokError, OSError) as error:
                failures.append({kind.NOUN: name, "reason": one_line(error)})
                continue
            try:
                scores: Row | None = kind.score(codec, truth, seed=seed, **options)
            except PolytokError as error:
                # One picture that does not fit into so many bytes says nothing about the others.
                failures.append({kind.NOUN: name, "reason": one_line(error)})
                scores = kind.failed(truth, seed=seed)
            if scores is not None:
                rows.append({kind.NOUN: name, **scores})
    if not rows:
        raise PolytokError(f"{source}: no {kind.NOUN} can be used; {failures[0]['reason']}")
    return {
        "model": codec.name,
        "weights": codec.weights,
        "source": source.name,
        **kind.settings(**options),
        "seed": seed,
        f"{kind.NOUN}s": len(files),
        "encoded": len(files) - len(failures),
        "summary": {
            k: _interval([r[k] for r in rows if k in r], seed)
            for k in _summed(rows)
            if k not in kind.FACTS
        },
        "conventions": kind.conventions(),
        "failures": failures,
        "rows": rows,
    }


def _summed(rows: list[Row]) -> list[str]:
    """The numbers of rows, without those of prefixes that only the longer codes have."""
    numbers = [k for r in rows for k, v in r.items() if isinstance(v, (int, float))]
    counts = Counter(numbers)
    return [k for k in counts if not k.startswith("prefix_") or counts[k] == len(rows)]


def _interval(values: list[float], seed: int) -> dict[str, float]:
    interval = bootstrap_mean(np.asarray(values, np.float64), seed=seed)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
