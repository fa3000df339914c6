"""Meshes on the command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from polytok import bitstream
from polytok.cli import show
from polytok.core.contracts import Codes
from polytok.core.errors import SignalError
from polytok.metrics import CONVENTIONS, ShapeReference, shape_scores
from polytok.signals import mesh as meshes
from polytok.systems.shape.codec import ShapeCodec

NOUN, UNIT, SUFFIX = "shape", "scales", ".glb"
FACTS = ("faces",)
EXTENSIONS, WRITABLE = meshes.EXTENSIONS, meshes.WRITABLE
RESOLUTION = 128

Row = dict[str, Any]


def encode(
    codec: ShapeCodec,
    source: Path,
    *,
    effort: int = 0,
    stretch: bool = True,
    seed: int = 0,
    fit: Callable[[Codes], int] | None = None,
) -> Codes:
    """Encode a mesh file, and say what of it is left out.

    ``fit`` counts the scales of a code that its file may hold: a code of just these is made.
    """
    show.dropped(source)
    return codec.encode(source, effort=effort, stretch=stretch, fit=fit, seed=seed)


def decode(
    codec: ShapeCodec,
    codes: Codes,
    target: Path,
    *,
    force: bool,
    res: int = RESOLUTION,
    levels: int | None = None,
    faces: int | None = None,
) -> Row:
    """Write the mesh of a code."""
    mesh = codec.decode(codes, resolution=res, levels=levels, faces=faces)[0]
    meshes.write(mesh, target, force=force)
    return {"vertices": len(mesh.vertices), "faces": len(mesh.faces)}


def count(codec: ShapeCodec, codes: Codes) -> int:
    """Scales of a code."""
    return len(codes.indices)


def prefix(codec: ShapeCodec, codes: Codes, *, levels: int) -> Codes:
    """The first scales of a code."""
    return codes.prefix(levels=levels)


def facts(codec: ShapeCodec, header: bitstream.Header, codes: Codes, size: int) -> Row:
    """Scales, tokens and bits, and the box of the shape in its own units."""
    half = 0.98 / header.scale
    return {
        "scales": header.levels,
        "tokens": [int(i.shape[1]) for i in codes.indices],
        "bits": [round(b, 1) for b in bitstream.bits_per_level(codes, codec.spec)],
        "prefix_bytes": bitstream.sizes(codec.spec, header.meta)[: header.levels],
        "centre": [float(c) for c in header.centre],
        "longest_side": 2 * half,
        "iso": header.iso,
        "stretch": [float(f) for f in header.stretch],
    }


def compare(first: Path, second: Path, *, seed: int = 0) -> Row:
    """F-scores, Chamfer distances and normal consistency of a mesh against the true one."""
    scores = shape_scores(meshes.read(first), meshes.read(second), seed=seed)
    return {k: round(v, 5) for k, v in scores.as_dict().items()}


def settings(
    *, effort: int = 0, stretch: bool = True, res: int = RESOLUTION, prefixes: bool = False
) -> Row:
    """What the scores depend on."""
    return {"effort": effort, "stretch": stretch, "resolution": res}


def conventions() -> Row:
    """What the scores mean."""
    return dict(CONVENTIONS)


def read(path: Path) -> trimesh.Trimesh:
    """Read a mesh to score against."""
    return meshes.read(path)


def failed(mesh: trimesh.Trimesh, *, seed: int) -> Row:
    """A shape that cannot be encoded scores like an empty one."""
    empty = ShapeReference(mesh, seed=seed, secondary=False).score(None)
    return {"faces": len(mesh.faces), **empty.as_dict()}


def score(
    codec: ShapeCodec,
    mesh: trimesh.Trimesh,
    *,
    seed: int,
    effort: int = 0,
    stretch: bool = True,
    res: int = RESOLUTION,
    prefixes: bool = False,
) -> Row:
    """Encode, decode and score a mesh, and every prefix of its scales if asked for."""
    solid = meshes.solidify(mesh)
    # The codec's own samples have other seeds than the metric's.
    reference = ShapeReference(mesh, sdf=solid.sdf, seed=seed + 1, secondary=False)
    start = time.perf_counter()
    codes = codec.encode(mesh, effort=effort, stretch=stretch, seed=seed)
    middle = time.perf_counter()
    decoded = codec.decode(codes, resolution=res)[0]
    end = time.perf_counter()
    row: Row = {
        "faces": len(mesh.faces),
        "bytes": len(codec.pack(codes)[0]),
        "encode_seconds": round(middle - start, 3),
        "decode_seconds": round(end - middle, 3),
        **reference.score(decoded).as_dict(),
    }
    if not prefixes:
        return row
    ious = []
    for levels in range(1, len(codes.indices)):
        try:
            short = codec.decode(codes, resolution=res, levels=levels)[0]
        except SignalError:
            # A short prefix may hold no surface yet.
            short = None
        scores = reference.score(short).as_dict()
        row |= {f"prefix_{levels}_{k}": scores[k] for k in ("f_002", "v_iou")}
        ious.append(scores["v_iou"])
    return row | {"cs_iou": float(np.mean(ious))}
