"""Whatever is fed in: one line on stderr, exit status 2, no output file."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh

from polytok.cli import run


def _obj(vertices: str, faces: str = "f 1 2 3\n") -> bytes:
    return (vertices + faces).encode()


TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"


def _glb() -> bytes:
    data = trimesh.creation.box().export(file_type="glb")
    assert isinstance(data, bytes)
    return data


def _lying_stl() -> bytes:
    return b"\0" * 80 + struct.pack("<I", 2**31) + b"\0" * 50


def _lying_ply() -> bytes:
    return (
        b"ply\nformat binary_little_endian 1.0\nelement vertex 2000000000\n"
        b"property float x\nproperty float y\nproperty float z\n"
        b"element face 1\nproperty list uchar int vertex_indices\nend_header\n"
        + np.zeros(9, "<f4").tobytes()
    )


CASES = {
    "empty.glb": b"",
    "text.glb": b"this is no mesh at all",
    "cut.glb": _glb()[:300],
    "unknown.xyz3": b"1 2 3",
    "noextension": b"1 2 3",
    "nan.obj": _obj("v nan 0 0\nv 1 0 0\nv 0 1 0\n"),
    "inf.obj": _obj("v inf 0 0\nv 1 0 0\nv 0 1 0\n"),
    "huge.obj": _obj("v 1e30 0 0\nv 1 0 0\nv 0 1 0\n"),
    "index.off": b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n",
    "faceless.obj": _obj(TRIANGLE, ""),
    "flat.obj": _obj("v 0 0 0\nv 1 0 0\nv 2 0 0\n"),
    "lying.stl": _lying_stl(),
    "lying.ply": _lying_ply(),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_meshes(
    name: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / name, tmp_path / "out.ptk"
    path.write_bytes(CASES[name])
    assert run(["encode", str(path), "-o", str(out), "--model", str(model)]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert not out.exists()
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode"],
        ["encode", "nowhere.glb", "-o", "x.ptk", "--effort", "12"],
        ["encode", "nowhere.glb", "-o", "x.ptk", "--model", "vat-512b-smal"],
        ["encode", "nowhere.glb", "-o", "x.ptk"],
        ["decode", "nowhere.ptk", "-o", "x.glb"],
        ["decode", "nowhere.ptk", "-o", "x.docx"],
        ["decode", "nowhere.ptk", "-o", "x.glb", "--faces", "3"],
        ["decode", "nowhere.ptk", "-o", "x.glb", "--levels", "0"],
        ["info", "nowhere.ptk"],
        ["truncate", "nowhere.ptk", "--bytes", "0", "-o", "x.ptk"],
        ["compare", "nowhere.glb", "nowhere.obj"],
        ["evaluate", "nowhere"],
        ["prepare", "nowhere", "out"],
        ["prepare", "nowhere", "out", "--pictures", "emoji"],
        ["prepare", ".", "out", "--pictures", "emojis"],
        ["prepare", ".", "out", "--pictures", "photos", "--size", "0"],
        ["train", "nowhere.toml", "--run", "run"],
        ["demo", "-o", "out", "--model", "one-d-piece-tiny"],
        ["frobnicate"],
        [],
    ],
)
def test_bad_arguments(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Missing command."),
        (["mixture"], "Missing command."),
        (["decode", "a.ptk", "-o", "a.glb", "--res", "x"], "'--res'"),
        (["generate", "-o", "out", "-n", "1.5"], "'-n' / '--count'"),
        (["generate", "barrel"], "'-o' / '--output'"),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0] and len(lines[0]) < 160, lines


def test_unknown_coders_are_refused_before_anything_is_encoded(
    box: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "box.ptk"
    assert run(["encode", str(box), "-o", str(out), "--coder", "zip"]) == 2
    assert capfd.readouterr().err == "error: --coder 'zip' is not one of auto, raw, prior\n"
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x.glb", "has extension '.glb'; known: .ptk"),
        ("x", "has extension 'none'; known: .ptk"),
        ("folder", "has extension 'none'; known: .ptk"),
        ("folder.ptk", "is a folder, not a file"),
    ],
)
def test_a_code_is_cut_to_a_file_of_codes(
    name: str, reason: str, code: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / name
    (out if "folder" in name else out.parent).mkdir(parents=True)
    capfd.readouterr()
    assert run(["truncate", str(code), "--bytes", "45", "-o", str(out), "--force"]) == 2
    assert capfd.readouterr().err == f"error: {out} {reason}\n"
    assert list(out.parent.iterdir()) == [out] * ("folder" in name)


def test_too_many_threads(
    model: Path, box: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "box.ptk"
    options = ["--model", str(model), "--threads", "1000000"]
    assert run(["encode", str(box), "-o", str(out), *options]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: threads=1000000 is more than"), lines
    assert not out.exists()


@pytest.mark.parametrize("device", ["meta", "cpu:x", "cuda:99", "mkldnn", "gpu", ""])
def test_devices_that_cannot_compute(
    device: str, model: Path, box: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.ptk"
    options = ["--model", str(model), "--device", device]
    assert run(["encode", str(box), "-o", str(out), *options]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: device {device!r} is not"), lines
    assert "known: cpu" in lines[0]
    assert not out.exists()


@pytest.mark.parametrize("fault", ["magic", "version", "weights", "crc", "cut", "longer"])
def test_bad_codes(
    fault: str, model: Path, box: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "box.ptk", tmp_path / "back.glb"
    assert run(["encode", str(box), "-o", str(path), "--model", str(model)]) == 0
    data = bytearray(path.read_bytes())
    place = {"magic": 0, "version": 3, "weights": 5, "crc": len(data) - 1}.get(fault)
    if place is not None:
        data[place] ^= 0x40
    data = {"cut": data[:-3], "longer": data + b"\0"}.get(fault, data)
    path.write_bytes(bytes(data))
    capfd.readouterr()
    assert run(["decode", str(path), "-o", str(out), "--model", str(model)]) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1
    assert not out.exists()


def test_codes_are_not_written_as_meshes(
    model: Path, box: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = box.read_bytes()
    assert run(["encode", str(box), "-o", str(box), "--force", "--model", str(model)]) == 2
    assert "known: .ptk" in capfd.readouterr().err
    assert box.read_bytes() == before


@pytest.mark.parametrize("fault", ["cut", "no mesh in it", "changed"])
def test_bad_zips(
    fault: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shapes.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt" if fault == "no mesh in it" else "box.glb", _glb())
    data = bytearray(path.read_bytes())
    if fault == "changed":
        data[100] ^= 0xFF
    path.write_bytes(bytes(data[:-30] if fault == "cut" else data))
    out = tmp_path / "scores.json"
    assert run(["evaluate", str(path), "--model", str(model), "-o", str(out)]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert not out.exists()


def test_unknown_weights_are_named(
    model: Path, box: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "box.ptk"
    assert run(["encode", str(box), "-o", str(path), "--model", str(model)]) == 0
    assert run(["info", str(path)]) == 2
    assert "--model" in capfd.readouterr().err
