"""Read and write triangle meshes: geometry only, scenes flattened, damaged files refused."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import SignalError, one_line
from polytok.core.files import atomic_path
from polytok.signals.mesh.headers import check_header, claimed_faces, extras

EXTENSIONS = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")
"""What ``read`` knows."""

WRITABLE = (".glb", ".obj", ".ply", ".stl")
"""What ``write`` knows."""

MAX_COORDINATE = 1e18
MAX_FACES = 50_000_000


def read(path: str | os.PathLike[str]) -> trimesh.Trimesh:
    """Read a mesh file; scenes are flattened, so that every instance is in its place.

    Materials, texture coordinates, skins and animation are left out: see :func:`dropped`.

    Raises:
        SignalError: the file is missing, damaged, of an unknown kind, or has no usable face.
    """
    path = Path(path)
    if path.is_dir():
        raise SignalError(f"{path}: is a folder, not a mesh file")
    suffix = extension(path, EXTENSIONS)
    check_header(path, suffix)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            scene = trimesh.load_scene(path, process=False, skip_materials=True)
            vertices, faces = _flatten(scene)
    except SignalError as error:
        raise SignalError(f"{path}: {one_line(error)}") from error
    except Exception as error:
        # Parsers fail in many ways on damaged files; the user needs to know which file it was.
        reason = one_line(error, 120)
        raise SignalError(f"{path}: not a readable {suffix} file ({reason})") from error
    try:
        check(vertices, faces)
        if (claimed := claimed_faces(path, suffix)) > len(faces):
            raise SignalError(f"truncated: {claimed} faces claimed, {len(faces)} there")
    except SignalError as error:
        raise SignalError(f"{path}: {error}") from error
    return trimesh.Trimesh(vertices, faces, process=False)


def check(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> None:
    """Refuse coordinates and faces that nothing can be made of.

    Raises:
        SignalError: no faces, an index out of range, coordinates that are not finite or beyond
            1e18, or no face with an area.
    """
    if not len(faces):
        raise SignalError("the mesh has no faces")
    low, high = int(faces.min()), int(faces.max())
    if low < 0 or high >= len(vertices):
        wrong = low if low < 0 else high
        raise SignalError(f"a face names vertex {wrong}, but there are {len(vertices)}")
    used = vertices[np.unique(faces)]
    if not np.isfinite(used).all():
        raise SignalError("a coordinate is not a finite number")
    largest = float(np.abs(used).max())
    if largest > MAX_COORDINATE:
        raise SignalError(f"a coordinate is {largest:.3g}, more than {MAX_COORDINATE:.0e}")
    side = float((used.max(0) - used.min(0)).max())
    corners = (vertices[faces] - used.min(0)) / (side or 1.0)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if not (np.abs(cross) > 0).any():
        raise SignalError("all faces have zero area")


def write(mesh: trimesh.Trimesh, path: str | os.PathLike[str], *, force: bool = True) -> None:
    """Write a mesh as glb, obj, ply or stl; the file appears whole or not at all.

    Raises:
        SignalError: the extension is not one of these.
        PolytokError: the file exists and ``force`` is false, or its folder cannot be written.
    """
    suffix = extension(path, WRITABLE)
    plain = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    with atomic_path(path, force=force) as aside:
        data: Any = plain.export(file_type=suffix[1:])
        aside.write_bytes(data.encode() if isinstance(data, str) else data)


def extension(path: str | os.PathLike[str], known: tuple[str, ...] = EXTENSIONS) -> str:
    """Return the lower-case extension of ``path``.

    Raises:
        SignalError: it is missing or not among ``known``.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in known:
        what = f"unknown extension {suffix!r}" if suffix else "no extension"
        raise SignalError(f"{path}: {what} (known: {' '.join(known)})")
    return suffix


def dropped(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Name what of a file :func:`read` leaves out, such as materials and animation.

    Raises:
        SignalError: the file is missing or of an unknown kind.
    """
    return extras(Path(path), extension(path, EXTENSIONS))


def _flatten(scene: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Join all instances of all meshes of a scene."""
    geometry = scene.geometry
    usable = {}
    for name, part in geometry.items():
        if isinstance(part, trimesh.Trimesh) and len(part.faces):
            points = np.array(part.vertices, np.float64)
            faces = np.array(part.faces, np.int64)
            if faces.min() < 0 or faces.max() >= len(points):
                wrong = int(faces.min() if faces.min() < 0 else faces.max())
                raise SignalError(f"a face names vertex {wrong}, but there are {len(points)}")
            usable[name] = points, faces
    nodes = [(n, *scene.graph[n]) for n in scene.graph.nodes_geometry]
    nodes = [(n, matrix, name) for n, matrix, name in nodes if name in usable]
    total = sum(len(usable[name][1]) for _, _, name in nodes)
    if total > MAX_FACES:
        raise SignalError(f"the scene has {total} faces, more than {MAX_FACES}")
    vertices, triangles, start = [np.empty((0, 3))], [np.empty((0, 3), np.int64)], 0
    for _, matrix, name in nodes:
        points, faces = usable[name]
        matrix = np.asarray(matrix, np.float64)
        vertices.append(points @ matrix[:3, :3].T + matrix[:3, 3])
        # A mirroring transform turns faces inside out; turn them back.
        mirrored = np.linalg.det(matrix[:3, :3]) < 0
        triangles.append((faces[:, ::-1] if mirrored else faces) + start)
        start += len(points)
    return np.concatenate(vertices), np.concatenate(triangles)
