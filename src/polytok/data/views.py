"""Folders of pictures of shapes: drawn once, in bulk, beside the prepared shapes they belong to."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polytok.core.config import from_dict
from polytok.core.errors import PolytokError, one_line
from polytok.core.files import atomic_path, opened_folder
from polytok.core.seeding import numpy_rng
from polytok.data.codes import keep_index
from polytok.data.workers import Failure, run_jobs, termination_as_interrupt
from polytok.signals.mesh.views import ViewSampling

INDEX = "views.json"
SUFFIX = ".views.safetensors"
TIME_LIMIT = 60.0


@dataclass(frozen=True, kw_only=True)
class ViewIndex:
    """What a folder of views holds: the shapes' source files in order, and how they were drawn."""

    names: tuple[str, ...]
    sampling: ViewSampling
    seed: int = 0


class ViewFolder:
    """Pictures (n, count, 2, size, size) uint8, lightness and opacity, whole in memory.

    Raises:
        PolytokError: there are none, one is missing, or files do not fit the index.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        root = Path(folder)
        try:
            self.index = from_dict(ViewIndex, json.loads((root / INDEX).read_text()))
            how = self.index.sampling
            shape = (len(self.index.names), how.count, 2, how.size, how.size)
            self.pictures: NDArray[np.uint8] = np.empty(shape, np.uint8)
            for picture, name in zip(self.pictures, self.index.names, strict=True):
                picture[:] = load_file(_path(root, name))["views"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise PolytokError(f"{folder} has no views: {one_line(error)}") from error

    def __len__(self) -> int:
        return len(self.pictures)


def render_folder(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    names: Sequence[str],
    sampling: ViewSampling,
    *,
    processes: int | None = None,
    seed: int = 0,
) -> ViewFolder:
    """Draw meshes of a folder or zip; pictures that are there already are not drawn again.

    Args:
        source: where ``names`` lie; not looked at if nothing is missing.
        processes: workers with one thread each; None for one per core.
        seed: each shape's draws depend on it and on its name.

    Raises:
        ConfigError: ``out`` holds other views. PolytokError: a mesh is missing or cannot be drawn.
    """
    out = Path(out)
    index = ViewIndex(names=tuple(names), sampling=sampling, seed=seed)
    keep_index(out / INDEX, index, "views")
    missing = [name for name in names if not _path(out, name).is_file()]
    if missing:
        with termination_as_interrupt(), opened_folder(source) as root:
            jobs = [_Job(str(root), name, str(out), sampling, seed) for name in missing]
            with closing(run_jobs(_draw, jobs, processes=processes, time_limit=TIME_LIMIT)) as done:
                for job, got in done:
                    if isinstance(got, Failure):
                        raise PolytokError(f"{job.name} cannot be drawn: {got.reason}")
    return ViewFolder(out)


@dataclass(frozen=True)
class _Job:
    root: str
    name: str
    out: str
    sampling: ViewSampling
    seed: int


def _path(out: Path, name: str) -> Path:
    return out / (name + SUFFIX)


def _draw(job: _Job) -> None:
    from safetensors.numpy import save_file

    from polytok.signals import mesh as meshes

    mesh = meshes.read(Path(job.root) / job.name)
    drawn = meshes.views(mesh, job.sampling, numpy_rng(job.seed, "views", job.name))
    with atomic_path(_path(Path(job.out), job.name)) as aside:
        save_file({"views": drawn}, aside)
