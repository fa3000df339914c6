"""Read and write triangle meshes: geometry only, scenes flattened, damaged files refused."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import SignalError, one_line
from polytok.core.files import atomic_path
from polytok.signals.mesh.headers import (
    COLUMNS,
    COMPONENTS,
    check_header,
    claimed_faces,
    contents,
    extras,
    gltf,
)
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

_MODES = range(7)
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
        file = _Gltf(*gltf(path, suffix))
        meshes: dict[int, list[_Piece]] = {}
        found = []
        for number, matrix in file.instances():
            if number not in meshes:
                meshes[number] = file.mesh(number)
            found += [(points, faces, matrix) for points, faces, _ in meshes[number]]
        return found
    data = BytesIO(contents(path, suffix))
    scene = trimesh.load_scene(data, file_type=suffix[1:], process=False, skip_materials=True)
    parts = [
        (scene.geometry[name], matrix)
        for matrix, name in map(scene.graph.get, scene.graph.nodes_geometry)
    ]
    return [
        _piece(part.vertices, part.faces, matrix)
        for part, matrix in parts
        if isinstance(part, trimesh.Trimesh) and len(part.faces)
    ]


def _piece(points: Any, faces: Any, matrix: Any) -> _Piece:
    """Convert vertices (V, 3), faces (F, 3) and a matrix (4, 4), and see that faces have vertices.

    Raises:
        SignalError: a face names a vertex that is not there.
    """
    points, faces = np.asarray(points, np.float64), np.asarray(faces, np.int64)
    if len(faces) and (faces.min() < 0 or faces.max() >= len(points)):
        wrong = int(faces.min() if faces.min() < 0 else faces.max())
        raise SignalError(f"a face names vertex {wrong}, but there are {len(points)}")
    return *only_used(points, faces), np.asarray(matrix, np.float64)


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


@dataclass(frozen=True)
class _Gltf:
    """The geometry of a glTF file whose header was checked.

    Args:
        tree: its JSON. buffers: the bytes of each.
    """

    tree: dict[str, Any]
    buffers: list[bytes]

    def instances(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Number of the mesh and matrix (4, 4) of each node of the scene that has a mesh."""
        if not self.tree.get("scenes"):
            return
        scene = self._entry("scenes", self.tree.get("scene", 0))
        queue = [(node, np.eye(4)) for node in dict.fromkeys(scene.get("nodes", []))]
        for number, above in queue:
            node = self._entry("nodes", number)
            matrix = above @ _matrix(node)
            queue.extend((child, matrix) for child in node.get("children", []))
            if "mesh" in node:
                yield node["mesh"], matrix

    def mesh(self, number: int) -> list[_Piece]:
        """The primitives of a mesh that have faces, each where the mesh has it."""
        found = []
        for primitive in self._entry("meshes", number)["primitives"]:
            mode = primitive.get("mode", 4)
            if mode not in _MODES:
                raise SignalError(f"{mode!r} is no mode of a primitive")
            # Points and lines have no faces.
            if mode >= 4:
                found.append(_piece(*self._triangles(primitive, mode), np.eye(4)))
        return found

    def _triangles(self, primitive: dict[str, Any], mode: int) -> tuple[NDArray, NDArray]:
        """Vertices (V, 3) and faces (F, 3) of a primitive made of triangles."""
        number = primitive["attributes"]["POSITION"]
        accessor = self._entry("accessors", number)
        packed = primitive.get("extensions", {}).get("KHR_draco_mesh_compression")
        if packed:
            points, faces = self._unpack(packed)
        else:
            points = self._values(number)
            corners = np.arange(len(points))
            if "indices" in primitive:
                corners = self._values(primitive["indices"]).reshape(-1)
            if corners.dtype.kind not in "iu":
                raise SignalError("the corners of its faces are not integers")
            faces = _faces(corners.astype(np.int64), mode)
        if points.shape[1] != 3:
            raise SignalError(f"its vertices have {points.shape[1]} coordinates")
        # Quantised coordinates are integers that may stand for -1 to 1.
        if accessor.get("normalized") and points.dtype.kind in "iu":
            points = np.maximum(points / np.iinfo(points.dtype).max, -1.0)
        return points, faces

    def _unpack(self, packed: dict[str, Any]) -> tuple[NDArray, NDArray]:
        """Vertices (V, 3) and faces (F, 3) that Draco compressed."""
        import DracoPy

        number = packed["attributes"]["POSITION"]
        try:
            got = DracoPy.decode(bytes(self._view(packed["bufferView"])))
        except Exception as error:
            raise SignalError(f"its Draco data do not decode ({one_line(error, 80)})") from error
        points = [a["data"] for a in got.attributes if a["unique_id"] == number]
        faces = getattr(got, "faces", None)
        if not points or faces is None:
            raise SignalError("its Draco data hold no triangles")
        return points[0], faces

    def _values(self, number: int) -> NDArray:
        """The entries (count, columns) of an accessor, as they are stored."""
        accessor = self._entry("accessors", number)
        kind, count = accessor["componentType"], accessor["count"]
        columns, sparse = COLUMNS[accessor["type"]], accessor.get("sparse")
        if "bufferView" in accessor:
            values = self._rows(accessor, kind, count, columns)
        elif sparse or not count:
            values = np.zeros((count, columns), COMPONENTS[kind])
        else:
            # By definition these are zeros, which in practice an unknown extension would fill.
            raise SignalError(f"accessor {number} has no bytes")
        return self._replaced(values, sparse, kind) if sparse else values

    def _replaced(self, values: NDArray, sparse: dict[str, Any], kind: int) -> NDArray:
        """The entries (count, columns) of an accessor, some of them replaced by sparse ones."""
        count, (total, columns), at = sparse["count"], values.shape, sparse["indices"]
        if count > total:
            raise SignalError(f"a sparse accessor has {count} of {total} entries")
        where = self._rows(at, at["componentType"], count, 1).reshape(-1)
        if len(where) and not 0 <= where.min() <= where.max() < total:
            raise SignalError(f"a sparse accessor names entry {where.max()} of {total}")
        values = values.copy()
        values[where] = self._rows(sparse["values"], kind, count, columns)
        return values

    def _rows(self, where: dict[str, Any], kind: int, count: int, columns: int) -> NDArray:
        """Look at ``count`` rows of numbers in a buffer view; NumPy sees that they lie within."""
        view = self._entry("bufferViews", where["bufferView"])
        dtype = np.dtype(COMPONENTS[kind])
        strides = (view.get("byteStride", dtype.itemsize * columns), dtype.itemsize)
        data, start = self._view(where["bufferView"]), where.get("byteOffset", 0)
        return np.ndarray((count, columns), dtype, data, start, strides)

    def _view(self, number: int) -> memoryview:
        """The bytes of a buffer view."""
        view = self._entry("bufferViews", number)
        start = view.get("byteOffset", 0)
        return memoryview(self.buffers[view["buffer"]])[start : start + view["byteLength"]]

    def _entry(self, kind: str, number: int) -> dict[str, Any]:
        """An entry of one of the lists of the JSON."""
        entries = self.tree.get(kind, [])
        if not 0 <= number < len(entries):
            raise SignalError(f"there is no {number} among its {len(entries)} {kind}")
        return entries[number]


def _matrix(node: dict[str, Any]) -> NDArray[np.float64]:
    """The matrix (4, 4) from a glTF node to the one above it."""
    matrix = np.reshape(node.get("matrix", np.eye(4)), (4, 4)).T.astype(np.float64)
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    turn = trimesh.transformations.quaternion_matrix([w, x, y, z])
    moved = trimesh.transformations.translation_matrix(node.get("translation", (0, 0, 0)))
    return matrix @ moved @ turn @ np.diag([*node.get("scale", (1, 1, 1)), 1.0])


def _faces(corners: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
    """Faces (F, 3) of a list (4), strip (5) or fan (6) of triangles."""
    if mode == 4:
        if len(corners) % 3:
            raise SignalError(f"{len(corners)} corners do not make triangles")
        return corners.reshape(-1, 3)
    first = np.arange(len(corners) - 2)
    if mode == 6:
        return np.stack([corners[:1].repeat(len(first)), corners[first + 1], corners[first + 2]], 1)
    # Every second triangle of a strip runs the other way round.
    odd = first % 2
    return np.stack([corners[first], corners[first + 1 + odd], corners[first + 2 - odd]], 1)
