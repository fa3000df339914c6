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

__all__ = [
    "Header",
    "bits_per_level",
    "pack",
    "read_header",
    "size",
    "sizes",
    "truncate",
    "unpack",
]
