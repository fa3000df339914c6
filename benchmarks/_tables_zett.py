"""Tables of tokenizer transfer, from ``results/tokenizer_transfer.json``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from _report import load, markdown
from _results import Row

MISSING = "not measured yet"
METHODS = {
    "original": "its own tokenizer",
    "zett": "hypernetwork",
    "fvt": "fvt: mean of a token's pieces",
    "focus": "focus: sums of shared tokens",
    "lexical": "lexical: shared tokens, the rest random",
    "mean": "mean of all embeddings",
    "random": "random",
}


def gap_closed(rows: Sequence[Row], target: str, base: str, method: str = "zett") -> float:
    """Share of the gap in bits per byte from ``base`` to the original that a method closes."""
    scores = {m: _bits(rows, target, m, 0) for m in (base, method, "original")}
    found = {m: mean(values) for m, values in scores.items()}
    return (found[base] - found[method]) / (found[base] - found["original"])


def transfer_table(folder: Path) -> str:
    """Bits per byte right after the transfer, and how much of the gap is closed."""
    rows = _rows(folder)
    out: list[list[str]] = []
    for target in sorted({row["target"] for row in rows}):
        for method, words in METHODS.items():
            if not _bits(rows, target, method, 0):
                continue
            length = next(
                r["bytes_per_token"] for r in rows if (r["target"], r["method"]) == (target, method)
            )
            closed = [_closed(rows, target, base, method) for base in ("fvt", "mean")]
            out.append([target, words, _spread(rows, target, method, 0), *closed, f"{length:.2f}"])
    head = ["new tokenizer", "embeddings by", "bits per byte"]
    return markdown(
        [*head, "gap to fvt closed", "gap to the mean closed", "bytes per token"],
        out or [[MISSING, *["–"] * 5]],
    )


def tuning_table(folder: Path) -> str:
    """Bits per byte after training all weights for some steps."""
    rows = _rows(folder)
    steps = sorted({row["steps"] for row in rows})
    targets = sorted({row["target"] for row in rows if row["steps"]})
    out = [
        [target, words, *(_spread(rows, target, method, count) for count in steps)]
        for target in targets
        for method, words in METHODS.items()
        if _bits(rows, target, method, 0)
    ]
    head = ["new tokenizer", "embeddings by", *(f"{count} steps" for count in steps)]
    return markdown(head, out or [[MISSING, "–"]])


def _closed(rows: Sequence[Row], target: str, base: str, method: str) -> str:
    """The gap from ``base`` that is closed; a dash for the original, and where none is."""
    share = gap_closed(rows, target, base, method)
    return "–" if method in ("original", base) or share < 0 else f"{100 * share:.0f}%"


def _rows(folder: Path) -> list[Row]:
    data = load("tokenizer_transfer", folder)
    rows: list[Row] = data["rows"] if data else []
    return rows


def _bits(rows: Sequence[Row], target: str, method: str, steps: int) -> list[float]:
    wanted = (target, method, steps)
    return [
        row["bits_per_byte"]
        for row in rows
        if (row["target"], row["method"], row["steps"]) == wanted
    ]


def _spread(rows: Sequence[Row], target: str, method: str, steps: int) -> str:
    """Mean over seeds, with the range where there are several."""
    values = _bits(rows, target, method, steps)
    if not values:
        return "–"
    text = f"{mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f}..{max(values):.3f})"
