"""What people use for tiny meshes today: quadric decimation, then Google Draco."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh

from polytok.core.errors import SignalError
from polytok.metrics.shape import ShapeReference
from polytok.signals.mesh.clean import decimate, merged

QUANTIZATIONS = (7, 8, 9, 10)
"""Position bits that :func:`draco_fit` tries."""

_LEVEL = 10
_STEPS = 24


@dataclass(frozen=True)
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
    return [fit for bits in QUANTIZATIONS for fit in _fit(merged(mesh), max_bytes, bits)]


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


def _fit(mesh: trimesh.Trimesh, max_bytes: int, bits: int) -> list[DracoFit]:
    """Bisect over the face budget; a size is not quite monotonic in it, so keep the best seen."""
    data = draco_encode(mesh, bits)
    if len(data) <= max_bytes:
        return [DracoFit(data, draco_decode(data), bits)]
    best, most = b"", 0
    low, high = 1, len(mesh.faces)
    for _ in range(_STEPS):
        if high - low <= max(1, high // 100):
            break
        middle = (low + high) // 2
        coarse = decimate(mesh, max(middle, 4))
        data = draco_encode(coarse, bits)
        if len(data) <= max_bytes:
            low = middle
            if len(coarse.faces) > most:
                best, most = data, len(coarse.faces)
        else:
            high = middle
    return [DracoFit(best, draco_decode(best), bits)] if best else []
