"""Generated codes to files: one ``.ptk`` and one mesh each, and a contact sheet."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytok.cli import show
from polytok.core.errors import PolytokError
from polytok.core.files import atomic_path, write_bytes

if TYPE_CHECKING:
    import trimesh

    from polytok.core.contracts import Codes
    from polytok.systems.shape.codec import ShapeCodec
    from polytok.systems.shape.generation import ShapeGenerator

Row = dict[str, Any]
SHEET_MOST = 64
SHEET_PIXELS = 224
SHEET_COLUMNS = 8


@dataclass(frozen=True)
class Destination:
    """Where shapes go: ``paths`` of the meshes, and the contact sheet of more than one."""

    paths: tuple[Path, ...]
    sheet: Path | None

    @staticmethod
    def of(output: Path, stem: str, count: int, suffix: str, *, force: bool) -> Destination:
        """A file for one shape, else files in a folder; checked before anything is drawn.

        Raises:
            PolytokError: the count is out of range, the format is unknown, or a result exists and
                ``force`` is false.
        """
        from polytok.signals import mesh as meshes
        from polytok.systems.shape.generation import check_count

        check_count(count)
        if output.suffix and not output.is_dir():
            if count > 1:
                raise PolytokError(f"{output} is one file, but {count} shapes are asked for")
            paths = [output]
        else:
            digits = len(str(count - 1))
            paths = [output / f"{stem}-{i:0{digits}d}.{suffix}" for i in range(count)]
        if paths[0].suffix.lower() not in meshes.WRITABLE:
            raise PolytokError(
                f"{paths[0]} has extension {paths[0].suffix or 'none'!r}; known: "
                f"{', '.join(meshes.WRITABLE)}"
            )
        sheet = output / f"{stem}.png" if count > 1 else None
        results = [p for path in paths for p in (path, path.with_suffix(".ptk"))]
        for path in [*results, *([sheet] if sheet else [])]:
            if path.exists() and not force:
                raise PolytokError(f"{path} exists already; use --force to replace it")
        return Destination(tuple(paths), sheet)


def stem_of(text: str | None, image: Path | None) -> str:
    """A file name from a prompt."""
    words = re.sub(r"[^\w]+", "-", (text or "").lower()).strip("-_")[:40]
    return words or (image.stem if image else "shape")


def note_cut(generator: ShapeGenerator, text: str | None) -> None:
    """Say it if a text is longer than the generator reads."""
    if text is not None and generator.is_cut(text):
        show.note("the text is longer than the model reads; its end is left out")


def write_all(
    codec: ShapeCodec,
    parts: Iterable[Codes],
    to: Destination,
    *,
    resolution: int,
    force: bool,
    as_json: bool,
) -> None:
    """Decode, write and show every item as it comes, so memory stays bounded."""
    from polytok.signals import mesh as meshes

    rows: list[Row] = []
    pictures: list[Any] = []
    start = time.perf_counter()
    for codes in parts:
        for place in range(len(codes)):
            path, one = to.paths[len(rows)], codes[place]
            mesh = codec.decode(one, resolution=resolution)[0]
            data = codec.pack(one)[0]
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
                print(
                    f"[{len(rows)}/{len(to.paths)}] {path}: {len(data)} bytes as .ptk", flush=True
                )
            if to.sheet is not None and len(pictures) < SHEET_MOST:
                pictures.append(_picture(mesh))
    if to.sheet is not None:
        _write_sheet(pictures, to.sheet)
        if not as_json:
            print(f"{to.sheet}: {len(pictures)} pictures")
    if as_json:
        print(json.dumps({"results": rows}))


def _picture(mesh: trimesh.Trimesh) -> Any:
    from polytok.signals import mesh as meshes

    return meshes.render(mesh, size=SHEET_PIXELS)


def _write_sheet(pictures: list[Any], path: Path) -> None:
    from polytok.signals.sheet import sheet

    columns = min(SHEET_COLUMNS, math.ceil(math.sqrt(len(pictures) * 2)))
    rows = [
        [(str(start + i), picture) for i, picture in enumerate(pictures[start : start + columns])]
        for start in range(0, len(pictures), columns)
    ]
    with atomic_path(path) as aside:
        sheet(rows).save(aside)
