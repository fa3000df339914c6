"""The tables of README.md and docs/*.md, made from the registry and ``benchmarks/results``.

    python benchmarks/tables.py            rewrites what stands between the markers
    python benchmarks/tables.py --check    exits 1 when something would change
    python benchmarks/tables.py --curve PRESET=RUN/metrics.jsonl    keeps a run's scores first

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from _report import load, markdown
from _results import RESULTS, ROOT, Row
from polytok.core import registry
from polytok.core.errors import PolytokError, UnknownNameError
from polytok.core.files import write_text
from polytok.metrics import bootstrap_mean

MISSING = "not measured yet"
MODEL = "vat-512b-small"
SPLITS = ("val", "val-unseen")
LIMITS = (128, 256, 512)
CURVE = "training_curve"
BLOCK = re.compile(r"(<!-- table:([\w-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)


def rows_of(name: str, folder: Path) -> list[Row]:
    """The rows of a results file; none when it is not there."""
    data = load(name, folder)
    rows: list[Row] = data["rows"] if data else []
    return rows


def score(rows: Sequence[Row], name: str, split: str) -> str:
    """Mean of a score with its interval over the shapes of a split."""
    values = [row[name] for row in rows if row["split"] == split]
    return str(bootstrap_mean(values)) if values else MISSING


def systems_table(folder: Path) -> str:
    """Every registered system."""
    rows = [
        [s.name, s.kind, s.modality, s.title, s.paper, ", ".join(s.presets), _weights_of(s)]
        for s in registry.SYSTEMS.values()
    ]
    return markdown(["system", "kind", "modality", "title", "paper", "presets", "weights"], rows)


def _weights_of(system: registry.System) -> str:
    tags = [tag for tag, w in registry.WEIGHTS.items() if w.preset in system.presets]
    return ", ".join(tags) or "none yet"


def rate_table(folder: Path) -> str:
    """F at whole files of at most so many bytes."""
    files = sorted(folder.glob(f"shape_rd_polytok_{MODEL}_effort*.json"))
    ours = [row for path in files for row in rows_of(path.stem, folder)]
    draco = rows_of("shape_rd_draco", folder)
    out = []
    for effort in sorted({row["effort"] for row in ours}) or [0]:
        for limit in LIMITS:
            label = f"polytok, effort {effort}"
            out.append([label, f"<= {limit}", *_scores(_longest(ours, effort, limit))])
    for size in (*LIMITS, 1024):
        at = [row for row in draco if row["max_bytes"] == size]
        out.append(["decimation + Draco", f"<= {size}", *_scores(at)])
    out.append(["nearest training shape", "–", *_scores(rows_of("shape_rd_retrieval", folder))])
    ceiling = [r for r in rows_of("shape_rd_ceiling", folder) if r["resolution"] == 128]
    out.append(["ceiling: the solid itself at 128³", "–", *_scores(ceiling)])
    names = [f"F@{t}, {split}" for split in SPLITS for t in ("0.02", "0.01")]
    return markdown(["method", "bytes", *names], out)


def _scores(rows: Sequence[Row]) -> list[str]:
    return [score(rows, name, split) for split in SPLITS for name in ("f_002", "f_001")]


def _longest(rows: Sequence[Row], effort: int, limit: int) -> list[Row]:
    """Per shape, the longest prefix whose file has at most ``limit`` bytes."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["split"], row["shape"])
        fits = row["bytes"] is None or row["bytes"] <= limit  # None: scored as empty
        if row["effort"] == effort and fits:
            longer = key not in best or row["levels"] > best[key]["levels"]
            best[key] = row if longer else best[key]
    return list(best.values())


def speed_table(folder: Path) -> str:
    """Seconds and memory of every measured job."""
    out = []
    for part in ("encode", "decode", "cold"):
        rows = rows_of(f"shape_speed_{part}", folder)
        if not rows:
            out.append([part, MISSING, MISSING, MISSING])
        for row in rows:
            detail = "".join(f", {k} {row[k]}" for k in ("effort", "resolution") if k in row)
            spread = f"{row['seconds_min']:.2f}..{row['seconds_max']:.2f}"
            peak = row.get("peak_rss_mib")
            memory = f"{peak:.0f} MiB" if peak else "–"
            out.append([row["what"] + detail, f"{row['seconds_median']:.2f} s", spread, memory])
    return markdown(["job", "median", "range", "peak memory"], out)


def training_table(folder: Path, preset: str) -> str:
    """Training loss and validation scores over shapes seen."""
    names = ("rec", "iou_latent", "iou_full", "cs_iou")
    rows = [
        [f"{row['samples']:,}", *(f"{row[n]:.3f}" if n in row else "–" for n in names)]
        for row in rows_of(f"{CURVE}_{preset}", folder)
    ]
    head = ["shapes seen", "loss", "V-IoU, not quantized", "V-IoU, all scales", "CS-IoU"]
    return markdown(head, rows or [[MISSING, *["–"] * len(names)]])


def ablations_table(folder: Path, samples: str) -> str:
    """Mean over seeds of each arm; CS-IoU is the mean IoU of the prefixes."""
    data = load(f"vat_ablations_{samples}", folder)
    if data is None:
        return markdown(["arm", "CS-IoU"], [[MISSING, "–"]])
    arms: dict[str, list[Row]] = {}
    for row in data["rows"]:
        arms.setdefault(row["arm"], []).append(row)
    share = _percent(data["protocol"]["uniform"])
    out = [
        [
            arm,
            str(len(rows)),
            *(_spread(rows, name) for name in ("cs_iou", "iou_full", "iou_latent")),
            " ".join(f"{v:.2f}" for v in _columns(rows, "iou_prefix")),
            _percent(_columns(rows, "removed")),
        ]
        for arm, rows in arms.items()
    ]
    head = ["arm", "seeds", "CS-IoU", "V-IoU", "V-IoU, not quantized", "V-IoU by scale"]
    return markdown([*head, f"energy removed by scale, % (tokens: {share})"], out)


def prefixes_table(folder: Path) -> str:
    """Mean V-IoU by number of scales, and how steadily it rises shape by shape."""
    from scipy.stats import spearmanr

    rows = rows_of("shape_prefixes", folder)
    out = []
    for split in SPLITS:
        scores = [row["v_iou"] for row in rows if row["split"] == split]
        if not scores:
            out.append([split, "0", MISSING, "–", "–"])
            continue
        means = " ".join(f"{mean(column):.3f}" for column in zip(*scores, strict=True))
        # A shape whose prefixes all score the same has no rank correlation: it does not rise.
        ranks = [
            float(spearmanr(range(len(s)), s).statistic) if len(set(s)) > 1 else 0.0 for s in scores
        ]
        steady = mean(rank > 0.9 for rank in ranks)
        out.append([split, str(len(scores)), means, f"{median(ranks):.2f}", f"{100 * steady:.0f}%"])
    head = ["split", "shapes", "V-IoU of 1, 2, ... scales, mean", "median Spearman", "above 0.9"]
    return markdown(head, out)


def _columns(rows: Sequence[Row], name: str) -> list[float]:
    return [mean(values) for values in zip(*(row[name] for row in rows), strict=True)]


def _percent(values: Sequence[float]) -> str:
    return " ".join(f"{100 * v:.0f}" for v in values)


def _spread(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows]
    text = f"{mean(values):.3f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f}..{max(values):.3f})"


TABLES: dict[str, Callable[[Path], str]] = {
    "systems": systems_table,
    "rate": rate_table,
    "speed": speed_table,
    "training": partial(training_table, preset=MODEL),
    "training-4kb": partial(training_table, preset="vat-4kb-small"),
    "prefixes": prefixes_table,
    "ablations-30k": partial(ablations_table, samples="30k"),
    "ablations-10k": partial(ablations_table, samples="10k"),
}


def filled(text: str, folder: Path = RESULTS) -> str:
    """``text`` with every table made anew.

    Raises:
        UnknownNameError: a marker names no table.
        PolytokError: a marker is not closed.
    """
    if text.count("<!-- table:") != len(BLOCK.findall(text)):
        raise PolytokError("a marker <!-- table:NAME --> has no <!-- /table --> on a later line")

    def make(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise UnknownNameError("table", match[2], TABLES)
        return match[1] + TABLES[match[2]](folder) + match[4]

    return BLOCK.sub(make, text)


def keep_curve(preset: str, metrics: Path, folder: Path = RESULTS) -> int:
    """Keep the validation scores of a run's metrics.jsonl; returns their number.

    ``rec`` is the reconstruction loss of training, as last recorded before.

    Raises:
        PolytokError: it has none.
    """
    rows: list[Row] = []
    loss: Row = {}
    for line in metrics.read_text().splitlines():
        record: dict[str, Any] = json.loads(line)
        if "losses" in record:
            loss = {"rec": record["losses"]["rec"]}
        if "val" in record:
            rows.append({"samples": record["samples"], **loss, **record["val"]})
    if not rows:
        raise PolytokError(f"{metrics} has no validation")
    lines = ",\n".join(json.dumps({k: round(v, 5) for k, v in row.items()}) for row in rows)
    write_text(folder / f"{CURVE}_{preset}.json", f'{{"rows": [\n{lines}\n]}}\n')
    return len(rows)


def main(argv: list[str] | None = None, root: Path = ROOT, folder: Path = RESULTS) -> int:
    """Write or check the tables; returns how many files would change under ``--check``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--curve", help="PRESET=metrics.jsonl of a run, to keep first")
    args = parser.parse_args(argv)
    if args.curve:
        preset, is_named, metrics = args.curve.partition("=")
        if not is_named:
            parser.error(f"--curve {args.curve} is not PRESET=metrics.jsonl")
        keep_curve(preset, Path(metrics), folder)
    stale = 0
    for path in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        old = path.read_text()
        new = filled(old, folder)
        if new == old:
            continue
        if args.check:
            print(f"{path.relative_to(root)} is out of date: run python benchmarks/tables.py")
            stale += 1
        else:
            write_text(path, new)
    return stale


if __name__ == "__main__":
    sys.exit(min(main(), 1))
