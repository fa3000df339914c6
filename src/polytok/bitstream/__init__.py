"""The ``.ptk`` container: codes to bytes and back. Importing it imports no torch."""

from __future__ import annotations

from polytok.bitstream.container import (
    Header,
    bits_per_level,
    pack,
    read_header,
    size,
    sizes,
    truncate,
    unpack,
)
from polytok.bitstream.heads import nearest_iso, nearest_stretch, tile_grid
from polytok.bitstream.prior import (
    SymbolModel,
    SymbolReader,
    SymbolWriter,
    describe_writer,
    writer_id,
)

__all__ = [
    "Header",
    "SymbolModel",
    "SymbolReader",
    "SymbolWriter",
    "bits_per_level",
    "describe_writer",
    "nearest_iso",
    "nearest_stretch",
    "pack",
    "read_header",
    "size",
    "sizes",
    "tile_grid",
    "truncate",
    "unpack",
    "writer_id",
]
