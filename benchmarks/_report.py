"""Tables and plots of the shape benchmarks, made from ``benchmarks/results/*.json`` alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from _results import RESULTS, Row
from polytok.core.errors import PolytokError
from polytok.core.files import atomic_path, write_text
from polytok.metrics import Interval, bootstrap_difference, bootstrap_mean

LARGE = 1000
GROUPS: Mapping[str, Callable[[Row], bool]] = {
    "val": lambda row: row["split"] == "val",
    "val, more than 1000 faces": lambda row: row["split"] == "val" and row["faces"] > LARGE,
    "val, bullet-random alone": lambda row: (
        row["split"] == "val" and row["pack"] == "bullet-random"
    ),
    "val-unseen": lambda row: row["split"] == "val-unseen",
}
MIN_PLOTTED = 10
PLOTTED = ("val", "val, more than 1000 faces")
F_NAMES = {"f_002": "F@0.02", "f_001": "F@0.01", "f_0005": "F@0.005"}
OUTER = {"outer_f_002": "outer F@0.02", "outer_f_001": "outer F@0.01"}
REST = {
    "cd_l1": "CD-L1 x1000",
    "cd_l2": "CD-L2 x1000",
    "normal_consistency": "NC",
    "v_iou": "V-IoU",
    "s_iou": "S-IoU",
}


def load(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """The content of a results file, or None when that part has not been run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column is left-aligned, the others right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def mean(rows: Sequence[Row], name: str) -> str:
    """Mean and interval of a score over rows; a dash where it was not computed."""
    values = [row[name] for row in rows if row.get(name) is not None]
    if len(values) != len(rows) or not rows:
        return "–"
    if name.startswith("cd_"):
        return f"{1000 * bootstrap_mean(values).mean:.2f}"
    return str(bootstrap_mean(values))


def _cells(rows: Sequence[Row], names: Iterable[str]) -> list[str]:
    return [mean(rows, name) for name in names]


def _of(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def draco_table(rows: Sequence[Row]) -> str:
    """Draco per byte budget: all shapes, those that fit, and how many do not."""
    out = []
    for size in sorted({row["max_bytes"] for row in rows}):
        at = _of(rows, max_bytes=size)
        fitted = [row for row in at if row["bytes"] is not None]
        missing = f"{len(at) - len(fitted)} of {len(at)}"
        scores = [*_cells(at, F_NAMES), mean(fitted, "f_002"), missing]
        out.append([str(size), *scores, *_cells(at, ("cd_l1", "normal_consistency"))])
    head = ["bytes", *F_NAMES.values(), "F@0.02, fitted only", "cannot be fitted"]
    return markdown([*head, REST["cd_l1"], REST["normal_consistency"]], out)


def ceiling_table(rows: Sequence[Row]) -> str:
    """The source's own solid at each decode grid."""
    names = {**F_NAMES, **OUTER, **REST}
    out = [
        [str(r), *_cells(_of(rows, resolution=r), names)]
        for r in sorted({row["resolution"] for row in rows})
    ]
    return markdown(["grid", *names.values()], out)


def retrieval_table(rows: Sequence[Row]) -> str:
    """The nearest training shape."""
    names = {**F_NAMES, "cd_l1": REST["cd_l1"], "normal_consistency": "NC"}
    return markdown(["", *names.values()], [["nearest of train", *_cells(rows, names)]])


def polytok_table(rows: Sequence[Row], draco: Sequence[Row]) -> str:
    """Every effort and prefix, and how much better it is than Draco at no fewer bytes."""
    names = {**F_NAMES, **OUTER, **REST}
    out = []
    for effort, levels in sorted({(row["effort"], row["levels"]) for row in rows}):
        at = _of(rows, effort=effort, levels=levels)
        largest = max(row["bytes"] or 0 for row in at)
        gain = against_draco(at, draco, largest)
        base = {row["shape"]: row["f_002"] for row in _of(rows, effort=0, levels=levels)}
        gains = [None if effort == 0 else _gain(at, base), gain]
        cells = ["–" if g is None else str(g) for g in gains]
        out.append([f"{effort} / {levels}", str(len(at)), str(largest), *_cells(at, names), *cells])
    over = ["F@0.02 over effort 0", "F@0.02 over Draco"]
    head = ["effort / levels", "shapes", "bytes, most", *names.values(), *over]
    return markdown(head, out)


def against_draco(rows: Sequence[Row], draco: Sequence[Row], size: int) -> Interval | None:
    """F@0.02 gained over Draco at the smallest measured budget that is not below ``size``."""
    budgets = sorted(b for b in {row["max_bytes"] for row in draco} if b >= size)
    if not budgets:
        return None
    return _gain(rows, {row["shape"]: row["f_002"] for row in _of(draco, max_bytes=budgets[0])})


def _gain(rows: Sequence[Row], theirs: Mapping[str, float]) -> Interval | None:
    """F@0.02 gained on the shapes that both have."""
    pairs = [(row["f_002"], theirs[row["shape"]]) for row in rows if row["shape"] in theirs]
    return bootstrap_difference(*zip(*pairs, strict=True)) if pairs else None


def _curves(
    parts: Mapping[str, list[Row]], keep: Callable[[Row], bool], fewest: int = 1
) -> dict[str, Any]:
    """Per legend entry, bytes and the interval of F@0.02; one point is a level line.

    Curves of fewer than ``fewest`` shapes are left out.
    """
    curves: dict[str, list[tuple[float, Interval]]] = {}

    def add(label: str, size: float, rows: Sequence[Row]) -> None:
        if len({row["shape"] for row in rows}) >= fewest:
            values = [row["f_002"] for row in rows]
            curves.setdefault(label, []).append((size, bootstrap_mean(values)))

    for part, every in parts.items():
        rows = [row for row in every if keep(row)]
        if part == "draco":
            for size in sorted({row["max_bytes"] for row in rows}):
                add("decimation + Draco", size, _of(rows, max_bytes=size))
        elif part == "ceiling":
            add("ceiling: the solid itself at 128³", 0, _of(rows, resolution=128))
        elif part == "retrieval":
            add("nearest training shape", 0, rows)
        else:
            for effort, levels in sorted({(row["effort"], row["levels"]) for row in rows}):
                at = _of(rows, effort=effort, levels=levels)
                sizes = [row["bytes"] for row in at if row["bytes"] is not None]
                size = sum(sizes) / max(len(sizes), 1)
                add(f"{part}, effort {effort}, {len(at)} shapes", size, at)
    return curves


def plot(parts: Mapping[str, list[Row]], path: Path) -> None:
    """F@0.02 over bytes, one panel per group of :data:`PLOTTED`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(PLOTTED), figsize=(11, 4.2), sharey=True)
    colours: dict[str, str] = {}  # a method has its own in every panel
    for panel, group in zip(panels, PLOTTED, strict=True):
        # Next to curves of all shapes, one of a handful of others would compare shapes, not codes.
        most = max(len({row["shape"] for row in rows}) for rows in parts.values())
        for label, points in _curves(parts, GROUPS[group], min(MIN_PLOTTED, most)).items():
            sizes, intervals = zip(*points, strict=True)
            if sizes == (0,):
                style = "--" if label.startswith("ceiling") else ":"
                panel.axhline(intervals[0].mean, ls=style, color="0.45", lw=1.2, label=label)
                continue
            method = label.rsplit(",", 1)[0] if label.endswith(" shapes") else label
            colour = colours.setdefault(method, f"C{len(colours)}")
            means = [i.mean for i in intervals]
            panel.plot(sizes, means, marker="o", ms=4, label=label, color=colour)
            low, high = [i.low for i in intervals], [i.high for i in intervals]
            panel.fill_between(sizes, low, high, alpha=0.15, color=colour, lw=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks([64, 128, 256, 512, 1024, 2048, 4096])
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.set(title=group, xlabel="bytes, the whole file", ylim=(0, 1.02))
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("F@0.02 (mean, 95% interval)")
    panels[0].legend(loc="lower right", fontsize=8, framealpha=0.9)
    figure.tight_layout()
    with atomic_path(path) as aside:
        figure.savefig(aside, dpi=130)
    pyplot.close(figure)


def part_of(name: str) -> str:
    """The section of a file: the efforts of one model stand together, but for codes of one size."""
    model, _, effort = name.removeprefix("polytok_").partition("_effort")
    return model + (", searched at each size" if effort.endswith("_own") else "")


def write_report(folder: Path = RESULTS) -> Path:
    """Write ``shape_rate_distortion.md`` and its plot from the parts that have been run.

    Raises:
        PolytokError: no part has been run.
    """
    names = sorted(path.stem for path in folder.glob("shape_rd_*.json"))
    loaded = {n.removeprefix("shape_rd_"): load(n, folder) for n in names}
    if not loaded:
        raise PolytokError(f"{folder} has no shape_rd_*.json; run another part first")
    parts: dict[str, list[Row]] = {}
    heads: dict[str, list[dict[str, Any]]] = {}
    for name, data in loaded.items():
        if data:
            part = part_of(name)
            parts.setdefault(part, []).extend(data["rows"])
            heads.setdefault(part, []).append(data)
    text = ["# Rate and distortion of shapes", "", "Made by `python " + _SELF + " --parts report`."]
    text += ["", "Means over shapes with 95% bootstrap intervals. ![F over bytes](" + _PLOT + ")"]
    first = next(iter(loaded.values())) or {}
    text += ["", *(f"- `{k}`: {v}" for k, v in first["protocol"]["conventions"].items()), ""]
    for part, rows in parts.items():
        text += [f"## {part}", "", heads[part][0]["protocol"]["method"] + ".", ""]
        for data in heads[part]:
            origin = f"Commit {data['commit']}, {data['hardware']['cpu']}, `{data['command']}`."
            text += [origin, ""]
        for group, keep in GROUPS.items():
            kept = [row for row in rows if keep(row)]
            if kept:
                count = len({row["shape"] for row in kept})
                text += [f"### {part}: {group} ({count} shapes)", "", _table(part, kept, parts)]
        failed = sorted({f"{row['shape']} ({row['error']})" for row in rows if row.get("error")})
        if "error" in rows[0]:
            text += ["Not encoded: " + ("; ".join(failed) or "none") + ".", ""]
    plot(parts, folder / _PLOT)
    path = folder / "shape_rate_distortion.md"
    write_text(path, "\n".join(text))
    return path


_SELF = "benchmarks/shape_rate_distortion.py"
_PLOT = "shape_rate_distortion.png"


def _table(part: str, rows: Sequence[Row], parts: Mapping[str, list[Row]]) -> str:
    tables = {"draco": draco_table, "ceiling": ceiling_table, "retrieval": retrieval_table}
    if part in tables:
        return tables[part](rows)
    return polytok_table(rows, parts.get("draco", []))
