"""How close a decoded mesh is to its source: one protocol, fixed and written out.

The ground truth is moved and scaled so that its bounding box is centred and its longest side is 2;
the prediction gets the same transform. Surfaces are compared by area-weighted samples. Distances
of the primary scores go from a sample to the nearest triangle of the other mesh. Those whose names
end in ``_samples`` go to its nearest sample, as most papers have it; two samplings of one mesh then
differ by 0.5 * sqrt(area / samples) on average.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import SignalError
from polytok.core.seeding import numpy_rng

Array = NDArray[np.float64]
Signed = Callable[[Array], NDArray[np.floating]]
"""Signed distance of points (N, 3), negative inside; points and distances in the mesh's units."""

SAMPLES = 100_000
THRESHOLDS = (0.02, 0.01, 0.005)
CUBE = 1.05
SHELL = 0.05
OUTER = 0.012

CONVENTIONS: Mapping[str, str] = {
    "frame": "ground truth centred, longest side 2; the same transform on the prediction",
    "samples": "100,000 area-weighted per mesh, seeded",
    "f_*": "F(t) = 2PR/(P+R), t = 0.02, 0.01, 0.005; P over predicted, R over true samples",
    "cd_l1": "(mean d(p->g) + mean d(g->p)) / 2, distances not squared",
    "cd_l2": "mean d(p->g)^2 + mean d(g->p)^2",
    "normal_consistency": "mean |n.n'| at nearest points, both ways, averaged",
    "v_iou": "occupancy IoU over points uniform in [-1.05, 1.05]^3; source made solid, prediction "
    "by winding number > 1/2",
    "s_iou": "occupancy IoU over points uniform in balls of 0.05 around true samples",
    "outer_f_*": "F(t) against the part of the source within 0.012 of the skin of its solid",
    "*_samples": "the same with sample-to-sample instead of sample-to-triangle distances",
    "empty": "an empty prediction has F, normal consistency and IoU 0; its distances are those of "
    "one point at the centre of the box",
}
"""What each score means, for table headers and result files."""


@dataclass(frozen=True, kw_only=True)
class ShapeScores:
    """Scores of one prediction, see :data:`CONVENTIONS`; None where not computed."""

    f_002: float
    f_001: float
    f_0005: float
    cd_l1: float
    cd_l2: float
    normal_consistency: float
    outer_f_002: float | None = None
    outer_f_001: float | None = None
    outer_f_0005: float | None = None
    v_iou: float | None = None
    s_iou: float | None = None
    f_002_samples: float | None = None
    f_001_samples: float | None = None
    cd_l1_samples: float | None = None

    def as_dict(self) -> dict[str, float]:
        """The scores that were computed, by name."""
        return {k: v for k, v in asdict(self).items() if v is not None}


@dataclass(frozen=True)
class Surface:
    """A mesh in the frame of the comparison, with samples on it.

    Args:
        vertices, faces: (V, 3) float64 and (F, 3) int64; every face has an area.
        points, normals: (N, 3) area-weighted samples and the unit normals of their faces.
    """

    vertices: Array
    faces: NDArray[np.int64]
    points: Array
    normals: Array


def sample_surface(
    vertices: Array, faces: NDArray[np.int64], count: int, rng: np.random.Generator
) -> Surface | None:
    """Draw ``count`` area-weighted points; None when the mesh has no area."""
    vertices, faces = np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64)
    corners = vertices[faces].reshape(-1, 3, 3)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    double_area = np.linalg.norm(cross, axis=1)
    has_area = double_area > 0
    if not has_area.any():
        return None
    faces, corners = faces[has_area], corners[has_area]
    cross, double_area = cross[has_area], double_area[has_area]
    total = np.cumsum(double_area)
    face = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    face = np.minimum(face, len(faces) - 1)
    u, v = rng.random((2, count, 1))
    flip = u + v > 1
    u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
    a, b, c = np.moveaxis(corners[face], 1, 0)
    points = a + u * (b - a) + v * (c - a)
    return Surface(vertices, faces, points, cross[face] / double_area[face, None])


@dataclass(frozen=True)
class Nearest:
    """Distances (N,) of points to a mesh, and the unit normals (N, 3) where they meet it."""

    distance: Array
    normal: Array
    point: Array


def nearest_on_mesh(points: Array, surface: Surface) -> Nearest:
    """Find the nearest point of a mesh's triangles for every point (N, 3)."""
    import point_cloud_utils as pcu

    vertices = np.ascontiguousarray(surface.vertices)
    faces = surface.faces.astype(np.int32)
    # A single query is misread by the library, hence the doubling.
    queries = np.repeat(points, 2, axis=0) if len(points) == 1 else points
    got = pcu.closest_points_on_mesh(np.ascontiguousarray(queries), vertices, faces)
    distance, face, weights = (part[: len(points)] for part in got)
    corners = vertices[faces[face]]
    # Slivers give weights that are not finite; their first corner is near enough.
    weights = np.where(np.isfinite(weights).all(axis=1, keepdims=True), weights, [1, 0, 0])
    point = (corners * weights[:, :, None]).sum(axis=1)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    return Nearest(distance.astype(np.float64), normal / np.maximum(length, 1e-300), point)


def f_score(to_truth: Array, to_prediction: Array, threshold: float) -> float:
    """F = 2PR/(P+R) of distances below ``threshold``; the second argument gives recall."""
    precision, recall = (to_truth < threshold).mean(), (to_prediction < threshold).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def intersection_over_union(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """IoU of two occupancies (N,); 1 when both are empty."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


def winding_sign(mesh: trimesh.Trimesh) -> Signed:
    """Inside (-1) and outside (1) of a mesh: where its winding number is above 1/2, either way.

    Small holes do not matter to it. Source: Barill et al. 2018.
    """
    import point_cloud_utils as pcu

    vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
    faces = np.ascontiguousarray(mesh.faces, dtype=np.int32)

    def sign(points: Array) -> NDArray[np.floating]:
        queries = np.ascontiguousarray(points, dtype=np.float64)
        inside = np.abs(pcu.triangle_soup_fast_winding_number(vertices, faces, queries)) > 0.5
        return np.where(inside, -1.0, 1.0)

    return sign


class _SolidTruth:
    """What is known of the source made solid, in the frame of the comparison."""

    def __init__(self, signed: Callable[[Array], Array], surface: Surface, seed: int) -> None:
        rng = numpy_rng(seed, "shape-metric", "volume")
        points = surface.points
        away = rng.normal(size=points.shape)
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        self.signed = signed
        self.cube = rng.uniform(-CUBE, CUBE, points.shape)
        self.shell = points + SHELL * np.cbrt(rng.random((len(points), 1))) * away
        self.in_cube, self.in_shell = signed(self.cube) < 0, signed(self.shell) < 0
        self.outer = self.is_outer(points)

    def is_outer(self, points: Array) -> NDArray[np.bool_]:
        """Which points on the source lie on the skin of its solid."""
        return np.abs(self.signed(points)) < OUTER


class ShapeReference:
    """A source mesh made ready to score any number of predictions.

    Args:
        mesh: the source, in original units.
        sdf: signed distance to the source made solid; without it there is no IoU and no outer F.
        samples: points per mesh and per IoU.
        seed: of every draw.
        secondary: whether to score sample-to-sample distances too.

    Raises:
        SignalError: the source has no area.
    """

    def __init__(
        self,
        mesh: trimesh.Trimesh,
        *,
        sdf: Signed | None = None,
        samples: int = SAMPLES,
        seed: int = 0,
        secondary: bool = True,
    ) -> None:
        low, high = mesh.bounds if len(mesh.faces) else (np.zeros(3), np.zeros(3))
        side = float((high - low).max())
        self.centre, self.scale = (low + high) / 2, 2 / side if side > 0 else 1.0
        self.samples, self.seed, self.secondary = samples, seed, secondary
        surface = self._surface(mesh, "truth")
        if surface is None:
            raise SignalError("the mesh has no area to compare with")
        self.surface = surface
        self.solid = None if sdf is None else _SolidTruth(self._framed(sdf), surface, seed)

    def score(
        self, prediction: trimesh.Trimesh | None, *, sdf: Signed | None = None
    ) -> ShapeScores:
        """Score a prediction in the source's units; None or a mesh without area is empty.

        Args:
            prediction: the decoded mesh.
            sdf: its signed distance for the IoU; None takes the winding number of its faces.
        """
        surface = None if prediction is None else self._surface(prediction, "prediction")
        if prediction is None or surface is None:
            return self._empty()
        to_truth = nearest_on_mesh(surface.points, self.surface)
        to_prediction = nearest_on_mesh(self.surface.points, surface)
        d_p, d_g = to_truth.distance, to_prediction.distance
        agree = [
            np.abs((normals * nearest.normal).sum(axis=1)).mean()
            for normals, nearest in (
                (surface.normals, to_truth),
                (self.surface.normals, to_prediction),
            )
        ]
        f_002, f_001, f_0005 = (f_score(d_p, d_g, t) for t in THRESHOLDS)
        return ShapeScores(
            f_002=f_002,
            f_001=f_001,
            f_0005=f_0005,
            cd_l1=float(d_p.mean() + d_g.mean()) / 2,
            cd_l2=float((d_p**2).mean() + (d_g**2).mean()),
            normal_consistency=float(np.mean(agree)),
            **self._outer_scores(surface, to_truth, d_g),
            **self._volume_scores(sdf or winding_sign(prediction)),
            **self._sample_scores(surface),
        )

    def _surface(self, mesh: trimesh.Trimesh, key: str) -> Surface | None:
        vertices = (np.asarray(mesh.vertices, dtype=np.float64) - self.centre) * self.scale
        rng = numpy_rng(self.seed, "shape-metric", key)
        return sample_surface(vertices, np.asarray(mesh.faces), self.samples, rng)

    def _framed(self, sdf: Signed) -> Callable[[Array], Array]:
        """The signed distance in the frame of the comparison."""

        def signed(points: Array) -> Array:
            own = sdf(points / self.scale + self.centre)
            return np.asarray(own, dtype=np.float64) * self.scale

        return signed

    def _outer_scores(self, surface: Surface, to_truth: Nearest, d_g: Array) -> dict[str, float]:
        """F against the outer part: what lies inside the source's solid neither helps nor hurts.

        A predicted sample whose nearest source point is an inner one is measured to the nearest
        outer sample instead. A source without outer samples has no such score.
        """
        from scipy.spatial import cKDTree

        if self.solid is None or not self.solid.outer.any():
            return {}
        distance = to_truth.distance.copy()
        inner = np.flatnonzero(~self.solid.is_outer(to_truth.point))
        if len(inner):
            tree = cKDTree(self.surface.points[self.solid.outer])
            distance[inner] = tree.query(surface.points[inner])[0]
        f_002, f_001, f_0005 = (f_score(distance, d_g[self.solid.outer], t) for t in THRESHOLDS)
        return {"outer_f_002": f_002, "outer_f_001": f_001, "outer_f_0005": f_0005}

    def _volume_scores(self, sdf: Signed) -> dict[str, float]:
        if self.solid is None:
            return {}
        signed = self._framed(sdf)
        return {
            "v_iou": intersection_over_union(self.solid.in_cube, signed(self.solid.cube) < 0),
            "s_iou": intersection_over_union(self.solid.in_shell, signed(self.solid.shell) < 0),
        }

    def _sample_scores(self, surface: Surface) -> dict[str, float]:
        from scipy.spatial import cKDTree

        if not self.secondary:
            return {}
        d_p = cKDTree(self.surface.points).query(surface.points)[0]
        d_g = cKDTree(surface.points).query(self.surface.points)[0]
        return {
            "f_002_samples": f_score(d_p, d_g, 0.02),
            "f_001_samples": f_score(d_p, d_g, 0.01),
            "cd_l1_samples": float(d_p.mean() + d_g.mean()) / 2,
        }

    def _empty(self) -> ShapeScores:
        d_p = nearest_on_mesh(np.zeros((1, 3)), self.surface).distance
        d_g = np.linalg.norm(self.surface.points, axis=1)
        cd_l1 = float(d_p.mean() + d_g.mean()) / 2
        zeros = ["f_002", "f_001", "f_0005", "normal_consistency"]
        if self.solid is not None:
            zeros += ["v_iou", "s_iou"]
            if self.solid.outer.any():
                zeros += ["outer_f_002", "outer_f_001", "outer_f_0005"]
        if self.secondary:
            zeros += ["f_002_samples", "f_001_samples"]
        return ShapeScores(
            **dict.fromkeys(zeros, 0.0),
            cd_l1=cd_l1,
            cd_l2=float((d_p**2).mean() + (d_g**2).mean()),
            cd_l1_samples=cd_l1 if self.secondary else None,
        )


def shape_scores(
    prediction: trimesh.Trimesh | None,
    truth: trimesh.Trimesh,
    *,
    sdf: Signed | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> ShapeScores:
    """Score one prediction against one source; both in the same units.

    Args:
        prediction: the decoded mesh; None is an empty one.
        truth: the source mesh.
        sdf: signed distance to the source made solid, for the IoU and the outer F.
        samples: points per mesh.
        seed: of every draw.

    Raises:
        SignalError: the source has no area.
    """
    return ShapeReference(truth, sdf=sdf, samples=samples, seed=seed).score(prediction)
