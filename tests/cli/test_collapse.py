"""``polytok collapse``: predictions from files, measurements of models, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from cli.commands import run
from polytok.core.seeding import numpy_rng
from polytok.metrics import LossScale
from polytok.systems.theory.posterior_collapse import predict_collapse

DATA = numpy_rng(0, "data").normal(size=(50, 4)) * np.array([2.0, 1.0, 0.5, 0.1])


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run("collapse", *arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def saved(path: Path, table: Any, names: str = "") -> Path:
    if path.suffix == ".npy":
        np.save(path, table)
    else:
        np.savetxt(path, table, delimiter=",", header=names, comments="")
    return path


def test_eigenvalues_are_a_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "predict", "--eigenvalues", "3,6,.5", "--eta-dec", 1)
    assert found["active"] == 2 and found["collapsed"] == 1 and found["threshold"] == 1
    assert found["eigenvalues"] == [6, 3, 0.5]
    assert found["kl_nats"] == pytest.approx([np.log(6) / 2, np.log(3) / 2, 0])


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
def test_files_are_a_prediction(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = saved(tmp_path / f"data{suffix}", DATA)
    cov = saved(tmp_path / f"cov{suffix}", np.cov(DATA.T, bias=True))
    wanted = predict_collapse(data=DATA, eta_dec=0.5, beta=2.0, latent_dim=3)
    for option, path in (("--data", data), ("--cov", cov)):
        found = said(
            capsys, "predict", option, path, "--eta-dec", 0.5, "--beta", 2, "--latent-dim", 3
        )
        assert found["active"] == wanted.num_active and found["latent_dim"] == 3
        assert found["kl_nats"] == pytest.approx(wanted.kl)


def test_a_line_of_names_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "named.csv", DATA, names="a,b,c,d")
    found = said(capsys, "predict", "--data", path, "--eta-dec", 0.5)
    assert found["active"] == predict_collapse(data=DATA, eta_dec=0.5).num_active


def test_a_training_loss_is_translated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "data.npy", DATA)
    mean = said(capsys, "predict", "--data", path, "--weight", 0.1)
    assert mean["threshold"] == pytest.approx(
        LossScale(weight=0.1, reduction="mean", elements=4).threshold
    )
    half = said(
        capsys,
        "predict",
        "--data",
        path,
        "--weight",
        0.1,
        "--reduction",
        "sum",
        "--error",
        "half_squared",
    )
    assert half["threshold"] == pytest.approx(0.1)
    more = said(capsys, "predict", "--data", path, "--weight", 0.1, "--elements", 40)
    assert more["threshold"] == pytest.approx(2.0)


def test_a_condition_takes_its_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, condition = saved(tmp_path / "y.npy", DATA), saved(tmp_path / "x.npy", DATA[:, :1])
    found = said(capsys, "predict", "--data", data, "--condition", condition, "--eta-dec", 0.3)
    assert found["active"] == predict_collapse(data=DATA, eta_dec=0.3).num_active - 1


def test_caveats_are_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "flat.npy", np.ones((5, 2)))
    assert run("collapse", "predict", "--data", path, "--eta-dec", 1) == 0
    out = capsys.readouterr()
    assert "does not vary" in out.err and "active       0" in out.out
    assert said(capsys, "predict", "--data", path, "--eta-dec", 1)["caveats"]


def bad_files(folder: Path) -> dict[str, Path]:
    texts = {
        "words.csv": "a,b\nc,d\n",
        "ragged.csv": "1,2\n3\n",
        "empty.csv": "",
        "nan.csv": "1,nan\n2,3\n",
        "data.txt": "1,2\n",
        "binary.csv": "\x00\x01",
        "text.npy": "this is no array",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    np.save(folder / "cube.npy", np.ones((2, 2, 2)))
    np.save(folder / "words.npy", np.array([["a", "b"]]))
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    whole = saved(folder / "whole.npy", DATA).read_bytes()
    (folder / "cut.npy").write_bytes(whole[:200])
    (folder / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    names = (*texts, "cube.npy", "words.npy", "objects.npy", "cut.npy", "bytes.csv", "missing.npy")
    return {name: folder / name for name in names}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run("collapse", *arguments) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1 and out.err.startswith("error: ")
    return out.err


def test_bad_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in bad_files(tmp_path).values():
        refused(capsys, "predict", "--data", path, "--eta-dec", 1)


@pytest.mark.parametrize(
    "matrix",
    [[[1.0, 2.0, 3.0]], [[1.0, 0.5], [0.1, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[1.0, np.inf]] * 2],
)
def test_bad_covariances_are_refused(
    matrix: list[list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "cov.npy", np.array(matrix))
    assert "covariance" in refused(capsys, "predict", "--cov", path, "--eta-dec", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--eigenvalues", "1,2"],
        ["--eigenvalues", "1,x", "--eta-dec", "1"],
        ["--eigenvalues", "1,-2", "--eta-dec", "1"],
        ["--eigenvalues", "", "--eta-dec", "1"],
        ["--eigenvalues", "1,2", "--eta-dec", "0"],
        ["--eigenvalues", "1,2", "--eta-dec", "nan"],
        ["--eigenvalues", "1,2", "--eta-dec", "1", "--beta", "-1"],
        ["--eigenvalues", "1,2", "--eta-dec", "1", "--weight", "1"],
        ["--eigenvalues", "1,2", "--weight", "1", "--beta", "1"],
        ["--eigenvalues", "1,2", "--weight", "1", "--reduction", "median"],
        ["--eigenvalues", "1,2", "--weight", "1", "--error", "l1"],
        ["--eigenvalues", "1,2", "--eta-dec", "1", "--latent-dim", "0"],
        ["--eta-dec", "1"],
    ],
)
def test_bad_numbers_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "predict", *arguments)


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    folder = tmp_path / "shapes"
    folder.mkdir()
    for number, extents in enumerate([(1, 1, 1), (1, 2, 1), (1, 1, 3)]):
        trimesh.creation.box(extents).export(folder / f"{number}.glb")
    return folder


def test_a_model_is_measured(model: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said(capsys, "measure", model, shapes)
    assert found["bottleneck"] == "bottleneck.gaussian" and found["items"] == 3
    assert found["units"] == 16 * 8 == len(found["kl_nats"]) == len(found["spread"])
    assert sum(v > 0.01 for v in found["spread"]) == found["active_units"]
    single = said(capsys, "measure", model, shapes / "0.glb")
    assert single["items"] == 1 and single["cause"].startswith("One input")
    assert said(capsys, "measure", model, shapes, "--limit", 2)["items"] == 2
    assert run("collapse", "measure", model, shapes) == 0
    assert "cause" in capsys.readouterr().out


def test_bad_meshes_are_told(model: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shapes / "broken.glb").write_bytes(b"no mesh")
    assert run("collapse", "measure", model, shapes, "--json") == 2
    out = capsys.readouterr()
    assert json.loads(out.out)["items"] == 3 and "broken.glb" in out.err
    assert "no mesh can be used" in refused(capsys, "measure", model, shapes / "broken.glb")
    refused(capsys, "measure", model, shapes / "missing")
    refused(capsys, "measure", model, shapes, "--eps", 0)
    refused(capsys, "measure", "no-such-model", shapes)
    (shapes / "empty").mkdir()
    assert "no meshes" in refused(capsys, "measure", model, shapes / "empty")
