"""The tables of README.md and docs/*.md, made from the registry and ``benchmarks/results``.

    python benchmarks/tables.py            rewrites what stands between the markers
    python benchmarks/tables.py --check    exits 1 when something would change
    python benchmarks/tables.py --curve PRESET=RUN/metrics.jsonl    keeps a run's scores first

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table -->``.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import _tables_attention_vat
import _tables_collapse
import _tables_images
import _tables_mixture
import _tables_quantizers
import _tables_reduction
from _report import load, markdown
from _results import RESULTS, ROOT, SHAPE_MODEL, Row
from _tables_vlm import exits_table, glyphs_table, scenes_table, ttft_table
from _tables_zett import transfer_table, tuning_table
from polytok.core import registry
from polytok.core.errors import PolytokError, UnknownNameError
from polytok.core.files import write_text
from polytok.metrics import bootstrap_mean

MISSING = "not measured yet"
MODEL = "vat-512b-small"
OWN = {"": "", "_own": " searched at each size"}  # ends of files: prefixes, or codes of their own
SPLITS = ("val", "val-unseen")
LIMITS = (128, 256, 512)
RUNG_SCORES = {
    "loss": "loss",
    "query_iou": "IoU on queries",
    "v_iou": "V-IoU",
    "f_002": "F@0.02",
    "f_001": "F@0.01",
}
LN2 = math.log(2)
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
    # Reducers and tools act on models of the user's; they have nothing to train.
    return ", ".join(tags) or ("–" if system.kind in ("reducer", "tool") else "none yet")


def rate_table(folder: Path) -> str:
    """F at whole files of at most so many bytes."""
    draco = rows_of("shape_rd_draco", folder)
    out = []
    for end, words in OWN.items():
        files = sorted(folder.glob(f"shape_rd_polytok_{SHAPE_MODEL}_effort[0-9]{end}.json"))
        ours = [row for path in files for row in rows_of(path.stem, folder)]
        for effort in sorted({row["effort"] for row in ours}):
            for limit in LIMITS:
                if found := _longest(ours, effort, limit):
                    name = f"polytok{words}, effort {effort}"
                    out.append([name, f"<= {limit}", *_scores(found)])
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


def ladder_table(folder: Path) -> str:
    """Mean scores of every rung between the code that ships and the solid itself."""
    out = []
    rows = rows_of(f"shape_ladder_{SHAPE_MODEL}", folder)
    for rung in dict.fromkeys(row["rung"] for row in rows):
        at = [row for row in rows if row["rung"] == rung]
        out.append([rung, str(len(at)), *(f"{mean(r[n] for r in at):.3f}" for n in RUNG_SCORES)])
    head = ["rung", "shapes", *RUNG_SCORES.values()]
    return markdown(head, out or [[MISSING, *["–"] * (len(head) - 1)]])


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


def ablations_table(folder: Path, name: str) -> str:
    """Mean over seeds of each arm; CS-IoU is the mean IoU of the prefixes."""
    data = load(name, folder)
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


def sizes_table(folder: Path) -> str:
    """Best cross-entropy of generators of several sizes, in bits per token."""
    data = load("generator_sizes", folder)
    if data is None:
        return markdown(["size", "bits per token"], [[MISSING, "–"]])
    told = data["protocol"]
    out = [
        [name, "–", "–", f"{told[key] / LN2:.2f}", "–"]
        for name, key in (
            ("packed", "raw_nats"),
            ("counts per scale", "static_per_scale_nats"),
            ("counts per slot", "static_per_slot_nats"),
        )
    ]
    sizes: dict[str, list[Row]] = {}
    for row in data["rows"]:
        sizes.setdefault(row["size"], []).append(row)
    for size, rows in sizes.items():
        bits = [{"bits": row["best_nats"] / LN2} for row in rows]
        at = ", ".join(f"{row['best_samples']:,}" for row in rows)
        weights = f"{rows[0]['parameters']:,}"
        out.append([size, weights, str(len(rows)), _spread(bits, "bits"), at])
    return markdown(["coder", "parameters", "seeds", "bits per token", "best at samples"], out)


def entropy_table(folder: Path) -> str:
    """Bytes of whole files by coder, and bits per token."""
    data = load("entropy_coding", folder)
    if data is None:
        return markdown(["split", "bytes"], [[MISSING, "–"]])
    tokens = data["protocol"]["tokens"]
    out = []
    for split in SPLITS:
        rows = [row for row in data["rows"] if row["split"] == split]
        named = [row for row in rows if row["text"] is not None]
        for coder, some in (("packed", rows), ("static", rows), ("prior", rows), ("text", named)):
            bits = f"{coder}_bits"
            mean_bits = "–"
            if some and bits in some[0]:
                each = [
                    sum(b * t for b, t in zip(row[bits], tokens, strict=True)) / sum(tokens)
                    for row in some
                ]
                mean_bits = f"{mean(each):.2f}"
            size, static = (mean(row[name] for row in some) for name in (coder, "static"))
            less = f"{100 * (size / static - 1):+.1f}%"
            out.append([split, coder, str(len(some)), f"{size:.0f}", less, mean_bits])
    head = ["split", "coder", "shapes", "bytes, mean", "against static", "bits per token"]
    return markdown(head, out)


def generation_table(folder: Path) -> str:
    """Scores of generated shapes, part by part, beside what they are measured against."""
    rows = {row["part"]: row for row in rows_of("shape_generation", folder)}
    out: list[list[str]] = []
    if part := rows.get("sets"):
        for name, words in (
            ("samples", "samples without condition"),
            ("training", "random training shapes"),
            ("redrawn", "training codes, later half of scales redrawn"),
        ):
            value = (
                f"MMD {part[f'{name}_mmd']:.4f}, coverage {part[f'{name}_coverage']:.2f}, "
                f"1-NNA {part[f'{name}_nna']:.2f}"
            )
            out.append([f"as a set, against val: {words}", value])
    if part := rows.get("copies"):
        error = f"nearer to a training shape than {part['tokenizer_error']:.4f}"
        out.append([f"samples {error}", f"{100 * part['samples_copied']:.0f}%"])
        out.append([f"val shapes {error}", f"{100 * part['val_copied']:.0f}%"])
    if part := rows.get("text"):
        out.append(["text, top-1 of 32: chance", f"{part['chance']:.3f}"])
        for name, words in (
            ("samples", "one sample per caption"),
            ("shuffled", "captions shuffled"),
            ("nearest_caption", "training shape of the nearest caption"),
        ):
            out.append([f"text, top-1 of 32: {words}", f"{part[f'{name}_top1']:.3f}"])
    if part := rows.get("image"):
        for name, words in (
            ("samples", "one sample per picture"),
            ("undrafted", "one sample per picture, without its draft"),
            ("shuffled", "pictures shuffled"),
            ("unconditional", "no picture"),
            ("feature", "training shape of the nearest feature"),
            ("silhouette", "training shape of the nearest 32-pixel silhouette"),
        ):
            out.append([f"picture, V-IoU: {words}", f"{part[f'{name}_v_iou']:.3f}"])
    if part := rows.get("speed"):
        out.append(["passes of the net per code", f"{part['passes']} for {part['scales']} scales"])
        told = (
            f"{part['scales_seconds']:.3f} s, raster order {part['raster_seconds']:.2f} s: "
            f"{part['times_faster']:.1f} times faster"
        )
        out.append([f"tokens of one code, two branches, threads: {part['threads']}", told])
    return markdown(["what", "measured"], out or [[MISSING, "–"]])


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
    "ladder": ladder_table,
    "training": partial(training_table, preset=MODEL),
    "training-deeper": partial(training_table, preset=SHAPE_MODEL),
    "training-4kb": partial(training_table, preset="vat-4kb-small"),
    "prefixes": prefixes_table,
    "generator-sizes": sizes_table,
    "entropy": entropy_table,
    "generation": generation_table,
    "ablations-30k": partial(ablations_table, name="vat_ablations_30k"),
    "ablations-10k": partial(ablations_table, name="vat_ablations_10k"),
    "trials-10k": partial(ablations_table, name="vat_trials_10k"),
    **_tables_attention_vat.TABLES,
    **_tables_collapse.TABLES,
    **_tables_images.TABLES,
    **_tables_mixture.TABLES,
    **_tables_quantizers.TABLES,
    **_tables_reduction.TABLES,
    "vlm-ttft": ttft_table,
    "vlm-glyphs": glyphs_table,
    "vlm-scenes": scenes_table,
    "vlm-exits": exits_table,
    "tokenizer-transfer": transfer_table,
    "tokenizer-tuning": tuning_table,
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
    kept = [{k: round(v, 5) for k, v in row.items() if not isinstance(v, str)} for row in rows]
    lines = ",\n".join(json.dumps(row) for row in kept)
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
