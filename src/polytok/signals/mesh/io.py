"""Read and write triangle meshes: geometry only, scenes flattened, damaged files refused."""

from __future__ import annotations

import logging
import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import SignalError, one_line
from polytok.core.files import atomic_path
from polytok.signals.mesh.gltf import Gltf
from polytok.signals.mesh.headers import check_header, claimed_faces, contents, extras
from polytok.signals.mesh.parts import only_used

# What it has to say of a damaged file is said in one line here; who sets up logging sees both.
logging.getLogger("trimesh").addHandler(logging.NullHandler())

EXTENSIONS = (".glb", ".gltf", ".obj", ".off", ".ply", ".stl")
"""What ``read`` knows."""

WRITABLE = (".glb", ".obj", ".ply", ".stl")
"""What ``write`` knows."""

MAX_COORDINATE = 1e18
# A shape is scaled to a side of 1.96, by at most 1e30 where files keep the factor.
MIN_SIDE = 1.97e-30
MAX_FACES = 50_000_000

_Piece = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


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
            vertices, faces = _join(_pieces(path, suffix))
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
            1e18, no face with an area, or a longest side below 1.97e-30.
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
    if side < MIN_SIDE:
        raise SignalError(f"the longest side is {side:.3g}, less than {MIN_SIDE:.3g}")


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


def _pieces(path: Path, suffix: str) -> list[_Piece]:
    """The vertices and faces of every instance of every mesh of a file."""
    if suffix in (".glb", ".gltf"):
        file = Gltf.open(path)
        meshes: dict[int, list[tuple[NDArray, NDArray]]] = {}
        found = []
        for number, matrix in file.instances():
            if number not in meshes:
                meshes[number] = [_piece(*primitive) for primitive in file.mesh(number)]
            found += [(points, faces, matrix) for points, faces in meshes[number]]
        return found
    data = BytesIO(contents(path, suffix))
    scene = trimesh.load_scene(data, file_type=suffix[1:], process=False, skip_materials=True)
    parts = [
        (scene.geometry[name], matrix)
        for matrix, name in map(scene.graph.get, scene.graph.nodes_geometry)
    ]
    return [
        (*_piece(part.vertices, part.faces), np.asarray(matrix, np.float64))
        for part, matrix in parts
        if isinstance(part, trimesh.Trimesh) and len(part.faces)
    ]


def _piece(points: Any, faces: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Convert vertices (V, 3) and faces (F, 3), and see that faces have vertices.

    Raises:
        SignalError: a face names a vertex that is not there.
    """
    points, faces = np.asarray(points, np.float64), np.asarray(faces, np.int64)
    if len(faces) and (faces.min() < 0 or faces.max() >= len(points)):
        wrong = int(faces.min() if faces.min() < 0 else faces.max())
        raise SignalError(f"a face names vertex {wrong}, but there are {len(points)}")
    return only_used(points, faces)


def _join(pieces: list[_Piece]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Move all pieces into their places and join them."""
    total = sum(len(faces) for _, faces, _ in pieces)
    if total > MAX_FACES:
        raise SignalError(f"the scene has {total} faces, more than {MAX_FACES}")
    vertices, triangles, start = [np.empty((0, 3))], [np.empty((0, 3), np.int64)], 0
    for points, faces, matrix in pieces:
        vertices.append(points @ matrix[:3, :3].T + matrix[:3, 3])
        # A mirroring transform turns faces inside out; turn them back.
        mirrored = np.linalg.det(matrix[:3, :3]) < 0
        triangles.append((faces[:, ::-1] if mirrored else faces) + start)
        start += len(points)
    return np.concatenate(vertices), np.concatenate(triangles)
