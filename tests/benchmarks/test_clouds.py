"""Clouds and shortlists of the shape benchmarks, and what results say of how they were made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from polytok.metrics import chamfer_matrix

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


def test_clouds_do_not_depend_on_place_and_size() -> None:
    from _clouds import cloud

    mesh = trimesh.creation.box((1, 2, 3))
    moved = mesh.copy()
    moved.apply_scale(50)
    moved.apply_translation([7, -3, 5])
    one, other = cloud(mesh, "box", 500), cloud(moved, "box", 500)
    assert np.allclose(one, other, atol=1e-5) and np.abs(one).max() == pytest.approx(1, abs=1e-3)
    assert not cloud(trimesh.Trimesh(), "nothing", 5).any()


def test_a_shortlist_is_the_nearest_by_chamfer() -> None:
    from _clouds import shortlist

    rng = np.random.default_rng(0)
    bank = (rng.normal(size=(30, 1, 3)) + 0.2 * rng.normal(size=(30, 20, 3))).astype(np.float32)
    wanted = chamfer_matrix(bank[:1] + 0.3, bank)[0].argsort()
    assert shortlist(bank[0] + np.float32(0.3), bank, 7).tolist() == wanted[:7].tolist()


def test_a_command_names_no_folder_of_the_machine() -> None:
    from _results import _relative

    given = [str(FOLDER / "x.py"), "--codes", "/home/me/codes", "--n", "3"]
    assert _relative(given) == ["benchmarks/x.py", "--codes", "codes", "--n", "3"]
