"""The normalised frame: centred bounding box, longest side 1.96, and the way back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray

from polytok.core.errors import SignalError
from polytok.signals.mesh.io import check

EXTENT = 0.98
"""Half of a normalised shape's longest side."""

EVENING = 0.75
"""How far a shape's box is stretched towards a cube: a board or a rod leaves most of it empty."""


@dataclass(frozen=True)
class Frame:
    """``normalised = (original - centre) * scale * stretch``.

    Args:
        centre: (3,) float64, the centre of the bounding box in original units.
        scale: 1.96 over the longest side after stretching, per original unit.
        stretch: (3,) factors along the axes; ones keep the proportions.
    """

    centre: NDArray[np.float64]
    scale: float
    stretch: NDArray[np.float64] = field(default_factory=lambda: np.ones(3))

    @classmethod
    def of(cls, mesh: trimesh.Trimesh, stretch: ArrayLike = (1.0, 1.0, 1.0)) -> Frame:
        """Frame the bounding box of a mesh's faces.

        Raises:
            SignalError: the mesh has no faces, or its box is a point.
        """
        low, high = _box(mesh)
        factors = np.asarray(stretch, np.float64)
        side = float(((high - low) * factors).max())
        return cls((low + high) / 2, 2 * EXTENT / side, factors)

    def apply(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map original points (..., 3) into the normalised frame."""
        return (np.asarray(points, np.float64) - self.centre) * (self.scale * self.stretch)

    def undo(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map normalised points (..., 3) back to original units."""
        return np.asarray(points, np.float64) / (self.scale * self.stretch) + self.centre


def evening(mesh: trimesh.Trimesh, power: float = EVENING) -> NDArray[np.float64]:
    """Factors (3,) of at least 1 that bring the sides of a mesh's box nearer to its longest.

    Args:
        mesh: in any units.
        power: 0 leaves the proportions, 1 makes a cube. A side of no length stays as it is.

    Raises:
        SignalError: no shape can be made of the mesh.
    """
    check(np.asarray(mesh.vertices), np.asarray(mesh.faces))
    low, high = _box(mesh)
    sides = (high - low) / (high - low).max()
    factors: NDArray[np.float64] = np.where(sides > 0, sides, 1.0) ** -power
    return factors


def _box(mesh: trimesh.Trimesh) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest corner (3,) of the box around a mesh's faces."""
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
    if not len(faces):
        raise SignalError("the mesh has no faces")
    used = vertices[faces.reshape(-1)]
    low, high = used.min(0), used.max(0)
    side = float((high - low).max())
    if not (np.isfinite(side) and side > 0):
        raise SignalError(f"the bounding box of the mesh has side {side}")
    return low, high
