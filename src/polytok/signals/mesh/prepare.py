"""From a mesh to what a tokenizer sees: surface points with normals, and queries with distances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.typing import NDArray

from polytok.core.errors import SignalError
from polytok.core.seeding import numpy_rng
from polytok.signals.mesh.frame import Frame
from polytok.signals.mesh.sampling import (
    BOUND,
    near_points,
    sharp_points,
    uniform_points,
    volume_points,
)
from polytok.signals.mesh.solid import Solid, solidify

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How many samples a prepared shape holds.

    Args:
        num_uniform, num_sharp: surface points, area-weighted and along sharp edges.
        num_volume: queries uniform in the cube.
        num_near: queries around uniform points. num_near_sharp: around sharp ones.
        sigmas, sharp_sigmas: noise of the near queries, in equal shares.
    """

    num_uniform: int = 4096
    num_sharp: int = 1024
    num_volume: int = 2048
    num_near: int = 4608
    num_near_sharp: int = 1536
    sigmas: tuple[float, ...] = (0.005, 0.02, 0.05)
    sharp_sigmas: tuple[float, ...] = (0.005, 0.02)


COMPACT = Profile()
"""Fits into 150 KB per shape."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Points on a solid, in the normalised frame.

    Args:
        points, normals: (P, 3) float32; the first ``num_uniform`` are uniform, the rest sharp.
        route, eps: how the solid was made and how thick its slabs are.
    """

    points: Floats
    normals: Floats
    num_uniform: int
    frame: Frame
    route: str
    eps: float


@dataclass(frozen=True, kw_only=True)
class Prepared(Surface):
    """A surface with queries.

    Args:
        queries: (Q, 3) float32; the first ``num_volume`` are uniform in the cube.
        sdf: (Q,) signed distances, negative inside.
        grad: (Q, 3) unit directions of steepest increase; under a linear map A the distance to a
            flat surface becomes sdf / |A^-T grad|.
    """

    queries: Floats
    sdf: Floats
    grad: Floats
    num_volume: int


def surface(mesh: trimesh.Trimesh | Solid, *, seed: int = 0, profile: Profile = COMPACT) -> Surface:
    """Sample the surface of a mesh made solid: all that encoding without refinement needs.

    Raises:
        SignalError: no face of the mesh has an area.
    """
    solid = mesh if isinstance(mesh, Solid) else solidify(mesh)
    even, even_normals = uniform_points(
        solid.skin, profile.num_uniform, numpy_rng(seed, "mesh", "uniform")
    )
    sharp, sharp_normals = sharp_points(solid, profile.num_sharp, numpy_rng(seed, "mesh", "sharp"))
    return Surface(
        points=np.concatenate([even, sharp]).astype(np.float32),
        normals=np.concatenate([even_normals, sharp_normals]).astype(np.float32),
        num_uniform=profile.num_uniform,
        frame=solid.frame,
        route=solid.route,
        eps=solid.eps,
    )


def prepare(
    mesh: trimesh.Trimesh | Solid, *, seed: int = 0, profile: Profile = COMPACT
) -> Prepared:
    """Sample a mesh made solid, and its signed distances.

    The surface samples are those of :func:`surface` with the same seed.

    Raises:
        SignalError: no face of the mesh has an area.
    """
    solid = mesh if isinstance(mesh, Solid) else solidify(mesh)
    skin = surface(solid, seed=seed, profile=profile)
    rng = numpy_rng(seed, "mesh", "queries")
    even, sharp = np.split(skin.points.astype(np.float64), [profile.num_uniform])
    queries = np.concatenate(
        [
            volume_points(profile.num_volume, rng),
            near_points(even, profile.num_near, profile.sigmas, rng),
            near_points(sharp, profile.num_near_sharp, profile.sharp_sigmas, rng),
        ]
    )
    # Distances belong to the positions that the compact form keeps.
    queries = _dequantised(_quantised(queries)).astype(np.float64)
    got = solid.nearest(queries)
    return Prepared(
        **vars(skin),
        queries=queries.astype(np.float32),
        sdf=got.sdf.astype(np.float32),
        grad=got.gradient.astype(np.float32),
        num_volume=profile.num_volume,
    )


def _quantised(positions: NDArray[np.floating]) -> NDArray[np.uint16]:
    scaled = (np.asarray(positions, np.float64) + BOUND) / (2 * BOUND) * 65535
    return np.clip(np.rint(scaled), 0, 65535).astype(np.uint16)


def _dequantised(positions: NDArray[np.uint16]) -> Floats:
    # The last digit may land just outside the cube; nothing may.
    out = positions * np.float32(2 * BOUND / 65535) - np.float32(BOUND)
    return np.minimum(out, np.float32(BOUND), out=out)


def _directions(packed: NDArray[np.int8]) -> Floats:
    out = packed.astype(np.float32)
    return out / np.sqrt(np.einsum("...i,...i", out, out)).clip(1e-6)[..., None]


def to_compact(prepared: Prepared) -> dict[str, NDArray]:
    """Pack arrays: positions uint16 over the cube, directions int8, distances float16."""
    return {
        "points": _quantised(prepared.points),
        "normals": np.rint(prepared.normals * 127).astype(np.int8),
        "queries": _quantised(prepared.queries),
        "sdf": prepared.sdf.astype(np.float16),
        "grad": np.rint(prepared.grad * 127).astype(np.int8),
    }


def from_compact(arrays: dict[str, NDArray]) -> dict[str, Floats]:
    """Unpack what :func:`to_compact` packed, to float32 arrays of the same names.

    Raises:
        SignalError: an array is missing or has another type.
    """
    types = {"points": "uint16", "normals": "int8", "queries": "uint16", "sdf": "float16"}
    for name, dtype in {**types, "grad": "int8"}.items():
        if name not in arrays or arrays[name].dtype != dtype:
            raise SignalError(f"a prepared shape needs an array {name!r} of {dtype}")
    return {
        "points": _dequantised(arrays["points"]),
        "normals": _directions(arrays["normals"]),
        "queries": _dequantised(arrays["queries"]),
        "sdf": arrays["sdf"].astype(np.float32),
        "grad": _directions(arrays["grad"]),
    }
