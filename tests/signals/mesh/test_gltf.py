from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from polytok.core.errors import SignalError
from polytok.signals.mesh.io import dropped, read

BOX = trimesh.creation.box([1.0, 2.0, 3.0])
Tree = dict[str, Any]


def exported(kind: str, mesh: trimesh.Trimesh = BOX, **options: Any) -> bytes:
    data = mesh.export(file_type=kind, **options)
    return data.encode() if isinstance(data, str) else data


def edited_glb(edit: Callable[[Tree], None], data: bytes | None = None) -> bytes:
    data = data or exported("glb")
    end = 20 + struct.unpack("<I", data[12:16])[0]
    tree = json.loads(data[20:end])
    edit(tree)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    head = b"glTF" + struct.pack("<II", 2, 20 + len(text) + len(data) - end)
    return head + struct.pack("<I", len(text)) + b"JSON" + text + data[end:]


def refused(path: Path) -> str:
    with pytest.raises(SignalError) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    return text


def test_all_instances_count(tmp_path: Path) -> None:
    def repeat(tree: Tree) -> None:
        tree["nodes"] = [{"mesh": 0, "translation": [i, 0, 0]} for i in range(5)]
        tree["scenes"] = [{"nodes": list(range(5))}]

    path = tmp_path / "five.glb"
    path.write_bytes(edited_glb(repeat))
    assert len(read(path).faces) == 60


def test_what_is_dropped(tmp_path: Path) -> None:
    def decorate(tree: Tree) -> None:
        tree["materials"] = [{}]
        tree["animations"] = [{}]
        tree["skins"] = [{"joints": [0]}]
        tree["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"] = 1

    path = tmp_path / "rich.glb"
    path.write_bytes(edited_glb(decorate))
    assert set(dropped(path)) == {"materials", "texture coordinates", "skins", "animation"}
    path.write_bytes(exported("glb"))
    assert dropped(path) == ()


def _set(kind: str, index: int, key: str, value: object) -> Callable[[Tree], None]:
    return lambda tree: tree[kind][index].__setitem__(key, value)


def _zeros_without_bytes(tree: Tree) -> None:
    del tree["accessors"][0]["bufferView"]
    tree["accessors"][0]["count"] = 2_000_000_000


def _child_of_itself(tree: Tree) -> None:
    tree["nodes"] = [{"mesh": 0, "children": [1]}, {"children": [0]}]


@pytest.mark.parametrize(
    "edit",
    [
        _set("accessors", 0, "count", 10**9),
        _set("accessors", 0, "count", -5),
        _set("accessors", 1, "count", 2),
        _set("accessors", 1, "byteOffset", 90),
        _set("bufferViews", 0, "byteLength", 10**12),
        _set("bufferViews", 1, "byteOffset", 10**6),
        _set("buffers", 0, "byteLength", 10**12),
        _set("nodes", 0, "scale", [1e30, 1, 1]),
        _set("nodes", 0, "mesh", 99),
        _set("accessors", 1, "componentType", 1),
        _zeros_without_bytes,
        _child_of_itself,
    ],
)
def test_glb_that_lies(tmp_path: Path, edit: Callable[[Tree], None]) -> None:
    path = tmp_path / "lie.glb"
    path.write_bytes(edited_glb(edit))
    refused(path)


def test_glb_shorter_than_its_chunks(tmp_path: Path) -> None:
    path, data = tmp_path / "short.glb", exported("glb")
    json_end = 20 + struct.unpack("<I", data[12:16])[0]
    for length in (30, json_end - 4, json_end + 4, len(data) - 4):
        path.write_bytes(data[:8] + struct.pack("<I", length) + data[12:])
        assert str(length) in refused(path)
    path.write_bytes(data + b"after its end")
    assert len(read(path).faces) == 12


def gltf_file(
    arrays: dict[str, np.ndarray],
    primitives: list[Tree],
    nodes: list[Tree] | None = None,
    **more: Any,
) -> bytes:
    """A GLB with an accessor for each array, in order; (N,) arrays are indices."""
    tree: Tree = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": list(range(len(nodes or [0])))}],
        "nodes": nodes or [{"mesh": 0}],
        "meshes": [{"primitives": primitives}],
        "bufferViews": [],
        "accessors": [],
        **more,
    }
    binary, kinds = b"", {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
    for number, array in enumerate(arrays.values()):
        data = array.tobytes()
        view = {"buffer": 0, "byteOffset": len(binary), "byteLength": len(data)}
        kind = "VEC3" if array.ndim == 2 else "SCALAR"
        accessor = {"bufferView": number, "count": len(array), "type": kind}
        tree["bufferViews"].append(view)
        tree["accessors"].append({**accessor, "componentType": kinds[array.dtype.str[1:]]})
        binary += data + b"\0" * (-len(data) % 4)
    tree["buffers"] = [{"byteLength": len(binary)}]
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    head = b"glTF" + struct.pack("<II", 2, 28 + len(text) + len(binary))
    chunks = (
        struct.pack("<I", len(text)) + b"JSON" + text,
        struct.pack("<I", len(binary)) + b"BIN\0",
    )
    return head + chunks[0] + chunks[1] + binary


CUBE = trimesh.creation.box()
PLAIN = {"attributes": {"POSITION": 0}, "indices": 1}


@pytest.mark.parametrize("kind", ["u1", "u2", "i1", "i2"])
@pytest.mark.parametrize("is_normalised", [True, False])
def test_quantised_coordinates(tmp_path: Path, kind: str, is_normalised: bool) -> None:
    """Integers stand for themselves, or, if the file says so, for 0 to 1 or -1 to 1."""
    dtype = np.dtype(f"<{kind}")
    low, high = (0, 1) if dtype.kind == "u" else (-1, 1)
    corner = CUBE.vertices > 0
    points = np.where(corner, np.iinfo(dtype).max, np.iinfo(dtype).min).astype(dtype)
    arrays = {"points": points, "faces": CUBE.faces.reshape(-1).astype("<u2")}
    nodes = [
        {"mesh": 0, "scale": [2, 2, 2], "translation": [5, 0, 0]},
        {"mesh": 0, "matrix": [0, 1, 0, 0, -1, 0, 0, 0, 0, 0, 1, 0, 0, 9, 0, 1]},
    ]
    path = tmp_path / "quantised.glb"
    more = {"extensionsRequired": ["KHR_mesh_quantization"]}
    path.write_bytes(gltf_file(arrays, [PLAIN, PLAIN], nodes, **more))
    if is_normalised:
        edit = _set("accessors", 0, "normalized", True)
        path.write_bytes(edited_glb(edit, path.read_bytes()))
    else:
        low, high = int(points.min()), int(points.max())
    mesh = read(path)
    first, turned = mesh.vertices[:16], mesh.vertices[16:]
    np.testing.assert_allclose(first, np.tile(np.where(corner, high, low), (2, 1)) * 2 + [5, 0, 0])
    x, y, z = np.where(corner, high, low).T
    np.testing.assert_allclose(turned, np.tile(np.stack([-y, x + 9, z], 1), (2, 1)))
    assert mesh.is_winding_consistent and mesh.volume > 0


def test_quantised_coordinates_have_a_stride(tmp_path: Path) -> None:
    points = np.zeros((8, 4), "<u2")
    points[:, :3] = np.where(CUBE.vertices > 0, 65535, 0)
    arrays = {"points": points.reshape(-1), "faces": CUBE.faces.reshape(-1).astype("<u2")}

    def stride(tree: Tree) -> None:
        tree["accessors"][0].update(type="VEC3", count=8, normalized=True)
        tree["bufferViews"][0]["byteStride"] = 8

    path = tmp_path / "quantised.glb"
    path.write_bytes(edited_glb(stride, gltf_file(arrays, [PLAIN])))
    np.testing.assert_array_equal(read(path).bounds, [[0, 0, 0], [1, 1, 1]])


def test_sparse_accessors(tmp_path: Path) -> None:
    """Some entries of an accessor are given apart, with or without others beneath."""
    points, faces = CUBE.vertices.astype("<f4"), CUBE.faces.reshape(-1).astype("<u2")
    arrays = {"a": points, "f": faces, "at": np.arange(8, dtype="<u2"), "b": points * 3}
    sparse = {"count": 8, "indices": {"bufferView": 2, "componentType": 5123}}
    sparse["values"] = {"bufferView": 3}

    def over(tree: Tree) -> None:
        tree["accessors"][0]["sparse"] = sparse

    def alone(tree: Tree) -> None:
        over(tree)
        del tree["accessors"][0]["bufferView"]

    path = tmp_path / "sparse.glb"
    for edit in (over, alone):
        path.write_bytes(edited_glb(edit, gltf_file(arrays, [PLAIN])))
        np.testing.assert_array_equal(read(path).bounds, [[-1.5] * 3, [1.5] * 3])
    arrays["at"] = np.full(8, 8, "<u2")
    path.write_bytes(edited_glb(over, gltf_file(arrays, [PLAIN])))
    assert "8 of 8" in refused(path)
    sparse["count"] = 10**9
    path.write_bytes(edited_glb(over, gltf_file(arrays, [PLAIN])))
    assert "sparse" in refused(path)


@pytest.mark.parametrize(("mode", "order"), [(5, [0, 1, 3, 2]), (6, [0, 1, 2, 3])])
@pytest.mark.parametrize("has_indices", [True, False])
def test_strips_and_fans(tmp_path: Path, mode: int, order: list[int], has_indices: bool) -> None:
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "<f4")
    points = square if has_indices else square[order]
    arrays = {"points": points, "corners": np.array(order, "<u1")}
    primitive: Tree = {"attributes": {"POSITION": 0}, "mode": mode}
    if has_indices:
        primitive["indices"] = 1
    path = tmp_path / "square.glb"
    path.write_bytes(gltf_file(arrays, [primitive]))
    mesh = read(path)
    assert len(mesh.faces) == 2 and mesh.area == pytest.approx(1)
    np.testing.assert_allclose(mesh.face_normals, [[0, 0, 1]] * 2)


def test_points_and_lines_are_left_out(tmp_path: Path) -> None:
    arrays = {"p": CUBE.vertices.astype("<f4"), "f": CUBE.faces.reshape(-1).astype("<u2")}
    path = tmp_path / "mixed.glb"
    path.write_bytes(gltf_file(arrays, [PLAIN, *({**PLAIN, "mode": m} for m in range(4))]))
    assert len(read(path).faces) == 12
    path.write_bytes(gltf_file(arrays, [PLAIN, {**PLAIN, "mode": 7}]))
    assert "7" in refused(path)


def test_draco(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = trimesh.exchange.gltf.export_glb(trimesh.Scene(BOX), extension_draco=True)
    path = tmp_path / "packed.glb"
    path.write_bytes(data)
    assert read(path).volume == pytest.approx(BOX.volume, rel=1e-3)
    at = data.index(b"DRACO")
    path.write_bytes(data[:at] + b"draco" + data[at + 5 :])
    assert "Draco" in refused(path)
    # A second mesh that is whole does not make up for one that is not.
    plain = {"p": CUBE.vertices.astype("<f4"), "f": CUBE.faces.reshape(-1).astype("<u2")}
    broken = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    path.write_bytes(gltf_file(plain, [PLAIN, {**PLAIN, "extensions": broken}]))
    assert "Draco" in refused(path)
    assert capfd.readouterr() == ("", "")


def test_accessors_without_bytes(tmp_path: Path) -> None:
    """Zeros by definition, but an extension meant to fill them."""
    points = CUBE.vertices.astype("<f4")
    arrays = {"p": points, "f": CUBE.faces.reshape(-1).astype("<u2"), "q": points}
    path = tmp_path / "zeros.glb"
    other = {**PLAIN, "attributes": {"POSITION": 2}}
    data = gltf_file(arrays, [PLAIN, other])
    path.write_bytes(edited_glb(lambda tree: tree["accessors"][2].pop("bufferView"), data))
    assert "accessor 2" in refused(path)


def test_a_camera_does_not_take_its_mesh_away(tmp_path: Path) -> None:
    arrays = {"p": CUBE.vertices.astype("<f4"), "f": CUBE.faces.reshape(-1).astype("<u2")}
    lens = {"aspectRatio": 1, "yfov": 1, "znear": 1}
    nodes: list[Tree] = [
        {"camera": 0, "mesh": 0, "translation": [3, 0, 0], "children": [1]},
        {"mesh": 0},
    ]
    cameras = [{"type": "perspective", "perspective": lens}]
    path = tmp_path / "seen.glb"
    scenes = [{"nodes": [0]}]
    path.write_bytes(gltf_file(arrays, [PLAIN], nodes, cameras=cameras, scenes=scenes))
    mesh = read(path)
    assert len(mesh.faces) == 24
    np.testing.assert_allclose(mesh.bounds, [[2.5, -0.5, -0.5], [3.5, 0.5, 0.5]])


@pytest.mark.parametrize(
    ("name", "is_known"),
    [
        ("KHR_mesh_quantization", True),
        ("KHR_draco_mesh_compression", True),
        ("KHR_texture_transform", True),
        ("KHR_texture_basisu", True),
        ("EXT_texture_webp", True),
        ("KHR_materials_unlit", True),
        ("KHR_materials_pbrSpecularGlossiness", True),
        ("EXT_mesh_gpu_instancing", False),
        ("EXT_meshopt_compression", False),
        ("FOO_bar", False),
    ],
)
def test_required_extensions(tmp_path: Path, name: str, is_known: bool) -> None:
    path = tmp_path / "extended.glb"
    path.write_bytes(edited_glb(lambda tree: tree.update(extensionsRequired=[name])))
    if is_known:
        assert len(read(path).faces) == 12
    else:
        assert name in refused(path)
    path.write_bytes(edited_glb(lambda tree: tree.update(extensionsUsed=[name])))
    assert len(read(path).faces) == 12
