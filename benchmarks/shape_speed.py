"""How long polytok takes for shapes, and how much memory.

    python benchmarks/shape_speed.py --parts decode,cold,encode,extract

``decode`` and ``encode`` run in this process, ``cold`` starts the command line anew, ``extract``
compares coarse-to-fine with dense extraction of fields of val: solids, or what codes decode to.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

import _results
from _results import SHAPE_MODEL, Item, Results, Row, load_codec
from polytok.core.errors import PolytokError
from polytok.signals.mesh.extract import Field

RESOLUTIONS = (128, 256)
EFFORTS = (0, 5, 9)
FACES = 5000
SEED = 0


def timed(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median, best and worst wall-clock seconds of ``repeats`` calls after one to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds_median": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "repeats": repeats,
    }


def peak_mib(who: int = resource.RUSAGE_SELF) -> float:
    """Largest resident memory so far, in MiB; Linux counts it in KiB."""
    return resource.getrusage(who).ru_maxrss / 1024


def typical(faces: int = FACES) -> Item:
    """The shape of val whose face count is nearest to ``faces``."""
    return min(_results.shapes("val"), key=lambda i: (abs(len(i.mesh().faces) - faces), i.name))


def decode_rows(codec: Any, item: Item, repeats: int = 10) -> list[Row]:
    """Decoding a code of ``item`` at each resolution, in process."""
    codes = codec.encode(item.mesh(), effort=0, seed=SEED)
    rows = []
    for resolution in RESOLUTIONS:
        spent = timed(lambda r=resolution: codec.decode(codes, resolution=r), repeats)
        rows.append({**item.row, "what": "decode", "resolution": resolution, **spent})
        rows[-1]["peak_rss_mib"] = peak_mib()
    return rows


def encode_rows(codec: Any, item: Item, efforts: tuple[int, ...] = EFFORTS) -> list[Row]:
    """Encoding ``item`` with everything that it takes, per effort."""
    mesh = item.mesh()
    rows = []
    for effort in efforts:
        spent = timed(lambda e=effort: codec.encode(mesh, effort=e, seed=SEED), 3 if effort else 5)
        rows.append({**item.row, "what": "encode", "effort": effort, "faces": len(mesh.faces)})
        rows[-1] |= {**spent, "peak_rss_mib": peak_mib()}
    return rows


def _command(*arguments: str) -> float:
    """Run the command line in a new process and return its seconds.

    Raises:
        PolytokError: it fails.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "polytok", *arguments], capture_output=True, text=True
    )
    if done.returncode:
        raise PolytokError(f"polytok {arguments[0]} failed: {done.stderr.strip()[-200:]}")
    return time.perf_counter() - start


def cold_rows(model: str, item: Item, repeats: int = 3) -> list[Row]:
    """``polytok encode`` and ``decode`` from a cold start."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source, code, back = (str(Path(folder) / n) for n in ("in.glb", "out.ptk", "back.glb"))
        item.mesh().export(source)
        jobs = {"encode": ("encode", source, "-o", code, "--model", model, "--force")}
        for resolution in RESOLUTIONS:
            arguments = ("decode", code, "-o", back, "--res", str(resolution), "--force")
            jobs[f"decode {resolution}"] = arguments
        for name, arguments in jobs.items():
            seconds = [_command(*arguments) for _ in range(repeats)]
            row = {**item.row, "what": f"cold {name}", "repeats": repeats}
            row["seconds_median"] = statistics.median(seconds)
            rows.append(row | {"seconds_min": min(seconds), "seconds_max": max(seconds)})
    # The largest of all children so far; the dearest job is the last one.
    rows[-1]["peak_rss_mib"] = peak_mib(resource.RUSAGE_CHILDREN)
    return rows


def solid_field(mesh: trimesh.Trimesh) -> Field:
    """The shape's own solid: a signed distance."""
    from polytok.signals.mesh import solidify

    solid = solidify(mesh)
    return lambda p: (-solid.nearest(p.astype(np.float64)).sdf).astype(np.float32)


def decoded_field(mesh: trimesh.Trimesh, model: str) -> Field:
    """What the shape's code decodes to: logits."""
    import torch

    codec = load_codec(model)
    planes = codec.field(codec.encode(mesh, effort=0, seed=SEED))

    @torch.inference_mode()
    def field(points: NDArray[np.float32]) -> NDArray[np.float32]:
        return planes(torch.from_numpy(points)[None])[0].numpy()

    return field


def extract_rows(item: Item, resolution: int, model: str | None) -> list[Row]:
    """Coarse-to-fine against dense extraction of a field of the shape."""
    from polytok.signals.mesh import extract

    mesh = item.mesh()
    field = solid_field(mesh) if model is None else decoded_field(mesh, model)
    start = time.perf_counter()
    sparse = extract(field, resolution)
    middle = time.perf_counter()
    dense = extract(field, resolution, dense=True)
    end = time.perf_counter()
    same = np.array_equal(sparse.vertices, dense.vertices)
    return [
        {
            **item.row,
            "what": "extract",
            "resolution": resolution,
            "identical": bool(same and np.array_equal(sparse.faces, dense.faces)),
            "faces_dense": len(dense.faces),
            "faces_sparse": len(sparse.faces),
            "fewer_queries": dense.num_queries / sparse.num_queries,
            "seconds_sparse": middle - start,
            "seconds_dense": end - middle,
        }
    ]


def main(argv: list[str] | None = None) -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default="decode,cold,encode")
    parser.add_argument("--model", default=SHAPE_MODEL)
    parser.add_argument("--resolution", type=int, default=256, help="of part extract")
    parser.add_argument("--every", type=int, default=4, help="of part extract: each Nth shape")
    parser.add_argument("--field", choices=("solid", "model"), default="model", help="to extract")
    parser.add_argument("--processes", type=int, default=2, help="of part extract")
    args = parser.parse_args(argv)
    parts = args.parts.split(",")
    unknown = set(parts) - {"decode", "cold", "encode", "extract"}
    if unknown:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    for part in parts:
        about = {"part": part, "threads": threads, "model": args.model}
        name = f"shape_speed_{part}"
        if part == "extract":
            model = None if args.field == "solid" else args.model
            about |= {"resolution": args.resolution, "field": args.field, "every": args.every}
            results = Results(f"{name}_{args.field}", about, seed=SEED)
            items = _results.shapes("val")[:: args.every]
            work = partial(extract_rows, resolution=args.resolution, model=model)
            _results.run(items, work, results, processes=args.processes)
            differ = [row["shape"] for row in results.rows if not row["identical"]]
            fewer = statistics.median(row["fewer_queries"] for row in results.rows)
            print(f"{len(differ)} of {len(results.rows)} differ {differ}; {fewer:.1f}x fewer")
            continue
        results = Results(name, about, seed=SEED, fresh=True)
        item = typical()
        if part == "cold":
            results.rows = cold_rows(args.model, item)
        else:
            rows = decode_rows if part == "decode" else encode_rows
            results.rows = rows(load_codec(args.model), item)
        results.save()
        for row in results.rows:
            print({k: v for k, v in row.items() if k not in ("split", "pack")})


if __name__ == "__main__":
    main()
