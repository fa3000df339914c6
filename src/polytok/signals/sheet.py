"""Contact sheets: captioned pictures in rows, on one picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from polytok.core.errors import PolytokError

_PAPER = (244, 244, 245)
_INK = (40, 44, 52)


def sheet(
    rows: Sequence[Sequence[tuple[str, Image.Image]]], *, gap: int = 12, text: int = 18
) -> Image.Image:
    """Lay pictures out in rows, each with a caption of one or more lines below it.

    Args:
        rows: (caption, picture) pairs; rows may differ in length.
        gap: pixels between pictures and around the sheet.
        text: height of the captions' letters in pixels.

    Raises:
        PolytokError: there is no picture.
    """
    cells = [cell for row in rows for cell in row]
    if not cells:
        raise PolytokError("a sheet needs at least one picture")
    wide = max(picture.width for _, picture in cells)
    font = ImageFont.load_default(size=text)
    line = round(text * 1.35)
    heights = [
        max(p.height for _, p in row) + line * max(len(c.splitlines()) for c, _ in row) + gap
        for row in rows
        if row
    ]
    columns = max(len(row) for row in rows)
    out = Image.new("RGB", (columns * (wide + gap) + gap, sum(heights) + 2 * gap), _PAPER)
    draw = ImageDraw.Draw(out)
    y = gap
    for row, height in zip((r for r in rows if r), heights, strict=True):
        below = y + max(p.height for _, p in row)
        for column, (caption, picture) in enumerate(row):
            x = gap + column * (wide + gap)
            out.paste(picture, (x + (wide - picture.width) // 2, y))
            for k, words in enumerate(caption.splitlines()):
                at = (x + wide / 2, below + k * line + line / 2)
                draw.text(at, words, fill=_INK, font=font, anchor="mm")
        y += height
    return out
