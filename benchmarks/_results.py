"""Benchmark results as data: one JSON per benchmark part, with everything needed to repeat it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import trimesh

from polytok.core.errors import PolytokError
from polytok.core.files import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "numpy",
    "scipy",
    "trimesh",
    "scikit-image",
    "point-cloud-utils",
    "fast-simplification",
    "DracoPy",
    "torch",
)
SHAPE_MODEL = "vat-512b-small.shapes2"
SHAPE_GENERATOR = "vat-512b-small-gen.shapes4"
SAVE_EVERY = 30.0

Row = dict[str, Any]


def environment() -> dict[str, Any]:
    """Versions, hardware and commit of this run."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    return {"versions": versions, "hardware": _hardware(), "commit": _commit()}


def _hardware() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "system": platform.system()}


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


class Results:
    """The rows of one benchmark part, kept in ``benchmarks/results/NAME.json``.

    Rows that are there already are kept, so an interrupted run goes on where it stopped.

    Args:
        name: of the file, without suffix.
        protocol: what was measured and how; another protocol than the stored one is refused.
        seed: of every draw.
        fresh: drop the stored rows.
        keys: what names a row; the last one is what :meth:`done` lists.
    """

    def __init__(
        self,
        name: str,
        protocol: Mapping[str, Any],
        *,
        seed: int = 0,
        fresh: bool = False,
        folder: Path = RESULTS,
        keys: tuple[str, ...] = ("split", "shape"),
    ) -> None:
        self.path, self.keys = folder / f"{name}.json", keys
        self.protocol, self.seed = json.loads(json.dumps(dict(protocol))), seed
        self.rows: list[Row] = []
        if self.path.exists() and not fresh:
            stored = json.loads(self.path.read_text())
            if (stored["protocol"], stored["seed"]) != (self.protocol, seed):
                raise PolytokError(f"{self.path} holds another protocol or seed; use --fresh")
            self.rows = stored["rows"]

    def done(self) -> set[str]:
        """Shapes, or what the last key is, that have rows."""
        return {row[self.keys[-1]] for row in self.rows}

    def save(self) -> None:
        """Write the file in one step, a row per line."""
        head = {
            **environment(),
            "date": time.strftime("%Y-%m-%d"),
            "command": " ".join(["python", *_relative(sys.argv)]),
            "seed": self.seed,
            "protocol": self.protocol,
        }
        rows = sorted(self.rows, key=lambda row: tuple(row[k] for k in self.keys))
        body = ",\n".join(json.dumps(_short(row)) for row in rows)
        text = json.dumps(head, indent=1)[:-2]
        write_text(self.path, f'{text},\n "rows": [\n{body}\n]}}\n')


def _relative(arguments: list[str]) -> list[str]:
    script = Path(arguments[0]).resolve()
    name = str(script.relative_to(ROOT)) if script.is_relative_to(ROOT) else script.name
    # Where folders lie on the machine that ran is nobody's business.
    return [name, *(Path(a).name if Path(a).is_absolute() else a for a in arguments[1:])]


def _short(row: Row) -> Row:
    return {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()}


@dataclass(frozen=True)
class Item:
    """A shape of the data: where it is and what is known about it."""

    split: str
    name: str
    pack: str
    archive: Path

    def mesh(self) -> trimesh.Trimesh:
        """Read the shape as one mesh with its node transforms applied."""
        with ZipFile(self.archive) as archive:
            data = archive.read(self.name)
        return trimesh.load_mesh(BytesIO(data), file_type=Path(self.name).suffix[1:])

    @property
    def row(self) -> Row:
        return {"split": self.split, "shape": self.name, "pack": self.pack}


@lru_cache(maxsize=1)
def load_codec(model: str) -> Any:
    """Load a model once per process; only then does a benchmark need torch."""
    import polytok

    return polytok.load(model)


def data_folder() -> Path:
    """The folder of the data: ``POLYTOK_DATA``, or ``../shared/data`` beside the repository."""
    return Path(os.environ.get("POLYTOK_DATA") or ROOT.parent / "shared" / "data")


def shapes(split: str, limit: int | None = None) -> list[Item]:
    """The shapes of ``shapes/SPLIT.zip``, in the order of its metadata.

    Raises:
        PolytokError: the archive is missing.
    """
    path = data_folder() / "shapes" / f"{split}.zip"
    if not path.exists():
        raise PolytokError(f"{path} is missing; set POLYTOK_DATA to the folder that has shapes/")
    with ZipFile(path) as archive:
        rows = [json.loads(x) for x in archive.read("metadata.jsonl").splitlines() if x.strip()]
    return [Item(split, row["file"], row["pack"], path) for row in rows][:limit]


def captions(split: str) -> dict[str, str]:
    """What the metadata of ``shapes/SPLIT.zip`` says each shape is."""
    with ZipFile(data_folder() / "shapes" / f"{split}.zip") as archive:
        lines = archive.read("metadata.jsonl").splitlines()
    return {r["file"]: r.get("caption", "") for r in map(json.loads, filter(None, lines))}


def run(
    items: Iterable[Item],
    work: Callable[[Item], list[Row]],
    results: Results,
    *,
    processes: int,
    is_forked: bool = False,
) -> None:
    """Do ``work`` for every shape without rows, in ``processes``, saving as it goes.

    Processes start afresh, which torch's threads need; forked ones share what this one has loaded.
    """
    done = results.done()
    left = [item for item in items if item.name not in done]
    saved, start = time.monotonic(), time.monotonic()
    for count, rows in enumerate(_unordered(left, work, processes, is_forked), 1):
        results.rows += rows
        if time.monotonic() - saved > SAVE_EVERY or count == len(left):
            results.save()
            saved = time.monotonic()
            pace = (saved - start) / count
            print(
                f"{results.path.stem}: {count}/{len(left)}, {pace:.2f} s per shape, "
                f"{pace * (len(left) - count) / 60:.1f} min left",
                flush=True,
            )


def _end_with(parent: int) -> None:
    """End this process when its parent has: one that is killed cannot end its pool."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _unordered(
    items: list[Item], work: Callable[[Item], list[Row]], processes: int, is_forked: bool
) -> Iterator[list[Row]]:
    if processes == 1:
        yield from map(work, items)
        return
    context = get_context("fork" if is_forked else "spawn")
    with ProcessPoolExecutor(
        processes, mp_context=context, initializer=_end_with, initargs=(os.getpid(),)
    ) as pool:
        waiting = {pool.submit(work, item) for item in items}
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()
