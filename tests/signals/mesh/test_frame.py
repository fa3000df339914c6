from __future__ import annotations

import numpy as np
import pytest
import trimesh

from polytok.core.errors import SignalError
from polytok.signals.mesh.frame import EXTENT, Frame, evening


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


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e17])
def test_a_stretched_frame_fills_the_cube(unit: float) -> None:
    mesh = trimesh.creation.box(np.array([4.0, 1.0, 0.004]) * unit)
    stretch = evening(mesh, 1.0)
    np.testing.assert_allclose(stretch, [1, 4, 1000], rtol=1e-9)
    frame = Frame.of(mesh, stretch)
    inside = frame.apply(mesh.vertices)
    np.testing.assert_allclose(np.abs(inside), EXTENT, rtol=1e-9)
    assert np.abs(frame.undo(inside) - mesh.vertices).max() <= 1e-12 * unit


def test_evening_goes_from_proportions_to_a_cube() -> None:
    mesh = trimesh.creation.box([4.0, 1.0, 2.0])
    np.testing.assert_array_equal(evening(mesh, 0.0), [1, 1, 1])
    np.testing.assert_allclose(evening(mesh, 0.5), [1, 2, 2**0.5])
    # No factor gives a side of no length one.
    sheet = trimesh.Trimesh([[0, 0, 0], [2, 0, 0], [2, 1, 0]], [[0, 1, 2]], process=False)
    np.testing.assert_allclose(evening(sheet, 1.0), [1, 2, 1])


@pytest.mark.parametrize("wrong", [[[0, 1, 9]], np.empty((0, 3), int), [[0, 0, 0]]])
def test_what_is_no_shape_cannot_be_evened(wrong: object) -> None:
    mesh = trimesh.Trimesh(np.eye(3), np.asarray(wrong), process=False)
    with pytest.raises(SignalError):
        evening(mesh, 1.0)
