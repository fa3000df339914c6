"""What a camera sees of a mesh: a pinhole, rays through pixels, and where they hit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytok.core.errors import PolytokError, SignalError

Array = NDArray[np.float32]

_CREASE = 40.0
_SMOOTH_FACES = 400_000
_MAX_VALENCE = 32


@dataclass(frozen=True)
class Camera:
    """A pinhole: position (3,), rows right, up and back (3, 3), tangent of half the view."""

    eye: Array
    axes: Array
    tangent: float

    @classmethod
    def fitted(
        cls,
        points: Array,
        azimuth: float,
        elevation: float,
        *,
        margin: float = 1.14,
        field_of_view: float = 28.0,
    ) -> Camera:
        """Look at ``points`` (N, 3) so that they fill 1 / margin of the view's longer side.

        Args:
            azimuth: degrees around y from +z towards +x. elevation: degrees above the horizon.
            field_of_view: degrees from edge to edge.
        """
        a, e = np.radians([azimuth, elevation])
        back = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
        right = np.array([np.cos(a), 0, -np.sin(a)])
        axes = np.stack([right, np.cross(back, right), back])
        tangent = float(np.tan(np.radians(field_of_view) / 2))
        local = points @ axes.T
        target = np.zeros(3)
        for _ in range(6):  # centre what is seen, then step back until it fits
            moved = local - target
            distance = float((np.abs(moved[:, :2]).max(1) * margin / tangent + moved[:, 2]).max())
            flat = moved[:, :2] / np.maximum(distance - moved[:, 2:], 1e-6)
            target[:2] += (flat.max(0) + flat.min(0)) / 2 * distance
        target[2] = distance
        eye = target @ axes
        return cls(eye.astype(np.float32), axes.astype(np.float32), tangent)

    def project(self, points: Array, pixels: int) -> Array:
        """Picture coordinates (N, 2), x right and y down, in pixels."""
        local = (points - self.eye) @ self.axes.T
        flat = local[:, :2] / np.maximum(-local[:, 2:], 1e-6) / self.tangent
        return single((flat * [1, -1] + 1) * (pixels / 2))

    def rays(self, rows: NDArray[np.int64], columns: NDArray[np.int64], pixels: int) -> Array:
        """Unit directions (N, 3) through the centres of pixels."""
        x = ((columns + 0.5) / pixels * 2 - 1) * self.tangent
        y = (1 - (rows + 0.5) / pixels * 2) * self.tangent
        local = np.stack([x, y, np.full(x.shape, -1.0)], axis=1)
        out = local @ self.axes
        return single(out / np.linalg.norm(out, axis=1, keepdims=True))


@dataclass(frozen=True)
class Hits:
    """What rays met: which of them did, where, and the unit normals that face the ray."""

    ray: NDArray[np.int64]
    points: Array
    flat: Array
    normals: Array
    depth: Array


class Scene:
    """A mesh that rays can be cast at."""

    def __init__(self, vertices: Array, faces: NDArray[np.int64], smooth: bool) -> None:
        try:
            from embreex.mesh_construction import TriangleMesh
            from embreex.rtcore_scene import EmbreeScene
        except ImportError as error:
            raise PolytokError("pictures need the package embreex: pip install embreex") from error
        triangles = np.ascontiguousarray(vertices[faces])
        cross = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        area = np.linalg.norm(cross, axis=1)
        if not (area > 0).any():
            raise SignalError("the mesh has no area to draw")
        self.vertices = vertices
        self.face_normals = cross / np.maximum(area, 1e-30)[:, None]
        self.corner_normals = (
            _corner_normals(faces, cross, self.face_normals)
            if smooth and len(faces) <= _SMOOTH_FACES
            else np.repeat(self.face_normals[:, None], 3, axis=1)
        )
        self._scene = EmbreeScene()
        # The geometry lives as long as the scene that refers to it.
        self._geometry = TriangleMesh(self._scene, triangles)

    def cast(self, origins: Array, directions: Array) -> Hits:
        got: dict[str, Any] = self._scene.run(origins, directions, output=1)
        ray = np.flatnonzero(got["primID"] >= 0)
        face, depth = got["primID"][ray], got["tfar"][ray]
        u, v = got["u"][ray, None], got["v"][ray, None]
        towards = directions[ray]
        points = origins[ray] + depth[:, None] * towards
        flat = _facing(self.face_normals[face], towards)
        a, b, c = np.moveaxis(self.corner_normals[face], 1, 0)
        normals = (1 - u - v) * a + u * b + v * c
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        sign = np.where((normals * flat).sum(axis=1, keepdims=True) < 0, -1, 1)
        return Hits(ray, points, flat, (normals * sign).astype(np.float32), depth)

    def open(self, origins: Array, directions: Array, reach: float = 1e6) -> NDArray[np.bool_]:
        """Whether nothing lies on the rays (N,) within ``reach``."""
        limits = np.full(len(origins), reach, dtype=np.float32)
        starts = np.ascontiguousarray(origins, dtype=np.float32)
        ways = np.ascontiguousarray(directions, dtype=np.float32)
        out: NDArray[np.bool_] = self._scene.run(starts, ways, limits, query="OCCLUDED") < 0
        return out


def single(values: NDArray[Any]) -> Array:
    out: Array = values.astype(np.float32)
    return out


def _facing(normals: Array, towards: Array) -> Array:
    away = (normals * towards).sum(axis=1, keepdims=True) > 0
    return single(np.where(away, -normals, normals))


def _corner_normals(faces: NDArray[np.int64], cross: Array, unit: Array) -> Array:
    """Normals (F, 3, 3) of face corners: the mean over faces around the vertex within the crease.

    Vertices of very many faces stay flat; they are hubs of fans, and their pairs are many.
    """
    corner = np.argsort(faces.reshape(-1), kind="stable")
    valence = np.bincount(faces.reshape(-1))
    valence = valence[valence > 0]
    first = np.repeat(np.cumsum(valence) - valence, valence)
    around = np.repeat(valence, valence)
    around = np.where(around > _MAX_VALENCE, 0, around)
    left = np.repeat(np.arange(len(corner)), around)
    step = np.arange(len(left)) - np.repeat(np.cumsum(around) - around, around)
    mine, other = corner[left], corner[first[left] + step] // 3
    near = (unit[mine // 3] * unit[other]).sum(axis=1) > np.cos(np.radians(_CREASE))
    mine, other = mine[near], other[near]
    total = np.stack(
        [np.bincount(mine, cross[other, k], minlength=faces.size) for k in range(3)], axis=1
    )
    length = np.linalg.norm(total, axis=1, keepdims=True)
    flat = np.repeat(unit, 3, axis=0)
    return np.where(length > 0, total / np.maximum(length, 1e-30), flat).reshape(-1, 3, 3)
