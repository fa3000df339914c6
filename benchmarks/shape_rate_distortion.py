"""Rate and distortion of shapes: polytok against decimation + Draco, retrieval and the ceiling.

    python benchmarks/shape_rate_distortion.py --parts draco,ceiling --splits val,val-unseen
    python benchmarks/shape_rate_distortion.py --parts report

Rows go to ``benchmarks/results/shape_rd_PART.json``; an interrupted run goes on where it stopped.
``report`` writes the table and the plot from those files alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

import _results
from _clouds import cloud, shortlist
from _results import SHAPE_MODEL, Item, Results, Row, load_codec
from polytok.core.errors import SignalError
from polytok.metrics import CONVENTIONS, ShapeReference, chamfer_matrix, draco_fit

SIZES = (64, 128, 256, 512, 1024, 2048, 3990, 4096)
EFFORTS = (0, 5, 9)
SEED = 0
BANK_POINTS = 256
SHORTLIST = 48
FINE_POINTS = 4096

Work = Callable[[Item], list[Row]]


def draco_rows(item: Item) -> list[Row]:
    """Decimation + Draco: the best of qp 7..10, each with the least decimation that fits."""
    mesh = item.mesh()
    reference = ShapeReference(mesh, seed=SEED, secondary=False)
    rows = []
    score = cache(lambda fit: reference.score(fit.mesh if fit else None))
    fit = None
    for size in SIZES:
        start = time.perf_counter()
        found = draco_fit(mesh, size)
        seconds = time.perf_counter() - start
        # A mesh that fits whole is the same file at every larger budget.
        fit = fit if fit and found and fit.data == found.data else found
        scores = score(fit)
        rows.append(
            {
                **item.row,
                "faces": len(mesh.faces),
                "max_bytes": size,
                "bytes": len(fit.data) if fit else None,
                "bits": fit.bits if fit else None,
                "kept_faces": len(fit.mesh.faces) if fit else 0,
                "seconds": seconds,
                **scores.as_dict(),
            }
        )
    return rows


def ceiling_rows(item: Item, resolutions: tuple[int, ...] = (128,)) -> list[Row]:
    """The source's own solid, extracted at the decode grid: the best score of any field."""
    from polytok.signals.mesh.extract import extract
    from polytok.signals.mesh.solid import solidify

    mesh = item.mesh()
    start = time.perf_counter()
    solid = solidify(mesh)
    seconds = time.perf_counter() - start
    reference = ShapeReference(mesh, sdf=solid.sdf, seed=SEED, secondary=False)

    def field(points: NDArray[np.float32]) -> NDArray[np.float32]:
        return (-solid.nearest(points.astype(np.float64)).sdf).astype(np.float32)

    rows = []
    for resolution in resolutions:
        got = extract(field, resolution)
        back = trimesh.Trimesh(solid.frame.undo(got.vertices), got.faces, process=False)
        rows.append(
            {
                **item.row,
                "faces": len(mesh.faces),
                "route": solid.route,
                "resolution": resolution,
                "prepare_seconds": seconds,
                "queries": got.num_queries,
                **reference.score(back).as_dict(),
            }
        )
    return rows


@lru_cache(maxsize=1)
def bank() -> tuple[list[Item], NDArray[np.float32]]:
    """Every training shape with a few points on it, centred and with longest side 2."""
    items = _results.shapes("train")
    return items, np.stack([cloud(i.mesh(), i.name, BANK_POINTS) for i in items])


def retrieval_rows(item: Item) -> list[Row]:
    """The training shape of least Chamfer distance, put into the box of the source: an oracle."""
    items, clouds = bank()
    mesh = item.mesh()
    few = cloud(mesh, item.name, BANK_POINTS)
    close = shortlist(few, clouds, SHORTLIST)
    fine = cloud(mesh, item.name, FINE_POINTS)
    others = np.stack([cloud(items[i].mesh(), "fine", FINE_POINTS) for i in close])
    best = items[close[int(chamfer_matrix(fine[None], others).argmin())]]
    found = best.mesh()
    low, high = found.bounds
    start, end = mesh.bounds
    size = float((end - start).max()) / float((high - low).max())
    found.vertices = (np.asarray(found.vertices) - (low + high) / 2) * size + (start + end) / 2
    scores = ShapeReference(mesh, seed=SEED, secondary=False).score(found)
    return [{**item.row, "faces": len(mesh.faces), "found": best.name, **scores.as_dict()}]


def polytok_rows(
    item: Item,
    model: str,
    effort: int,
    resolution: int,
    prefixes: tuple[int, ...] = (),
    own: bool = False,
    codec: Any = None,
) -> list[Row]:
    """Prefixes of a code (() = all): bytes of the whole file, and scores of the mesh.

    ``own``: codes of so many scales instead, each of a search of its own.
    """
    from polytok.signals.mesh.solid import solidify

    codec = codec or load_codec(model)
    mesh = item.mesh()
    reference = ShapeReference(mesh, sdf=solidify(mesh).sdf, seed=SEED, secondary=False)

    def encoded(levels: int | None) -> tuple[Any, Row]:
        start = time.perf_counter()
        try:
            codes, error = codec.encode(mesh, effort=effort, levels=levels, seed=SEED), None
        except SignalError as refused:  # scored as empty, and listed by the report
            codes, error = None, str(refused)
        row = {**item.row, "faces": len(mesh.faces), "effort": effort, "error": error}
        return codes, {**row, "encode_seconds": time.perf_counter() - start}

    rows = []
    codes, row = encoded(None) if not own else (None, {})
    for levels in prefixes or range(1, len(codec.spec.levels) + 1):
        if own:
            codes, row = encoded(levels)
        error, start = row["error"], time.perf_counter()
        decoded = None if error else _decoded(codec, codes, resolution, levels)
        rows.append(
            {
                **row,
                "levels": levels,
                "bytes": None if error else len(codec.pack(codes.prefix(levels=levels))[0]),
                "decode_seconds": time.perf_counter() - start,
                **reference.score(decoded).as_dict(),
            }
        )
    return rows


def _decoded(codec: Any, codes: Any, resolution: int, levels: int) -> trimesh.Trimesh | None:
    """The mesh of a prefix, None when it is empty: a short prefix may hold no surface yet."""
    try:
        mesh: trimesh.Trimesh = codec.decode(codes, resolution=resolution, levels=levels)[0]
    except SignalError:
        return None
    return mesh


def protocol(part: str, **extra: Any) -> dict[str, Any]:
    """What the rows of a part mean, for the header of its file."""
    texts = {
        "draco": "positions and faces only; fast-simplification, and where it stalls, collapse of "
        "the shortest edges; DracoPy at level 10; for each of qp 7..10 the least decimation whose "
        "whole file fits, and of these the highest sum of F on other samples; shapes that cannot "
        "be fitted score as empty",
        "ceiling": "solidify(source), its signed distance extracted by marching cubes",
        "retrieval": f"nearest of train.zip by Chamfer over {FINE_POINTS} points among the "
        f"{SHORTLIST} nearest over {BANK_POINTS}; both centred with longest side 2",
        "polytok": "polytok.load(model).encode / decode; bytes of the whole file",
    }
    return {"part": part, "method": texts[part], **extra, "conventions": dict(CONVENTIONS)}


def main(argv: list[str] | None = None) -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default="draco,retrieval,ceiling,polytok,report")
    parser.add_argument("--splits", default="val,val-unseen")
    parser.add_argument("--limit", type=int, help="only the first N shapes of each split")
    parser.add_argument("--every", type=int, default=1, help="only every N-th shape")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--model", default=SHAPE_MODEL)
    parser.add_argument("--efforts", default=",".join(map(str, EFFORTS)))
    parser.add_argument("--prefixes", default="", help="levels to score; all if left out")
    parser.add_argument("--own", action="store_true", help="a search for each of these levels")
    parser.add_argument("--resolution", type=int, default=128, help="decode grid")
    parser.add_argument("--fresh", action="store_true", help="drop the rows of these parts")
    args = parser.parse_args(argv)
    parts = args.parts.split(",")
    unknown = set(parts) - {"draco", "retrieval", "ceiling", "polytok", "report"}
    if unknown:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    efforts = tuple(int(e) for e in args.efforts.split(","))
    prefixes = tuple(int(n) for n in args.prefixes.split(",") if n)
    jobs: list[tuple[str, dict[str, Any], Work]] = [
        (part, {}, work)
        for part, work in (
            ("draco", draco_rows),
            ("retrieval", retrieval_rows),
            ("ceiling", ceiling_rows),
        )
        if part in parts
    ]
    # A file per effort, so that slow ones can take fewer shapes, and more of them later.
    for effort in efforts if "polytok" in parts else ():
        options = {
            "model": args.model,
            "effort": effort,
            "resolution": args.resolution,
            "prefixes": prefixes,
            **({"own": True} if args.own else {}),
        }
        jobs.append(("polytok", options, partial(polytok_rows, **options)))
    for part, options, work in jobs:
        name = f"shape_rd_{part}"
        if part == "polytok":
            name += f"_{args.model}_effort{options['effort']}{'_own' if args.own else ''}"
        results = Results(name, protocol(part, **options), seed=SEED, fresh=args.fresh)
        items = [
            item
            for split in args.splits.split(",")
            for item in _results.shapes(split, args.limit)[:: args.every]
        ]
        is_forked = part == "retrieval"
        if is_forked:
            bank()  # shared by the processes
        _results.run(items, work, results, processes=args.processes, is_forked=is_forked)
    if "report" in parts:
        from _report import write_report

        write_report()


if __name__ == "__main__":
    main()
