"""Point clouds of meshes in one frame, and the few of many that may be nearest."""

from __future__ import annotations

import numpy as np
import trimesh
from numpy.typing import NDArray

from polytok.core.seeding import numpy_rng
from polytok.metrics.shape import sample_surface

SEED = 0


def cloud(mesh: trimesh.Trimesh, key: str, points: int) -> NDArray[np.float32]:
    """Samples (P, 3) of a mesh, its box centred and its longest side 2; zeros if it has no area."""
    surface = None
    if len(mesh.faces):
        low, high = mesh.bounds
        vertices = (np.asarray(mesh.vertices) - (low + high) / 2) * (2 / float((high - low).max()))
        surface = sample_surface(vertices, np.asarray(mesh.faces), points, numpy_rng(SEED, key))
    return np.zeros((points, 3), np.float32) if surface is None else surface.points.astype("f4")


def shortlist(few: NDArray[np.float32], bank: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The ``count`` clouds of a bank (n, P, 3) of least Chamfer distance to ``few`` (P, 3)."""
    rough = np.empty(len(bank))
    for i, other in enumerate(bank):
        squared = (few**2).sum(1)[:, None] - 2 * few @ other.T + (other**2).sum(1)
        apart = np.sqrt(np.maximum(squared, 0))
        rough[i] = apart.min(0).mean() + apart.min(1).mean()
    return np.argsort(rough, kind="stable")[:count]
