from __future__ import annotations

import numpy as np
import pytest
import trimesh

from polytok.core.errors import SignalError
from polytok.signals.mesh.clean import clean, component_of_faces, decimate, merged


def ball(subdivisions: int = 3, radius: float = 1.0, x: float = 0.0) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    mesh.apply_translation([x, 0, 0])
    return mesh


def test_floaters_go_and_the_rest_stays() -> None:
    big, medium, speck = ball(4), ball(2, 0.3, 3), trimesh.creation.box()
    speck.apply_translation([0, 5, 0])
    got = clean(trimesh.util.concatenate([big, medium, speck]))  # 5120 + 320 + 12 faces
    assert len(got.faces) == 5440
    assert got.bounds[1, 1] < 2


def test_the_largest_part_stays_whatever_its_share() -> None:
    parts = []
    for i in range(300):
        part = trimesh.creation.box()
        part.apply_translation([2 * i, 0, 0])
        parts.append(part)
    got = clean(trimesh.util.concatenate(parts))
    assert component_of_faces(got).max() == 0
    assert len(got.faces) == 12


def test_merging_joins_split_vertices_and_keeps_the_surface() -> None:
    box = trimesh.creation.box()
    soup = trimesh.Trimesh(
        box.triangles.reshape(-1, 3), np.arange(36).reshape(-1, 3), process=False
    )
    soup.faces = np.vstack([soup.faces, [[0, 0, 1]]])
    got = merged(soup)
    assert (len(got.vertices), len(got.faces)) == (8, 12)
    assert got.is_watertight
    assert got.volume == pytest.approx(1)


@pytest.mark.parametrize("budget", [2000, 500, 60])
def test_decimation_keeps_the_budget_and_the_shape(budget: int) -> None:
    got = decimate(ball(4), budget)
    assert budget * 0.9 <= len(got.faces) <= budget
    assert got.is_watertight
    assert got.volume == pytest.approx(4 / 3 * np.pi, rel=6 / budget + 0.02)


def test_long_thin_triangles_are_decimated_too() -> None:
    peg = trimesh.creation.cylinder(radius=0.05, height=2, sections=360)
    got = decimate(peg, 100)
    assert len(got.faces) <= 100
    assert got.volume == pytest.approx(peg.volume, rel=0.1)


def test_what_cannot_shrink_is_kept_rather_than_torn() -> None:
    fan = trimesh.Trimesh(
        [[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]],
        [[0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 5], [2, 3, 1]],
        process=False,
    )
    assert 0 < len(decimate(fan, 4).faces) <= 5
    boxes = [trimesh.creation.box() for _ in range(20)]
    for i, box in enumerate(boxes):
        box.apply_translation([3 * i, 0, 0])
    got = decimate(trimesh.util.concatenate(boxes), 10)
    assert len(got.faces) <= 240
    assert got.is_watertight


def test_smoothing_removes_noise_and_keeps_the_volume() -> None:
    noisy = ball(4)
    noisy.vertices = noisy.vertices * (1 + np.random.default_rng(0).normal(0, 0.01, (2562, 1)))
    got = clean(noisy, smooth=5)
    spread = np.linalg.norm(got.vertices, axis=1).std()
    assert spread < 0.5 * np.linalg.norm(noisy.vertices, axis=1).std()
    assert got.volume == pytest.approx(ball(4).volume, rel=0.01)


def test_the_argument_is_left_alone() -> None:
    mesh = ball(2)
    before = mesh.vertices.copy(), mesh.faces.copy()
    clean(mesh, max_faces=100, smooth=2)
    assert np.array_equal(mesh.vertices, before[0])
    assert np.array_equal(mesh.faces, before[1])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(SignalError, match="max_faces=3"):
        clean(ball(), max_faces=3)
    with pytest.raises(SignalError, match="min_share=2"):
        clean(ball(), min_share=2)
    with pytest.raises(SignalError, match="smooth=-1"):
        clean(ball(), smooth=-1)
    with pytest.raises(SignalError, match="no faces"):
        clean(trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False))
