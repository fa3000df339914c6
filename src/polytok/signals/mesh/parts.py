"""What a triangle soup is made of: welded vertices, and parts that close or do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

_WELD = 1e-6
_FLAT = 1e-7


@dataclass(frozen=True)
class Parts:
    """A welded soup, divided into faces of closed parts and the rest.

    Args:
        vertices: (V, 3). faces: (F, 3), closed parts turned outward.
        part: (F,) number of the edge-connected part. is_closed: (F,).
    """

    vertices: Array
    faces: Ints
    part: Ints
    is_closed: NDArray[np.bool_]


def only_used(vertices: Array, faces: Ints) -> tuple[Array, Ints]:
    """Drop the vertices (V, 3) that no face (F, 3) names; the others keep their order."""
    is_used = np.zeros(len(vertices), bool)
    is_used[faces] = True
    if is_used.all():
        return vertices, faces
    return vertices[is_used], (np.cumsum(is_used) - 1)[faces]


def weld(vertices: Array, faces: Ints) -> tuple[Array, Ints]:
    """Merge equal vertices and drop faces that are degenerate or there twice.

    Faces that differ in orientation only both stay: two solids may share a wall.
    """
    # The coordinates of the others may be anything, such as not a number.
    vertices, faces = only_used(vertices, faces)
    key = np.round(vertices / _WELD).astype(np.int64)
    _, first, where = np.unique(key, axis=0, return_index=True, return_inverse=True)
    vertices, faces = vertices[first], where.reshape(-1)[faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    faces = faces[np.linalg.norm(cross, axis=1) > 0]
    turn = faces.argmin(1)[:, None]
    rolled = np.take_along_axis(faces, (turn + np.arange(3)) % 3, axis=1)
    _, first = np.unique(rolled, axis=0, return_index=True)
    return vertices, faces[np.sort(first)]


def divide(vertices: Array, faces: Ints) -> Parts:
    """Split welded faces into parts joined by edges of exactly two faces, and see which close.

    A part is closed when each of its edges has two faces in it, it can be oriented, and it holds
    volume. Closed parts come out with their faces turned outward.
    """
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    face_of = np.repeat(np.arange(len(faces)), 3)
    _, edge, count = np.unique(edges, axis=0, return_inverse=True, return_counts=True)
    edge = edge.reshape(-1)
    order = np.argsort(edge, kind="stable")
    paired = order[count[edge[order]] == 2].reshape(-1, 2)
    left, right = face_of[paired[:, 0]], face_of[paired[:, 1]]
    links = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(len(faces),) * 2)
    _, part = connected_components(links, directed=False)
    part = part.astype(np.int64)
    # Within its part every edge must have exactly two faces.
    _, inverse, within = np.unique(
        np.stack([part[face_of], edge], 1), axis=0, return_inverse=True, return_counts=True
    )
    bad = np.unique(part[face_of[within[inverse.reshape(-1)] != 2]])
    is_closed = ~np.isin(part, bad)
    faces = faces.copy()
    for number in np.unique(part[is_closed]):
        member = np.flatnonzero(part == number)
        turned = _outward(vertices, faces[member])
        if turned is None:
            is_closed[member] = False
        else:
            faces[member] = turned
    return Parts(vertices, faces, part, is_closed)


def _outward(vertices: Array, faces: Ints) -> Ints | None:
    """Orient one closed part, or None when it cannot be oriented or is flat."""
    directed = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    if len(np.unique(directed, axis=0)) != len(directed):
        used, local = np.unique(faces, return_inverse=True)
        mesh = trimesh.Trimesh(vertices[used], local.reshape(-1, 3), process=False)
        trimesh.repair.fix_winding(mesh)
        if not mesh.is_winding_consistent:
            return None
        faces = used[np.asarray(mesh.faces)]
    corners = vertices[faces] - vertices[faces[0, 0]]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    volume = (corners[:, 0] * cross).sum() / 6
    if abs(volume) < _FLAT * np.linalg.norm(cross, axis=1).sum():
        return None
    return faces if volume > 0 else faces[:, ::-1]


def unite(parts: Parts, *, max_parts: int = 256, max_faces: int = 200_000) -> tuple[Array, Ints]:
    """Boolean union of the closed parts: vertices and faces of one closed surface.

    With more parts or faces than allowed, or when a part is refused, the parts are returned as
    they are: their outside is the same, but buried walls remain.
    """
    import manifold3d

    numbers = np.unique(parts.part[parts.is_closed])
    together = parts.faces[parts.is_closed]
    if not 1 < len(numbers) <= max_parts or len(together) > max_faces:
        return parts.vertices, together
    solids = []
    for number in numbers:
        used, local = np.unique(parts.faces[parts.part == number], return_inverse=True)
        mesh = manifold3d.Mesh64(
            np.ascontiguousarray(parts.vertices[used]),
            np.ascontiguousarray(local.reshape(-1, 3), np.uint64),
        )
        solid = manifold3d.Manifold(mesh)
        if solid.status() != manifold3d.Error.NoError:
            return parts.vertices, together
        solids.append(solid)
    got = manifold3d.Manifold.batch_boolean(solids, manifold3d.OpType.Add).to_mesh64()
    faces = np.asarray(got.tri_verts, np.int64)
    if not len(faces):
        return parts.vertices, together
    return np.asarray(got.vert_properties, np.float64)[:, :3], faces
