from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh

from polytok.core.errors import PolytokError
from polytok.data.prepared import PreparedFolder, prepare_folder


def fill(folder: Path, count: int = 4) -> Path:
    """Boxes of growing length in two packs, two damaged files, and notes on some."""
    for pack in ("first", "second"):
        (folder / pack).mkdir(parents=True)
    for i in range(count):
        pack = "first" if i % 2 else "second"
        trimesh.creation.box([1, 1, 1 + i]).export(folder / pack / f"box{i}.obj")
    (folder / "first" / "broken.glb").write_text("no mesh")
    (folder / "first" / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    note = {"file": "second/box0.obj", "pack": "p", "caption": "a cube", "license": "CC0-1.0"}
    (folder / "metadata.jsonl").write_text(json.dumps(note) + "\n")
    return folder


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


def test_a_folder_is_prepared_and_resumed(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in"), tmp_path / "out"
    summary = prepare_folder(source, out, processes=2, progress=False)
    assert (summary.ready, summary.made, summary.dropped) == (4, 4, 2)
    assert summary.routes == {"closed": 4}
    index = {str(r["file"]): r for r in lines(out / "index.jsonl")}
    assert list(index) == ["first/box1.obj", "first/box3.obj", "second/box0.obj", "second/box2.obj"]
    cube = index["second/box0.obj"]
    assert (cube["caption"], cube["license"], cube["faces"]) == ("a cube", "CC0-1.0", 12)
    assert cube["route"] == "closed" and cube["eps"] == 0 and cube["distance_max"] == 0
    dropped = {str(r["file"]): str(r["reason"]) for r in lines(out / "dropped.jsonl")}
    assert dropped["first/flat.obj"] == "all faces have zero area"
    assert "glTF" in dropped["first/broken.glb"]

    before = contents(out)
    (out / "first" / "box1.obj.safetensors").write_bytes(b"damaged")
    (out / "second" / "box0.obj.safetensors").unlink()
    (out / "second" / ".box0.x.part.safetensors").write_bytes(b"left by a killed run")
    stamp = (out / "first" / "box3.obj.safetensors").stat().st_mtime_ns
    summary = prepare_folder(source, out, processes=1, progress=False)
    assert (summary.ready, summary.made) == (4, 2)
    assert contents(out) == before
    assert (out / "first" / "box3.obj.safetensors").stat().st_mtime_ns == stamp
    assert max(len(data) for data in before.values()) <= 150_000


def test_stretched_shapes_are_prepared_apart(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    trimesh.creation.box((8.0, 2.0, 0.5)).export(source / "board.obj")
    for name, stretch in (("plain", False), ("even", True)):
        prepare_folder(source, tmp_path / name, processes=1, stretch=stretch, progress=False)
        [record] = lines(tmp_path / name / "index.jsonl")
        factors = np.array([1, 2**1.5, 8]) if stretch else np.ones(3)
        assert bool(record["stretch"]) == stretch
        points = PreparedFolder(tmp_path / name).load(0)["points"]
        sides = np.array([0.98, 0.245, 0.06125]) * factors
        np.testing.assert_allclose(np.abs(points).max(0), sides, atol=2e-3)
        with pytest.raises(PolytokError, match=r"shapes with(out)? stretch, such as board\.obj"):
            prepare_folder(source, tmp_path / name, stretch=not stretch, progress=False)


def test_prepared_shapes_load(tmp_path: Path) -> None:
    source, out = fill(tmp_path / "in"), tmp_path / "out"
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in source.rglob("*.*"):
            file.write(path, path.relative_to(source))
    prepare_folder(archive, out, processes=2, progress=False)
    store = PreparedFolder(out)
    assert len(store) == 4 and store.num_uniform == 4096 and store.num_volume == 2048
    assert store.names[2] == "second/box0.obj"
    cube = store.load(2)
    assert {k: v.shape for k, v in cube.items()} == {
        "points": (5120, 3),
        "normals": (5120, 3),
        "queries": (8192, 3),
        "sdf": (8192,),
        "grad": (8192, 3),
    }
    assert all(v.dtype == np.float32 for v in cube.values())
    away = np.abs(cube["queries"]) - 0.98
    exact = np.linalg.norm(np.maximum(away, 0), axis=1) + np.minimum(away.max(1), 0)
    np.testing.assert_allclose(cube["sdf"], exact, atol=1e-3)
    assert len(PreparedFolder(out, limit=2)) == 2


def test_what_cannot_be_prepared_from(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    for source in ("empty", "text.zip", "missing"):
        with pytest.raises(PolytokError):
            prepare_folder(tmp_path / source, tmp_path / "out", progress=False)
    with pytest.raises(PolytokError, match="processes=0"):
        prepare_folder(tmp_path / "empty", tmp_path / "out", processes=0, progress=False)
    with pytest.raises(PolytokError, match="no prepared shapes"):
        PreparedFolder(tmp_path / "empty")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    source, out = fill(tmp_path / "in", count=40), tmp_path / "out"
    code = (
        "import signal, sys; from polytok.data.prepared import prepare_folder\n"
        # Whoever runs the tests in the background may have SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "if __name__ == '__main__':\n"
        "    prepare_folder(sys.argv[1], sys.argv[2], processes=2, progress=False)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    arguments = [sys.executable, str(script), str(source), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        arguments, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 60
    while len(contents(out)) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    kept = contents(out)
    assert 3 <= len(kept) < 40
    assert not list(out.rglob("*.part*"))
    assert len(lines(out / "index.jsonl")) <= len(kept) == len(PreparedFolder(out))
    summary = prepare_folder(source, out, processes=2, progress=False)
    assert summary.ready == 40 and summary.made == 40 - len(kept)
    assert {name: data for name, data in contents(out).items() if name in kept} == kept
