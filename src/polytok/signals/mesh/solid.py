"""A solid for any mesh: which side of its faces is inside, and exact distances to its skin.

The skin consists of pieces of the source's own faces, turned outward; nothing is remeshed, so edges
stay sharp. A face is kept when the space before it is outside. Where both of its sides are outside
it is a sheet, which becomes a slab of half-thickness ``THIN``; so are closed parts thickened that
are thinner than the slab, since no grid of 128^3 would find them otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray

from polytok.core.errors import SignalError
from polytok.core.seeding import numpy_rng
from polytok.signals.mesh.flood import Flood
from polytok.signals.mesh.frame import Frame
from polytok.signals.mesh.io import check
from polytok.signals.mesh.parts import Parts, divide, unite, weld
from polytok.signals.mesh.rays import Rays

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Route = Literal["closed", "flood", "winding", "shell"]

THIN = 0.009
"""Half-thickness of slabs; 2 THIN exceeds the cell of a grid of 128 over [-1.05, 1.05]."""

MAX_FACES = 200_000
"""Meshes with more faces are decimated to about so many first."""

_PROBE = 1e-3
_CLEAR = 2e-3
_FINE = 0.04
_COARSE = 0.2
_MIN_ENCLOSED = 0.01
_CORNERS = np.array([[1, 1, 1], [7, 1, 1], [1, 7, 1], [1, 1, 7]]) / np.array([[3], [9], [9], [9]])


@dataclass(frozen=True)
class Skin:
    """Faces around a solid, turned outward, in the normalised frame.

    Args:
        vertices: (V, 3). faces: (F, 3); sheets are there twice, once per side.
        offset: (F,) by how much the solid's surface lies outside the face.
        is_sheet: (F,) whether the face has no inside of its own.
    """

    vertices: Array
    faces: Ints
    offset: Array
    is_sheet: Bools

    @property
    def normals(self) -> Array:
        """Unit normals (F, 3)."""
        cross = _cross(self.vertices, self.faces)
        return cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-300)

    @property
    def areas(self) -> Array:
        return np.linalg.norm(_cross(self.vertices, self.faces), axis=1) / 2


@dataclass(frozen=True)
class Nearest:
    """Signed distances (N,), unit directions of steepest increase (N, 3), nearest faces (N,)."""

    sdf: Array
    gradient: Array
    face: Ints


@dataclass
class Solid:
    """A mesh made solid. Points, distances and ``mesh`` are in the units of the mesh given.

    Args:
        frame: the normalised frame that the work was done in.
        route: how the inside was found: ``closed`` parts united, ``flood`` of a grid, ``winding``
            number, or ``shell`` when nothing is enclosed and all faces became slabs.
        eps: half-thickness of slabs, in the normalised frame; 0 when there is none.
        skin: the faces around it.
        feature: welded vertices and faces with their original edges, to find sharp ones.
        decimated_from: faces of the source when it had too many, else 0.
    """

    frame: Frame
    route: Route
    eps: float
    skin: Skin
    feature: tuple[Array, Ints]
    decimated_from: int
    _sides: _Sides = field(repr=False)
    _mesh: trimesh.Trimesh | None = field(default=None, repr=False)

    def sdf(self, points: ArrayLike) -> NDArray[np.float32]:
        """Signed distances (N,) of points (N, 3), negative inside; to first order if stretched."""
        got = self.nearest(self.frame.apply(points))
        rate = np.linalg.norm(got.gradient * self.frame.stretch, axis=1) * self.frame.scale
        return (got.sdf / rate).astype(np.float32)

    def contains(self, points: ArrayLike) -> Bools:
        """Whether points (N, 3) are inside."""
        return self.sdf(points) < 0

    def report(self, samples: int = 2000) -> dict[str, Any]:
        """How this solid was made, and how far its surface is from the source's faces.

        Returns:
            route, eps, faces of the skin, the share of it that is sheets, and the mean and largest
            distance from its surface to the source, in the normalised frame.
        """
        from polytok.signals.mesh.sampling import uniform_points

        points, _ = uniform_points(self.skin, samples, numpy_rng(0, "mesh", "report"))
        distance = closest(points, *self.feature)[0]
        areas = self.skin.areas
        return {
            "route": self.route,
            "eps": self.eps,
            "decimated_from": self.decimated_from,
            "skin_faces": len(self.skin.faces),
            "sheet_share": round(float(areas[self.skin.is_sheet].sum() / areas.sum()), 4),
            "distance_mean": round(float(distance.mean()), 6),
            "distance_max": round(float(distance.max()), 6),
        }

    def nearest(self, points: Array) -> Nearest:
        """Distances and directions for points (N, 3) of the normalised frame."""
        distance, face, point = closest(points, self.skin.vertices, self.skin.faces)
        normal = self.skin.normals[face]
        away = points - point
        inside, known = self._sides.is_inside(points)
        # Out of sight of every grid point: the side of the nearest face decides.
        behind = ((away * normal).sum(1) < 0) & ~self.skin.is_sheet[face]
        inside = np.where(known, inside, behind)
        sign = np.where(inside, -1.0, 1.0)
        length = np.maximum(distance, 1e-300)[:, None]
        gradient = np.where(distance[:, None] > 1e-7, sign[:, None] * away / length, normal)
        return Nearest(sign * distance - self.skin.offset[face], gradient, face)

    @property
    def mesh(self) -> trimesh.Trimesh:
        """The solid as a closed triangle mesh: the united parts, or the field extracted at 192."""
        if self._mesh is None:
            from polytok.signals.mesh.extract import extract

            got = extract(lambda p: -self.nearest(p.astype(np.float64)).sdf.astype("f4"), 192)
            self._mesh = trimesh.Trimesh(self.frame.undo(got.vertices), got.faces, process=False)
        return self._mesh


class _Sides:
    """Tells inside from outside by the closed parts' winding, and the flood for the rest."""

    def __init__(self, closed: Rays | None, flood: Flood | None) -> None:
        self.closed, self.flood = closed, flood

    def is_inside(self, points: Array) -> tuple[Bools, Bools]:
        """Whether points (N, 3) are inside, and whether that is known for sure."""
        inside, known = np.zeros(len(points), bool), np.ones(len(points), bool)
        if self.flood is not None:
            inside, known = self.flood.is_inside(points)
        if self.closed is not None:
            solid = self.closed.winding(points) > 0
            inside, known = inside | solid, known | solid
        return inside, known


def closest(points: Array, vertices: Array, faces: Ints) -> tuple[Array, Ints, Array]:
    """Return the distance (N,), face (N,) and point (N, 3) of a surface nearest to points."""
    import point_cloud_utils as pcu

    if not len(points):
        return np.empty(0), np.empty(0, np.int64), np.empty((0, 3))
    # The library misreads a single query.
    queries = np.ascontiguousarray(points if len(points) > 1 else np.repeat(points, 2, axis=0))
    got = pcu.closest_points_on_mesh(
        queries.astype(np.float64), vertices, np.ascontiguousarray(faces, np.int32)
    )
    distance, face, weights = (part[: len(points)] for part in got)
    # Slivers can give weights that are not finite; any corner is near enough then.
    weights = np.where(np.isfinite(weights).all(1, keepdims=True), weights, [1.0, 0.0, 0.0])
    point = (vertices[faces[face]] * weights[:, :, None]).sum(1)
    return distance.astype(np.float64), face.astype(np.int64), point


def solidify(
    mesh: trimesh.Trimesh,
    *,
    stretch: ArrayLike = (1.0, 1.0, 1.0),
    sign: Literal["flood", "winding"] = "flood",
    resolution: int | None = None,
    max_faces: int = MAX_FACES,
) -> Solid:
    """Make a mesh solid.

    Args:
        mesh: any triangle mesh, in any units.
        stretch: (3,) factors along the axes, of the frame that the work is done in.
        sign: how parts that are not closed get an inside: a grid flooded from outside, or the
            winding number, which closes large holes where faces are turned consistently.
        resolution: cells along a side of that grid; None for 128, or 64 with winding numbers.
        max_faces: larger meshes are decimated to about this many faces first.

    Raises:
        SignalError: there are no faces, a coordinate or a face is out of range, or no face has an
            area.
    """
    check(np.asarray(mesh.vertices), np.asarray(mesh.faces))
    frame = Frame.of(mesh, stretch)
    vertices = frame.apply(mesh.vertices)
    vertices, faces = weld(vertices, np.asarray(mesh.faces, np.int64))
    if not len(faces):
        raise SignalError("no face of the mesh has an area")
    decimated_from = len(faces) if len(faces) > max_faces else 0
    if decimated_from:
        vertices, faces = _decimated(vertices, faces, max_faces)
    parts = divide(vertices, faces)
    vertices, faces, num_closed = _join(parts)
    flood = None
    if num_closed < len(faces):
        flood = _flood(vertices, faces, sign == "winding", resolution)
    sides = _Sides(Rays(vertices, faces[:num_closed]) if num_closed else None, flood)
    skin = _skin(vertices, faces, num_closed, sides)
    route: Route = "closed"
    if num_closed < len(faces):
        whole = float(skin.areas.sum())
        enclosed = float(skin.areas[~skin.is_sheet].sum())
        route = sign if enclosed > _MIN_ENCLOSED * whole else "shell"
    eps = THIN if (skin.offset > 0).any() else 0.0
    solid = Solid(frame, route, eps, skin, (vertices, faces), decimated_from, sides)
    if route == "closed" and not eps and len(skin.faces) == len(faces):
        solid._mesh = trimesh.Trimesh(frame.undo(vertices), faces, process=False)
    return solid


def _flood(vertices: Array, faces: Ints, is_wound: bool, resolution: int | None) -> Flood:
    import point_cloud_utils as pcu

    def winding(points: Array) -> Array:
        small = np.ascontiguousarray(faces, np.int32)
        return pcu.triangle_soup_fast_winding_number(np.ascontiguousarray(vertices), small, points)

    if is_wound:
        return Flood(Rays(vertices, faces), resolution or 64, winding)
    return Flood(Rays(vertices, faces), resolution or 128)


def _decimated(vertices: Array, faces: Ints, max_faces: int) -> tuple[Array, Ints]:
    from polytok.signals.mesh.clean import decimate

    small = decimate(trimesh.Trimesh(vertices, faces, process=False), max_faces)
    return weld(np.asarray(small.vertices, np.float64), np.asarray(small.faces, np.int64))


def _join(parts: Parts) -> tuple[Array, Ints, int]:
    """Vertices and faces with the united closed parts first, and how many faces those are."""
    rest = parts.faces[~parts.is_closed]
    if not parts.is_closed.any():
        return parts.vertices, rest, 0
    vertices, faces = unite(parts)
    if vertices is parts.vertices:
        return vertices, np.concatenate([faces, rest]), len(faces)
    both = np.concatenate([vertices, parts.vertices])
    return both, np.concatenate([faces, rest + len(vertices)]), len(faces)


def _cross(vertices: Array, faces: Ints) -> Array:
    corners = vertices[faces]
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _skin(vertices: Array, faces: Ints, num_closed: int, sides: _Sides) -> Skin:
    """Find the pieces of faces that lie between inside and outside, and the sheets."""
    is_closed = np.arange(len(faces)) < num_closed
    rays = Rays(vertices, faces)
    if sides.flood is not None:
        vertices, faces, is_closed = _subdivide(vertices, faces, is_closed, _COARSE)
    states = _states(vertices, faces, is_closed, sides, rays)
    kinds = states.kind.reshape(len(faces), -1)
    mixed = (kinds != kinds[:, :1]).any(1)
    pieces = [(faces[~mixed], states.at(~mixed))]
    if mixed.any():
        vertices, small, closed = _subdivide(vertices, faces[mixed], is_closed[mixed], _FINE)
        pieces.append((small, _states(vertices, small, closed, sides, rays, centre_only=True)))
    out_faces, offsets, sheets = [], [], []
    for part, state in pieces:
        kind, offset = state.kind[:, 0], np.maximum(state.offset[:, 0], 0)
        for flip, chosen in ((False, (kind == 1) | (kind == 3)), (True, (kind == 2) | (kind == 3))):
            out_faces.append(part[chosen][:, ::-1] if flip else part[chosen])
            offsets.append(offset[chosen])
            sheets.append(kind[chosen] == 3)
    skin = Skin(
        vertices, np.concatenate(out_faces), np.concatenate(offsets), np.concatenate(sheets)
    )
    if len(skin.faces):
        return skin
    both = np.concatenate([faces, faces[:, ::-1]])
    return Skin(vertices, both, np.full(len(both), THIN), np.ones(len(both), bool))


@dataclass(frozen=True)
class _States:
    """What samples of faces are: kind 0 buried, 1 outward, 2 inward, 3 sheet; +4 when thin."""

    kind: Ints
    offset: Array

    def at(self, chosen: Bools) -> _States:
        return _States(self.kind[chosen], self.offset[chosen])


def _states(
    vertices: Array,
    faces: Ints,
    is_closed: Bools,
    sides: _Sides,
    rays: Rays,
    *,
    centre_only: bool = False,
) -> _States:
    weights = _CORNERS[:1] if centre_only else _CORNERS
    points = np.einsum("sc,fcd->fsd", weights, vertices[faces]).reshape(-1, 3)
    cross = _cross(vertices, faces)
    normal = cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-300)
    normal = np.repeat(normal, len(weights), axis=0)
    closed = np.repeat(is_closed, len(weights))
    before = ~sides.is_inside(points + _PROBE * normal)[0]
    behind = np.zeros(len(points), bool)
    if not closed.all():
        inside, known = sides.is_inside((points - _PROBE * normal)[~closed])
        behind[~closed] = ~inside & known
    kind = before + 2 * behind.astype(np.int64)
    offset = np.where(kind == 3, THIN, 0.0)
    single = np.flatnonzero((kind == 1) | (kind == 2))
    inward = normal[single] * np.where(kind[single] == 1, -1.0, 1.0)[:, None]
    thickness = _thickness(points[single], inward, sides, rays)
    offset[single] = np.maximum(THIN - thickness / 2, 0)
    shape = (len(faces), len(weights))
    return _States(kind.reshape(shape), offset.reshape(shape))


def _thickness(points: Array, inward: Array, sides: _Sides, rays: Rays) -> Array:
    """Distance through the solid from points (N, 3) on its skin, 2 THIN where it is thicker."""
    step = 1e-5
    out = np.full(len(points), 2 * THIN)
    starts = points + step * inward
    distance, face = rays.first(starts, inward, out.copy())
    hit = np.flatnonzero(face >= 0)
    beyond = starts[hit] + (distance[hit] + _CLEAR)[:, None] * inward[hit]
    inside, known = sides.is_inside(beyond)
    through = hit[~inside & known]
    out[through] = distance[through] + step
    return out


def _subdivide(
    vertices: Array, faces: Ints, is_closed: Bools, size: float
) -> tuple[Array, Ints, Bools]:
    """Halve faces across their longest edge until none is longer than ``size``.

    Neighbours are not kept in step: the pieces are for measuring, not a mesh.
    """
    done: list[tuple[Ints, Bools]] = []
    while len(faces):
        corners = vertices[faces]
        length = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)
        is_long = length.max(1) > size
        done.append((faces[~is_long], is_closed[~is_long]))
        turn = length[is_long].argmax(1)[:, None]
        a, b, c = np.take_along_axis(faces[is_long], (turn + np.arange(3)) % 3, axis=1).T
        middle = len(vertices) + np.arange(len(a))
        vertices = np.concatenate([vertices, (vertices[a] + vertices[b]) / 2])
        faces = np.stack([np.r_[a, middle], np.r_[middle, b], np.r_[c, c]], axis=1)
        is_closed = np.tile(is_closed[is_long], 2)
    pieces, closed = zip(*done, strict=True)
    return vertices, np.concatenate(pieces), np.concatenate(closed)
