from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import SignalError
from polytok.signals.mesh.extract import extract
from polytok.signals.mesh.solid import THIN, Solid, solidify

Mesh = trimesh.Trimesh
RNG = np.random.default_rng(5)
CUBE = RNG.uniform(-1.05, 1.05, (4000, 3))


def box(x: float = 0, y: float = 0, z: float = 0, size: float = 1.0) -> Mesh:
    mesh = trimesh.creation.box([size] * 3)
    mesh.apply_translation([x, y, z])
    return mesh


def ball(radius: float = 0.98, subdivisions: int = 3) -> Mesh:
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)


def join(*meshes: Mesh) -> Mesh:
    return trimesh.util.concatenate(list(meshes))


def turned(mesh: Mesh, which: slice = slice(None)) -> Mesh:
    faces = np.array(mesh.faces)
    faces[which] = faces[which, ::-1]
    return Mesh(mesh.vertices, faces, process=False)


def without(mesh: Mesh, keep: NDArray[np.bool_]) -> Mesh:
    return Mesh(mesh.vertices, mesh.faces[keep], process=False)


def volume_at(solid: Solid, resolution: int = 64) -> float:
    """Volume in the normalised frame by extraction, as decoding would see it."""
    got = extract(lambda p: -solid.nearest(p.astype(np.float64)).sdf.astype("f4"), resolution)
    return float(Mesh(got.vertices, got.faces, process=False).volume)


def test_a_ball_has_the_distances_of_a_sphere() -> None:
    solid = solidify(ball(subdivisions=5))
    exact = np.linalg.norm(CUBE, axis=1) - 0.98
    assert solid.route == "closed" and solid.eps == 0
    assert np.abs(solid.sdf(CUBE) - exact).max() < 2e-3
    assert solid.sdf(np.zeros((1, 3)))[0] == pytest.approx(-0.98, abs=2e-3)
    np.testing.assert_array_equal(solid.contains(CUBE), solid.sdf(CUBE) < 0)


def test_units_of_the_mesh_given_are_kept() -> None:
    for unit in (1e-6, 1e6):
        mesh = ball(0.98 * unit)
        mesh.apply_translation([3 * unit, 0, 0])
        solid = solidify(mesh)
        got = solid.sdf(CUBE * unit + [3 * unit, 0, 0]) / unit
        np.testing.assert_allclose(got, solidify(ball()).sdf(CUBE), atol=1e-5)
        assert solid.mesh.volume == pytest.approx(mesh.volume, rel=1e-6)


@pytest.mark.parametrize(
    "mesh",
    [
        box(),
        turned(box()),
        turned(box(), slice(None, None, 2)),
        join(box(), box()),
        join(box(), box(size=0.4)),
        join(box(), turned(box(size=0.4))),
        box().subdivide().subdivide(),
    ],
    ids=["box", "inverted", "flipped faces", "twice", "nested", "nested inverted", "subdivided"],
)
def test_closed_boxes_are_solid_throughout(mesh: Mesh) -> None:
    solid = solidify(mesh)
    exact = np.abs(CUBE / 1.96).max(1) < 0.5
    np.testing.assert_array_equal(solid.contains(CUBE / 1.96), exact)
    assert solid.route == "closed"
    assert solid.mesh.is_volume and solid.mesh.volume == pytest.approx(1, abs=1e-6)


def test_overlapping_boxes_are_united_exactly() -> None:
    solid = solidify(join(box(), box(0.5, 0.25, 0.25)))
    assert solid.mesh.volume == pytest.approx(2 - 0.5 * 0.75 * 0.75, rel=1e-6)
    # Walls of one box inside the other are gone: the distance there is to the outer skin.
    wall = solid.sdf(np.array([[0.45, 0.1, 0.1], [0.5, 0.1, 0.1]]))
    np.testing.assert_allclose(wall, -0.35, atol=0.06)


def test_boxes_that_share_walls_are_one() -> None:
    grid = [box(i, j, k) for i in range(4) for j in range(4) for k in range(4)]
    solid = solidify(join(*grid))
    points = RNG.uniform(-0.4, 3.4, (2000, 3))
    assert solid.contains(points).all()
    assert volume_at(solid) == pytest.approx(1.96**3, rel=0.01)


def test_sixty_four_parts_apart() -> None:
    grid = [box(1.5 * i, 1.5 * j, 1.5 * k) for i in range(4) for j in range(4) for k in range(4)]
    solid = solidify(join(*grid))
    assert solid.route == "closed" and solid.mesh.volume == pytest.approx(64, rel=1e-6)


def test_an_open_box_becomes_walls() -> None:
    solid = solidify(without(box(), box().face_normals[:, 2] < 0.5))
    assert solid.route == "shell" and solid.eps == THIN
    assert not solid.contains(np.zeros((2, 3))).any()
    walls = 5 * 1.96**2 * 2 * THIN
    assert volume_at(solid, 160) == pytest.approx(walls, rel=0.15)
    assert solid.report()["sheet_share"] == 1


def test_winding_fills_an_open_box() -> None:
    mesh = without(box(), box().face_normals[:, 2] < 0.5)
    solid = solidify(mesh, sign="winding")
    assert solid.route == "winding"
    assert solid.contains(np.zeros((2, 3))).all()
    assert solid.contains(CUBE / 1.96 * 0.4).mean() > 0.95


@pytest.mark.parametrize(
    "mesh",
    [
        Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]]),
        Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 3, 2]]),
        Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [2, 1, 0], [0, 2, 3]]),
    ],
    ids=["plane", "one face turned", "one face doubled"],
)
def test_sheets_become_slabs(mesh: Mesh) -> None:
    solid = solidify(mesh)
    assert solid.route == "shell"
    points = RNG.uniform(0.1, 0.9, (500, 3))
    points[:, 2] = RNG.uniform(-0.2, 0.2, 500)
    height = np.abs(points[:, 2]) * 1.96 - THIN
    np.testing.assert_allclose(solid.sdf(points) * 1.96, height, atol=1e-5)
    assert volume_at(solid, 128) == pytest.approx(1.96**2 * 2 * THIN, rel=0.1)


def test_one_triangle() -> None:
    solid = solidify(Mesh([[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 1, 2]]))
    assert volume_at(solid, 128) == pytest.approx(1.96**2 / 2 * 2 * THIN, rel=0.1)


@pytest.mark.parametrize("extents", [(1, 1e-3, 1), (1, 1e-2, 0.5), (1, 1e-3, 1e-3)])
def test_thin_parts_are_found_by_a_grid_of_128(extents: tuple[float, float, float]) -> None:
    solid = solidify(trimesh.creation.box(extents))
    got = extract(lambda p: -solid.nearest(p.astype(np.float64)).sdf.astype("f4"), 128)
    size = got.vertices.max(0) - got.vertices.min(0)
    expected = np.maximum(np.array(extents) * 1.96, 2 * THIN)
    np.testing.assert_allclose(size, expected, atol=0.01)
    parts = Mesh(got.vertices, got.faces, process=False).body_count
    assert parts == 1


def test_thick_parts_are_not_thickened() -> None:
    thick = trimesh.creation.box([1, 2.2 * THIN / 1.96, 1])
    assert solidify(thick).eps == 0


def test_cracks_do_not_leak() -> None:
    mesh = ball()
    loose = mesh.vertices[mesh.faces].reshape(-1, 3) + RNG.normal(0, 1e-4, (3 * len(mesh.faces), 3))
    solid = solidify(Mesh(loose, np.arange(len(loose)).reshape(-1, 3), process=False))
    assert solid.route == "flood"
    assert volume_at(solid) == pytest.approx(mesh.volume, rel=0.02)
    far = np.abs(np.linalg.norm(CUBE, axis=1) - 0.98) > 0.05
    np.testing.assert_array_equal(
        solid.contains(CUBE)[far], (np.linalg.norm(CUBE, axis=1) < 1)[far]
    )


def test_small_holes_are_closed() -> None:
    mesh = ball(subdivisions=6)
    solid = solidify(
        without(mesh, np.linalg.norm(mesh.triangles_center - [0, 0.98, 0], axis=1) > 0.02)
    )
    assert solid.route == "flood"
    assert solid.contains(np.zeros((2, 3))).all() and volume_at(solid) > 3.8


def test_closed_parts_and_sheets_mix() -> None:
    """A mesh of a closed part and an open one: the sheet is a slab, the part stays exact."""
    sheet = Mesh([[2, 0, 0], [3, 0, 0], [3, 1, 0], [2, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    solid = solidify(join(box(), sheet))
    scale = solid.frame.scale
    assert solid.contains(CUBE * 0.45 / 1.05).all()
    got = solid.sdf(np.array([[2.5, 0.5, 0.1], [2.5, 0.5, 0.0], [0.0, 0.0, 0.1]])) * scale
    np.testing.assert_allclose(got, [0.1 * scale - THIN, -THIN, -0.4 * scale], atol=1e-5)
    assert 0 < solid.report()["sheet_share"] < 1


def test_a_stretched_solid_is_that_of_the_stretched_mesh() -> None:
    mesh = ball()
    mesh.apply_scale([1.0, 0.25, 0.5])
    stretch = np.array([1.0, 4.0, 2.0])
    solid = solidify(mesh, stretch=stretch)
    assert np.abs(solid.skin.vertices).max() == pytest.approx(0.98)
    points = CUBE[:500].astype(np.float64)
    distance = np.linalg.norm(points, axis=1) - 0.98
    got = solid.nearest(points)
    np.testing.assert_allclose(got.sdf, distance, atol=0.01)
    # In the mesh's own units the side is exact, and so is the distance near the surface.
    np.testing.assert_array_equal(solid.contains(solid.frame.undo(points)), got.sdf < 0)
    above = np.diag(mesh.bounds[1] + [1e-3, 1e-3, -1e-3])
    np.testing.assert_allclose(solid.sdf(above), [1e-3, 1e-3, -1e-3], atol=2e-4)
    np.testing.assert_allclose(solid.mesh.bounds, mesh.bounds, atol=1e-9)


def test_open_boxes_that_close_together() -> None:
    """Two halves that meet enclose a space though neither is closed."""
    mesh = box().subdivide().subdivide()
    low = mesh.triangles_center[:, 1] < 0
    upper = without(mesh, ~low)
    upper.apply_translation([0, 1e-3, 0])
    solid = solidify(join(without(mesh, low), upper))
    assert solid.route == "flood" and solid.contains(CUBE / 1.96 * 0.9).all()


def test_self_intersection_counts_as_inside() -> None:
    torus = trimesh.creation.torus(0.5, 0.3, 32, 24)
    crossed = torus.copy()
    crossed.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    both = Mesh(
        np.r_[torus.vertices, crossed.vertices],
        np.r_[torus.faces, crossed.faces + len(torus.vertices)],
        process=False,
    )
    solid = solidify(both)
    one, other = solidify(torus), solidify(crossed)
    points = RNG.uniform(-0.8, 0.8, (2000, 3))
    near = np.minimum(np.abs(one.sdf(points)), np.abs(other.sdf(points))) < 1e-3
    expected = one.contains(points) | other.contains(points)
    np.testing.assert_array_equal(solid.contains(points)[~near], expected[~near])


@pytest.mark.parametrize("make", [ball, box, lambda: join(box(), box(0.5, 0.2, 0.1))])
def test_gradients_point_away(make: Callable[[], Mesh]) -> None:
    solid = solidify(make())
    here = solid.nearest(CUBE)
    assert np.abs(np.linalg.norm(here.gradient, axis=1) - 1).max() < 1e-9
    step = solid.nearest(CUBE + 1e-4 * here.gradient).sdf - here.sdf
    assert np.quantile(np.abs(step / 1e-4 - 1), 0.95) < 1e-3


def test_signs_agree_with_an_independent_oracle() -> None:
    mesh = join(ball(0.6), box(0.5, 0.4, 0.3), trimesh.creation.cone(0.4, 1.2))
    solid = solidify(mesh)
    points = RNG.uniform(*mesh.bounds, (3000, 3))
    x, y, z = points.T
    in_box = (np.abs(points - [0.5, 0.4, 0.3]) < 0.5).all(1)
    inside = in_box | (np.linalg.norm(points, axis=1) < 0.6)
    inside |= (z > 0) & (np.hypot(x, y) < 0.4 * (1 - z / 1.2))
    # The round ones are faceted; leave out what lies within their sagitta.
    sure = np.abs(solid.sdf(points)) > 0.02
    np.testing.assert_array_equal(solid.contains(points)[sure], inside[sure])


def test_bad_meshes_are_refused() -> None:
    corners = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    for vertices, faces, text in (
        (corners, [[0, 1, 7]], "vertex 7"),
        (corners * np.nan, [[0, 1, 2]], "finite"),
        (corners * 1e30, [[0, 1, 2]], r"1e\+30"),
        (corners * [1, 0, 0], [[0, 1, 2]], "zero area"),
        (corners, np.empty((0, 3), int), "no faces"),
    ):
        with pytest.raises(SignalError, match=text):
            solidify(Mesh(vertices, faces, process=False))


def test_big_meshes_are_decimated_first() -> None:
    mesh = ball(subdivisions=5)
    solid = solidify(mesh, max_faces=2000)
    assert solid.decimated_from == len(mesh.faces) and len(solid.skin.faces) <= 2000
    assert solid.mesh.volume == pytest.approx(mesh.volume, rel=0.01)


@pytest.mark.slow
def test_two_million_faces() -> None:
    start = time.perf_counter()
    mesh = ball(subdivisions=8).subdivide()  # 5.2 million
    solid = solidify(mesh)
    assert time.perf_counter() - start < 240
    assert solid.mesh.volume == pytest.approx(mesh.volume, rel=0.01)
