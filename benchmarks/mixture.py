"""Data mixture inference: known mixtures, real tokenizers, time and memory.

    python benchmarks/mixture.py                           every part
    python benchmarks/mixture.py --parts known --merges 3000
    python benchmarks/mixture.py --parts plot              the picture from results alone

Needs ``text/text.zip`` and ``text/tokenizers.zip`` of the data. Rows go to
``benchmarks/results/mixture_*.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from _report import load
from _results import RESULTS, Results, Row, data_folder
from polytok.core.errors import PolytokError
from polytok.core.files import atomic_path
from polytok.core.seeding import numpy_rng
from polytok.systems.text.data_mixture_inference import (
    MixtureResult,
    SolveConfig,
    mean_squared_error,
    read_tokenizer,
    solve,
    synthesize,
    target_of,
)
from polytok.systems.text.data_mixture_inference.baselines import (
    encoding_efficiency,
    random_shares,
    token_classification,
    uniform_shares,
)
from polytok.systems.text.data_mixture_inference.counting import (
    Words,
    count_word_pairs,
    count_words,
)
from polytok.systems.text.data_mixture_inference.samples import find_categories, read

CATEGORIES = ("en", "es", "ja", "pl", "python")
CODE, FOREIGN = ("python",), ("es", "ja", "pl")
TOKENIZERS = ("gpt-2", "gpt-3", "gpt-neox", "llama", "mistral", "claude")
SEEDS = tuple(range(6))
TRAIN_BYTES = (4_000_000, 16_000_000)
PARTS, RESAMPLES = 8, 10
RANDOM_DRAWS = 200
REAL_MERGES = 1000
SPEED_BYTES, SPEED_MERGES = 10_000_000, 10_000
TICK = 0.1
CONFIG = SolveConfig(relative_gap=0.02)
TEXTS = "text.zip: documentation of Python in English, Spanish, Japanese, Polish; Python source"


def unpacked(folder: Path) -> list[str]:
    """Unpack the texts; one source per category.

    Raises:
        PolytokError: the archive is missing.
    """
    _unpack("text.zip", folder)
    return [f"{name}={folder / name}.txt" for name in CATEGORIES]


def _unpack(name: str, folder: Path) -> None:
    path = data_folder() / "text" / name
    if not path.exists():
        raise PolytokError(f"{path} is missing; set POLYTOK_DATA to the folder that has text/")
    with ZipFile(path) as archive:
        archive.extractall(folder)


def known(
    results: Results, sources: Sequence[str], merges: int, total_bytes: int, seeds: Sequence[int]
) -> None:
    """Tokenizers of known mixtures: errors of the inferred shares and of the baselines."""
    for seed in seeds:
        case = f"{merges} merges of {total_bytes} bytes, seed {seed}"
        if case in results.done():
            continue
        start = time.process_time()
        made = synthesize(
            sources, num_merges=merges, total_bytes=total_bytes, num_parts=PARTS, seed=seed
        )
        target = target_of(made.merges)
        words = [
            [count_words(read(p), target.rules) for p in category.parts]
            for category in made.samples
        ]
        counts = [
            count_word_pairs(w, target, c.name) for w, c in zip(words, made.samples, strict=True)
        ]
        found = solve(counts, target, resamples=RESAMPLES, seed=seed, config=CONFIG)
        names = list(made.truth)
        rng = numpy_rng(seed, "random")
        drawn = [
            mean_squared_error(random_shares(names, rng), made.truth) for _ in range(RANDOM_DRAWS)
        ]
        row: Row = {
            "merges": merges,
            "train_bytes": total_bytes,
            "seed": seed,
            "truth": _rounded(made.truth),
            "found": _rounded(found.byte_share),
            "interval": found.byte_interval,
            "log_mse": _log_mse(found.byte_share, made.truth),
            "uniform": _log_mse(uniform_shares(names), made.truth),
            "random": float(np.median(np.log10(drawn))),
            "tc": _log_mse(token_classification(counts, target), made.truth),
            "efficiency": encoding_efficiency(counts, [_joined(w) for w in words], merges),
            "by_merges": {n: _log_mse(s, made.truth) for n, s in found.by_merges.items()},
            "misfit": found.fit.misfit,
            "slackless": found.fit.slackless,
            "rounds": found.rounds,
            "cpu_seconds": time.process_time() - start,
            "case": case,
        }
        results.rows.append(row)
        results.save()
        print(f"{case}: log10 MSE {row['log_mse']:.2f}, uniform {row['uniform']:.2f}", flush=True)


def _joined(parts: Sequence[Words]) -> Words:
    total: Counter[str] = Counter()
    for words, _ in parts:
        total.update(words)
    return total, sum(size for _, size in parts)


def _log_mse(found: dict[str, float], truth: dict[str, float]) -> float:
    return math.log10(mean_squared_error(found, truth))


def _rounded(shares: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 5) for name, share in shares.items()}


def real(results: Results, sources: Sequence[str], folder: Path, tokenizers: Sequence[str]) -> None:
    """Published tokenizers: shares of code and of other languages than English."""
    _unpack("tokenizers.zip", folder)
    categories = find_categories(sources, num_parts=PARTS)
    for name in tokenizers:
        if name in results.done():
            continue
        start = time.process_time()
        file = read_tokenizer(folder / f"{name}.json")
        target = target_of(file, num_merges=REAL_MERGES)
        counts = [
            count_word_pairs([count_words(read(p), target.rules) for p in c.parts], target, c.name)
            for c in categories
        ]
        found = solve(counts, target, resamples=RESAMPLES, config=CONFIG)
        results.rows.append(
            {
                "rules": target.rules.name,
                "merges": len(target.merges),
                "found": _rounded(found.byte_share),
                "interval": found.byte_interval,
                "by_merges": {n: _rounded(s) for n, s in found.by_merges.items()},
                "misfit": found.fit.misfit,
                "gap": found.fit.gap,
                "slackless": found.fit.slackless,
                "missing": len(found.missing_merges),
                "cpu_seconds": time.process_time() - start,
                "tokenizer": name,
            }
        )
        results.save()
        print(f"{name}: {_rounded(found.byte_share)}", flush=True)


def speed(results: Results, sources: Sequence[str], folder: Path) -> None:
    """Time and memory of the commands, in fresh processes, on 10 MB of each category."""
    samples = folder / "samples"
    samples.mkdir()
    for source in sources:
        name, _, path = source.partition("=")
        text = Path(path).read_bytes()
        # Shorter texts are repeated; their lines stay whole.
        lines = (text * (SPEED_BYTES // len(text) + 1))[:SPEED_BYTES]
        (samples / f"{name}.txt").write_bytes(lines[: lines.rindex(b"\n") + 1])
    made = synthesize(sources, num_merges=SPEED_MERGES, total_bytes=TRAIN_BYTES[-1])
    (folder / "tokenizer.json").write_text(json.dumps(made.tokenizer_json()))
    tool = [sys.executable, "-m", "polytok", "mixture"]
    count = ["count", str(folder / "tokenizer.json"), str(samples), "-o", str(folder / "counts")]
    count += ["--merges", str(SPEED_MERGES), "--processes", "2", "--parts", str(PARTS)]
    solved = ["solve", str(folder / "counts"), "-o", str(folder / "result.json"), "--resamples"]
    for what, command in (("count", count), ("solve", [*solved, "0"])):
        row = {**_measured([*tool, *command]), "what": what}
        results.rows = [r for r in results.rows if r["what"] != what] + [row]
        results.save()
        print(row, flush=True)
    found = MixtureResult.from_dict(json.loads((folder / "result.json").read_text()))
    print(f"log10 MSE {_log_mse(found.byte_share, made.truth):.2f}")


def _measured(command: Sequence[str]) -> Row:
    """Wall and processor seconds of a command, and the most memory of it and its children."""
    before, start = os.times(), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peak = [0.0]
        watcher = threading.Thread(target=_watch, args=(process, peak), daemon=True)
        watcher.start()
        status = process.wait()
        watcher.join()
    if status:
        raise PolytokError(f"{' '.join(command)} ended with status {status}")
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": used,
        "peak_rss_mib": peak[0] / 2**20,
    }


def _watch(process: subprocess.Popen[bytes], peak: list[float]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], float(sum(map(_resident, _family(process.pid)))))
        time.sleep(TICK)


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(p for child in children for p in _family(int(child)))]


def _resident(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def plot(folder: Path = RESULTS) -> Path:
    """Draw ``mixture.png``: shares of real tokenizers, and errors over the number of merges.

    Raises:
        PolytokError: neither part has been run.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    tokenizers, mixtures = load("mixture_real", folder), load("mixture_known", folder)
    if not tokenizers or not mixtures:
        raise PolytokError(f"{folder} lacks mixture_real.json or mixture_known.json")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    rows: list[dict[str, Any]] = tokenizers["rows"]
    for offset, (label, names) in enumerate((("code", CODE), ("not English", FOREIGN))):
        shares = [sum(r["found"][n] for n in names) for r in rows]
        places = np.arange(len(rows)) + 0.4 * offset
        left.bar(places, shares, 0.38, label=label)
    left.set_xticks(np.arange(len(rows)) + 0.2, [r["tokenizer"] for r in rows], rotation=20)
    left.set_ylabel("share of bytes, of five categories")
    left.legend(frameon=False)
    for row in mixtures["rows"]:
        curve = sorted((int(n), v) for n, v in row["by_merges"].items())
        right.plot(*zip(*curve, strict=True), "o-", color="C0", alpha=0.4)
        right.axhline(row["uniform"], color="C3", alpha=0.2)
    right.set_xscale("log")
    right.set_xlabel("merges used")
    right.set_ylabel("log10 of the mean squared error (red: uniform)")
    figure.tight_layout()
    path = folder / "mixture.png"
    with atomic_path(path) as aside:
        figure.savefig(aside, dpi=110)
    pyplot.close(figure)
    return path


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=["known", "real", "speed", "plot"])
    parser.add_argument("--merges", type=int, nargs="+", default=[3000, 30_000])
    parser.add_argument("--bytes", type=int, nargs="+", default=list(TRAIN_BYTES))
    parser.add_argument("--tokenizers", nargs="+", default=list(TOKENIZERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--fresh", action="store_true", help="drop stored rows")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="polytok-") as name:
        folder = Path(name)
        sources = unpacked(folder) if set(args.parts) - {"plot"} else []
        if "known" in args.parts:
            results = Results(
                "mixture_known",
                {
                    "texts": TEXTS,
                    "training": "blocks of 8 KB from a random half of each text, repeated where "
                    "that is less than its share; shares from a flat Dirichlet distribution",
                    "samples": f"the other half of each text, in {PARTS} parts",
                    "solver": f"relative gap {CONFIG.relative_gap}, {RESAMPLES} resamples",
                    "error": "log10 of the mean over categories of squared errors of byte shares",
                    "random": f"median of {RANDOM_DRAWS} points of the simplex",
                },
                fresh=args.fresh,
                keys=("merges", "train_bytes", "seed", "case"),
            )
            for merges in args.merges:
                for total_bytes in args.bytes:
                    known(results, sources, merges, total_bytes, args.seeds)
        if "real" in args.parts:
            results = Results(
                "mixture_real",
                {
                    "texts": TEXTS,
                    "tokenizers": "tokenizers.zip, cleaned by the authors of the method",
                    "merges": REAL_MERGES,
                    "samples": f"all text, in {PARTS} parts",
                    "solver": f"relative gap {CONFIG.relative_gap}, {RESAMPLES} resamples",
                },
                fresh=args.fresh,
                keys=("tokenizer",),
            )
            real(results, sources, folder, args.tokenizers)
        if "speed" in args.parts:
            results = Results(
                "mixture_speed",
                {
                    "samples": f"{SPEED_BYTES:,} bytes of each of 5 categories, shorter texts "
                    "repeated",
                    "merges": SPEED_MERGES,
                    "processes": 2,
                    "commands": "polytok mixture count; polytok mixture solve --resamples 0",
                    "memory": "resident sets of the process and its children, added, every 0.1 s",
                },
                fresh=args.fresh,
                keys=("what",),
            )
            speed(results, sources, folder)
    if "plot" in args.parts:
        print(plot())


if __name__ == "__main__":
    main()
