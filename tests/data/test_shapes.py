"""Training samples of shapes: pure draws, and labels that stay right under every variation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import point_cloud_utils as pcu
import pytest
import torch
import trimesh
from numpy.typing import NDArray

from polytok.data.shapes import BOUND, EXTENT, FAR, ShapeSampling, ShapeSource, affine_sdf

Array = NDArray[np.floating]
BAND = 0.05
PLAIN = {"rotate": False, "mirror": False, "stretch": 0.0, "mix": 0.0}


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-12)


class Ball:
    """A ball with its exact distance and directions."""

    def __init__(self, radius: float, centre: tuple[float, float, float] = (0, 0, 0)) -> None:
        self.radius, self.centre = radius, np.array(centre)

    def surface(self, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        normals = unit(rng.normal(size=(count, 3)))
        # The six extreme points make the bounding box exact.
        normals[:6] = np.concatenate([np.eye(3), -np.eye(3)])
        return normals * self.radius + self.centre, normals

    def sdf(self, x: Array) -> tuple[Array, Array]:
        away = x - self.centre
        return np.linalg.norm(away, axis=1) - self.radius, unit(away)


class Box:
    """A box about the origin with its exact distance and directions."""

    def __init__(self, *half: float) -> None:
        self.half = np.array(half)

    def surface(self, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        axis, sign = rng.integers(3, size=count), rng.choice([-1.0, 1.0], size=count)
        points = rng.uniform(-1, 1, (count, 3)) * self.half
        rows = np.arange(count)
        points[rows, axis] = sign * self.half[axis]
        normals = np.zeros((count, 3))
        normals[rows, axis] = sign
        corners = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T * self.half
        points[:8], normals[:8] = corners, [0.0, 1.0, 0.0]
        return points, normals

    def sdf(self, x: Array) -> tuple[Array, Array]:
        q = np.abs(x) - self.half
        outside = np.maximum(q, 0)
        distance = np.linalg.norm(outside, axis=1) + np.minimum(q.max(1), 0)
        axis = np.eye(3)[q.argmax(1)]
        direction = np.where((q > 0).any(1)[:, None], unit(outside), axis) * np.sign(x)
        return distance, direction


class Store:
    """Analytic shapes, normalised as prepared ones are: the longest side is 1.96 about 0."""

    num_uniform, num_volume = 600, 3000

    def __init__(self, shapes: list[Ball | Box]) -> None:
        self.shapes = shapes

    def __len__(self) -> int:
        return len(self.shapes)

    def load(self, index: int) -> dict[str, NDArray[np.float32]]:
        shape, rng = self.shapes[index], np.random.default_rng(index)
        points, normals = shape.surface(rng, 800)
        near = shape.surface(rng, 3000)[0] + rng.normal(size=(3000, 3)) * 0.02
        queries = np.concatenate([rng.uniform(-BOUND, BOUND, (self.num_volume, 3)), near])
        sdf, grad = shape.sdf(queries)
        arrays = {"points": points, "normals": normals, "queries": queries, "sdf": sdf}
        return {k: v.astype(np.float32) for k, v in {**arrays, "grad": grad}.items()}


SHAPES: list[Ball | Box] = [Ball(EXTENT), Box(EXTENT, 0.5, 0.4), Box(0.3, EXTENT, 0.6)]


def source(shapes: list[Ball | Box] = SHAPES, seed: int = 0, **changes: object) -> ShapeSource:
    return ShapeSource(Store(shapes), ShapeSampling(**changes), seed=seed)  # type: ignore[arg-type]


def ellipsoid_distance(x: Array, axes: Array) -> Array:
    """Exact signed distance to an axis-aligned ellipsoid, by bisection on the multiplier."""
    y = np.abs(x)
    low = np.full(len(y), -(axes.min() ** 2) * (1 - 1e-9))
    high = np.linalg.norm(y, axis=1) * axes.max() + 1
    for _ in range(80):
        t = (low + high) / 2
        above = (((axes * y) / (axes**2 + t[:, None])) ** 2).sum(1) > 1
        low, high = np.where(above, t, low), np.where(above, high, t)
    foot = axes**2 * y / (axes**2 + low[:, None])
    return np.linalg.norm(y - foot, axis=1) * np.sign(((y / axes) ** 2).sum(1) - 1)


def exact_distance(shape: Ball | Box, x: Array, linear: Array, offset: Array) -> Array:
    """Exact signed distances to the image of a shape under x -> linear x + offset."""
    if isinstance(shape, Ball):
        turn, axes, _ = np.linalg.svd(linear * shape.radius)
        return ellipsoid_distance((x - offset) @ turn, axes)
    inside = shape.sdf((x - offset) @ np.linalg.inv(linear).T)[0] < 0
    box = trimesh.creation.box(extents=2 * shape.half)
    corners = np.asarray(box.vertices) @ linear.T + offset
    size, _, _ = pcu.closest_points_on_mesh(x, corners, np.asarray(box.faces))
    return np.where(inside, -size, size)


# affine_sdf


def rotation(rng: np.random.Generator) -> Array:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.diag(r))


@pytest.mark.parametrize("seed", range(5))
def test_planes_map_exactly_under_any_linear_map(seed: int) -> None:
    rng = np.random.default_rng(seed)
    normals, points = unit(rng.normal(size=(200, 3))), rng.normal(size=(200, 3))
    sdf = rng.normal(size=200)
    linear = rng.normal(size=(3, 3))
    # Each plane {x: n.x = n.p - d} has signed distance d at p; its image has normal A^-T n.
    on_plane = points - normals * sdf[:, None]
    mapped = unit(normals @ np.linalg.inv(linear))
    wanted = (((points - on_plane) @ linear.T) * mapped).sum(1)
    np.testing.assert_allclose(affine_sdf(sdf, normals, linear), wanted, atol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_rotations_mirrors_and_scales_are_exact_for_curved_shapes_too(sign: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (500, 3))
    sdf, grad = Ball(0.6).sdf(x)
    linear = rotation(rng) @ np.diag([1, sign, 1]) * 0.7
    np.testing.assert_allclose(affine_sdf(sdf, grad, linear), 0.7 * sdf, atol=1e-9)
    np.testing.assert_allclose(Ball(0.6 * 0.7).sdf(x @ linear.T)[0], 0.7 * sdf, atol=1e-9)


def test_a_stretched_ball_is_right_inside_the_band() -> None:
    rng = np.random.default_rng(2)
    radius, axes = 0.8, np.array([0.75, 1.25, 1.0])
    x = unit(rng.normal(size=(4000, 3))) * (radius + rng.uniform(-0.04, 0.04, (4000, 1)))
    sdf, grad = Ball(radius).sdf(x)
    found = affine_sdf(sdf, grad, np.diag(axes))
    wanted = ellipsoid_distance(x * axes, radius * axes)
    assert np.array_equal(np.sign(found), np.sign(wanted))
    error = np.abs(found - wanted)[np.abs(wanted) < BAND]
    assert len(error) > 3000
    assert error.max() < 2e-3 and error.mean() < 5e-4


def test_quarter_turns_keep_boxes_aligned_with_the_axes() -> None:
    turned = {**PLAIN, "rotate": True}
    aligned = source([Box(EXTENT, 0.3, 0.2)], **turned, quarter_turns=1.0)
    free = source([Box(EXTENT, 0.3, 0.2)], **turned)

    def is_aligned(sample: dict[str, torch.Tensor]) -> bool:
        return bool((sample["normals"].abs().max(-1).values > 1 - 1e-5).all())

    samples = [aligned.sample(n) for n in range(12)]
    assert all(map(is_aligned, samples))
    # Both ways of lying: along x and along z.
    longest = {int(s["points"].abs().amax(0).argmax()) for s in samples}
    assert longest == {0, 2}
    assert sum(is_aligned(free.sample(n)) for n in range(12)) <= 2


# Draws


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_a_sample_is_a_pure_function_of_seed_and_number(mix: float) -> None:
    one, two = source(mix=mix), source(mix=mix)
    numbers = [0, 5, 3, 11]
    forward = {n: one.sample(n) for n in numbers}
    for n in reversed(numbers):
        again = two.sample(n)
        assert set(again) == set(forward[n])
        assert all(torch.equal(again[k], forward[n][k]) for k in again)
    other = source(mix=mix, seed=1).sample(0)
    assert not torch.equal(other["queries"], forward[0]["queries"])
    assert int(other["seed"]) != int(forward[0]["seed"])


def test_each_epoch_visits_every_shape_once_in_its_own_order() -> None:
    shapes: list[Ball | Box] = [Box(EXTENT, 0.2 + 0.05 * i, 0.2) for i in range(12)]
    one = source(shapes, **PLAIN)
    seen = [round((float(one.sample(n)["points"][:, 1].max()) - 0.2) / 0.05) for n in range(36)]
    epochs = [seen[i : i + 12] for i in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_shapes_and_types_of_a_sample(mix: float) -> None:
    sample = source(mix=mix).sample(0)
    sizes = {k: tuple(v.shape) for k, v in sample.items()}
    assert {k: sizes[k] for k in ("points", "normals", "queries", "sdf", "seed")} == {
        "points": (2048, 3),
        "normals": (2048, 3),
        "queries": (1024, 3),
        "sdf": (1024,),
        "seed": (),
    }
    assert sample["seed"].dtype == torch.int64 and sample["points"].dtype == torch.float32
    torch.testing.assert_close(sample["normals"].norm(dim=1), torch.ones(2048))
    assert float(sample["queries"][:384].abs().max()) <= BOUND


def test_the_sharp_share_is_kept() -> None:
    store = Store([Ball(EXTENT)])
    sharp = store.load(0)["points"][store.num_uniform :]
    sample = source([Ball(EXTENT)], **PLAIN, num_points=100, sharp_fraction=0.3).sample(0)
    found = (sample["points"].numpy()[:, None] == sharp[None]).all(-1).any(1)
    assert found.sum() == 30


# Labels


def maps(one: ShapeSource, n: int, monkeypatch: pytest.MonkeyPatch) -> tuple[dict, list]:
    """Sample n and its pieces, whose maps tell where each shape went."""
    kept: list = []
    original = ShapeSource._normalise

    def spy(self: ShapeSource, pieces: list) -> None:
        original(self, pieces)
        kept.extend(pieces)

    monkeypatch.setattr(ShapeSource, "_normalise", spy)
    return {k: v.numpy() for k, v in one.sample(n).items()}, kept


def shape_of(store: Store, piece: object) -> Ball | Box:
    """The shape that a piece shows: the one whose surface its points lie on."""
    back = (piece.points - piece.offset) @ np.linalg.inv(piece.linear).T  # type: ignore[attr-defined]
    errors = [float(np.abs(s.sdf(back.astype(np.float64))[0]).max()) for s in store.shapes]
    assert min(errors) < 1e-4
    return store.shapes[int(np.argmin(errors))]


@pytest.mark.parametrize("mix", [0.0, 1.0])
@pytest.mark.parametrize("n", range(6))
def test_signs_and_distances_are_those_of_the_mapped_shapes(
    monkeypatch: pytest.MonkeyPatch, n: int, mix: float
) -> None:
    one = source(mix=mix, num_volume=1500, num_near=1500)
    sample, pieces = maps(one, n, monkeypatch)
    assert len(pieces) == 1 + int(mix)
    queries, sdf = sample["queries"].astype(np.float64), sample["sdf"]
    truths = [
        exact_distance(shape_of(one.store, p), queries, p.linear.astype(np.float64), p.offset)
        for p in pieces
    ]
    truth = np.min(truths, axis=0)  # the union
    clear = np.abs(truth) > 1e-4
    assert np.array_equal(np.sign(sdf)[clear], np.sign(truth)[clear])
    assert (sdf < 0).sum() > 100
    error = np.abs(np.clip(sdf, -BAND, BAND) - np.clip(truth, -BAND, BAND))
    # Only places nearest to an edge of a stretched box, or to strong curvature, are approximate.
    assert np.quantile(error, 0.98) < 5e-4 and error.max() < 0.02


@pytest.mark.parametrize("mix", [0.0, 1.0])
@pytest.mark.parametrize("n", range(4))
def test_points_lie_on_the_mapped_shapes_with_their_normals(
    monkeypatch: pytest.MonkeyPatch, n: int, mix: float
) -> None:
    balls: list[Ball | Box] = [Ball(EXTENT)]
    sample, pieces = maps(source(balls, mix=mix), n, monkeypatch)
    best = np.full(len(sample["points"]), np.inf)
    agree = np.zeros(len(best))
    for piece in pieces:
        inverse = np.linalg.inv(piece.linear.astype(np.float64))
        back = (sample["points"] - piece.offset) @ inverse.T
        off = np.abs(np.linalg.norm(back, axis=1) - EXTENT)
        # The gradient of |A^-1 (x - b)| is the true normal of the ellipsoid.
        truth = unit(back @ inverse)
        agree = np.where(off < best, (truth * sample["normals"]).sum(1), agree)
        best = np.minimum(best, off)
    assert best.max() < 1e-4
    assert agree.min() > 0.999


@pytest.mark.parametrize("mix", [0.0, 1.0])
@pytest.mark.parametrize("n", range(6))
def test_the_bounding_box_is_normalised(
    monkeypatch: pytest.MonkeyPatch, n: int, mix: float
) -> None:
    _, pieces = maps(source(mix=mix), n, monkeypatch)
    points = np.concatenate([p.points for p in pieces])
    low, high = points.min(0), points.max(0)
    assert float((high - low).max()) == pytest.approx(2 * EXTENT, abs=1e-4)
    np.testing.assert_allclose(low + high, 0, atol=1e-4)


@pytest.mark.parametrize("n", range(8))
def test_mixed_pieces_stay_apart(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    _, (first, second) = maps(source(mix=1.0), n, monkeypatch)
    gaps = [
        max(float(b[:, k].min() - a[:, k].max()) for k in range(3))
        for a, b in ((first.points, second.points), (second.points, first.points))
    ]
    assert max(gaps) > 1.95 * ShapeSampling().gap > 2 * BAND


def test_without_variation_the_labels_are_the_stored_ones() -> None:
    ball = Ball(EXTENT)
    sample = source([ball], **PLAIN).sample(0)
    queries = sample["queries"].numpy().astype(np.float64)
    np.testing.assert_allclose(sample["sdf"].numpy(), ball.sdf(queries)[0], atol=1e-4)


def test_space_beyond_every_cube_is_empty() -> None:
    """A thin box fills its cube's middle only; after joining two, most of the cube is free."""
    sample = source([Box(EXTENT, 0.1, 0.1)], mix=1.0, num_volume=2000).sample(1)
    sdf = sample["sdf"][:2000]
    free = sdf == FAR
    assert 0 < int(free.sum()) < 2000
    assert bool((sdf[free] > BAND).all())


@pytest.mark.parametrize("flag", ["rotate", "mirror", "stretch"])
def test_each_variation_varies(flag: str) -> None:
    on: Callable[[int], ShapeSource] = lambda n: source(  # noqa: E731
        **{**PLAIN, flag: 0.25 if flag == "stretch" else True}
    )
    points = torch.stack([on(0).sample(n)["points"][:200].amax(0) for n in range(9)])
    assert bool(points.isfinite().all())
    linear = [on(0)._linear(np.random.default_rng(s)) for s in range(8)]
    assert len({tuple(np.round(m, 6).ravel()) for m in linear}) > 2
    for matrix in linear:
        assert matrix[1, 0] == matrix[1, 2] == 0  # up stays up
        if flag != "stretch":
            np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-6)
