from __future__ import annotations

import numpy as np
import pytest
import trimesh

from polytok.signals.mesh.sampling import (
    BOUND,
    near_points,
    sharp_edges,
    sharp_points,
    uniform_points,
    volume_points,
)
from polytok.signals.mesh.solid import THIN, solidify


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_uniform_points_follow_area() -> None:
    solid = solidify(trimesh.creation.box([1, 2, 4]))
    points, normals = uniform_points(solid.skin, 20_000, rng())
    assert np.abs(solid.nearest(points).sdf).max() < 1e-6
    axis = np.abs(normals).argmax(1)
    # Stratified draws are far closer to the areas than independent ones.
    np.testing.assert_allclose(np.bincount(axis) / 20_000, np.array([8, 4, 2]) / 14, atol=1e-3)
    np.testing.assert_allclose(points.mean(0), 0, atol=0.02)


@pytest.mark.parametrize("flip", [False, True])
def test_normals_point_outward(flip: bool) -> None:
    mesh = trimesh.creation.icosphere(subdivisions=4)
    if flip:
        mesh.invert()
    points, normals = uniform_points(solidify(mesh).skin, 1000, rng())
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    assert (unit * normals).sum(1).min() > 0.99


def test_sharp_points_lie_on_the_edges_of_a_box() -> None:
    solid = solidify(trimesh.creation.box([1, 2, 4]))
    points, normals = sharp_points(solid, 4000, rng())
    half = np.array([1, 2, 4]) * 0.98 / 4
    on_face = np.isclose(np.abs(points), half, atol=1e-6)
    assert (on_face.sum(1) >= 2).all()
    along = np.where(on_face.sum(1) == 2, (~on_face).argmax(1), 3)
    shares = np.bincount(along, minlength=4)[:3] / 4000
    np.testing.assert_allclose(shares, np.array([1, 2, 4]) / 7, atol=0.02)
    np.testing.assert_allclose(np.abs(normals).max(1), np.sqrt(0.5), atol=1e-6)
    assert (np.sign(points) * normals >= -1e-9).all()


def test_angles_below_fifteen_degrees_are_not_sharp() -> None:
    for sections, expected in ((12, 12), (30, 0)):
        mesh = trimesh.creation.cylinder(1, 2, sections=sections)
        ends, _ = sharp_edges(np.asarray(mesh.vertices), np.asarray(mesh.faces))
        upright = np.abs(ends[:, 0, 2] - ends[:, 1, 2]) > 1
        assert upright.sum() == expected and (~upright).sum() == 2 * sections


def test_without_sharp_edges_points_are_uniform() -> None:
    solid = solidify(trimesh.creation.icosphere(subdivisions=4))
    points, normals = sharp_points(solid, 500, rng())
    assert points.shape == normals.shape == (500, 3)
    assert np.abs(solid.nearest(points).sdf).max() < 1e-6


def test_buried_edges_are_left_out() -> None:
    inner = trimesh.creation.box([0.3] * 3)
    outer = trimesh.creation.box([1.0] * 3)
    halves = [outer.copy(), outer.copy()]
    cut = outer.triangles_center[:, 0] < 0.4
    halves = [trimesh.Trimesh(outer.vertices, outer.faces[c], process=False) for c in (cut, ~cut)]
    solid = solidify(trimesh.util.concatenate([inner, *halves]))
    points, _ = sharp_points(solid, 1000, rng())
    assert np.abs(points).max(1).min() > 0.97


def test_slabs_are_sampled_on_both_sides() -> None:
    plane = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    solid = solidify(plane)
    points, normals = uniform_points(solid.skin, 2000, rng())
    np.testing.assert_allclose(points[:, 2], THIN * normals[:, 2], atol=1e-9)
    assert 0.45 < (normals[:, 2] > 0).mean() < 0.55


def test_sharp_points_of_a_folded_sheet_lie_on_its_slab() -> None:
    fold = trimesh.Trimesh(
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]],
        [[0, 1, 2], [0, 2, 3], [0, 5, 1], [0, 4, 5]],
    )
    solid = solidify(fold)
    points, _ = sharp_points(solid, 400, rng())
    assert np.abs(solid.nearest(points).sdf).max() < THIN
    assert np.quantile(np.abs(solid.nearest(points).sdf), 0.5) < 0.002


def test_near_points_have_the_noise_asked_for() -> None:
    start = np.zeros((100, 3))
    got = near_points(start, 30_000, (0.005, 0.02, 0.05), rng())
    spread = np.sqrt(np.mean(got**2))
    assert spread == pytest.approx(np.sqrt((0.005**2 + 0.02**2 + 0.05**2) / 3), rel=0.02)
    edge = near_points(np.full((10, 3), BOUND), 1000, (0.05,), rng())
    assert edge.max() <= BOUND


def test_volume_points_fill_the_cube() -> None:
    got = volume_points(30_000, rng())
    assert np.abs(got).max() <= BOUND and np.abs(got.mean(0)).max() < 0.02
    np.testing.assert_allclose(got.std(0), BOUND / np.sqrt(3), rtol=0.02)


def test_seeds_decide_everything() -> None:
    solid = solidify(trimesh.creation.box())
    for draw in (uniform_points, sharp_points):
        target = solid.skin if draw is uniform_points else solid
        first, second, other = (draw(target, 100, rng(s))[0] for s in (0, 0, 1))  # type: ignore[operator]
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, other)
