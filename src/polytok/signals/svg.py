"""Vector graphics: draw an SVG as pixels."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from polytok.core.errors import ConfigError, PolytokError, SignalError, one_line

LARGEST = 4096


def render(svg: str, size: int) -> Image.Image:
    """Draw an SVG as ``RGBA`` whose longest side has ``size`` pixels.

    Args:
        svg: the document's text. Its text elements need fonts, of which none are loaded.
        size: 1..4096.

    Raises:
        SignalError: it is no SVG. ConfigError: ``size`` is out of range.
        PolytokError: the extra ``vector`` is not installed.
    """
    if not 1 <= size <= LARGEST:
        raise ConfigError(f"size={size} is not within 1..{LARGEST}")
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise PolytokError("SVG needs its extra: pip install 'polytok[vector]'") from error
    try:
        data = svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    except ValueError as error:
        raise SignalError(f"not a readable SVG: {one_line(error, 120)}") from error
    with Image.open(BytesIO(bytes(data))) as image:
        return image.convert("RGBA")
