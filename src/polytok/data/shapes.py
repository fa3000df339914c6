"""Training samples from prepared shapes: subsets, and augmentation that keeps fields right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytok.core.seeding import derive, numpy_rng

Array = NDArray[np.float32]
BOUND = 1.05  # half side of the query cube
EXTENT = 0.98  # half of a normalised shape's longest side
FAR = 1.0  # signed distance given to points known to be outside, beyond any band


@runtime_checkable
class ShapeStore(Protocol):
    """Prepared shapes: ``load`` gives points, normals, queries, sdf and grad as float32 arrays.

    The first ``num_uniform`` points are uniform, the rest lie on sharp edges; the first
    ``num_volume`` queries are uniform in the cube, the rest lie near the surface.
    """

    num_uniform: int
    num_volume: int

    def __len__(self) -> int: ...

    def load(self, index: int) -> dict[str, Array]: ...


@dataclass(frozen=True, kw_only=True)
class ShapeSampling:
    """What a training sample holds and how it is varied.

    Args:
        num_points: surface points, ``sharp_fraction`` of them on sharp edges.
        num_volume, num_near: queries of either kind.
        rotate: any rotation about the up axis (y). mirror: flips of x and z.
        quarter_turns: share of the rotations that are multiples of 90 degrees, as the axes of
            most assets are.
        stretch: factors per axis are drawn from [1 - stretch, 1 + stretch].
        mix: probability of joining two shapes side by side.
        gap: half of the free space between joined shapes, after normalisation; beyond any band.
    """

    num_points: int = 2048
    sharp_fraction: float = 0.25
    num_volume: int = 384
    num_near: int = 640
    rotate: bool = True
    quarter_turns: float = 0.0
    mirror: bool = True
    stretch: float = 0.25
    mix: float = 0.1
    gap: float = 0.06


@dataclass
class _Piece:
    """A shape under an affine map: points, normals, queries, distances, and the map."""

    points: Array
    normals: Array
    sharp: NDArray[np.bool_]
    volume: Array
    volume_sdf: Array
    near: Array
    near_sdf: Array
    linear: Array
    offset: Array

    def move(self, scale: float, offset: Array) -> None:
        """Scale uniformly, then shift: distances scale along."""
        for name in ("points", "volume", "near"):
            setattr(self, name, getattr(self, name) * np.float32(scale) + offset)
        self.volume_sdf = self.volume_sdf * np.float32(scale)
        self.near_sdf = self.near_sdf * np.float32(scale)
        self.linear = self.linear * np.float32(scale)
        self.offset = self.offset * np.float32(scale) + offset

    def in_cube(self, points: Array) -> NDArray[np.bool_]:
        """Whether points of the target lie in the image of this shape's own query cube."""
        source = (points - self.offset) @ np.linalg.inv(self.linear).T
        return np.all(np.abs(source) <= BOUND, axis=1)


def affine_sdf(sdf: Array, gradient: Array, linear: Array) -> Array:
    """Signed distances after a linear map, exact where the nearest surface is flat.

    A plane with unit normal g at distance d maps to one at distance d / |A^-T g|. Inside the
    narrow band that training looks at, surfaces are nearly flat; signs are exact everywhere.

    Args:
        sdf: (n,). gradient: (n, 3) unit directions of steepest increase. linear: A (3, 3).
    """
    mapped = gradient @ np.linalg.inv(linear)
    return sdf / np.linalg.norm(mapped, axis=1).clip(1e-6)


class ShapeSource:
    """Sample number n -> tensors, a pure function of (seed, n): order survives resume and ranks.

    Each epoch visits every shape once in an order of its own.
    """

    def __init__(self, store: ShapeStore, sampling: ShapeSampling, *, seed: int = 0) -> None:
        self.store, self.sampling, self.seed = store, sampling, seed
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.store)

    def sample(self, n: int) -> dict[str, Tensor]:
        """Draw sample n: points, normals (P, 3), queries (Q, 3), sdf (Q,), seed ()."""
        rng = numpy_rng(self.seed, "sample", n)
        pieces = [self._piece(self.index(n), rng)]
        if rng.random() < self.sampling.mix:
            pieces.append(self._piece(int(rng.integers(len(self.store))), rng))
            self._join(pieces, rng)
        self._normalise(pieces)
        out = {**self._surface(pieces, rng), **self._queries(pieces, rng)}
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v, np.float32)) for k, v in out.items()}
        return {**tensors, "seed": torch.tensor(derive(self.seed, "noise", n))}

    def index(self, n: int) -> int:
        """Which shape sample n starts from."""
        epoch, place = divmod(n, len(self.store))
        if self._order[0] != epoch:
            order = numpy_rng(self.seed, "epoch", epoch).permutation(len(self.store))
            self._order = (epoch, order)
        return int(self._order[1][place])

    def _piece(self, index: int, rng: np.random.Generator) -> _Piece:
        data, split = self.store.load(index), self.store.num_volume
        linear = self._linear(rng)
        normals = data["normals"] @ np.linalg.inv(linear)
        sdf = affine_sdf(data["sdf"], data["grad"], linear)
        queries = data["queries"] @ linear.T
        return _Piece(
            points=data["points"] @ linear.T,
            normals=normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-6),
            sharp=np.arange(len(data["points"])) >= self.store.num_uniform,
            volume=queries[:split],
            volume_sdf=sdf[:split],
            near=queries[split:],
            near_sdf=sdf[split:],
            linear=linear,
            offset=np.zeros(3, np.float32),
        )

    def _linear(self, rng: np.random.Generator) -> Array:
        s = self.sampling
        linear = np.diag(rng.uniform(1 - s.stretch, 1 + s.stretch, 3))
        if s.mirror:
            linear = linear @ np.diag([rng.choice([-1, 1]), 1, rng.choice([-1, 1])])
        if s.rotate:
            angle = rng.uniform(0, 2 * np.pi)
            if s.quarter_turns and rng.random() < s.quarter_turns:
                angle = rng.integers(4) * np.pi / 2
            c, d = np.cos(angle), np.sin(angle)
            linear = linear @ np.array([[c, 0, d], [0, 1, 0], [-d, 0, c]])
        return linear.astype(np.float32)

    def _join(self, pieces: list[_Piece], rng: np.random.Generator) -> None:
        """Put two pieces side by side along a random axis with a gap no band reaches across."""
        axis, sign = int(rng.integers(3)), float(rng.choice([-1, 1]))
        first, second = pieces
        second.move(float(rng.uniform(0.4, 1.0)), np.zeros(3, np.float32))
        shift = (rng.uniform(-0.3, 0.3, 3)).astype(np.float32)
        # Normalisation shrinks the pair, so the gap is wide in proportion to both together.
        reach = float(sum(np.ptp(p.points, axis=0) for p in pieces).max())
        gap = self.sampling.gap * reach / (2 * (EXTENT - self.sampling.gap))
        edge_first = (sign * first.points[:, axis]).max()
        edge_second = (sign * second.points[:, axis]).min()
        shift[axis] = sign * (edge_first + 2 * gap - edge_second)
        second.move(1.0, shift)
        middle = edge_first + gap
        for piece, side in ((first, -1), (second, 1)):
            for name in ("volume", "near"):
                keep = side * (sign * getattr(piece, name)[:, axis] - middle) > 0
                setattr(piece, f"{name}_sdf", getattr(piece, f"{name}_sdf")[keep])
                setattr(piece, name, getattr(piece, name)[keep])

    def _normalise(self, pieces: list[_Piece]) -> None:
        low = np.min([p.points.min(0) for p in pieces], axis=0)
        high = np.max([p.points.max(0) for p in pieces], axis=0)
        scale = float(2 * EXTENT / max(float((high - low).max()), 1e-6))
        for piece in pieces:
            piece.move(scale, (-(low + high) / 2 * scale).astype(np.float32))

    def _surface(self, pieces: list[_Piece], rng: np.random.Generator) -> dict[str, Array]:
        points = np.concatenate([p.points for p in pieces])
        normals = np.concatenate([p.normals for p in pieces])
        sharp = np.concatenate([p.sharp for p in pieces])
        num_sharp = round(self.sampling.num_points * self.sampling.sharp_fraction)
        chosen = np.concatenate(
            [
                _draw(rng, np.flatnonzero(~sharp), self.sampling.num_points - num_sharp),
                _draw(rng, np.flatnonzero(sharp), num_sharp),
            ]
        )
        return {"points": points[chosen], "normals": normals[chosen]}

    def _queries(self, pieces: list[_Piece], rng: np.random.Generator) -> dict[str, Array]:
        s = self.sampling
        near = np.concatenate([p.near for p in pieces])
        near_sdf = np.concatenate([p.near_sdf for p in pieces])
        volume = np.concatenate([p.volume for p in pieces])
        volume_sdf = np.concatenate([p.volume_sdf for p in pieces])
        inside = (np.abs(volume) <= BOUND).all(1)
        volume, volume_sdf = volume[inside], volume_sdf[inside]
        # Where no shape's own cube reaches, space is empty: those draws need no stored distance.
        free = rng.uniform(-BOUND, BOUND, (s.num_volume, 3)).astype(np.float32)
        empty = ~np.any([p.in_cube(free) for p in pieces], axis=0)
        if not len(volume):
            empty[:] = True
        known = _draw(rng, np.arange(len(volume)), int((~empty).sum()))
        chosen = _draw(rng, np.arange(len(near)), s.num_near)
        far = np.full(int(empty.sum()), FAR, np.float32)
        return {
            "queries": np.concatenate([volume[known], free[empty], near[chosen]]),
            "sdf": np.concatenate([volume_sdf[known], far, near_sdf[chosen]]),
        }


def _draw(rng: np.random.Generator, pool: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Draw ``count`` of ``pool``, without repeats while it lasts."""
    if not len(pool) and count:
        raise ValueError(f"cannot draw {count} of an empty pool")
    full = [rng.permutation(pool) for _ in range(-(-count // max(1, len(pool))))]
    return np.concatenate([*full, pool[:0]])[:count]
