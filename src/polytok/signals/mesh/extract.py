"""From an implicit field to a triangle mesh: dense or coarse-to-fine marching cubes.

The coarse-to-fine driver evaluates the field near its surface only. Level by level it refines

1. the cells that the surface crosses,
2. the cells that it may cross unseen, because the field heads for zero inside them, and
3. every cell that the surface is found to enter from a refined neighbour, until there is none.

Step 3 follows each piece of surface to its end, so a piece that one cell of steps 1 and 2 touches
comes out exactly as the dense grid gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from polytok.core.errors import SignalError

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

Field = Callable[[Floats], Floats]
"""Takes points (N, 3), returns logits (N,): positive inside, negative outside."""

BOUND = 1.05
"""Half the side of the cube that decoders look at."""

MAX_RESOLUTION = 512
_MARGIN = 1.25
_OCTANTS = tuple(product((0, 1), repeat=3))


@dataclass(frozen=True)
class Extraction:
    """A closed surface, counter-clockwise seen from outside.

    Args:
        vertices: (V, 3) float32 in the field's coordinates.
        faces: (F, 3) int64.
        num_queries: points at which the field was evaluated.
    """

    vertices: Floats
    faces: Ints
    num_queries: int


def extract(
    field: Field,
    resolution: int,
    *,
    bound: float = BOUND,
    dense: bool = False,
    coarse: int = 32,
    slope: float | None = None,
    chunk: int = 1 << 16,
) -> Extraction:
    """Extract the zero surface of ``field`` in the cube [-bound, bound]^3 by marching cubes.

    Solid that reaches the border of the cube is closed there.

    Args:
        field: logits, positive inside; called with at most ``chunk`` points at a time.
        resolution: cells along a side, 2..512; grid point i lies at i/resolution*2*bound - bound.
        dense: evaluate every grid point.
        coarse: the first level has at least this many cells along a side (at most twice as many).
        slope: a bound on the field's change per unit length, such as 1 for a distance. It makes
            step 2 rigorous for every feature that a sphere-shaped gap of the grid could hide.
            None extrapolates the field from its neighbours, which suits distances and logits.

    Raises:
        SignalError: the field is nowhere positive, nowhere negative or not finite.

    Source: Lorensen & Cline 1987 with the tables of Lewiner et al. 2003.
    """
    _check(resolution, bound, coarse, chunk)
    sampler = _Sampler(field, resolution, bound, chunk)
    stride = 1
    while not dense and resolution >= 2 * stride * coarse:
        stride *= 2
    values = sampler.whole(stride)
    seen = np.ones(values.shape, dtype=bool)
    while stride > 1:
        cells = _suspects(values, seen, slope, stride * 2 * bound / resolution)
        stride //= 2
        values, seen = _refine(sampler, values, cells, stride)
    vertices, faces = _march(values, resolution, bound)
    return Extraction(vertices, faces, sampler.num_queries)


def _check(resolution: int, bound: float, coarse: int, chunk: int) -> None:
    if not 2 <= resolution <= MAX_RESOLUTION:
        raise SignalError(f"resolution {resolution} is not within 2..{MAX_RESOLUTION}")
    if not bound > 0 or coarse < 2 or chunk < 1:
        raise SignalError(f"bound={bound}, coarse={coarse}, chunk={chunk}: need > 0, >= 2, >= 1")


class _Sampler:
    """Evaluates the field at points of nested grids and counts them.

    The grid of a stride has the fine indices 0, stride, 2 stride, ... and the last one, so any
    resolution can be halved: the last cell of a level may be shorter than the others.
    """

    def __init__(self, field: Field, resolution: int, bound: float, chunk: int) -> None:
        self.field, self.chunk, self.num_queries = field, chunk, 0
        fine = np.arange(resolution + 1, dtype=np.float64)
        self.resolution, self.fine = resolution, fine / resolution * 2 * bound - bound

    def side(self, stride: int) -> int:
        """Points along a side of the grid with this stride."""
        return -(-self.resolution // stride) + 1

    def at(self, points: Ints, stride: int) -> Floats:
        """Evaluate at flat indices (N,) of the grid with this stride."""
        side = self.side(stride)
        at = np.minimum(np.arange(side) * stride, self.resolution)
        axis = self.fine[at].astype(np.float32)
        out = np.empty(len(points), dtype=np.float32)
        for start in range(0, len(points), self.chunk):
            flat = points[start : start + self.chunk]
            rest, k = np.divmod(flat, side)
            i, j = np.divmod(rest, side)
            queries = np.stack((axis[i], axis[j], axis[k]), axis=1)
            out[start : start + len(flat)] = self.field(queries)
        if not np.isfinite(out).all():
            raise SignalError("the field has values that are not finite")
        self.num_queries += len(points)
        return out

    def whole(self, stride: int) -> Floats:
        side = self.side(stride)
        return self.at(np.arange(side**3), stride).reshape(side, side, side)


def _refine(sampler: _Sampler, parent: Floats, cells: Bools, stride: int) -> tuple[Floats, Bools]:
    """Evaluate the grid of half the cell size inside ``cells`` and wherever the surface leads.

    Elsewhere points take the value of a corner of their parent cell: its sign is right, because
    no surface crosses that cell.
    """
    side = sampler.side(stride)
    values = np.empty((side, side, side), dtype=np.float32)
    for i, j, k in _OCTANTS:
        part = values[i::2, j::2, k::2]
        part[...] = parent[: part.shape[0], : part.shape[1], : part.shape[2]]
    seen = np.zeros(values.shape, dtype=bool)
    fresh = cells
    while fresh.any():
        points = _points_of(fresh, side)
        points = points[~seen.reshape(-1)[points]]
        seen.reshape(-1)[points] = True
        values.reshape(-1)[points] = sampler.at(points, stride)
        fresh = _parents(_crossed(values > 0)) & ~cells
        cells = cells | fresh
    return values, seen


def _points_of(cells: Bools, side: int) -> Ints:
    """Flat indices of the points, in the grid of half the cell size, that lie in ``cells``."""
    wanted = np.zeros((side, side, side), dtype=bool)
    corner = 2 * np.argwhere(cells)
    for offset in product(range(3), repeat=3):
        i, j, k = np.minimum(corner + offset, side - 1).T
        wanted[i, j, k] = True
    return np.flatnonzero(wanted)


def _crossed(inside: Bools) -> Bools:
    """Cells whose corners are not all on one side."""
    some = every = inside
    for axis in range(3):
        low, high = _shifted(axis)
        some, every = some[low] | some[high], every[low] & every[high]
    return some & ~every


def _shifted(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    low, high = [slice(None)] * 3, [slice(None)] * 3
    low[axis], high[axis] = slice(None, -1), slice(1, None)
    return tuple(low), tuple(high)


def _parents(cells: Bools) -> Bools:
    """Cells of twice the size that hold any of ``cells``."""
    for axis in range(3):
        pairs = np.moveaxis(cells, axis, 0)
        even, odd = pairs[0::2].copy(), pairs[1::2]
        even[: len(odd)] |= odd
        cells = np.moveaxis(even, 0, axis)
    return cells


def _suspects(values: Floats, seen: Bools, slope: float | None, cell: float) -> Bools:
    """Cells that the surface crosses or may cross: steps 1 and 2 of the module's text."""
    cells = _crossed(values > 0)
    points = np.flatnonzero(seen)
    if slope is not None:
        # A surface point inside a cell is at most half a diagonal away from some corner.
        reach = slope * cell * np.sqrt(0.75)
        points = points[np.abs(values.reshape(-1)[points]) <= reach]
        hits = np.ones((len(points), len(_OCTANTS)), dtype=bool)
    else:
        points, hits = _heading_for_zero(values, seen, points)
    corner = np.stack(np.unravel_index(points, values.shape), axis=1)
    for octant, hit in zip(_OCTANTS, hits.T, strict=True):
        at = corner[hit] - octant
        at = at[((at >= 0) & (at < cells.shape[0])).all(axis=1)]
        cells[tuple(at.T)] = True
    return cells


def _heading_for_zero(values: Floats, seen: Bools, points: Ints) -> tuple[Ints, Bools]:
    """Points from which the field, extrapolated into an adjacent cell, reaches zero.

    Returns:
        the points (K,) and, per octant around each, whether that cell is reached (K, 8).
    """
    flat, known = values.reshape(-1), seen.reshape(-1)
    side = values.shape[0]
    here = flat[points]
    height, sign = np.abs(here), np.sign(here)
    drops = np.empty((2, 3, len(points)), dtype=np.float32)
    for axis, at in enumerate(np.unravel_index(points, values.shape)):
        step = side ** (2 - axis)
        for back, direction in enumerate((-1, 1)):
            # Going up an axis (octant bit 0) continues the change since the neighbour below.
            inner = at > 0 if direction < 0 else at < side - 1
            other = points + np.where(inner, direction * step, 0)
            change = np.where(known[other], height - sign * flat[other], 0)
            drops[back, axis] = np.minimum(change, 0)
    keep = height + _MARGIN * drops.min(axis=0).sum(axis=0) <= 0
    points, height, drops = points[keep], height[keep], drops[:, :, keep]
    hits = [height + _MARGIN * sum(drops[b, a] for a, b in enumerate(o)) <= 0 for o in _OCTANTS]
    return points, np.stack(hits, axis=1)


def _march(values: Floats, resolution: int, bound: float) -> tuple[Floats, Ints]:
    """Marching cubes on the finest grid (R+1)^3, closed at the border, in field coordinates."""
    from skimage.measure import marching_cubes

    low, high = float(values.min()), float(values.max())
    if not low < 0 < high:
        where = "inside" if low >= 0 else "outside"
        raise SignalError(f"the field has no surface at resolution {resolution}: all {where}")
    is_open = any((values.take(i, axis=a) > 0).any() for a in range(3) for i in (0, -1))
    if is_open:
        # The outer layer is so far outside that the cap lies on the border but for rounding.
        values = np.pad(values, 1, constant_values=-1e6 * max(high, -low))
    # A value of exactly 0 would give triangles without area; outside is as good.
    values[values == 0] = -1e-12 * max(high, -low)
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="ascent")
    vertices = (vertices.astype(np.float64) - is_open) / resolution * 2 * bound - bound
    vertices = np.clip(vertices, -bound, bound).astype(np.float32)
    return vertices, np.ascontiguousarray(faces, dtype=np.int64)
