"""Small pictures of meshes from random sides: what an image condition is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import ConfigError
from polytok.signals.mesh.clean import merged
from polytok.signals.mesh.scene import Array, Camera, Scene

_RAYS = 2  # per pixel and axis
_SKY, _KEY = 0.34, 0.66
_LOWEST_LIGHT = 15.0


@dataclass(frozen=True, kw_only=True)
class ViewSampling:
    """From where and how large pictures are drawn.

    Args:
        count: pictures per mesh. size: pixels per side.
        azimuth: degrees to either side of the front, +z. elevation: (lowest, highest) degrees.
        field_of_view: (narrowest, widest) degrees. fill: share of the frame that the longer side
            of the object takes.
    """

    count: int = 8
    size: int = 64
    azimuth: float = 90.0
    elevation: tuple[float, float] = (-5.0, 50.0)
    field_of_view: tuple[float, float] = (20.0, 50.0)
    fill: float = 0.85

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 8:
            raise ConfigError(f"count={self.count} is below 1, or size={self.size} below 8")
        if not 0 <= self.azimuth <= 180:
            raise ConfigError(f"azimuth={self.azimuth} is not within 0..180")
        for name, limits in (("elevation", (-89.0, 89.0)), ("field_of_view", (1.0, 120.0))):
            low, high = getattr(self, name)
            if not limits[0] <= low <= high <= limits[1]:
                raise ConfigError(f"{name}={(low, high)} is not a range within {limits}")
        if not 0 < self.fill <= 1:
            raise ConfigError(f"fill={self.fill} is not within (0, 1]")


def views(
    mesh: trimesh.Trimesh, sampling: ViewSampling, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Draw a mesh, y up, from random sides under random light, without colour or ground.

    The object is centred and of the same size as ``signals.image.framed`` makes it.

    Returns:
        (count, 2, size, size): lightness as a screen shows it, and opacity, 0..255.

    Raises:
        SignalError: the mesh has no area. PolytokError: the package embreex is missing.
    """
    mesh = merged(mesh)
    low, high = mesh.bounds
    scale = 2 / max(float((high - low).max()), 1e-30)
    vertices = ((np.asarray(mesh.vertices) - (low + high) / 2) * scale).astype(np.float32)
    scene = Scene(vertices, np.asarray(mesh.faces), smooth=True)
    out = np.empty((sampling.count, 2, sampling.size, sampling.size), np.uint8)
    for picture in out:
        camera = Camera.fitted(
            vertices,
            float(rng.uniform(-sampling.azimuth, sampling.azimuth)),
            float(rng.uniform(*sampling.elevation)),
            margin=1 / sampling.fill,
            field_of_view=float(rng.uniform(*sampling.field_of_view)),
        )
        picture[:] = _picture(scene, camera, sampling.size, _light(rng))
    return out


def _light(rng: np.random.Generator) -> Array:
    """A direction to the light, beside and above the camera, in its axes right, up and back."""
    turn = rng.uniform(-np.pi, np.pi)
    tilt = np.radians(rng.uniform(_LOWEST_LIGHT, 75.0))
    light = [np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), np.cos(tilt)]
    return np.asarray(light, np.float32)


def _picture(scene: Scene, camera: Camera, size: int, light: Array) -> Array:
    """Lightness and opacity (2, size, size), 0..255."""
    pixels = _RAYS * size
    rows, columns = np.divmod(np.arange(pixels * pixels), pixels)
    ways = camera.rays(rows, columns, pixels)
    hits = scene.cast(np.broadcast_to(camera.eye, ways.shape).copy(), ways)
    diffuse = np.maximum(hits.normals @ (light @ camera.axes), 0)
    sky = 0.75 + 0.25 * hits.normals[:, 1]
    sums = np.zeros((2, pixels * pixels), np.float32)
    sums[0, hits.ray] = (_SKY * sky + _KEY * diffuse) ** np.float32(1 / 2.2)
    sums[1, hits.ray] = 1
    sums = sums.reshape(2, size, _RAYS, size, _RAYS).sum(axis=(2, 4))
    out = np.stack([sums[0] / np.maximum(sums[1], 1), sums[1] / _RAYS**2])
    return np.round(out * 255).astype(np.float32)
