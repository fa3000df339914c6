from __future__ import annotations

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import SignalError
from polytok.metrics.peers import draco_candidates, draco_decode, draco_fit
from polytok.metrics.shape import (
    CONVENTIONS,
    ShapeReference,
    f_score,
    intersection_over_union,
    sample_surface,
    shape_scores,
    winding_sign,
)

Array = NDArray[np.floating]
FEW = 4000


def cube_sdf(half: float) -> object:
    def sdf(p: Array) -> Array:
        q = np.abs(p) - half
        return np.linalg.norm(np.maximum(q, 0), axis=1) + np.minimum(q.max(axis=1), 0)

    return sdf


def slab(side: float = 2.0, y: float = 0.0) -> trimesh.Trimesh:
    """A square without thickness: every distance to a moved copy is the move."""
    at = side / 2
    corners = [[-at, y, -at], [at, y, -at], [at, y, at], [-at, y, at]]
    return trimesh.Trimesh(corners, [[0, 2, 1], [0, 3, 2]], process=False)


def test_a_mesh_scores_perfectly_against_itself() -> None:
    mesh = trimesh.creation.icosphere(subdivisions=3)
    scores = shape_scores(mesh, mesh, sdf=lambda p: np.linalg.norm(p, axis=1) - 1, samples=FEW)
    for name in ("f_002", "f_001", "f_0005", "outer_f_002", "outer_f_0005", "normal_consistency"):
        assert getattr(scores, name) == pytest.approx(1, abs=1e-5), name
    assert scores.cd_l1 < 1e-6 and scores.cd_l2 < 1e-10
    assert scores.v_iou > 0.98 and scores.s_iou > 0.9  # the facets cut a little off the ball


def test_sample_to_sample_distances_have_the_known_floor() -> None:
    mesh = slab()
    scores = shape_scores(mesh, mesh, samples=FEW)
    # The mean distance to the nearest of N random points on an area A is sqrt(A / N) / 2.
    assert scores.cd_l1_samples == pytest.approx(0.5 * np.sqrt(4 / FEW), rel=0.05)


@pytest.mark.parametrize("move", [0.0049, 0.0051, 0.0099, 0.0101, 0.0199, 0.0201, 0.1])
def test_a_moved_plane_is_as_far_as_it_moved(move: float) -> None:
    scores = shape_scores(slab(y=move), slab(), samples=FEW)
    assert scores.cd_l1 == pytest.approx(move, rel=1e-4)
    assert scores.cd_l2 == pytest.approx(2 * move**2, rel=1e-3)
    got = (scores.f_002, scores.f_001, scores.f_0005)
    assert got == tuple(pytest.approx(float(move < t)) for t in (0.02, 0.01, 0.005))
    assert scores.normal_consistency == pytest.approx(1)


def test_truth_alone_sets_the_scale() -> None:
    one = shape_scores(slab(y=0.015), slab(), samples=FEW)
    large = shape_scores(slab(2e3, y=15), slab(2e3), samples=FEW)
    assert large.cd_l1 == pytest.approx(one.cd_l1, rel=1e-4)
    assert large.f_002 == one.f_002 == pytest.approx(1)
    # A prediction of half the size is half the size, however it would look on its own.
    assert shape_scores(slab(1.0), slab(), samples=FEW).f_002 < 0.5


def test_precision_and_recall_swap_with_the_arguments() -> None:
    near, far = np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, 1.0])
    assert f_score(near, far, 0.5) == f_score(far, near, 0.5) == pytest.approx(0.6)
    assert f_score(far + 1, far, 0.5) == 0


def test_half_the_surface_has_recall_one_half() -> None:
    half = trimesh.Trimesh(slab().vertices, slab().faces[:1], process=False)
    scores = shape_scores(half, slab(), samples=FEW)
    # precision 1; recall 1/2 and what lies within the threshold of the diagonal
    recall = 0.5 + 0.02 * 2 * np.sqrt(2) / 4
    assert scores.f_002 == pytest.approx(2 * recall / (1 + recall), abs=0.02)


@pytest.mark.parametrize("flip", [False, True])
def test_flipped_faces_change_nothing(flip: bool) -> None:
    mesh = trimesh.creation.icosphere(subdivisions=3)
    other = mesh.copy()
    if flip:
        other.invert()
    scores = shape_scores(other, mesh, sdf=lambda p: np.linalg.norm(p, axis=1) - 1, samples=FEW)
    assert scores.normal_consistency == pytest.approx(1, abs=1e-5)
    assert scores.v_iou > 0.97


def test_iou_of_two_cubes_is_the_ratio_of_their_volumes() -> None:
    truth, small = trimesh.creation.box([2, 2, 2]), trimesh.creation.box([1, 1, 1])
    reference = ShapeReference(truth, sdf=cube_sdf(1.0), samples=20_000)
    by_winding, by_sdf = reference.score(small), reference.score(small, sdf=cube_sdf(0.5))
    assert by_winding.v_iou == pytest.approx(1 / 8, abs=0.01)
    assert by_sdf.v_iou == by_winding.v_iou
    assert by_winding.s_iou == 0
    assert intersection_over_union(np.zeros(3, bool), np.zeros(3, bool)) == 1


def test_outer_score_forgives_what_is_hidden_inside() -> None:
    outer, hidden = trimesh.creation.box([2, 2, 2]), trimesh.creation.box([1.8, 1.8, 1.8])
    source = trimesh.util.concatenate([outer, hidden])
    reference = ShapeReference(source, sdf=cube_sdf(1.0), samples=FEW)
    skin, both = reference.score(outer), reference.score(source)
    assert skin.f_002 < 0.75
    assert skin.outer_f_002 == pytest.approx(1, abs=1e-6)
    # Storing the hidden part is no gain on the outer surface: it is measured to the skin.
    assert both.f_002 == pytest.approx(1)
    assert both.outer_f_002 < 0.75


@pytest.mark.parametrize(
    "prediction",
    [
        None,
        trimesh.Trimesh(),
        trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False),
        trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False),
    ],
    ids=["none", "no faces", "a point", "a line"],
)
def test_an_empty_prediction_scores_nothing(prediction: trimesh.Trimesh | None) -> None:
    truth = trimesh.creation.icosphere(subdivisions=3)
    sdf = lambda p: np.linalg.norm(p, axis=1) - 1  # noqa: E731
    scores = shape_scores(prediction, truth, sdf=sdf, samples=FEW).as_dict()
    distances = {name: scores.pop(name) for name in ("cd_l1", "cd_l2", "cd_l1_samples")}
    assert set(scores.values()) == {0.0}
    assert len(scores) == 11
    assert distances["cd_l1"] == pytest.approx(1, rel=0.02)  # to a point at the centre
    assert distances["cd_l2"] == pytest.approx(2, rel=0.02)


def test_a_source_without_area_is_refused() -> None:
    with pytest.raises(SignalError, match="no area"):
        ShapeReference(trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]]))
    with pytest.raises(SignalError, match="no area"):
        ShapeReference(trimesh.Trimesh())


def test_scores_repeat_and_depend_on_the_seed() -> None:
    truth, guess = trimesh.creation.box([2, 1, 1]), trimesh.creation.box([1.9, 1, 1.1])
    one, same, other = (shape_scores(guess, truth, samples=500, seed=s) for s in (3, 3, 4))
    assert one == same
    assert one != other


def test_samples_follow_the_area_and_skip_faces_without_any() -> None:
    vertices = np.array([[0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 5], [1, 0, 5], [0, 1, 5]], float)
    faces = np.array([[0, 0, 1], [0, 1, 2], [3, 4, 5], [3, 3, 3]])
    got = sample_surface(vertices, faces, 20_000, np.random.default_rng(0))
    assert (got.points[:, 2] == 0).mean() == pytest.approx(0.75, abs=0.01)
    low = got.points[got.points[:, 2] == 0]
    assert (low[:, 0] / 3 + low[:, 1]).max() <= 1 + 1e-12
    assert low.mean(axis=0) == pytest.approx([1, 1 / 3, 0], abs=0.02)
    assert np.allclose(got.normals, [0, 0, 1])


def test_winding_sign_knows_inside_whichever_way_faces_turn() -> None:
    ball = trimesh.creation.icosphere(subdivisions=3)
    points = np.array([[0, 0, 0], [0.9, 0, 0], [1.1, 0, 0]], dtype=np.float32)
    assert winding_sign(ball)(points).tolist() == [-1, -1, 1]
    ball.invert()
    assert winding_sign(ball)(points).tolist() == [-1, -1, 1]


def test_every_score_has_a_convention() -> None:
    mesh = trimesh.creation.box()
    names = shape_scores(mesh, mesh, sdf=cube_sdf(0.5), samples=100).as_dict()
    for name in names:
        keys = {name, name.split("_")[-1]}
        assert any(
            key in CONVENTIONS
            or (key.startswith("f_") and "f_*" in CONVENTIONS)
            or (key.startswith("outer_f_") and "outer_f_*" in CONVENTIONS)
            or (key == "samples" and "*_samples" in CONVENTIONS)
            for key in keys
        ), name


@pytest.mark.parametrize("size", [128, 256, 700])
def test_draco_fits_and_decodes_to_what_it_says(size: int) -> None:
    mesh = trimesh.creation.icosphere(subdivisions=3)
    mesh.apply_translation([5, 0, 0])
    fits = draco_candidates(mesh, size)
    assert [fit.bits for fit in fits] == [7, 8, 9, 10]
    # More bits per coordinate leave room for fewer faces.
    assert len(fits[0].mesh.faces) >= len(fits[-1].mesh.faces)
    for fit in fits:
        assert size * 0.75 < len(fit.data) <= size
        assert np.array_equal(draco_decode(fit.data).triangles, fit.mesh.triangles)
    best = draco_fit(mesh, size, samples=2000)
    scores = [shape_scores(fit.mesh, mesh, samples=2000).f_002 for fit in fits]
    assert shape_scores(best.mesh, mesh, samples=2000).f_002 > max(scores) - 0.05


def test_draco_keeps_a_small_mesh_whole_and_gives_up_on_too_few_bytes() -> None:
    box = trimesh.creation.box([1, 2, 3])
    fit = draco_fit(box, 512, samples=500)
    assert len(fit.mesh.faces) == 12
    assert fit.mesh.extents == pytest.approx([1, 2, 3], rel=0.02)
    assert draco_fit(box, 40) is None
    with pytest.raises(SignalError, match="not a Draco mesh"):
        draco_decode(b"not draco")
