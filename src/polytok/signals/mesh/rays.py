"""Rays against triangles: visibility and crossings, on float32 coordinates of size about 1."""

from __future__ import annotations

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from numpy.typing import NDArray

Array = NDArray[np.float64]

_STEP = 2e-6
_MAX_HITS = 256
_DIRECTIONS = np.array(
    [[0.4359, 0.7103, 0.5527], [-0.7649, 0.1871, 0.6164], [0.2213, -0.85, 0.478]]
)


class Rays:
    """A triangle soup that rays can be cast at.

    Args:
        vertices: (V, 3). faces: (F, 3), at least one.
    """

    def __init__(self, vertices: Array, faces: NDArray[np.integer]) -> None:
        corners = np.asarray(vertices)[faces]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        length = np.linalg.norm(cross, axis=1, keepdims=True)
        self.normals: Array = cross / np.maximum(length, 1e-300)
        self._scene = EmbreeScene(robust=True)
        TriangleMesh(
            self._scene,
            np.ascontiguousarray(vertices, np.float32),
            np.ascontiguousarray(faces, np.int32),
        )

    def first(
        self, origins: Array, directions: Array, reach: NDArray[np.floating]
    ) -> tuple[Array, NDArray[np.int64]]:
        """Return how far (N,) each ray goes, at most ``reach`` (N,), and the face hit or -1."""
        got = self._scene.run(
            np.ascontiguousarray(origins, np.float32),
            np.ascontiguousarray(directions, np.float32),
            dists=np.array(reach, np.float32),
            query="INTERSECT",
            output=1,
        )
        return got["tfar"].astype(np.float64), got["primID"].astype(np.int64)

    def is_clear(self, starts: Array, ends: Array) -> NDArray[np.bool_]:
        """Whether nothing lies on the segments between points (N, 3)."""
        ahead = ends - starts
        length = np.linalg.norm(ahead, axis=1)
        ahead = ahead / np.maximum(length, 1e-30)[:, None]
        hit = self._scene.run(
            np.ascontiguousarray(starts, np.float32),
            np.ascontiguousarray(ahead, np.float32),
            dists=np.array(length, np.float32),
            query="OCCLUDED",
        )
        return np.asarray(hit) < 0

    def winding(self, points: Array) -> NDArray[np.int64]:
        """Count how often the surface winds around points (N, 3): the median of three rays.

        Right where the surface is closed, however often it overlaps itself.
        """
        counts = [self._crossings(points, d / np.linalg.norm(d)) for d in _DIRECTIONS]
        return np.median(counts, axis=0).astype(np.int64)

    def _crossings(self, points: Array, direction: Array) -> NDArray[np.int64]:
        count = np.zeros(len(points), np.int64)
        active, travelled = np.arange(len(points)), np.zeros(len(points))
        for _ in range(_MAX_HITS):
            origins = points[active] + travelled[:, None] * direction
            far = np.full(len(active), 1e3)
            distance, face = self.first(origins, np.tile(direction, (len(active), 1)), far)
            hit = face >= 0
            active, travelled = active[hit], (travelled + distance + _STEP)[hit]
            if not len(active):
                break
            count[active] += np.sign(self.normals[face[hit]] @ direction).astype(np.int64)
        return count
