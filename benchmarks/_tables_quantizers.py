"""Tables of the page on choosing a quantizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from _report import load, markdown
from _results import Row

MISSING = "not measured yet"
SETTINGS = ((256, True), (1024, True), (1024, False))
NAMES = {
    "vq": "VectorQuantizer",
    "ema": "EMAQuantizer",
    "rvq": "ResidualQuantizer, 4 levels",
    "lfq": "LookupFreeQuantizer",
    "fsq": "FiniteScalarQuantizer",
}


def mixture_table(folder: Path) -> str:
    """Use of 64 codes for 64 Gaussians, mean over seeds with its range."""
    rows = _of(_rows("quantizers_usage", folder), part="mixture")
    out = []
    for kind in _kinds(rows):
        well, far = (_of(rows, kind=kind, is_well=w) for w in (True, False))
        bits = f"{mean(r['entropy_bits'] for r in well):.2f}" if well else "–"
        out.append([kind, _share(well), bits, _share(far)])
    head = ["kind", "used, started and restarted", "entropy of 6 bits", "used, from afar"]
    return markdown(head, out or [_none(4)])


def training_table(folder: Path) -> str:
    """Use of codes and PSNR in a small autoencoder; with 1024 codes also without a start."""
    rows = _of(_rows("quantizers_usage", folder), part="training")
    out = []
    for kind in _kinds(rows):
        cells: list[str] = []
        for size, is_well in SETTINGS:
            found = _of(rows, kind=kind, size=size, is_well=is_well)
            cells += _trained(found[0]) if found else ["–", "–", "–"]
        out.append([kind, *cells])
    head = ["kind"]
    for start in ("256 codes: used", "1024 codes: used", "1024, no start: used"):
        head += [start, "perplexity", "PSNR, dB"]
    return markdown(head, out or [_none(len(head))])


def _trained(row: Row) -> list[str]:
    return [f"{row['usage']:.0%}", f"{row['perplexity']:.0f}", f"{row['psnr']:.2f}"]


def speed_table(folder: Path) -> str:
    """Time of a step beside that of vector-quantize-pytorch."""
    out = [
        [
            NAMES[r["kind"]],
            f"{r['size']:,}",
            f"{r['tokens']:,} x {r['dim']}",
            f"{1000 * r['seconds_ours']:.1f}",
            f"{1000 * r['seconds_theirs']:.1f}",
            f"{r['faster']:.1f}x ({r['faster_low']:.1f}..{r['faster_high']:.1f})",
            f"{r['noise_low']:.2f}..{r['noise_high']:.2f}",
        ]
        for r in sorted(_rows("quantizers_speed", folder), key=lambda r: (_place(r), r["size"]))
    ]
    head = ["forward and backward", "codes", "tokens x channels", "ours, ms", "theirs, ms"]
    return markdown([*head, "faster, middle half", "ours / ours"], out or [_none(7)])


def memory_table(folder: Path) -> str:
    """Peak memory of a process beside that of vector-quantize-pytorch."""
    out = [
        [
            NAMES[r["kind"]],
            f"{r['ours_mib']:.0f}",
            f"{r['theirs_mib']:.0f}",
            f"{r['ours_mib'] / r['theirs_mib']:.2f}",
            f"{r['ours_mib'] - r['ours_before_mib']:.0f}",
            f"{r['theirs_mib'] - r['theirs_before_mib']:.0f}",
        ]
        for r in sorted(_rows("quantizers_memory", folder), key=_place)
    ]
    head = ["one step", "ours, MiB", "theirs, MiB", "ours / theirs"]
    return markdown([*head, "ours, above imports", "theirs, above imports"], out or [_none(6)])


def _place(row: Row) -> int:
    return list(NAMES).index(row["kind"])


def _kinds(rows: Sequence[Row]) -> list[str]:
    return sorted({row["kind"] for row in rows})


def _of(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def _share(rows: Sequence[Row]) -> str:
    if not rows:
        return "–"
    values = [row["usage"] for row in rows]
    text = f"{mean(values):.0%}"
    return text if min(values) == max(values) else f"{text} ({min(values):.0%}..{max(values):.0%})"


def _rows(name: str, folder: Path) -> list[Row]:
    data = load(name, folder)
    return data["rows"] if data else []


def _none(columns: int) -> list[str]:
    return [MISSING, *["–"] * (columns - 1)]


TABLES: dict[str, Callable[[Path], str]] = {
    "quantizers-mixture": mixture_table,
    "quantizers-training": training_table,
    "quantizers-speed": speed_table,
    "quantizers-memory": memory_table,
}
