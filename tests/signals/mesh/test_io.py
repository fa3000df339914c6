from __future__ import annotations

import struct
import subprocess
import sys
import warnings
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
