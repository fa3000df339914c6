"""Every command on real files, in process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import trimesh

from cli.commands import run
from polytok.bitstream import read_header
from polytok.systems import api


def test_round_trip(code: Path, model: Path, tmp_path: Path) -> None:
    for suffix in ("glb", "obj", "ply", "stl"):
        out = tmp_path / f"back.{suffix}"
        assert run("decode", code, "-o", out, "--model", model, "--res", 32) == 0
        assert len(trimesh.load(out, force="mesh").faces) > 0


def test_encoding_twice_gives_the_same_bytes(
    code: Path, model: Path, box: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.ptk"
    assert run("encode", box, "-o", again, "--model", model) == 0
    assert again.read_bytes() == code.read_bytes()


def test_info_counts_bytes_and_restores_the_box(
    code: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", code, "--model", model, "--json") == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["bytes"] == code.stat().st_size
    assert facts["longest_side"] == pytest.approx(3.0, rel=1e-5)
    assert facts["tokens"] == [1, 4, 9, 16]
    assert facts["iso"] == read_header(code.read_bytes()).iso


def test_truncate_gives_the_tokens_of_encoding_to_fewer_bytes(
    code: Path, model: Path, box: Path, tmp_path: Path
) -> None:
    cut, short = tmp_path / "cut.ptk", tmp_path / "short.ptk"
    assert run("truncate", code, "--bytes", 45, "-o", cut, "--model", model) == 0
    assert run("encode", box, "-o", short, "--bytes", 45, "--model", model) == 0
    assert len(cut.read_bytes()) == len(short.read_bytes()) <= 45
    codec = api.load_codec(model)
    first, second = codec.unpack(cut.read_bytes()), codec.unpack(short.read_bytes())
    assert all(map(torch.equal, first.indices, second.indices))
    # A code that is cut keeps where its surface was; one that is encoded has its own.
    assert first.meta["iso"] == codec.unpack(code.read_bytes()).meta["iso"]
    assert second.meta["iso"] == codec.encode(box, levels=3).meta["iso"]


def test_a_cut_file_decodes_only_when_asked(
    code: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, out = tmp_path / "cut.ptk", tmp_path / "back.glb"
    cut.write_bytes(code.read_bytes()[:-1])
    assert run("decode", cut, "-o", out, "--model", model, "--res", 32) == 2
    assert not out.exists()
    assert run("decode", cut, "-o", out, "--model", model, "--res", 32, "--partial") == 0
    assert "whole scales" in capsys.readouterr().err


def test_a_search_betters_the_scales_that_fit(
    model: Path, box: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = api.load_codec(model)
    sizes = [
        len(codec.pack(codec.encode(box, levels=n), coder="raw")[0])
        for n in range(1, 1 + len(codec.spec.levels))
    ]
    files = []
    for effort in (0, 1):
        out = tmp_path / f"{effort}.ptk"
        options = ("--bytes", sizes[1], "--coder", "raw", "--effort", effort)
        assert run("encode", box, "-o", out, "--model", model, *options) == 0
        files.append(out.read_bytes())
        assert len(codec.unpack(files[-1]).indices) == 2
    assert files[0] == codec.pack(codec.encode(box, levels=2), coder="raw")[0]
    assert files[1] == codec.pack(codec.encode(box, levels=2, effort=1), coder="raw")[0]


def test_nothing_is_replaced_silently(code: Path, model: Path, box: Path) -> None:
    before = code.read_bytes()
    assert run("encode", box, "-o", code, "--model", model, "--seed", 1) == 2
    assert code.read_bytes() == before
    assert run("encode", box, "-o", code, "--model", model, "--force") == 0


def test_a_bad_input_of_a_batch_costs_itself_alone(
    model: Path, box: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "good.glb").write_bytes(box.read_bytes())
    (folder / "bad.glb").write_text("no mesh")
    assert run("encode", folder, "-o", out, "--model", model) == 2
    assert [p.name for p in out.iterdir()] == ["good.ptk"]
    assert "bad.glb" in capsys.readouterr().err


def test_compare_of_a_mesh_with_itself(box: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", box, box, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["f_002"] == 1
    assert scores["cd_l1"] < 1e-6


def test_evaluate_scores_every_shape(
    model: Path, box: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    arguments = ("evaluate", box.parent, "--model", model, "--res", 32, "--prefixes", "-o", out)
    assert run(*arguments) == 0
    report = json.loads(out.read_text())
    assert report["shapes"] == report["encoded"] == 1
    assert {"f_002", "outer_f_002", "v_iou", "cs_iou"} <= report["summary"].keys()
    assert "f_002" in capsys.readouterr().out


def test_evaluate_lists_what_cannot_be_read(
    model: Path, box: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    (box.parent / "a_bad.glb").write_text("no mesh")
    arguments = ("evaluate", box.parent, "--model", model, "--res", 32, "-o", out)
    assert run(*arguments) == 2
    report = json.loads(out.read_text())
    assert (report["shapes"], report["encoded"]) == (2, 1)
    assert [r["shape"] for r in report["rows"]] == ["box.glb"]
    assert [f["shape"] for f in report["failures"]] == ["a_bad.glb"]
    assert "a_bad.glb" in capsys.readouterr().err


def test_a_folder_of_codes_loads_its_weights_once(
    code: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "codes", tmp_path / "meshes"
    folder.mkdir()
    for name in ("a.ptk", "b.ptk"):
        (folder / name).write_bytes(code.read_bytes())
    loads: list[object] = []

    def load(data: bytes, name: object = None) -> object:
        loads.append(name)
        return original(data, name)

    original = api.codec_for
    monkeypatch.setattr(api, "codec_for", load)
    assert run("decode", folder, "-o", out, "--model", model, "--res", 32) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.glb", "b.glb"]
    assert len(loads) == 1


def test_demo_keeps_what_a_folder_holds(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "demo.png"
    mine.write_text("mine")
    assert run("demo", "-o", tmp_path, "--model", model) == 2
    assert "--force" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["demo.png"] and mine.read_text() == "mine"


def test_demo_writes_a_picture_and_meshes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert run("demo", "-o", out, "--model", model, "--effort", 0) == 0
    assert (out / "demo.png").stat().st_size > 10_000
    assert len(list(out.glob("*-original.glb"))) == 5
    assert "Draco" in capsys.readouterr().out


def test_list_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["system"] == "vat"
    assert run("doctor", "--json") == 0
    assert "torch" in json.loads(capsys.readouterr().out)
