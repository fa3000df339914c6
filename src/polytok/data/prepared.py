"""Folders of prepared shapes: made in bulk by many processes, loaded whole into memory."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytok.core.errors import PolytokError
from polytok.core.files import opened_folder, write_bytes, write_text
from polytok.core.seeding import derive
from polytok.data.workers import Failure, run_jobs, termination_as_interrupt

Array = NDArray[np.float32]
Record = dict[str, Any]

TIME_LIMIT = 120.0
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Summary:
    """What :func:`prepare_folder` did: shapes ready, of these made now, dropped, and how long."""

    ready: int
    made: int
    dropped: int
    seconds: float
    routes: dict[str, int]


def prepare_folder(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    processes: int | None = None,
    stretch: bool = False,
    seed: int = 0,
    time_limit: float = TIME_LIMIT,
    progress: bool = True,
) -> Summary:
    """Prepare every mesh of a folder or zip for training.

    ``out`` gets one file per shape, ``index.jsonl`` and ``dropped.jsonl`` (file, reason). Shapes
    that are ready already are not made again, so an interrupted run goes on where it was.

    Args:
        source: searched for meshes in all folders below it; ``metadata.jsonl`` at its top gives
            captions and licences.
        processes: workers with one thread each; None for one per core.
        stretch: whether the boxes of shapes are stretched towards a cube, as for encoding.
        seed: of the samples; each shape's draw depends on it and on its path.
        time_limit: seconds after which a shape is dropped.

    Raises:
        PolytokError: the source is missing or has no meshes, a number is out of range, or ``out``
            has shapes of the other kind of stretch.
    """
    if processes is not None and processes < 1:
        raise PolytokError(f"processes={processes} is below 1")
    if not time_limit > 0:
        raise PolytokError(f"time_limit={time_limit} is not positive")
    start, out = time.perf_counter(), Path(out)
    with ExitStack() as stack:
        stack.enter_context(termination_as_interrupt())
        root = stack.enter_context(opened_folder(source))
        notes = _metadata(root)
        files = _meshes(root)
        if not files:
            raise PolytokError(f"{source} has no meshes")
        out.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        done = {f: r for f in files if (r := _finished(out, f)) is not None}
        if other := [f for f, r in done.items() if bool(r.get("stretch")) != stretch]:
            kind = "without" if stretch else "with"
            raise PolytokError(f"{out} has shapes {kind} stretch, such as {other[0]}")
        jobs = [
            _Job(str(root), file, str(out), stretch, seed, notes.get(file, {}))
            for file in files
            if file not in done
        ]
        failed: dict[str, str] = {}
        bar = stack.enter_context(_Bar(len(files), len(done), progress))
        try:
            results = run_jobs(_prepare_one, jobs, processes=processes, time_limit=time_limit)
            with closing(results):
                for job, got in results:
                    if isinstance(got, Failure):
                        failed[job.file] = got.reason.removeprefix(f"{root / job.file}: ")
                    else:
                        done[job.file] = got
                    bar.step(len(failed))
        finally:
            # A worker may be stopped between making a file and the care for its removal.
            _sweep(out)
            _write_lines(out / "index.jsonl", [done[f] for f in files if f in done])
            lines = [{"file": f, "reason": failed[f]} for f in files if f in failed]
            _write_lines(out / "dropped.jsonl", lines)
    routes = Counter(str(r["route"]) for r in done.values())
    made = len(jobs) - len(failed)
    return Summary(len(done), made, len(failed), time.perf_counter() - start, dict(routes))


class PreparedFolder:
    """Prepared shapes, all in memory in their compact form (about 135 KB each).

    Args:
        folder: made by :func:`prepare_folder`; what is ready is used, even while others are made.
        limit: at most this many shapes.

    Raises:
        PolytokError: there are no prepared shapes, or they differ in size.
    """

    def __init__(self, folder: str | os.PathLike[str], *, limit: int | None = None) -> None:
        from safetensors.numpy import load_file

        root = Path(folder)
        files = sorted(p for p in root.rglob(f"*{SUFFIX}") if not p.name.startswith("."))[:limit]
        if not files:
            raise PolytokError(f"{folder} has no prepared shapes")
        self.records = [_record(p) for p in files]
        self.num_uniform = int(self.records[0]["num_uniform"])
        self.num_volume = int(self.records[0]["num_volume"])
        first = load_file(files[0])
        self._arrays = {k: np.empty((len(files), *v.shape), v.dtype) for k, v in first.items()}
        for i, path in enumerate(files):
            arrays = load_file(path)
            for name, stacked in self._arrays.items():
                if name not in arrays or arrays[name].shape != stacked.shape[1:]:
                    raise PolytokError(f"{path} does not hold the samples that {files[0]} holds")
                stacked[i] = arrays[name]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def names(self) -> list[str]:
        """The source files, in order."""
        return [str(r["file"]) for r in self.records]

    def load(self, index: int) -> dict[str, Array]:
        """Return points, normals (P, 3), queries, grad (Q, 3) and sdf (Q,) of one shape."""
        from polytok.signals.mesh import from_compact

        return from_compact({k: v[index] for k, v in self._arrays.items()})


@dataclass(frozen=True)
class _Job:
    root: str
    file: str
    out: str
    stretch: bool
    seed: int
    notes: Record


def _target(out: Path, file: str) -> Path:
    return out / (file + SUFFIX)


def _prepare_one(job: _Job) -> Record:
    """Prepare one shape in a worker, and return the record that its file holds."""
    from safetensors.numpy import save

    from polytok.signals import mesh as meshes

    start = time.perf_counter()
    mesh = meshes.read(Path(job.root) / job.file)
    factors = meshes.evening(mesh) if job.stretch else np.ones(3)
    solid = meshes.solidify(mesh, stretch=factors)
    prepared = meshes.prepare(solid, seed=derive(job.seed, job.file))
    record = {
        "file": job.file,
        "pack": job.notes.get("pack", PurePosixPath(job.file).parent.name),
        "caption": job.notes.get("caption", ""),
        "license": job.notes.get("license", ""),
        "faces": len(mesh.faces),
        "centre": [float(x) for x in prepared.frame.centre],
        "scale": prepared.frame.scale,
        "stretch": factors.tolist() if job.stretch else None,
        "num_uniform": prepared.num_uniform,
        "num_volume": prepared.num_volume,
        **solid.report(),
    }
    data = save(meshes.to_compact(prepared), {"record": json.dumps(record)})
    write_bytes(_target(Path(job.out), job.file), data)
    return {**record, "seconds": round(time.perf_counter() - start, 3)}


class _Bar:
    """A progress bar on stderr, or nothing."""

    def __init__(self, total: int, done: int, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._progress = Progress(
            TextColumn("preparing"),
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
            TextColumn("{task.fields[dropped]} dropped"),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._progress.add_task("prepare", total=total, completed=done, dropped=0)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, dropped: int) -> None:
        self._progress.update(self._task, advance=1, dropped=dropped)


def _meshes(root: Path) -> list[str]:
    from polytok.signals.mesh import EXTENSIONS

    found = (p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    return sorted(p.relative_to(root).as_posix() for p in found)


def _metadata(root: Path) -> dict[str, Record]:
    path = root / "metadata.jsonl"
    if not path.is_file():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return {row["file"]: row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise PolytokError(f"{path}: not a list of records with a 'file' ({error})") from error


def _record(path: Path) -> Record:
    """The record in the header of a prepared file."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["record"])


def _finished(out: Path, file: str) -> Record | None:
    from safetensors import SafetensorError

    path = _target(out, file)
    try:
        return _record(path) if path.exists() else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        # Not a file of ours, or damaged since: it is made again.
        return None


def _sweep(out: Path) -> None:
    """Remove what a killed run left half written."""
    for path in out.rglob(f".*.part{SUFFIX}"):
        path.unlink(missing_ok=True)


def _write_lines(path: Path, rows: list[Record]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
