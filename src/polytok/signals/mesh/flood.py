"""Inside and outside of a surface that need not be closed: flood a grid from its border.

Two neighbouring grid points are connected when no triangle crosses the segment between them, which
rays along the grid lines tell exactly. What the flood from the border does not reach is inside.
Holes of up to about three cells are closed: a flood that keeps one cell away from the surface
cannot pass them, and the spaces that only this slower flood finds are filled too.

Alternatively the winding number tells inside from outside. It closes holes of any size, but needs
faces that are turned consistently.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from polytok.signals.mesh.rays import Rays

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_BORDER = 1.05
# Offsets of the grid in cells keep its lines off the planes that modelled surfaces lie in.
_OFFSET = np.array([0.3819, 0.4271, 0.3463])
_MIN_CORE = 8


class Flood:
    """Labels of grid points around a surface in [-1, 1]^3, and of any point by sight of them.

    Args:
        rays: the surface. resolution: cells along a side.
        winding: tells inside by winding numbers of the points (N, 3) given instead of by flood.
    """

    def __init__(
        self, rays: Rays, resolution: int = 128, winding: Callable[[Array], Array] | None = None
    ) -> None:
        self.rays, self.side = rays, resolution + 1
        self.cell = 2 * _BORDER / (resolution - 1)
        self.start = -_BORDER - _OFFSET * self.cell
        free = [self._free_edges(axis) for axis in range(3)]
        self.near = _touching([~f for f in free])
        self.inside = self._enclosed(free) if winding is None else self._wound(winding)

    def is_inside(self, points: Array) -> tuple[Bools, Bools]:
        """Whether points (N, 3) are inside, and whether that is known for sure.

        A point has the label of the nearest grid point around it that it can see.
        """
        place = (points - self.start) / self.cell
        corner = np.clip(np.floor(place).astype(np.int64), 0, self.side - 2)
        inside = np.zeros(len(points), bool)
        known = (np.abs(points) > _BORDER).any(1)
        nearest = np.clip(np.round(place).astype(np.int64), 0, self.side - 1)
        away = ~known & ~self.near[tuple(nearest.T)]
        inside[away] = self.inside[tuple(nearest[away].T)]
        known |= away
        rest = np.flatnonzero(~known)
        if not len(rest):
            return inside, known
        octants = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
        around = corner[rest, None] + octants
        distance = np.linalg.norm(around - place[rest, None], axis=2)
        around = np.take_along_axis(around, np.argsort(distance, axis=1)[:, :, None], axis=1)
        for k in range(8):
            index = around[:, k]
            clear = self.rays.is_clear(points[rest], self.start + index * self.cell)
            inside[rest[clear]] = self.inside[tuple(index[clear].T)]
            known[rest[clear]] = True
            rest, around = rest[~clear], around[~clear]
            if not len(rest):
                break
        return inside, known

    def _free_edges(self, axis: int) -> Bools:
        """Whether nothing crosses the edges along ``axis``; that axis has one entry fewer."""
        n = self.side
        others = [a for a in range(3) if a != axis]
        lines = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2)
        free = np.ones((len(lines), n - 1), bool)
        direction = np.eye(3)[axis]
        active, at = np.arange(len(lines)), np.zeros(len(lines), np.int64)
        while len(active):
            origins = np.empty((len(active), 3))
            origins[:, others] = self.start[others] + lines[active] * self.cell
            origins[:, axis] = self.start[axis] + at * self.cell
            reach = (n - 1 - at) * self.cell
            distance, face = self.rays.first(origins, np.tile(direction, (len(active), 1)), reach)
            hit = face >= 0
            edge = np.minimum(at[hit] + (distance[hit] / self.cell).astype(np.int64), n - 2)
            active = active[hit]
            free[active, edge] = False
            at = edge + 1
            going = at < n - 1
            active, at = active[going], at[going]
        shape = [n, n, n - 1]
        return np.moveaxis(free.reshape(shape), 2, axis)

    def _enclosed(self, free: list[Bools]) -> Bools:
        reached = _component(self.near, free)
        wide = ndimage.binary_dilation(self.near, iterations=1)
        label, count = ndimage.label(~wide)
        sizes = np.bincount(label.reshape(-1), minlength=count + 1)
        leaked = (label > 0) & (label != label[0, 0, 0]) & reached
        leaked &= (sizes >= _MIN_CORE)[label]
        for _ in range(2):
            leaked |= _spread(leaked, free)
        return ~reached | leaked

    def _wound(self, winding: Callable[[Array], Array]) -> Bools:
        axes = [start + np.arange(self.side) * self.cell for start in self.start]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
        return (winding(grid) > 0.5).reshape(self.near.shape)


def _slices(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    low, high = [slice(None)] * 3, [slice(None)] * 3
    low[axis], high[axis] = slice(None, -1), slice(1, None)
    return tuple(low), tuple(high)


def _touching(blocked: list[Bools]) -> Bools:
    """Grid points at either end of the edges."""
    n = blocked[0].shape[1]
    out = np.zeros((n, n, n), bool)
    for axis, edges in enumerate(blocked):
        low, high = _slices(axis)
        out[low] |= edges
        out[high] |= edges
    return out


def _spread(marked: Bools, free: list[Bools]) -> Bools:
    """Neighbours of marked points along free edges."""
    out = np.zeros_like(marked)
    for axis, edges in enumerate(free):
        low, high = _slices(axis)
        out[high] |= marked[low] & edges
        out[low] |= marked[high] & edges
    return out


def _component(near: Bools, free: list[Bools]) -> Bools:
    """Grid points that free edges connect with the first one.

    Away from the surface all edges are free, so whole regions are single nodes of the graph.
    """
    label, count = ndimage.label(~near)
    node = label - 1
    node[near] = count + np.arange(int(near.sum()))
    starts, ends = [], []
    for axis, edges in enumerate(free):
        low, high = _slices(axis)
        chosen = edges & (near[low] | near[high])
        starts.append(node[low][chosen])
        ends.append(node[high][chosen])
    start, end = np.concatenate(starts), np.concatenate(ends)
    size = count + int(near.sum())
    graph = coo_array((np.ones(len(start), np.int8), (start, end)), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    return component[node] == component[node[0, 0, 0]]
