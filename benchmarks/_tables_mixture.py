"""Tables of the page on data mixture inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from _report import load, markdown
from _results import Row
from polytok.systems.text.data_mixture_inference import mean_squared_error
from polytok.systems.text.data_mixture_inference.baselines import efficiency_shares, fitted_slope

MISSING = "not measured yet"
FOREIGN = ("es", "ja", "pl")


def _rows(name: str, folder: Path) -> list[Row]:
    data = load(name, folder)
    rows: list[Row] = data["rows"] if data else []
    return rows


def known_table(folder: Path) -> str:
    """Errors by number of merges: mean over mixtures, and the worst of them."""
    rows = _rows("mixture_known", folder)
    out = []
    for kind, some in _kinds(rows):
        tee = dict(zip((r["seed"] for r in some), efficiency_errors(some), strict=True))
        cells = [_spread([r[k] for r in some]) for k in ("log_mse", "uniform", "tc")]
        cells += [_spread(list(tee.values())), _spread([r["random"] for r in some])]
        least = min(min(r["uniform"], r["tc"], tee[r["seed"]]) - r["log_mse"] for r in some)
        inside = [
            low <= r["truth"][n] <= high for r in some for n, (low, high) in r["interval"].items()
        ]
        covered = f"{sum(inside)} of {len(inside)}"
        out.append([*kind, str(len(some)), *cells, f"{least:.2f}", covered])
    head = ["merges", "training text", "mixtures", "inferred", "uniform", "TC", "TEE", "random"]
    head += ["least lead over uniform, TC, TEE", "truths inside the interval"]
    return markdown(head, out or [[MISSING, *["–"] * 9]])


def _kinds(rows: Sequence[Row]) -> list[tuple[list[str], list[Row]]]:
    """Rows by number of merges and size of the training text, with cells that name these."""
    kinds: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row["merges"], row["train_bytes"]), []).append(row)
    return [([f"{m:,}", f"{b // 10**6} MB"], kinds[m, b]) for m, b in sorted(kinds)]


def efficiency_errors(rows: Sequence[Row]) -> list[float]:
    """Log errors of TEE; each mixture's slope is fitted to the others."""
    errors = []
    for row in rows:
        others = [r for r in rows if r is not row] or [row]
        slope = fitted_slope([r["efficiency"] for r in others], [r["truth"] for r in others])
        shares = efficiency_shares(row["efficiency"], slope)
        errors.append(math.log10(mean_squared_error(shares, row["truth"])))
    return errors


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f}..{max(values):.2f})"


def merges_table(folder: Path) -> str:
    """Errors of shares from the first merges alone, mean over mixtures."""
    out = []
    rows = _rows("mixture_known", folder)
    for kind, some in _kinds(rows):
        for used in sorted(some[0]["by_merges"], key=int):
            values = [row["by_merges"][used] for row in some]
            out.append([*kind, f"{int(used):,}", _spread(values)])
    head = ["merges", "training text", "merges used", "log10 of the mean squared error"]
    return markdown(head, out or [[MISSING, *["–"] * 3]])


def real_table(folder: Path) -> str:
    """Shares that published tokenizers show in five categories, most code first."""
    rows = sorted(_rows("mixture_real", folder), key=lambda r: -r["found"]["python"])
    out = []
    for row in rows:
        code = _interval(row, "python")
        foreign = sum(row["found"][n] for n in FOREIGN)
        shares = ", ".join(f"{n} {row['found'][n]:.1%}" for n in FOREIGN)
        fit = [f"{row['misfit']:.3f}", f"{row['slackless']:.0%}", f"{row['missing']:,}"]
        english = f"{row['found']['en']:.1%}"
        told = f"{foreign:.1%} ({shares})"
        out.append([row["tokenizer"], row["rules"], code, told, english, *fit])
    head = ["tokenizer", "rules", "code", "not English", "English", "misfit"]
    return markdown([*head, "without slack", "missing"], out or [[MISSING, *["–"] * 7]])


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row["interval"][name]
    return f"{row['found'][name]:.1%} [{low:.1%}, {high:.1%}]"


def speed_table(folder: Path) -> str:
    """Time and memory of the two commands."""
    out = [
        [
            f"`polytok mixture {r['what']}`",
            f"{r['seconds']:.0f} s",
            f"{r['cpu_seconds']:.0f} s",
            f"{r['peak_rss_mib'] / 1024:.2f} GiB",
        ]
        for r in _rows("mixture_speed", folder)
    ]
    head = ["command", "time", "processor time", "most memory, all processes"]
    return markdown(head, out or [[MISSING, "–", "–", "–"]])


TABLES: dict[str, Callable[[Path], str]] = {
    "mixture-known": known_table,
    "mixture-merges": merges_table,
    "mixture-real": real_table,
    "mixture-speed": speed_table,
}
