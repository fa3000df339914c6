"""Read glTF and GLB: what a file claims, checked, and its geometry in the places of its scene."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import SignalError, one_line

_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
"""Types of the numbers of a glTF accessor."""

_COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
"""How many numbers an entry of a glTF accessor has."""

_EXTENSIONS = re.compile(
    # Those that the reader follows.
    "KHR_(draco_mesh_compression|mesh_quantization)"
    # Those that have no say in where the surface is.
    "|KHR_(materials_|texture_)[a-zA-Z_]+|(EXT|MSFT)_texture_[a-z]+|ADOBE_materials_[a-z_]+"
    "|KHR_lights_punctual|EXT_lights_image_based|KHR_techniques_webgl|KHR_xmp(_json_ld)?"
    "|KHR_animation_pointer|EXT_mesh_features|EXT_structural_metadata|CESIUM_primitive_outline"
)
"""Names of extensions that a glTF file may require."""

_MODES = range(7)


def extras(path: Path) -> dict[str, bool]:
    """Whether a file holds the things beside geometry that others name."""
    tree, _ = _read(path)
    primitives = [p for m in tree.get("meshes", []) for p in m.get("primitives", [])]
    names = {k for p in primitives for k in p.get("attributes", {})}
    return {
        "materials": bool(tree.get("materials")),
        "texture coordinates": any(n.startswith("TEXCOORD") for n in names),
        "vertex colours": any(n.startswith("COLOR") for n in names),
        "skins": bool(tree.get("skins")),
        "morph targets": any("targets" in p for p in primitives),
        "animation": bool(tree.get("animations")),
    }


def check(path: Path, size: int) -> None:
    """Check that views and accessors lie within their buffers, and that nodes form trees."""
    tree, buffers = _read(path)
    views = tree.get("bufferViews", [])
    for i, view in enumerate(views):
        end = _count(view.get("byteOffset", 0)) + _count(view["byteLength"])
        if end > len(buffers[view["buffer"]]):
            raise SignalError(f"buffer view {i} ends at byte {end}, beyond its buffer")
    for i, accessor in enumerate(tree.get("accessors", [])):
        count = _count(accessor["count"])
        number = np.dtype(_COMPONENTS[accessor["componentType"]])
        row = number.itemsize * _COLUMNS[accessor["type"]]
        if "bufferView" not in accessor:
            # Zeros by definition, or compressed: no room to check against but the file itself.
            if count > max(size * 64, 1 << 16):
                raise SignalError(f"accessor {i} claims {count} entries")
            continue
        view = views[accessor["bufferView"]]
        stride = max(_count(view.get("byteStride", row)), 1)
        room = _count(view["byteLength"]) - _count(accessor.get("byteOffset", 0))
        if count and (count - 1) * stride + row > room:
            raise SignalError(f"accessor {i} claims {count} entries, more than its bytes hold")
    _check_nodes(tree.get("nodes", []))


def _read(path: Path) -> tuple[dict[str, Any], list[bytes]]:
    """Read the JSON and the buffers of a glTF or GLB file.

    Raises:
        SignalError: a chunk or a buffer is missing or cut short, or an extension is unknown.
    """
    is_binary = path.suffix.lower() == ".glb"
    tree, binary = _glb(path) if is_binary else (json.loads(path.read_bytes()), b"")
    if not isinstance(tree, dict) or "asset" not in tree:
        raise SignalError("the JSON is not glTF")
    # Before the buffers, which may be there for an extension only.
    _check_required(tree.get("extensionsRequired", []))
    # Only the first buffer may be the binary chunk.
    buffers = enumerate(tree.get("buffers", []))
    return tree, [_buffer(buffer, path, b"" if i else binary) for i, buffer in buffers]


def _check_required(names: list[str]) -> None:
    """Refuse files that cannot be understood without an extension that is not."""
    for name in names:
        if not _EXTENSIONS.fullmatch(name):
            raise SignalError(f"it requires the extension {name[:80]!r}, which is not supported")


def _glb(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON of a GLB, and its binary chunk."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(20)
        if head[:4] != b"glTF":
            raise SignalError("not a GLB file: it does not start with 'glTF'")
        if len(head) < 20:
            raise SignalError(f"truncated: {size} bytes are too few for a header")
        version, length, json_length, kind = struct.unpack("<4xII I4s", head)
        if version != 2:
            raise SignalError(f"GLB version {version} is not 2")
        if length > size:
            raise SignalError(f"truncated: {length} bytes claimed, {size} there")
        if kind != b"JSON" or 20 + json_length > size:
            raise SignalError("the JSON chunk is missing or truncated")
        tree = json.loads(file.read(json_length))
        if length == 20 + json_length:
            return tree, b""
        chunk = file.read(8)
        claimed, kind = struct.unpack("<I4s", chunk) if len(chunk) == 8 else (0, b"")
        binary = file.read(claimed)
    if len(binary) < claimed:
        raise SignalError(f"truncated: the binary chunk claims {claimed} bytes")
    # A file that counts fewer bytes than its chunks was put together wrongly.
    if length < (end := 20 + json_length + len(chunk) + claimed):
        raise SignalError(f"the header claims {length} bytes, its chunks {end}")
    return tree, binary if kind == b"BIN\0" else b""


def _buffer(buffer: dict[str, Any], path: Path, binary: bytes) -> bytes:
    claimed, uri = _count(buffer["byteLength"]), buffer.get("uri")
    if uri is None:
        there = binary
    elif uri.startswith("data:"):
        there = base64.b64decode(uri.split(",", 1)[1])
    else:
        beside = path.parent / unquote(uri)
        if not beside.resolve().is_relative_to(path.parent.resolve()) or not beside.is_file():
            raise SignalError(f"its buffer {uri[:80]!r} is not there")
        there = beside.read_bytes()
    if claimed > len(there):
        raise SignalError(f"a buffer claims {claimed} bytes, {len(there)} there")
    return there[:claimed]


def _check_nodes(nodes: list[dict[str, Any]]) -> None:
    parents = [0] * len(nodes)
    for node in nodes:
        for child in node.get("children", []):
            parents[child] += 1
    if any(p > 1 for p in parents):
        raise SignalError("a node has two parents")
    queue = [i for i, p in enumerate(parents) if p == 0]
    for i in queue:
        queue.extend(nodes[i].get("children", []))
    if len(queue) != len(nodes):
        raise SignalError("nodes form a cycle")


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise SignalError(f"{value!r} is not a count")
    return value


@dataclass(frozen=True)
class Gltf:
    """The geometry of a file that passed :func:`check`.

    Args:
        tree: its JSON. buffers: the bytes of each.
    """

    tree: dict[str, Any]
    buffers: list[bytes]

    @classmethod
    def open(cls, path: Path) -> Gltf:
        """Read a file."""
        return cls(*_read(path))

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

    def mesh(self, number: int) -> list[tuple[NDArray, NDArray]]:
        """Vertices (V, 3) and faces (F, 3) of each primitive of a mesh that has faces."""
        found = []
        for primitive in self._entry("meshes", number)["primitives"]:
            mode = primitive.get("mode", 4)
            if mode not in _MODES:
                raise SignalError(f"{mode!r} is no mode of a primitive")
            # Points and lines have no faces.
            if mode >= 4:
                found.append(self._triangles(primitive, mode))
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
        columns, sparse = _COLUMNS[accessor["type"]], accessor.get("sparse")
        if "bufferView" in accessor:
            values = self._rows(accessor, kind, count, columns)
        elif sparse or not count:
            values = np.zeros((count, columns), _COMPONENTS[kind])
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
        dtype = np.dtype(_COMPONENTS[kind])
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
