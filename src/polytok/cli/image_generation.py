"""Generated pictures on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polytok.cli.generation import SHEET_PIXELS, Destination, Row, stem_of, write_all
from polytok.signals import image as images

if TYPE_CHECKING:
    from polytok.core.contracts import Codes

NOUN = "image"


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
    cfg: float | None = None,
    temperature: float | None = None,
    steps: int | None = None,
    size: int | None = None,
    format: str = "png",
) -> None:
    """Draw pictures of the class that ``text`` names or numbers, or of none."""
    from polytok.systems import api
    from polytok.systems.drawing import check_count
    from polytok.systems.image.generation import MAX_COUNT

    check_count(count, MAX_COUNT)
    to = Destination.of(
        output,
        stem_of(text, None, NOUN),
        count,
        format.lstrip("."),
        known=images.WRITABLE,
        noun=NOUN,
        force=force,
    )
    generator = api.load_generator(model, device=device, modality="image")
    parts = generator.stream(
        text, count=count, seed=seed, steps=steps, cfg=cfg, temperature=temperature
    )

    def make(codes: Codes, path: Path) -> tuple[Row, Callable[[], Any]]:
        picture = generator.images(codes, size=size)[0]
        images.write(picture, path, force=force)
        facts = {"width": picture.width, "height": picture.height}
        return facts, lambda: generator.images(codes, size=SHEET_PIXELS)[0]

    write_all(generator.codec, parts, to, make, force=force, as_json=as_json)
