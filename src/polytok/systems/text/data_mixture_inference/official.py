"""Files of the authors' programs (github.com/alisawuffles/tokenizer-attack), read and written.

``merges.txt``, ``meta.json`` (``byte_count`` of each category of the training text), and for each
category a folder with ``all_pair_counts.json`` (a list over merges of the pairs whose counts have
changed, ``"left right"`` to count) and ``meta.json`` (``byte_count`` and ``pairs`` of the sample).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polytok.core.errors import SignalError
from polytok.core.files import write_text
from polytok.systems.text._bpe import PAIR, MergeTable
from polytok.systems.text._tokenizer_file import read_tokenizer
from polytok.systems.text.data_mixture_inference.counting import PairTranscript, Target
from polytok.systems.text.data_mixture_inference.result import MixtureResult
from polytok.systems.text.data_mixture_inference.rules import Rules

MERGES, META, COUNTS = "merges.txt", "meta.json", "all_pair_counts.json"
_RULES = Rules("official", None, None)


def is_official(folder: Path) -> bool:
    """Whether a folder holds counts of the authors' programs."""
    return (folder / MERGES).is_file() and any(folder.glob(f"*/{COUNTS}"))


def read_counts(folder: Path) -> tuple[Target, list[PairTranscript]]:
    """Read merges and the counts of every category; each is one part.

    Raises:
        SignalError: a file is missing or damaged, or a pair has a token that no merge makes.
    """
    merges = read_tokenizer(folder / MERGES).merges
    paths = sorted(folder.glob(f"*/{COUNTS}"))
    if not paths:
        raise SignalError(f"{folder} has no */{COUNTS}")
    records = {path.parent: _json(path, list) for path in paths}
    # Their counts may end before the merge list does.
    length = min(len(merges), *map(len, records.values()))
    if not length:
        raise SignalError(f"{folder} has counts of no merge")
    target = Target(merges[:length], _RULES)
    table = target.table()
    known = len(table.tokens)
    found = [_transcript(p, r[:length], target, table) for p, r in records.items()]
    if len(table.tokens) > known:
        raise SignalError(f"{folder}: no merge makes the token {table.tokens[known]!r} of a pair")
    return target, found


def _json(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SignalError(f"{path} is missing or damaged: {error}") from None
    if not isinstance(found, kind):
        raise SignalError(f"{path} holds no {kind.__name__}")
    return found


def _transcript(
    folder: Path, records: Sequence[Any], target: Target, table: MergeTable
) -> PairTranscript:
    meta = _json(folder / META, dict)
    try:
        size = int(meta["byte_count"])
        rows = [
            (_pair(pair, table), step, int(count))
            for step, record in enumerate(records)
            for pair, count in record.items()
        ]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SignalError(f"{folder} has damaged counts: {error!r}") from None
    pairs, steps, counts = np.array(rows, np.int64).reshape(-1, 3).T
    order = np.lexsort((steps, pairs))
    pairs, steps, counts = pairs[order], steps[order], counts[order]
    before = np.where(np.diff(pairs, prepend=-1) == 0, np.append(0, counts[:-1]), 0)
    is_change = counts != before
    return PairTranscript(
        name=folder.name,
        target=target.fingerprint,
        num_merges=len(target.merges),
        pairs=pairs[is_change],
        steps=steps[is_change].astype(np.int32),
        parts=np.zeros(int(is_change.sum()), np.int32),
        changes=(counts - before)[is_change],
        bytes=np.array([size]),
        tokens=np.zeros(1, np.int64),
        words=np.zeros(1, np.int64),
    )


def _pair(text: str, table: MergeTable) -> int:
    left, right = text.split(" ")
    return table.id(left) * PAIR + table.id(right)


def write_counts(
    folder: Path,
    target: Target,
    transcripts: Sequence[PairTranscript],
    byte_count: Mapping[str, int] | None = None,
) -> None:
    """Write counts for the authors' solver.

    Args:
        byte_count: of the training text, where it is known.
    """
    lines = ["#version: 0.2", *(" ".join(m) for m in target.merges)]
    write_text(folder / MERGES, "\n".join(lines) + "\n")
    if byte_count is not None:
        write_text(folder / META, json.dumps({"byte_count": dict(byte_count)}) + "\n")
    table = target.table()
    for transcript in transcripts:
        records: list[dict[str, int]] = [{} for _ in target.merges]
        counts: dict[int, int] = {}
        # Parts of one step follow each other, so the last one written is their sum.
        entries = (transcript.pairs, transcript.steps, transcript.changes)
        for pair, step, change in zip(*(a.tolist() for a in entries), strict=True):
            counts[pair] = counts.get(pair, 0) + change
            records[step][" ".join(table.pair(pair))] = counts[pair]
        sizes = {
            "byte_count": int(transcript.bytes.sum()),
            "pairs": int(transcript.num_pairs.sum()),
        }
        home = folder / transcript.name
        write_text(home / COUNTS, json.dumps(records, ensure_ascii=False) + "\n")
        write_text(home / META, json.dumps(sizes) + "\n")


def solution(result: MixtureResult) -> dict[str, Any]:
    """The fields of their ``solution_pairs_N.json``; shares are of pairs, least first."""
    shares = sorted(result.pair_share.items(), key=lambda item: item[1])
    return {
        "lang_vals": dict(shares),
        "viol_vals": list(result.merge_slack),
        "pair_viol_vals": dict(result.pair_slack),
        "missing_merges": list(result.missing_merges),
        "timing": {"opt_time": result.seconds},
    }


def read_solution(path: Path) -> dict[str, float]:
    """Shares of pairs by category, as their solver found them.

    Raises:
        SignalError: the file is no solution.
    """
    found = _json(path, dict)
    try:
        return {str(k): float(v) for k, v in found["lang_vals"].items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        raise SignalError(f"{path} is no solution: it has no lang_vals") from None
