from __future__ import annotations

import numpy as np
import pytest
import trimesh

from polytok.core.errors import SignalError
from polytok.signals.mesh.frame import EXTENT, Frame


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("extents", [(1, 1, 1), (1, 1e-3, 0.5), (1e-3, 1e-3, 1)])
def test_there_and_back(unit: float, extents: tuple[float, float, float]) -> None:
    mesh = trimesh.creation.box(np.array(extents) * unit)
    mesh.apply_translation(np.array([3.0, -2.0, 0.5]) * unit)
    frame = Frame.of(mesh)
    inside = frame.apply(mesh.vertices)
    assert np.abs(inside).max() == pytest.approx(EXTENT, rel=1e-9)
    np.testing.assert_allclose(inside.min(0), -inside.max(0), atol=1e-9)
    back = frame.undo(inside)
    assert np.abs(back - mesh.vertices).max() <= 1e-6 * unit


def test_frame_survives_float32_codes() -> None:
    mesh = trimesh.creation.icosphere()
    mesh.apply_translation([10.0, 0, 0])
    frame = Frame.of(mesh)
    coded = Frame(frame.centre.astype(np.float32), float(np.float32(frame.scale)))
    assert np.abs(coded.undo(frame.apply(mesh.vertices)) - mesh.vertices).max() < 1e-6


def test_vertices_without_faces_do_not_count() -> None:
    mesh = trimesh.creation.box()
    stray = trimesh.Trimesh(np.r_[mesh.vertices, [[100.0, 0, 0]]], mesh.faces, process=False)
    assert Frame.of(stray).scale == pytest.approx(Frame.of(mesh).scale)


def test_points_and_nothing_have_no_frame() -> None:
    with pytest.raises(SignalError, match="no faces"):
        Frame.of(trimesh.Trimesh(np.zeros((3, 3)), np.empty((0, 3), int), process=False))
    with pytest.raises(SignalError, match="side 0"):
        Frame.of(trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False))
