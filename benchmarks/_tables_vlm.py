"""Tables of docs/cheaper-vlms.md, from benchmarks/results/vlm_*.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from _report import load, markdown
from _results import Row

MISSING = "not measured yet"


def _rows(name: str, folder: Path) -> list[Row]:
    data = load(name, folder)
    return data["rows"] if data else []


def ttft_table(folder: Path) -> str:
    """Time to first token with and without a plan, and what the closed forms say."""
    out = [
        [
            row["dtype"],
            row["method"],
            f"{row['plain_seconds']:.2f} → {row['reduced_seconds']:.2f} s",
            f"{row['speedup']:.2f}x ({row['speedup_min']:.2f}..{row['speedup_max']:.2f})",
            f"{row['flop_ratio']:.2f}x",
            f"{row['prefill_gflops_before']:.0f} → {row['prefill_gflops_after']:.0f}",
            f"{row['kv_mb_before']:.1f} → {row['kv_mb_after']:.1f}",
        ]
        for row in _rows("vlm_ttft", folder)
    ]
    head = [
        "precision",
        "plan",
        "time to first token",
        "faster",
        "FLOPs, tower included",
        "prefill GFLOPs",
        "KV MB",
    ]
    return markdown(head, out or [[MISSING, *["–"] * (len(head) - 1)]])


def glyphs_table(folder: Path) -> str:
    """Share of informative cells among those kept, mean over seeds and range."""
    rows = _rows("vlm_glyphs", folder)
    keeps = sorted({row["keep"] for row in rows})
    names = [k for k in rows[0] if k not in ("seed", "keep", "exact")] if rows else []
    out = [
        [
            name,
            *(_spread([row[name] for row in rows if row["keep"] == keep]) for keep in keeps),
        ]
        for name in names
    ]
    head = ["score", *(f"{keep} of 64" for keep in keeps)]
    return markdown(head, out) if out else markdown(["score", "kept"], [[MISSING, "–"]])


def scenes_table(folder: Path) -> str:
    """Accuracy of the trained subject at equal numbers of visual tokens."""
    rows = _rows("vlm_scenes", folder)
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    methods = list(dict.fromkeys(row["method"] for row in rows if "mean_exit_layer" not in row))
    out = []
    for method in methods:
        found = {
            k: [r["all"] for r in rows if (r["method"], r["keep"]) == (method, k)] for k in keeps
        }
        out.append([method, *(_spread(found[k]) if found[k] else "–" for k in keeps)])
    head = ["method", *(f"{keep} tokens" for keep in keeps)]
    return markdown(head, out) if out else markdown(["method", "accuracy"], [[MISSING, "–"]])


def exits_table(folder: Path) -> str:
    """Accuracy of the trained subject when its image leaves the language model early."""
    rows = [row for row in _rows("vlm_scenes", folder) if "mean_exit_layer" in row]
    out = []
    for method in dict.fromkeys(row["method"] for row in rows):
        some = [row for row in rows if row["method"] == method]
        layers = _spread([row["mean_exit_layer"] for row in some])
        out.append([method, layers, _spread([row["all"] for row in some])])
    head = ["visual tokens", "mean layer after which they left (of 0..3)", "accuracy"]
    return markdown(head, out or [[MISSING, "–", "–"]])


def _spread(values: Sequence[float]) -> str:
    text = f"{mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f}..{max(values):.3f})"
