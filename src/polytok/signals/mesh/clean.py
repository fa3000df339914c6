"""Tidy a mesh: merge vertices, drop floaters, decimate to a face budget, smooth."""

from __future__ import annotations

import numpy as np
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import SignalError

FLOATER_SHARE = 0.005
"""A component with a smaller share of the faces is a floater."""

MIN_FACES = 4
_SWEEPS = 8
_STALLED = 0.98


def clean(
    mesh: trimesh.Trimesh,
    *,
    min_share: float = FLOATER_SHARE,
    max_faces: int | None = None,
    smooth: int = 0,
) -> trimesh.Trimesh:
    """Return a tidier copy of ``mesh``.

    Args:
        mesh: any triangle mesh.
        min_share: components with fewer than this share of all faces are dropped, 0..1; the
            largest one always stays.
        max_faces: face budget for quadric decimation, at least 4; None keeps every face.
        smooth: Taubin smoothing steps, which keep the volume; 0 for none.

    Raises:
        SignalError: an argument is outside its range or the mesh has no faces.
    """
    if not 0 <= min_share <= 1:
        raise SignalError(f"min_share={min_share} is not within 0..1")
    if smooth < 0:
        raise SignalError(f"smooth={smooth} is negative")
    mesh = drop_floaters(merged(mesh), min_share)
    if max_faces is not None:
        mesh = decimate(mesh, max_faces)
    if smooth:
        # filter_taubin counts a shrinking and a growing pass as two iterations.
        trimesh.smoothing.filter_taubin(mesh, iterations=2 * smooth)
    return mesh


def merged(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Copy positions and faces only, with equal positions merged and degenerate faces dropped.

    Raises:
        SignalError: no face is left.
    """
    points, where = np.unique(np.asarray(mesh.vertices), axis=0, return_inverse=True)
    faces = where.reshape(-1)[np.asarray(mesh.faces)]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    if not len(faces):
        raise SignalError("the mesh has no faces")
    used, faces = np.unique(faces, return_inverse=True)
    return trimesh.Trimesh(points[used], faces.reshape(-1, 3), process=False)


def component_of_faces(mesh: trimesh.Trimesh) -> NDArray[np.int64]:
    """Number the parts (F,) that share no vertex with each other, from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b, c = np.asarray(mesh.faces).T
    links = (np.ones(2 * len(a), dtype=np.int8), (np.r_[a, b], np.r_[b, c]))
    count = len(mesh.vertices)
    _, part = connected_components(coo_array(links, shape=(count, count)), directed=False)
    _, part = np.unique(part[a], return_inverse=True)
    return part.astype(np.int64)


def drop_floaters(mesh: trimesh.Trimesh, min_share: float = FLOATER_SHARE) -> trimesh.Trimesh:
    """Drop components with less than ``min_share`` of the faces, never the largest one."""
    part = component_of_faces(mesh)
    sizes = np.bincount(part)
    keep = sizes >= min_share * len(part)
    keep[sizes.argmax()] = True
    return mesh if keep.all() else _of_faces(mesh, keep[part])


def _of_faces(mesh: trimesh.Trimesh, keep: NDArray[np.bool_]) -> trimesh.Trimesh:
    used, faces = np.unique(np.asarray(mesh.faces)[keep], return_inverse=True)
    return trimesh.Trimesh(mesh.vertices[used], faces.reshape(-1, 3), process=False)


def decimate(mesh: trimesh.Trimesh, max_faces: int) -> trimesh.Trimesh:
    """Collapse edges by quadric error until at most ``max_faces`` faces are left.

    Quadrics can stall, on long thin triangles above all; the shortest edges are collapsed then.
    Where that stalls too, as it may with many parts or handles, more faces than asked for are left
    rather than holes torn.

    Raises:
        SignalError: ``max_faces`` is below 4.

    Source: Garland & Heckbert 1997.
    """
    import fast_simplification

    if max_faces < MIN_FACES:
        raise SignalError(f"max_faces={max_faces} is below {MIN_FACES}")
    for sweep in range(_SWEEPS):
        if len(mesh.faces) <= max_faces:
            return mesh
        points, faces = fast_simplification.simplify(
            np.asarray(mesh.vertices, dtype=np.float32),
            np.asarray(mesh.faces, dtype=np.int32),
            target_count=max_faces,
            agg=7 if sweep == 0 else 10,
        )
        before = len(mesh.faces)
        if len(faces) == 0:
            break
        mesh = merged(trimesh.Trimesh(points, faces, process=False))
        if len(mesh.faces) > _STALLED * before:
            break
    return mesh if len(mesh.faces) <= max_faces else _collapse_shortest(mesh, max_faces)


def _collapse_shortest(mesh: trimesh.Trimesh, max_faces: int) -> trimesh.Trimesh:
    """Collapse the shortest edges; a mesh with edges of more than two faces stays as it is."""
    import point_cloud_utils as pcu

    if np.bincount(mesh.edges_unique_inverse).max() > 2:
        return mesh
    points = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
    faces = np.ascontiguousarray(mesh.faces, dtype=np.int32)
    try:
        points, faces, *_ = pcu.decimate_triangle_mesh(points, faces, max_faces)
    except ValueError:  # nothing could be collapsed
        return mesh
    return merged(trimesh.Trimesh(points, faces, process=False))
