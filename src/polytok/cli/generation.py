"""Generated codes to files: one ``.ptk`` and one signal each, and a contact sheet; shapes."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytok.cli import show
from polytok.core.errors import PolytokError
from polytok.core.files import atomic_path, write_bytes

if TYPE_CHECKING:
    from polytok.core.contracts import Codes
    from polytok.systems.codec import Codec
    from polytok.systems.shape.codec import ShapeCodec
    from polytok.systems.shape.generation import ShapeGenerator

Row = dict[str, Any]
Make = Callable[["Codes", Path], tuple[Row, Callable[[], Any]]]
"""Writes the signal of a code; gives facts of it, and what draws its picture."""

NOUN = "shape"
CFG = 2.0
SHEET_MOST = 64
SHEET_PIXELS = 224
SHEET_COLUMNS = 8


@dataclass(frozen=True)
class Destination:
    """Where signals go: ``paths`` of them, and the contact sheet of more than one."""

    paths: tuple[Path, ...]
    sheet: Path | None

    @staticmethod
    def of(
        output: Path,
        stem: str,
        count: int,
        suffix: str,
        *,
        known: Sequence[str],
        noun: str,
        force: bool,
    ) -> Destination:
        """A file for one signal, else files in a folder; checked before anything is drawn.

        Args:
            known: extensions that can be written. noun: one signal, in words.

        Raises:
            PolytokError: the format is unknown, one file is named for many signals, or a result
                exists and ``force`` is false.
        """
        if output.suffix and not output.is_dir():
            if count > 1:
                raise PolytokError(f"{output} is one file, but {count} {noun}s are asked for")
            paths = [output]
        else:
            digits = len(str(count - 1))
            paths = [output / f"{stem}-{i:0{digits}d}.{suffix}" for i in range(count)]
        if paths[0].suffix.lower() not in known:
            raise PolytokError(
                f"{paths[0]} has extension {paths[0].suffix or 'none'!r}; known: {', '.join(known)}"
            )
        sheet = output / f"{stem}.png" if count > 1 else None
        results = [p for path in paths for p in (path, path.with_suffix(".ptk"))]
        for path in [*results, *([sheet] if sheet else [])]:
            if path.exists() and not force:
                raise PolytokError(f"{path} exists already; use --force to replace it")
        return Destination(tuple(paths), sheet)


def stem_of(text: str | None, image: Path | None, noun: str = NOUN) -> str:
    """A file name from a prompt, or from what is drawn if there is none."""
    words = re.sub(r"[^\w]+", "-", (text or "").lower()).strip("-_")[:40]
    return words or (image.stem if image else noun)


def note_cut(generator: ShapeGenerator, text: str | None) -> None:
    """Say it if a text is longer than the generator reads."""
    if text is not None and generator.is_cut(text):
        show.note("the text is longer than the model reads; its end is left out")


def note_stretch(codes: Codes) -> None:
    """Say it if a code is of a stretched shape, as generators know none."""
    factors = codes.meta.get("stretch")
    if factors is not None and bool((factors != 1).any()):
        by = " x ".join(f"{factor:.3g}" for factor in factors[0].tolist())
        show.note(f"the shape is stretched by {by}; generators know shapes of --no-stretch")


def shape_destination(
    output: Path, stem: str, count: int, suffix: str, *, force: bool
) -> Destination:
    """Where shapes go.

    Raises:
        PolytokError: the count is out of range; see also :meth:`Destination.of`.
    """
    from polytok.signals import mesh as meshes
    from polytok.systems.drawing import check_count
    from polytok.systems.shape.generation import MAX_COUNT

    check_count(count, MAX_COUNT)
    return Destination.of(
        output, stem, count, suffix, known=meshes.WRITABLE, noun=NOUN, force=force
    )


def generate(
    model: str,
    output: Path,
    *,
    count: int,
    seed: int,
    device: str,
    force: bool,
    as_json: bool,
    text: str | None = None,
    image: Path | None = None,
    cfg: float = CFG,
    draft: float | None = None,
    blend: float = 0.5,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: tuple[float, ...] = (0.0,),
    res: int = 128,
    format: str = "glb",
) -> None:
    """Draw shapes from a text, a picture, both or nothing."""
    from polytok.generators import Sampling
    from polytok.systems import api

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    to = shape_destination(output, stem_of(text, image), count, format.lstrip("."), force=force)
    generator = api.load_generator(model, device=device)
    note_cut(generator, text)
    parts = generator.stream(
        text, image, count=count, seed=seed, cfg=cfg, draft=draft, blend=blend, sampling=sampling
    )
    write_shapes(generator.codec, parts, to, resolution=res, force=force, as_json=as_json)


def write_shapes(
    codec: ShapeCodec,
    parts: Iterable[Codes],
    to: Destination,
    *,
    resolution: int,
    force: bool,
    as_json: bool,
) -> None:
    """Write shapes as they come, see :func:`write_all`."""
    from polytok.signals import mesh as meshes

    def make(codes: Codes, path: Path) -> tuple[Row, Callable[[], Any]]:
        mesh = codec.decode(codes, resolution=resolution)[0]
        meshes.write(mesh, path, force=force)
        draws = int(codes.meta["draws"][0])
        if draws > 1:
            show.note(f"{path}: draw {draws}, since those before it decoded to nothing")
        facts = {"faces": len(mesh.faces), "draws": draws}
        return facts, lambda: meshes.render(mesh, size=SHEET_PIXELS)

    write_all(codec, parts, to, make, force=force, as_json=as_json)


def write_all(
    codec: Codec,
    parts: Iterable[Codes],
    to: Destination,
    make: Make,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Decode, write and show every item as it comes, so memory stays bounded."""
    rows: list[Row] = []
    pictures: list[Any] = []
    start = time.perf_counter()
    for codes in parts:
        for place in range(len(codes)):
            path, one = to.paths[len(rows)], codes[place]
            facts, picture = make(one, path)
            data = codec.pack(one)[0]
            write_bytes(path.with_suffix(".ptk"), data, force=force)
            seconds = round(time.perf_counter() - start, 3)
            rows.append({"output": str(path), "bytes": len(data), **facts, "seconds": seconds})
            start = time.perf_counter()
            if not as_json:
                show.line(f"[{len(rows)}/{len(to.paths)}] {path}: {len(data)} bytes as .ptk")
            if to.sheet is not None and len(pictures) < SHEET_MOST:
                pictures.append(picture())
    if to.sheet is not None:
        _write_sheet(pictures, to.sheet)
        if not as_json:
            show.line(f"{to.sheet}: {len(pictures)} pictures")
    if as_json:
        print(json.dumps({"results": rows}))


def _write_sheet(pictures: list[Any], path: Path) -> None:
    from polytok.signals.sheet import sheet

    columns = min(SHEET_COLUMNS, math.ceil(math.sqrt(len(pictures) * 2)))
    rows = [
        [(str(start + i), picture) for i, picture in enumerate(pictures[start : start + columns])]
        for start in range(0, len(pictures), columns)
    ]
    picture = sheet(rows)
    with atomic_path(path) as aside:
        picture.save(aside)
