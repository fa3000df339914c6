"""Scores of a tokenizer over a folder or zip of meshes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from polytok.cli import show
from polytok.core.errors import PolytokError, SignalError, one_line
from polytok.core.files import opened_folder
from polytok.metrics import CONVENTIONS, ShapeReference, bootstrap_mean
from polytok.signals import mesh as meshes
from polytok.systems import api
from polytok.systems.shape.codec import ShapeCodec

Row = dict[str, Any]


def evaluate(
    source: Path,
    *,
    model: str,
    effort: int,
    every: int,
    limit: int | None,
    resolution: int,
    prefixes: bool,
    seed: int,
) -> dict[str, Any]:
    """Encode and decode every mesh and score it; shapes that fail to encode score as empty.

    Files that cannot be read have no truth to score against: they are listed as failures only.

    Returns:
        rows per shape, means with 95% bootstrap intervals, failures, conventions.

    Raises:
        PolytokError: the source has no meshes, or none of them can be read.
    """
    codec = api.load_codec(model, modality="shape")
    rows: list[Row] = []
    failures: list[Row] = []
    with opened_folder(source) as root:
        found = (p for p in root.rglob("*") if p.suffix.lower() in meshes.EXTENSIONS)
        files = sorted(found)[::every][:limit]
        if not files:
            raise PolytokError(f"{source} has no meshes")
        for path in show.progress(files, "evaluating"):
            name = path.relative_to(root).as_posix()
            try:
                mesh = meshes.read(path)
            except (PolytokError, OSError) as error:
                failures.append({"shape": name, "reason": one_line(error)})
                continue
            try:
                rows.append(
                    {"shape": name, **_score(codec, mesh, effort, resolution, seed, prefixes)}
                )
            except SignalError as error:
                failures.append({"shape": name, "reason": one_line(error)})
                empty = ShapeReference(mesh, seed=seed, secondary=False).score(None)
                rows.append({"shape": name, "faces": len(mesh.faces), **empty.as_dict()})
    if not rows:
        raise PolytokError(f"{source}: no mesh can be read; {failures[0]['reason']}")
    numbers = (k for r in rows for k, v in r.items() if isinstance(v, (int, float)))
    keys = [k for k in dict.fromkeys(numbers) if k != "faces"]
    return {
        "model": codec.name,
        "weights": codec.weights,
        "source": source.name,
        "effort": effort,
        "resolution": resolution,
        "seed": seed,
        "shapes": len(files),
        "encoded": len(files) - len(failures),
        "summary": {k: _interval([r[k] for r in rows if k in r], seed) for k in keys},
        "conventions": dict(CONVENTIONS),
        "failures": failures,
        "rows": rows,
    }


def _score(
    codec: ShapeCodec,
    mesh: trimesh.Trimesh,
    effort: int,
    resolution: int,
    seed: int,
    prefixes: bool,
) -> Row:
    solid = meshes.solidify(mesh)
    # The codec's own samples have other seeds than the metric's.
    reference = ShapeReference(mesh, sdf=solid.sdf, seed=seed + 1, secondary=False)
    start = time.perf_counter()
    codes = codec.encode(mesh, effort=effort, seed=seed)
    middle = time.perf_counter()
    decoded = codec.decode(codes, resolution=resolution)[0]
    end = time.perf_counter()
    row: Row = {
        "faces": len(mesh.faces),
        "bytes": len(codec.pack(codes)[0]),
        "encode_seconds": round(middle - start, 3),
        "decode_seconds": round(end - middle, 3),
        **reference.score(decoded).as_dict(),
    }
    if prefixes:
        ious = []
        for levels in range(1, len(codes.indices)):
            try:
                short = codec.decode(codes, resolution=resolution, levels=levels)[0]
            except SignalError:
                # A short prefix may hold no surface yet.
                short = None
            scores = reference.score(short).as_dict()
            row |= {f"prefix_{levels}_f_002": scores["f_002"]}
            row |= {f"prefix_{levels}_v_iou": scores["v_iou"]}
            ious.append(scores["v_iou"])
        row["cs_iou"] = float(np.mean(ious))
    return row


def _interval(values: list[float], seed: int) -> dict[str, float]:
    interval = bootstrap_mean(np.asarray(values, np.float64), seed=seed)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
