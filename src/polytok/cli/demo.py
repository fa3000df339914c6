"""The demo: bundled shapes, their codes, what Draco makes of the same bytes, and one picture."""

from __future__ import annotations

import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trimesh

from polytok.cli import show
from polytok.core.errors import PolytokError, SignalError
from polytok.core.files import atomic_path, write_bytes
from polytok.metrics import ShapeReference, draco_fit
from polytok.signals import mesh as meshes
from polytok.signals.sheet import sheet
from polytok.systems import api

if TYPE_CHECKING:
    from PIL.Image import Image

    from polytok.systems.shape.codec import ShapeCodec

Row = dict[str, Any]
Cell = tuple[str, "Image"]
MAX_BYTES = 512
PREFIXES = (244, 117)  # bytes of whole files with seven and five scales
PICTURE = 320
EMPTY = (0.8, 0.8, 0.8)


def run_demo(output: Path, *, model: str, effort: int, seed: int, force: bool) -> list[Row]:
    """Write meshes, codes and demo.png into ``output``; returns a row per shape and variant.

    Raises:
        PolytokError: ``output`` is a file, or it holds anything and ``force`` is false, or
            ``model`` is no tokenizer of shapes.
    """
    if output.is_file():
        raise PolytokError(f"{output} is a file, not a folder")
    if not force and output.is_dir() and any(output.iterdir()):
        raise PolytokError(f"{output} is not empty; use --force to replace its files")
    codec = api.load_codec(model, modality="shape")
    rows: list[Row] = []
    pictures: list[list[Cell]] = []
    shapes = sorted((Path(str(files("polytok.data"))) / "assets" / "shapes").glob("*.glb"))
    for path in show.progress(shapes, "demo"):
        mesh = meshes.read(path)
        reference = ShapeReference(mesh, seed=seed + 1, secondary=False)
        row = _Row(path, mesh, reference, output)
        row.add("original", mesh, path.stat().st_size)
        _draco(row, mesh)
        _polytok(row, codec, effort, seed)
        rows += row.rows
        pictures.append(row.cells)
    picture = sheet(pictures)
    with atomic_path(output / "demo.png") as aside:
        picture.save(aside)
    return rows


class _Row:
    """One shape: its variants as files, table rows and pictures."""

    def __init__(
        self, path: Path, mesh: trimesh.Trimesh, reference: ShapeReference, output: Path
    ) -> None:
        self.name, self.mesh, self.reference, self.output = path.stem, mesh, reference, output
        self.rows: list[Row] = []
        self.cells: list[Cell] = []

    def add(
        self, what: str, mesh: trimesh.Trimesh | None, size: int | None, **seconds: float
    ) -> None:
        score = None if what == "original" else self.reference.score(mesh).f_002
        self.rows.append(
            {"shape": self.name, "what": what, "bytes": size, "f_002": score, **seconds}
        )
        if mesh is not None:
            meshes.write(mesh, self.output / f"{self.name}-{what.replace(' ', '-')}.glb")
        lines = [what if size is None or what == f"{size} B" else f"{what}, {size:,} B"]
        lines.append("" if score is None else f"F@0.02 {score:.2f}")
        self.cells.append(("\n".join(lines), self._picture(mesh)))

    def _picture(self, mesh: trimesh.Trimesh | None) -> Image:
        if mesh is not None:
            return meshes.render(mesh, size=PICTURE, frame=self.mesh)
        from PIL import Image as Pictures

        return Pictures.new("RGB", (PICTURE, PICTURE), tuple(round(255 * c) for c in EMPTY))


def _draco(row: _Row, mesh: trimesh.Trimesh) -> None:
    start = time.perf_counter()
    fit = draco_fit(mesh, MAX_BYTES)
    seconds = time.perf_counter() - start
    if fit is None:
        row.add("Draco: none", None, None)
    else:
        row.add("Draco", fit.mesh, len(fit.data), encode=seconds)


def _polytok(row: _Row, codec: ShapeCodec, effort: int, seed: int) -> None:
    start = time.perf_counter()
    codes = codec.encode(row.mesh, effort=effort, seed=seed)
    spent: float | None = time.perf_counter() - start
    whole = codec.pack(codes, max_bytes=MAX_BYTES)[0]
    for size in (MAX_BYTES, *PREFIXES):
        data = codec.truncate(whole, size)
        write_bytes(row.output / f"{row.name}-{len(data)}.ptk", data)
        start = time.perf_counter()
        try:
            mesh = codec.decode(codec.unpack(data))[0]
        except SignalError:
            # A short prefix may hold no surface yet; the picture says so.
            mesh = None
        seconds = {"decode": time.perf_counter() - start}
        if spent is not None:
            seconds["encode"] = spent
        spent = None
        row.add("polytok", mesh, len(data), **seconds)
