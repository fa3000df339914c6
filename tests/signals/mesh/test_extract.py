from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import SignalError
from polytok.signals.mesh.extract import BOUND, extract

Floats = NDArray[np.float32]
Field = Callable[[Floats], Floats]


def sphere(radius: float = 0.8) -> Field:
    return lambda p: (radius - np.linalg.norm(p, axis=1)).astype(np.float32)


def torus(p: Floats) -> Floats:
    return (0.2 - np.hypot(np.hypot(p[:, 0], p[:, 1]) - 0.7, p[:, 2])).astype(np.float32)


def box(*half: float) -> Field:
    def field(p: Floats) -> Floats:
        q = np.abs(p) - np.array(half)
        outside = np.linalg.norm(np.maximum(q, 0), axis=1)
        return -(outside + np.minimum(q.max(axis=1), 0)).astype(np.float32)

    return field


def turned(field: Field, angle: float) -> Field:
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=np.float32)
    return lambda p: field((p - np.float32([0.013, 0.007, 0.003])) @ turn)


def saturated(field: Field, steepness: float = 300.0, limit: float = 10.0) -> Field:
    """What a trained occupancy field looks like: flat at +-10 but near its surface."""
    return lambda p: (limit * np.tanh(steepness * field(p) / limit)).astype(np.float32)


PLATE = box(0.7, 0.0101, 0.5)  # 0.3 cells thick on the first level of a 128 grid
ANALYTIC = {
    "sphere": sphere(),
    "torus": torus,
    "box": box(0.6, 0.4, 0.3),
    "plate": PLATE,
    "turned plate": turned(PLATE, 0.4),
    "saturated sphere": saturated(sphere()),
    "saturated torus": saturated(torus),
    "through the border": box(2.0, 0.3, 0.2),
}


@pytest.mark.parametrize("resolution", [31, 32, 33])
@pytest.mark.parametrize("coarse", [4, 32])
def test_sphere_radius_is_exact_to_a_tenth_of_a_cell(resolution: int, coarse: int) -> None:
    got = extract(sphere(0.8), resolution, coarse=coarse)
    cell = 2 * BOUND / resolution
    assert np.abs(np.linalg.norm(got.vertices, axis=1) - 0.8).max() < 0.1 * cell
    # A shrink by 1/(R+1) would show as a bias of 0.38 cells.
    assert np.abs(got.vertices.max(axis=0) - 0.8).max() < 0.1 * cell


@pytest.mark.parametrize("resolution", [128, 131])
@pytest.mark.parametrize("name", ANALYTIC)
def test_coarse_to_fine_is_identical_to_dense(name: str, resolution: int) -> None:
    sparse = extract(ANALYTIC[name], resolution)
    dense = extract(ANALYTIC[name], resolution, dense=True)
    assert np.array_equal(sparse.vertices, dense.vertices)
    assert np.array_equal(sparse.faces, dense.faces)
    assert dense.num_queries == (resolution + 1) ** 3
    assert sparse.num_queries * 6 < dense.num_queries


def test_a_slope_bound_finds_balls_smaller_than_a_coarse_cell() -> None:
    centres = np.random.default_rng(0).uniform(-0.9, 0.9, (12, 3)).astype(np.float32)

    def balls(p: Floats) -> Floats:
        return (0.02 - np.linalg.norm(p[:, None] - centres, axis=2)).max(axis=1)

    sparse, dense = extract(balls, 128, slope=1.0), extract(balls, 128, dense=True)
    mesh = trimesh.Trimesh(sparse.vertices, sparse.faces)
    assert mesh.body_count == 12
    assert np.array_equal(sparse.vertices, dense.vertices)


def test_256_takes_a_fifteenth_of_the_dense_queries() -> None:
    for field in (sphere(), turned(PLATE, 0.4)):
        assert extract(field, 256).num_queries * 15 < 257**3


@pytest.mark.parametrize("name", ANALYTIC)
def test_surface_is_closed_and_faces_outwards(name: str) -> None:
    got = extract(ANALYTIC[name], 64)
    mesh = trimesh.Trimesh(got.vertices, got.faces)
    assert mesh.is_watertight
    assert mesh.volume > 0


def test_solid_at_the_border_is_capped_on_the_border() -> None:
    got = extract(box(2.0, 0.3, 0.2), 64)
    mesh = trimesh.Trimesh(got.vertices, got.faces)
    assert np.allclose(mesh.bounds[:, 0], [-BOUND, BOUND], atol=1e-5)
    assert mesh.volume == pytest.approx(2 * BOUND * 0.6 * 0.4, rel=0.01)


def test_values_of_exactly_zero_leave_no_hole_and_no_flat_triangle() -> None:
    got = extract(box(0.525, 0.525, 0.525), 64)  # the faces lie on grid points
    mesh = trimesh.Trimesh(got.vertices, got.faces, process=False)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(1.05**3, rel=0.01)


def test_field_is_called_in_chunks_of_float32_points_inside_the_cube() -> None:
    calls = []

    def field(p: Floats) -> Floats:
        calls.append(len(p))
        assert p.dtype == np.float32 and p.shape[1] == 3
        assert np.abs(p).max() <= np.float32(BOUND)
        return torus(p)

    got = extract(field, 64, coarse=16, chunk=1000)
    assert max(calls) == 1000
    assert sum(calls) == got.num_queries


@pytest.mark.parametrize("level", [-1.0, 1.0])
def test_a_field_without_surface_is_one_clear_error(level: float) -> None:
    with pytest.raises(SignalError, match="no surface") as caught:
        extract(lambda p: np.full(len(p), level, dtype=np.float32), 16)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(SignalError, match="resolution 1 "):
        extract(torus, 1)
    with pytest.raises(SignalError, match="bound=0"):
        extract(torus, 16, bound=0)
    with pytest.raises(SignalError, match="not finite"):
        extract(lambda p: np.full(len(p), np.nan, dtype=np.float32), 16)
