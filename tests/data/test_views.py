from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from polytok.core.errors import ConfigError, PolytokError
from polytok.data.views import ViewFolder, render_folder
from polytok.signals.mesh import ViewSampling

SAMPLING = ViewSampling(count=2, size=16)
NAMES = ("a/box.glb", "cone.glb")


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("meshes")
    (root / "a").mkdir()
    trimesh.creation.box((1, 2, 3)).export(root / NAMES[0])
    trimesh.creation.cone(1, 2).export(root / NAMES[1])
    return root


def test_views_are_drawn_once_and_belong_to_their_settings(meshes: Path, tmp_path: Path) -> None:
    folder = render_folder(meshes, tmp_path, NAMES, SAMPLING, processes=1)
    assert folder.pictures.shape == (2, 2, 2, 16, 16) and folder.index.names == NAMES
    # What is there is not drawn again: the source is not even looked at.
    again = render_folder(tmp_path / "gone", tmp_path, NAMES, SAMPLING, processes=1)
    assert np.array_equal(again.pictures, folder.pictures)
    with pytest.raises(ConfigError, match="other views"):
        render_folder(meshes, tmp_path, NAMES, replace(SAMPLING, size=8), processes=1)
    path = tmp_path / f"{NAMES[1]}.views.safetensors"
    path.unlink()
    with pytest.raises(PolytokError, match="has no views"):
        ViewFolder(tmp_path)
    last = render_folder(meshes, tmp_path, NAMES, SAMPLING, processes=1)
    assert np.array_equal(last.pictures, folder.pictures)


def test_a_mesh_that_is_missing_is_named(meshes: Path, tmp_path: Path) -> None:
    with pytest.raises(PolytokError, match=r"none\.glb cannot be drawn"):
        render_folder(meshes, tmp_path, ("none.glb",), SAMPLING, processes=1)
