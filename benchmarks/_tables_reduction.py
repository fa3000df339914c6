"""Tables of the page on cheaper vision transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from _report import load, markdown
from _results import Row
from polytok.core.registry import SYSTEMS
from polytok.reducers.families import FAMILIES
from polytok.reducers.methods import method_names

MISSING = "not measured yet"


def families_table(folder: Path) -> str:
    """Which methods work on which families."""
    names = [n for n in method_names() if n not in _lists()]
    out = [
        [f.name, f.library, f"`{f.example}`", *(f.cell(n) or "yes" for n in names)]
        if not f.refused
        else [f.name, f.library, f"`{f.example}`", f"no: {f.refused}", *[""] * (len(names) - 1)]
        for f in FAMILIES
    ]
    return markdown(["family", "library", "tested as", *names], out)


def _lists() -> set[str]:
    """Presets that are another list of counts of a method."""
    return {p for s in SYSTEMS.values() if s.kind == "reducer" for p in s.presets if p != s.name}


def identity_table(folder: Path) -> str:
    """Families whose outputs are bit-identical when everything is kept."""
    rows = _rows("reduction_identity", folder)
    out = [
        [r["family"], r["kernel"], str(r["tokens"]), f"{r['identical']} of {r['methods']}"]
        for r in rows
    ]
    return markdown(["family", "attention", "patches", "methods identical"], out or [_none(4)])


def macs_table(folder: Path) -> str:
    """MACs of DeiT-S."""
    out = [
        [
            r["method"],
            f"{r['gmac']:.3f}",
            f"{r['counted']:.3f}",
            "–" if r["published"] is None else f"{r['published']:.2f}",
        ]
        for r in _rows("reduction_macs", folder)
    ]
    return markdown(["DeiT-S", "GMAC, formula", "counted", "published"], out or [_none(4)])


def speed_table(folder: Path) -> str:
    """Measured time of DeiT-S, and what chance does."""
    out = [
        [
            r["method"],
            f"{r['gmac']:.2f}",
            f"{r['macs_ratio']:.2f}x",
            f"{r['speedup']:.2f}x",
            f"{r['low']:.2f}..{r['high']:.2f}",
            f"{r['noise_low']:.2f}..{r['noise_high']:.2f}",
        ]
        for r in _rows("reduction_speed", folder)
    ]
    head = ["DeiT-S", "GMAC", "MACs saved", "faster, median", "middle 90%", "plain against plain"]
    return markdown(head, out or [_none(6)])


def overhead_table(folder: Path) -> str:
    """Time of a plug-in that keeps everything."""
    out = [
        [
            r["method"],
            f"{100 * (1 / r['speedup'] - 1):+.1f}%",
            f"{r['low']:.2f}..{r['high']:.2f}",
            f"{r['noise_low']:.2f}..{r['noise_high']:.2f}",
        ]
        for r in _rows("reduction_overhead", folder)
    ]
    head = ["keeping everything", "slower, median", "middle 90%", "plain against plain"]
    return markdown(head, out or [_none(4)])


def accuracy_table(folder: Path) -> str:
    """Accuracy of the trained classifiers, mean over seeds with its range."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in _rows("reduction_accuracy", folder):
        groups.setdefault((row["method"], row["setting"]), []).append(row)
    out = [
        [
            f"{name} {setting}".strip(),
            str(len(rows)),
            f"{100 * mean(r['macs_share'] for r in rows):.0f}%",
            _spread([100 * r["accuracy"] for r in rows]),
        ]
        for (name, setting), rows in groups.items()
    ]
    return markdown(["method", "seeds", "MACs", "accuracy, %"], out or [_none(4)])


def _rows(name: str, folder: Path) -> list[Row]:
    data = load(name, folder)
    return data["rows"] if data else []


def _none(columns: int) -> list[str]:
    return [MISSING, *["–"] * (columns - 1)]


def _spread(values: Sequence[float]) -> str:
    text = f"{mean(values):.1f}"
    return text if len(values) == 1 else f"{text} ({min(values):.1f}..{max(values):.1f})"


TABLES: dict[str, Callable[[Path], str]] = {
    "reduction-families": families_table,
    "reduction-identity": identity_table,
    "reduction-macs": macs_table,
    "reduction-speed": speed_table,
    "reduction-overhead": overhead_table,
    "reduction-accuracy": accuracy_table,
}
