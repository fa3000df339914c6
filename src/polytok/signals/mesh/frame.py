"""The normalised frame: centred bounding box, longest side 1.96, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray

from polytok.core.errors import SignalError

EXTENT = 0.98
"""Half of a normalised shape's longest side."""


@dataclass(frozen=True)
class Frame:
    """``normalised = (original - centre) * scale``.

    Args:
        centre: (3,) float64, the centre of the bounding box in original units.
        scale: 1.96 over the longest side, per original unit.
    """

    centre: NDArray[np.float64]
    scale: float

    @classmethod
    def of(cls, mesh: trimesh.Trimesh) -> Frame:
        """Frame the bounding box of a mesh's faces.

        Raises:
            SignalError: the mesh has no faces, or its box is a point.
        """
        vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
        if not len(faces):
            raise SignalError("the mesh has no faces")
        used = vertices[faces.reshape(-1)]
        low, high = used.min(0), used.max(0)
        side = float((high - low).max())
        if not (np.isfinite(side) and side > 0):
            raise SignalError(f"the bounding box of the mesh has side {side}")
        return cls((low + high) / 2, 2 * EXTENT / side)

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map original points (..., 3) into the normalised frame."""
        return (np.asarray(points, np.float64) - self.centre) * self.scale

    def undo(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map normalised points (..., 3) back to original units."""
        return np.asarray(points, np.float64) / self.scale + self.centre
