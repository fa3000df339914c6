from __future__ import annotations

import json
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from polytok.core.errors import PolytokError, SignalError
from polytok.signals.mesh.io import EXTENSIONS, WRITABLE, dropped, read, write
from polytok.signals.mesh.parts import weld

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


def triangle(kind: str, number: str = "1", index: str = "2") -> str:
    """A one-face text file whose last coordinate and last index are given."""
    return {
        "obj": f"v 0 0 0\nv 1 0 0\nv 0 {number} 0\nf 1 2 {int(index) + 1}\n",
        "off": f"OFF\n3 1 0\n0 0 0\n1 0 0\n0 {number} 0\n3 0 1 {index}\n",
        "ply": "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\n"
        "property float z\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
        f"0 0 0\n1 0 0\n0 {number} 0\n3 0 1 {index}\n",
        "stl": "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\n"
        f"vertex 0 {number} 0\nendloop\nendfacet\nendsolid a\n",
    }[kind]


def refused(path: Path) -> str:
    with pytest.raises(SignalError) as caught:
        read(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    return text


@pytest.mark.parametrize("kind", ["glb", "obj", "ply", "stl"])
def test_written_meshes_read_back(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"box.{kind}"
    write(BOX, path)
    back = read(path)
    assert len(back.faces) == 12
    assert back.area == pytest.approx(BOX.area, rel=1e-6)
    np.testing.assert_allclose(back.bounds, BOX.bounds, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_off_and_gltf_and_upper_case(tmp_path: Path) -> None:
    (tmp_path / "A.OFF").write_bytes(exported("off"))
    for name, data in trimesh.Scene(BOX).export(file_type="gltf").items():
        (tmp_path / name).write_bytes(data)
    for name in ("A.OFF", "model.gltf"):
        assert read(tmp_path / name).area == pytest.approx(BOX.area)


def test_quads_become_triangles(tmp_path: Path) -> None:
    path = tmp_path / "quad.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n")
    mesh = read(path)
    assert len(mesh.faces) == 2 and mesh.area == pytest.approx(1.0)


def test_scenes_are_flattened(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    turn = trimesh.transformations.rotation_matrix(np.pi / 2, [0, 0, 1])
    turn[:3, 3] = [10, 0, 0]
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[:3, 3] = [0, 20, 0]
    scene.add_geometry(BOX, geom_name="box", node_name="one", transform=turn)
    scene.add_geometry(BOX, geom_name="box", node_name="two", parent_node_name="one")
    scene.add_geometry(BOX, geom_name="box", node_name="three", transform=mirror)
    path = tmp_path / "scene.glb"
    path.write_bytes(scene.export(file_type="glb"))
    mesh = read(path)
    assert len(mesh.faces) == 36
    np.testing.assert_allclose(mesh.bounds, [[-0.5, -0.5, -1.5], [11, 21, 1.5]], atol=1e-5)
    # Each instance keeps its volume, the mirrored one too.
    assert mesh.volume == pytest.approx(3 * BOX.volume, rel=1e-5)


def test_all_instances_count(tmp_path: Path) -> None:
    def repeat(tree: Tree) -> None:
        tree["nodes"] = [{"mesh": 0, "translation": [i, 0, 0]} for i in range(5)]
        tree["scenes"] = [{"nodes": list(range(5))}]

    path = tmp_path / "five.glb"
    path.write_bytes(edited_glb(repeat))
    assert len(read(path).faces) == 60


def test_missing_empty_and_folders(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "nothing.glb")
    (tmp_path / "empty.obj").touch()
    assert "empty" in refused(tmp_path / "empty.obj")
    (tmp_path / "folder.glb").mkdir()
    assert "folder" in refused(tmp_path / "folder.glb")


@pytest.mark.parametrize("name", ["mesh", "mesh.xyz", "mesh.glb.txt"])
def test_unknown_extensions_list_the_known(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(exported("glb"))
    assert all(known in refused(tmp_path / name) for known in EXTENSIONS)


@pytest.mark.parametrize("kind", ["glb", "gltf", "obj", "off", "ply", "stl"])
def test_text_that_is_no_mesh(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"letter.{kind}"
    path.write_text("Dear reader,\nthis is not a mesh at all.\n" * 20)
    refused(path)


@pytest.mark.parametrize("kind", ["glb", "off", "ply", "stl", "ascii.ply", "stl_ascii"])
def test_every_truncation_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "ascii.ply":
        data, suffix = exported("ply", encoding="ascii"), "ply"
    else:
        data, suffix = exported(kind), kind.split("_")[0]
    data = data.rstrip()
    path = tmp_path / f"cut.{suffix}"
    # The last byte or two may be the tail of a number, whose loss no reader can see.
    for length in range(1, len(data) - 12, max(1, len(data) // 60)):
        path.write_bytes(data[:length])
        refused(path)


def test_obj_cut_inside_a_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 2 4")
    assert "truncated" in refused(path)


@pytest.mark.parametrize("kind", ["obj", "off", "ply", "stl"])
@pytest.mark.parametrize("number", ["nan", "inf", "1e30", "-1e19"])
def test_impossible_coordinates(tmp_path: Path, kind: str, number: str) -> None:
    path = tmp_path / f"bad.{kind}"
    path.write_text(triangle(kind, number=number))
    assert "coordinate" in refused(path)


@pytest.mark.parametrize("kind", ["obj", "off", "ply"])
@pytest.mark.parametrize("index", ["7", "-5"])
def test_face_index_out_of_range(tmp_path: Path, kind: str, index: str) -> None:
    path = tmp_path / f"bad.{kind}"
    path.write_text(triangle(kind, index=index))
    refused(path)


@pytest.mark.parametrize("kind", ["obj", "off", "ply", "stl"])
def test_zero_area(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"flat.{kind}"
    path.write_text(triangle(kind, number="0"))
    assert "zero area" in refused(path)


def test_no_faces(tmp_path: Path) -> None:
    path = tmp_path / "points.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    assert "no faces" in refused(path)
    path = tmp_path / "none.gltf"
    path.write_text('{"asset": {"version": "2.0"}}')
    assert "no faces" in refused(path)


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


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.ply", triangle("ply").replace("vertex 3", "vertex 4000000000").encode()),
        ("b.ply", triangle("ply").replace("face 1", "face -1").encode()),
        ("c.ply", triangle("ply").replace("face 1", "face 3").encode()),
        ("d.off", triangle("off").replace("3 1 0", "4000000000 1 0").encode()),
        ("e.off", triangle("off").replace("3 1 0", "3 2 0").encode()),
        ("f.stl", b" " * 80 + struct.pack("<I", 4_000_000_000) + b"\0" * 50),
    ],
)
def test_counts_that_lie(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    refused(path)


def test_bit_flips_never_escape(tmp_path: Path) -> None:
    path, data = tmp_path / "flip.glb", exported("glb")
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data) * 8, 150):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            mesh = read(path)
        except SignalError as error:
            assert "\n" not in str(error)
        else:
            assert np.isfinite(mesh.vertices[mesh.faces]).all()


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
    path = tmp_path / "rich.obj"
    path.write_text("mtllib a.mtl\nvt 0 0\nusemtl a\n" + triangle("obj"))
    assert dropped(path) == ("materials", "texture coordinates")


def test_write_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "box.obj"
    path.write_text("mine")
    with pytest.raises(PolytokError, match="exists"):
        write(BOX, path, force=False)
    with pytest.raises(SignalError, match=r"\.off"):
        write(BOX, tmp_path / "box.off")
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    assert set(WRITABLE) < set(EXTENSIONS)


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


@pytest.mark.parametrize("kind", ["obj", "off", "ply", "stl"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
def test_texts_in_other_encodings(tmp_path: Path, kind: str, encoding: str) -> None:
    """Names and comments may be in any language."""
    text = triangle(kind)
    named = {
        "obj": "# Küche\no Küche\n" + text,
        "off": text.replace("OFF", "OFF # Küche"),
        "ply": text.replace("element v", "comment Küche\nelement v"),
        "stl": text.replace("solid a", "solid Küche"),
    }[kind]
    path = tmp_path / f"kitchen.{kind}"
    path.write_bytes(named.encode(encoding))
    assert len(read(path).faces) == 1


def test_binary_ply_with_a_comment_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "kitchen.ply"
    data = exported("ply").replace(b"element v", "comment Küche\nelement v".encode("latin-1"))
    path.write_bytes(data)
    assert read(path).volume == pytest.approx(BOX.volume)


@pytest.mark.parametrize("kind", ["obj", "off", "ply", "stl"])
@pytest.mark.parametrize("end", ["\r", "\r\n", " \n", "\n\n"])
def test_ends_of_lines(tmp_path: Path, kind: str, end: str) -> None:
    path = tmp_path / f"lines.{kind}"
    path.write_bytes(triangle(kind).replace("\n", end).encode())
    assert read(path).area == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["obj", "off"])
def test_comments_after_numbers(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"commented.{kind}"
    first, second, *lines = triangle(kind).splitlines()
    commented = "".join(f"{line} # so\n# and\n" for line in lines)
    path.write_text(f"{first}\n{second}\n{commented}")
    np.testing.assert_array_equal(read(path).vertices, [[0, 0, 0], [1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize("head", [b"solid", b"solid with a facet", b"SOLID"])
def test_stl_is_told_by_its_size(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "solid.stl"
    path.write_bytes(head.ljust(80) + exported("stl")[80:])
    assert len(read(path).faces) == 12
    path.write_text(triangle("stl").upper())
    assert len(read(path).faces) == 1
    path.write_bytes(head.ljust(80) + struct.pack("<I", 3) + exported("stl")[84:])
    refused(path)


def test_tabs_and_indented_lines(tmp_path: Path) -> None:
    path = tmp_path / "tabs.obj"
    text = exported("obj").decode()
    for plain, odd in ((" ", "\t"), (" ", " \t "), ("\n", "\n  "), ("\n", "\n\t")):
        path.write_text(text.replace(plain, odd))
        assert read(path).volume == pytest.approx(BOX.volume)
    path.write_text("v 0 0\\\n0\nv 1 0 0\nv 0 1 0\nf 1 2\\\n3\n")
    assert read(path).area == pytest.approx(0.5)


def test_glb_shorter_than_its_chunks(tmp_path: Path) -> None:
    path, data = tmp_path / "short.glb", exported("glb")
    json_end = 20 + struct.unpack("<I", data[12:16])[0]
    for length in (30, json_end - 4, json_end + 4, len(data) - 4):
        path.write_bytes(data[:8] + struct.pack("<I", length) + data[12:])
        assert str(length) in refused(path)
    path.write_bytes(data + b"after its end")
    assert len(read(path).faces) == 12


@pytest.mark.parametrize("kind", ["off", "ply"])
def test_headers_that_claim_too_little(tmp_path: Path, kind: str) -> None:
    data = exported(kind, **({"encoding": "ascii"} if kind == "ply" else {})).decode()
    face, vertex = ("8 12", "8 3"), ("8 12", "7 12")
    if kind == "ply":
        face, vertex = ("face 12", "face 3"), ("vertex 8", "vertex 7")
    path = tmp_path / f"less.{kind}"
    path.write_text(data)
    assert len(read(path).faces) == 12
    for (right, wrong), rows in ((face, 11), (vertex, 19)):
        path.write_text(data.replace(right, wrong))
        assert f"claims {rows} rows, but 20 are there" in refused(path)


def test_blank_lines_and_other_elements_are_no_rows_too_many(tmp_path: Path) -> None:
    path = tmp_path / "edges.ply"
    head, body = triangle("ply").split("end_header\n")
    head += "element edge 2\nproperty int vertex1\nproperty int vertex2\n"
    head += "element material 0\nproperty int ambient\nend_header\n"
    path.write_text(head + "\n" + body.replace("\n", " \n \n") + "0 1\n1 2\n\n  \n")
    assert len(read(path).faces) == 1
    for counts in ("OFF 3 1 0", "OFF # a\n# b\n\n3 1 0 # c", "\n# a\nOFF\n\n3 1 0"):
        path = tmp_path / "blank.off"
        path.write_text(f"{counts}\n0 0 0\n\n1 0 0\n0 1 0 # d\n \n3 0 1 2\n\n# e\n ")
        assert len(read(path).faces) == 1


@pytest.mark.parametrize("face", ["0 1 2", "1 2 0", "1/1 2/2 0/3", "1 -0 2", "1 0//1 2", "1 2 00"])
def test_obj_that_counts_from_zero(tmp_path: Path, face: str) -> None:
    path = tmp_path / "zero.obj"
    vertices = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 1\n"
    path.write_text(f"{vertices}f 2 3 4\nf\t{face}\n")
    assert "vertex 0" in refused(path)
    # Nothing else may be taken for it.
    path.write_text(f"{vertices}g f 0\nf 2/0 3/0 4/0 # f 0\nusemtl 0\nf 1 2 3\n")
    assert len(read(path).faces) == 2


def test_obj_that_counts_back(tmp_path: Path) -> None:
    """Negative numbers count back from the line of their face, not from the end of the file."""
    path = tmp_path / "back.obj"
    first, second = ("v {0} 0 0\nv {1} 0 0\nv {0} 1 0\n".format(*x) for x in ((0, 1), (5, 6)))
    path.write_text(f"{first}f -3 -2 -1\n{second}f -3/-1 -2/-1 6/1\n")
    mesh = read(path)
    assert mesh.area == pytest.approx(1)
    np.testing.assert_array_equal(mesh.bounds, [[0, 0, 0], [6, 1, 0]])
    path.write_text(f"{first}f -4 -2 -1\n{second}f -3 -2 -1\n")
    assert "vertex -4 of 3" in refused(path)


def test_unused_vertices_are_left_out(tmp_path: Path) -> None:
    """Whatever their coordinates are, nothing is said about them."""
    path = tmp_path / "unused.ply"
    text = triangle("ply").replace("vertex 3", "vertex 5").replace("3 0 1 2", "3 1 2 4")
    text = text.replace("header\n0 0 0\n1 0 0\n", "header\nnan inf 0\n0 0 0\n1 0 0\nnan 0 0\n")
    path.write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mesh = read(path)
        weld(mesh.vertices, mesh.faces)
    np.testing.assert_array_equal(mesh.vertices, [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    np.testing.assert_array_equal(mesh.faces, [[0, 1, 2]])


def test_welding_leaves_unused_vertices_out() -> None:
    vertices = np.concatenate([[[np.nan, np.inf, 0]], BOX.vertices, [[1e300, 0, 0]]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points, faces = weld(vertices, np.asarray(BOX.faces) + 1)
    assert len(points) == 8 and len(faces) == 12 and np.isfinite(points).all()


@pytest.mark.parametrize(("size", "is_there"), [(1e-28, True), (2e-30, True), (1e-30, False)])
def test_shapes_too_small_to_scale(tmp_path: Path, size: float, is_there: bool) -> None:
    path = tmp_path / "tiny.obj"
    path.write_text(f"v 0 0 0\nv {size} 0 0\nv 0 {size / 2} 0\nf 1 2 3\n")
    if is_there:
        assert read(path).extents[0] == pytest.approx(size)
    else:
        assert "longest side" in refused(path)


def test_the_parser_is_silent(tmp_path: Path) -> None:
    """Warnings of the library that reads are not printed beside errors, unless somebody asks."""
    code = "import logging, polytok.signals.mesh; logging.getLogger('trimesh').warning('hear me')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout + ran.stderr == ""
