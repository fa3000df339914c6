"""What people use for tiny meshes today: quadric decimation, then Google Draco."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import trimesh

from polytok.core.errors import SignalError
from polytok.metrics.shape import ShapeReference
from polytok.signals.mesh.clean import MIN_FACES, decimate, merged

QUANTIZATIONS = (7, 8, 9, 10)
"""Position bits that :func:`draco_fit` tries."""

_LEVEL = 10
_FURTHER = 16


@dataclass(frozen=True, eq=False)
class DracoFit:
    """A Draco file and what it decodes to.

    Args:
        data: the whole file.
        mesh: its content, in the units of the source.
        bits: quantization bits of a position coordinate.
    """

    data: bytes
    mesh: trimesh.Trimesh
    bits: int


def draco_encode(mesh: trimesh.Trimesh, bits: int) -> bytes:
    """Compress positions and faces with Draco at its strongest level, without metadata."""
    import DracoPy

    data: bytes = DracoPy.encode(
        np.ascontiguousarray(mesh.vertices, dtype=np.float32),
        np.ascontiguousarray(mesh.faces, dtype=np.uint32),
        quantization_bits=bits,
        compression_level=_LEVEL,
        create_metadata=False,
        preserve_order=False,
    )
    return data


def draco_decode(data: bytes) -> trimesh.Trimesh:
    """Read a Draco file.

    Raises:
        SignalError: it is no Draco mesh.
    """
    import DracoPy

    try:
        got = DracoPy.decode(data)
    except (ValueError, RuntimeError, DracoPy.FileTypeException) as error:
        raise SignalError(f"not a Draco mesh: {error}") from error
    return trimesh.Trimesh(got.points, got.faces, process=False)


def draco_candidates(mesh: trimesh.Trimesh, max_bytes: int) -> list[DracoFit]:
    """For each quantization, the least decimated version of ``mesh`` that fits.

    Args:
        mesh: the source; equal positions are merged first, colours and UVs are not stored.
        max_bytes: size of the whole file.

    Returns:
        at most one fit per quantization; empty when even the strongest decimation is too large.
    """
    mesh = merged(mesh)
    reduced = cache(lambda faces: decimate(mesh, max(faces, MIN_FACES)))
    return [
        fit for bits in QUANTIZATIONS for fit in _fit(reduced, len(mesh.faces), max_bytes, bits)
    ]


def draco_fit(
    mesh: trimesh.Trimesh, max_bytes: int, *, samples: int = 20_000, seed: int = 1
) -> DracoFit | None:
    """The best Draco file of at most ``max_bytes``: the quantization with the highest F-scores.

    Args:
        mesh: the source.
        max_bytes: size of the whole file.
        samples: points per mesh for the choice.
        seed: of those points.

    Returns:
        None when no decimation of ``mesh`` fits.
    """
    fits = draco_candidates(mesh, max_bytes)
    if len(fits) < 2:
        return fits[0] if fits else None
    reference = ShapeReference(mesh, samples=samples, seed=seed, secondary=False)
    scores = [reference.score(fit.mesh) for fit in fits]
    return fits[int(np.argmax([s.f_002 + s.f_001 + s.f_0005 for s in scores]))]


def _fit(
    reduced: Callable[[int], trimesh.Trimesh], most: int, max_bytes: int, bits: int
) -> list[DracoFit]:
    """Bisect over the face budget, then look a little further: sizes are not quite monotonic."""
    best, best_faces = b"", 0

    def fits(budget: int) -> bool:
        nonlocal best, best_faces
        coarse = reduced(budget)
        data = draco_encode(coarse, bits)
        if len(data) <= max_bytes and len(coarse.faces) > best_faces:
            best, best_faces = data, len(coarse.faces)
        return len(data) <= max_bytes

    # All of it fits, or not even the strongest decimation does.
    if not fits(most) and fits(MIN_FACES):
        low, high = MIN_FACES, most
        while high - low > max(1, high // 100):
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        for budget in range(low + 1, min(low + 1 + _FURTHER, most)):
            fits(budget)
    return [DracoFit(best, draco_decode(best), bits)] if best else []
