"""Ray-cast pictures of meshes: clay on a seamless floor, lit by a soft sky and one key light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import PolytokError
from polytok.signals.mesh.clean import merged
from polytok.signals.mesh.scene import Camera, Hits, Scene, single

if TYPE_CHECKING:
    from PIL.Image import Image

Array = NDArray[np.float32]
Colour = tuple[float, float, float]

CLAY: Colour = (0.47, 0.53, 0.61)
AMBER: Colour = (0.80, 0.47, 0.20)
_PAPER: Colour = (0.955, 0.957, 0.962)
_SKY = np.array([0.46, 0.50, 0.57], dtype=np.float32)
_GROUND = np.array([0.27, 0.25, 0.23], dtype=np.float32)
_KEY = np.array([0.95, 0.90, 0.81], dtype=np.float32)
_KEY_FROM = np.array([-0.55, 0.62, 0.56], dtype=np.float32)
_TILE = 4
_FLOOR_GRID = 72
_FLOOR_RAYS = 36
_FLOOR_REACH = 1.7


def render(
    mesh: trimesh.Trimesh,
    *,
    size: int = 512,
    azimuth: float = 35.0,
    elevation: float = 22.0,
    smooth: bool = True,
    colour: Colour = CLAY,
    floor: bool = True,
    frame: trimesh.Trimesh | None = None,
) -> Image:
    """Draw a mesh, y up, from a distance at which it fills the picture.

    Args:
        mesh: any triangle mesh; its materials are not looked at.
        size: width and height in pixels, 16..4096; each pixel is the mean of 2 x 2 rays.
        azimuth: degrees that the camera has moved around y from +z towards +x.
        elevation: degrees above the horizon, -89..89.
        smooth: shade edges of less than 40 degrees as if they were round.
        colour: linear RGB of the surface, 0..1.
        floor: catch a soft shadow below the mesh.
        frame: fit camera and floor to this mesh instead, so that pictures can be compared.

    Raises:
        SignalError: the mesh has no faces.
        PolytokError: an argument is outside its range, or the package embreex is missing.
    """
    from PIL import Image

    if not 16 <= size <= 4096:
        raise PolytokError(f"size={size} is not within 16..4096")
    if not -89 <= elevation <= 89:
        raise PolytokError(f"elevation={elevation} is not within -89..89")
    mesh, frame = merged(mesh), merged(mesh if frame is None else frame)
    low, high = frame.bounds
    centre, scale = (low + high) / 2, 2 / max(float((high - low).max()), 1e-30)
    vertices = ((np.asarray(mesh.vertices) - centre) * scale).astype(np.float32)
    seen = ((np.asarray(frame.vertices) - centre) * scale).astype(np.float32)
    camera = Camera.fitted(seen, azimuth, elevation)
    scene = Scene(vertices, np.asarray(mesh.faces), smooth)
    pixels = 2 * size
    picture = _backdrop(pixels)
    if floor and elevation > 0:
        shade = _FloorShade.cast(scene, float(seen[:, 1].min()), seen)
        picture = picture * shade.seen_by(camera, pixels)[:, :, None]
    _draw(picture, scene, camera, np.asarray(colour, dtype=np.float32))
    coded = np.clip(picture, 0, 1) ** np.float32(1 / 2.2) * 255 + np.float32(0.5)
    coded = coded.reshape(size, 2, size, 2, 3).mean(axis=(1, 3))
    return Image.fromarray(coded.astype(np.uint8))


def _hemisphere(normals: Array, u: Array, v: Array) -> Array:
    """Cosine-weighted directions (N, 3) around normals, for u and v (N,) in 0..1."""
    angle, radius = 2 * np.pi * u, np.sqrt(v)
    # Duff et al. 2017: a frame around a unit vector without branches.
    sign = np.copysign(np.float32(1), normals[:, 2])
    a = -1 / (sign + normals[:, 2])
    b = normals[:, 0] * normals[:, 1] * a
    one = np.stack([1 + sign * normals[:, 0] ** 2 * a, sign * b, -sign * normals[:, 0]], axis=1)
    two = np.stack([b, sign + normals[:, 1] ** 2 * a, -normals[:, 1]], axis=1)
    x, y, z = radius * np.cos(angle), radius * np.sin(angle), np.sqrt(np.maximum(1 - v, 0))
    return single(x[:, None] * one + y[:, None] * two + z[:, None] * normals)


def _unit_points(count: int) -> Array:
    """Evenly spread points (count, 2) in the unit square: the R2 sequence of Roberts 2018."""
    steps = np.arange(1, count + 1)[:, None] * np.array([0.7548776662466927, 0.5698402909980532])
    return single(steps % 1)


def _backdrop(pixels: int) -> Array:
    """A sheet of paper that darkens a little towards the corners, linear RGB."""
    at = np.linspace(-1, 1, pixels, dtype=np.float32)
    fall = 1 - 0.07 * (at[:, None] ** 2 + at[None, :] ** 2) / 2 - 0.03 * np.maximum(at, 0)[:, None]
    paper = np.asarray(_PAPER, dtype=np.float32) ** np.float32(2.2)
    return fall[:, :, None] * paper


@dataclass(frozen=True)
class _FloorShade:
    """How much of the sky the floor sees, on a grid below the mesh."""

    height: float
    low: Array
    size: float
    light: NDArray[np.float64]

    @classmethod
    def cast(cls, scene: Scene, height: float, seen: Array) -> _FloorShade:
        centre = (seen[:, [0, 2]].max(0) + seen[:, [0, 2]].min(0)) / 2
        half = float(np.ptp(seen[:, [0, 2]], axis=0).max()) / 2 * _FLOOR_REACH + 0.5
        at = (np.arange(_FLOOR_GRID) + 0.5) / _FLOOR_GRID * 2 * half - half
        z, x = np.meshgrid(at, at, indexing="ij")
        spots = np.stack([x + centre[0], np.full_like(x, height - 1e-3), z + centre[1]], axis=-1)
        origins = np.repeat(spots.reshape(-1, 3), _FLOOR_RAYS, axis=0).astype(np.float32)
        # Each spot turns the same directions by its own angle, so that no pattern shows.
        turn = np.repeat(_unit_points(_FLOOR_GRID**2)[:, 0], _FLOOR_RAYS)
        u, v = np.tile(_unit_points(_FLOOR_RAYS), (_FLOOR_GRID**2, 1)).T
        up = np.broadcast_to(np.array([0, 1, 0], dtype=np.float32), origins.shape)
        is_open = scene.open(origins, _hemisphere(up, u + turn, v))
        light = is_open.reshape(_FLOOR_GRID, _FLOOR_GRID, _FLOOR_RAYS).mean(axis=2)
        # Far from the mesh the shadow fades, so that the edge of the grid does not show.
        away = np.maximum(np.abs(x), np.abs(z)) / half
        light = 1 - (1 - _blurred(light)) * np.clip(4 * (1 - away), 0, 1)
        return cls(height, (centre - half).astype(np.float32), 2 * half, light)

    def seen_by(self, camera: Camera, pixels: int) -> Array:
        """Brightness factor per pixel (pixels, pixels); 1 where no floor is seen."""
        from scipy.ndimage import map_coordinates, zoom

        few = pixels // 4  # a shadow is soft enough to be drawn small
        rows, columns = np.divmod(np.arange(few * few), few)
        ways = camera.rays(rows, columns, few)
        down = ways[:, 1] < -1e-4
        depth = np.where(down, (self.height - camera.eye[1]) / np.where(down, ways[:, 1], -1), 0)
        spot = (camera.eye + depth[:, None] * ways)[:, [2, 0]] - self.low[::-1]
        at = spot / self.size * _FLOOR_GRID - 0.5
        light = map_coordinates(self.light, at.T, order=1, mode="constant", cval=1.0)
        light = np.where(down & (depth > 0), light, 1).reshape(few, few)
        factor = 1 - 0.62 * (1 - zoom(light, pixels / few, order=1, grid_mode=True, mode="nearest"))
        return single(factor)


def _blurred(light: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.ndimage import gaussian_filter

    out: NDArray[np.float64] = gaussian_filter(light, 0.8, mode="nearest")
    return out


def _draw(picture: Array, scene: Scene, camera: Camera, colour: Array) -> None:
    """Shade the mesh into a linear picture (P, P, 3)."""
    pixels = len(picture)
    flat = camera.project(scene.vertices, pixels)
    low = np.clip(np.floor(flat.min(0)).astype(int) - 1, 0, pixels)
    high = np.clip(np.ceil(flat.max(0)).astype(int) + 1, 0, pixels)
    width, height = high - low
    if width < 1 or height < 1:
        return
    rows, columns = np.divmod(np.arange(width * height), width)
    rows, columns = rows + low[1], columns + low[0]
    ways = camera.rays(rows, columns, pixels)
    hits = scene.cast(np.broadcast_to(camera.eye, ways.shape).copy(), ways)
    rows, columns = rows[hits.ray], columns[hits.ray]
    light = _lit(scene, camera, hits, rows, columns, pixels)
    picture[rows, columns] = light * colour


def _lit(
    scene: Scene,
    camera: Camera,
    hits: Hits,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    pixels: int,
) -> Array:
    """Light (N, 3) that hits send to the camera.

    Every pixel of a 4 x 4 tile looks in other directions, and the mean over a tile's worth of
    neighbours on the same surface then has seen them all.
    """
    origins = hits.points + hits.flat * np.float32(2e-3)
    key = _KEY_FROM @ camera.axes
    key /= np.linalg.norm(key)
    spread = _unit_points(4 * _TILE**2)
    cell = (rows % _TILE) * _TILE + columns % _TILE
    sky = np.zeros(len(rows), dtype=np.float32)
    for k in range(4):
        u, v = spread[cell + k * _TILE**2].T
        sky += scene.open(origins, _hemisphere(hits.flat, u, v), 1.2) / 4
    u, v = spread[cell].T
    wide = key + 0.16 * _hemisphere(np.broadcast_to(key, origins.shape), u, v)
    sun = (hits.flat @ key > 0) & scene.open(origins, wide)
    sky, sun = _tile_mean(np.stack([sky, sun.astype(np.float32)]), hits, rows, columns, pixels)
    up = hits.normals[:, 1]
    facing = np.abs(hits.normals @ camera.axes[2])
    ambient = sky[:, None] * (
        (0.5 + 0.5 * up)[:, None] * _SKY + (0.5 - 0.5 * up)[:, None] * _GROUND
    )
    direct = np.maximum(hits.normals @ key, 0) * sun
    head = 0.14 * facing * (0.4 + 0.6 * sky)
    rim = 0.12 * (1 - facing) ** 3 * sky
    out = ambient + direct[:, None] * _KEY + (head + rim)[:, None]
    return single(out)


def _tile_mean(
    values: Array, hits: Hits, rows: NDArray[np.int64], columns: NDArray[np.int64], pixels: int
) -> Array:
    """Mean of values (K, N) over a tile of neighbours with about the same normal and depth."""
    low_r, low_c = rows.min(), columns.min()
    shape = (int(rows.max() - low_r) + _TILE, int(columns.max() - low_c) + _TILE)
    index = np.full(shape, -1, dtype=np.int64)
    half = _TILE // 2
    index[rows - low_r + half, columns - low_c + half] = np.arange(len(rows))
    total, weight = np.zeros_like(values), np.zeros(len(rows), dtype=np.float32)
    step = hits.depth * 8 / pixels  # how fast depth may change from pixel to pixel
    for i in range(_TILE):
        for j in range(_TILE):
            other = index[rows - low_r + i, columns - low_c + j]
            alike = (hits.normals[other] * hits.normals).sum(axis=1) > 0.85
            near = np.abs(hits.depth[other] - hits.depth) < step
            use = ((other >= 0) & alike & near).astype(np.float32)
            total += values[:, other] * use
            weight += use
    return single(total / np.maximum(weight, 1))
