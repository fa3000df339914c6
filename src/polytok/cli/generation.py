"""Generated codes to files: one ``.ptk`` and one mesh each, and a contact sheet."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytok.cli import show
from polytok.core.errors import PolytokError
from polytok.core.files import atomic_path, write_bytes

if TYPE_CHECKING:
    import trimesh

    from polytok.core.contracts import Codes
    from polytok.systems.shape.generation import ShapeGenerator

Row = dict[str, Any]
MAX_COUNT = 10_000
SHEET_MOST = 64
SHEET_PIXELS = 224
SHEET_COLUMNS = 8


def targets(output: Path, stem: str, count: int, suffix: str, *, force: bool) -> list[Path]:
    """Where the meshes of ``count`` items go: a file for one, else files in a folder.

    Raises:
        PolytokError: a result exists and ``force`` is false, or the format is unknown.
    """
    from polytok.signals import mesh as meshes

    if output.suffix and not output.is_dir():
        if count > 1:
            raise PolytokError(f"{output} is one file, but {count} shapes are asked for")
        found = [output]
    else:
        found = [output / f"{stem}-{i:0{len(str(count - 1))}d}.{suffix}" for i in range(count)]
    if found[0].suffix.lower() not in meshes.WRITABLE:
        raise PolytokError(
            f"{found[0]} has extension {found[0].suffix or 'none'!r}; known: "
            f"{', '.join(meshes.WRITABLE)}"
        )
    sheet = [output / f"{stem}.png"] if count > 1 else []
    for path in [p for f in found for p in (f, f.with_suffix(".ptk"))] + sheet:
        if path.exists() and not force:
            raise PolytokError(f"{path} exists already; use --force to replace it")
    return found


def check_count(count: int) -> None:
    """Refuse a number of shapes before anything is loaded.

    Raises:
        PolytokError: it is not within 1..10,000.
    """
    if not 1 <= count <= MAX_COUNT:
        raise PolytokError(f"-n {count} is not within 1..{MAX_COUNT}")


def stem_of(text: str | None, image: Path | None) -> str:
    """A file name from a prompt."""
    words = re.sub(r"[^\w]+", "-", (text or "").lower()).strip("-_")[:40]
    return words or (image.stem if image else "shape")


def write_all(
    generator: ShapeGenerator,
    parts: Iterator[Codes],
    paths: list[Path],
    sheet: Path | None,
    *,
    resolution: int,
    force: bool,
    as_json: bool,
) -> list[Row]:
    """Decode and write every item as it comes, so memory stays bounded; returns a row each."""
    from polytok.signals import mesh as meshes

    rows: list[Row] = []
    pictures: list[Any] = []
    start = time.perf_counter()
    for codes in parts:
        for place in range(len(codes)):
            path, one = paths[len(rows)], codes[place]
            mesh = generator.codec.decode(one, resolution=resolution)[0]
            data = generator.codec.pack(one)[0]
            meshes.write(mesh, path, force=force)
            write_bytes(path.with_suffix(".ptk"), data, force=force)
            draws = int(one.meta["draws"][0])
            if draws > 1:
                show.note(f"{path}: draw {draws}, since those before it decoded to nothing")
            row = {
                "output": str(path),
                "bytes": len(data),
                "faces": len(mesh.faces),
                "draws": draws,
                "seconds": round(time.perf_counter() - start, 3),
            }
            start = time.perf_counter()
            rows.append(row)
            if not as_json:
                print(f"[{len(rows)}/{len(paths)}] {path}: {len(data)} bytes as .ptk", flush=True)
            if sheet is not None and len(pictures) < SHEET_MOST:
                pictures.append(_picture(mesh))
    if sheet is not None:
        _write_sheet(pictures, sheet)
        if not as_json:
            print(f"{sheet}: {len(pictures)} pictures")
    return rows


def _picture(mesh: trimesh.Trimesh) -> Any:
    from polytok.signals import mesh as meshes

    return meshes.render(mesh, size=SHEET_PIXELS)


def _write_sheet(pictures: list[Any], path: Path) -> None:
    from polytok.signals import mesh as meshes

    columns = min(SHEET_COLUMNS, math.ceil(math.sqrt(len(pictures) * 2)))
    rows = [
        [(str(start + i), picture) for i, picture in enumerate(pictures[start : start + columns])]
        for start in range(0, len(pictures), columns)
    ]
    with atomic_path(path) as aside:
        meshes.sheet(rows).save(aside)
