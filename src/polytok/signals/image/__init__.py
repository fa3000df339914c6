"""Images: read as sRGB, frame, flatten, cut into tiles, join and write."""

from polytok.signals.image.framing import framed
from polytok.signals.image.io import EXTENSIONS, WRITABLE, from_array, plain, read, write
from polytok.signals.image.tiles import WHITE, flat, from_tiles, to_tiles

__all__ = [
    "EXTENSIONS",
    "WHITE",
    "WRITABLE",
    "flat",
    "framed",
    "from_array",
    "from_tiles",
    "plain",
    "read",
    "to_tiles",
    "write",
]
