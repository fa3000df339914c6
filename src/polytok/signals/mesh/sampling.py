"""Seeded samples of a solid: points on its skin and its sharp edges, and queries around it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polytok.signals.mesh.solid import Skin, Solid

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

BOUND = 1.05
"""Half the side of the cube that volume queries fill."""

SHARP_ANGLE = 15.0
"""Degrees between two faces' normals above which their edge is sharp."""

_VISIBLE = 2e-3
_EXTRA = 3


def uniform_points(skin: Skin, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw ``count`` area-weighted points (N, 3) on the solid's surface, and normals (N, 3)."""
    total = np.cumsum(skin.areas)
    # Stratified: one draw per slice of the area, so that samples spread evenly.
    at = (np.arange(count) + rng.random(count)) / count * total[-1]
    face = np.minimum(np.searchsorted(total, at, side="right"), len(total) - 1)
    rng.shuffle(face)
    u, v = rng.random((2, count, 1))
    flip = u + v > 1
    u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
    a, b, c = np.moveaxis(skin.vertices[skin.faces[face]], 1, 0)
    normals = skin.normals[face]
    return a + u * (b - a) + v * (c - a) + skin.offset[face, None] * normals, normals


def sharp_edges(vertices: Array, faces: Ints) -> tuple[Array, Array]:
    """Find edges whose two faces meet at more than ``SHARP_ANGLE``.

    Args:
        vertices: (V, 3), welded. faces: (F, 3).

    Returns:
        End points (E, 2, 3) and the normalised mean (E, 3) of the two faces' normals.
    """
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-300)
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    face_of = np.repeat(np.arange(len(faces)), 3)
    _, edge, count = np.unique(edges, axis=0, return_inverse=True, return_counts=True)
    edge = edge.reshape(-1)
    order = np.argsort(edge, kind="stable")
    paired = order[count[edge[order]] == 2].reshape(-1, 2)
    left, right = normals[face_of[paired[:, 0]]], normals[face_of[paired[:, 1]]]
    mean = left + right
    length = np.linalg.norm(mean, axis=1)
    is_sharp = ((left * right).sum(1) < np.cos(np.deg2rad(SHARP_ANGLE))) & (length > 1e-6)
    ends = vertices[edges[paired[is_sharp, 0]]]
    return ends, mean[is_sharp] / length[is_sharp, None]


def sharp_points(solid: Solid, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw ``count`` points (N, 3) along the sharp edges in proportion to their lengths.

    Edges inside the solid are left out; normals (N, 3) are the mean of the two faces'. Solids
    without sharp edges give uniform points instead.

    Source: Chen et al., Dora: Sampling and Benchmarking for 3D Shape VAEs, 2024, section 3.2.
    """
    ends, normals = sharp_edges(*solid.feature)
    length = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    if not length.sum() > 0:
        return uniform_points(solid.skin, count, rng)
    total = np.cumsum(length)
    draws = _EXTRA * count
    at = (np.arange(draws) + rng.random(draws)) / draws * total[-1]
    edge = np.minimum(np.searchsorted(total, at, side="right"), len(total) - 1)
    rng.shuffle(edge)
    points = ends[edge, 0] + rng.random((draws, 1)) * (ends[edge, 1] - ends[edge, 0])
    normals = normals[edge]
    ahead = solid.nearest(points + _VISIBLE * normals)
    behind = solid.nearest(points - _VISIBLE * normals)
    offset = solid.skin.offset[ahead.face]
    # The outside is where the distance is larger; edges of slabs have two of them.
    turn = behind.sdf > ahead.sdf
    turn = np.where(offset > 0, rng.random(draws) < 0.5, turn)
    normals = np.where(turn[:, None], -normals, normals)
    height = np.where(turn, behind.sdf, ahead.sdf)
    on_skin = (height < 2 * _VISIBLE) & (height > -offset)
    if not on_skin.any():
        return uniform_points(solid.skin, count, rng)
    chosen = np.resize(np.flatnonzero(on_skin), count)
    lift = np.where(offset > 0, np.maximum(_VISIBLE - height, 0), 0)[chosen, None]
    return points[chosen] + lift * normals[chosen], normals[chosen]


def near_points(
    points: Array, count: int, sigmas: tuple[float, ...], rng: np.random.Generator
) -> Array:
    """Draw ``count`` points (N, 3) around surface points, the noise levels in equal shares."""
    start = points[rng.permutation(np.resize(np.arange(len(points)), count))]
    sigma = np.resize(np.array(sigmas), count)[:, None]
    return np.clip(start + sigma * rng.normal(size=(count, 3)), -BOUND, BOUND)


def volume_points(count: int, rng: np.random.Generator) -> Array:
    """Draw ``count`` points (N, 3) uniform in [-BOUND, BOUND]^3."""
    return rng.uniform(-BOUND, BOUND, (count, 3))
