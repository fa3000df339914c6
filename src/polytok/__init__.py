"""polytok: any signal in a few tokens, and back.

>>> import polytok
>>> codec = polytok.load("vat-512b-small")
>>> codes = codec.encode("chair.glb")
>>> polytok.save(codes, "chair.ptk")

Names resolve on first use, so ``import polytok`` itself imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polytok.core.contracts import Codes
    from polytok.core.registry import list_systems
    from polytok.reducers.api import reduce, unreduce
    from polytok.systems.api import load, open, pack, save, unpack
    from polytok.systems.vlm.api import vlm

__version__ = "0.1.0"

__all__ = [
    "Codes",
    "__version__",
    "list_systems",
    "load",
    "open",
    "pack",
    "reduce",
    "save",
    "unpack",
    "unreduce",
    "vlm",
]

_HOMES = {
    "Codes": "polytok.core.contracts",
    "list_systems": "polytok.core.registry",
    "load": "polytok.systems.api",
    "open": "polytok.systems.api",
    "pack": "polytok.systems.api",
    "reduce": "polytok.reducers.api",
    "save": "polytok.systems.api",
    "unpack": "polytok.systems.api",
    "unreduce": "polytok.reducers.api",
    "vlm": "polytok.systems.vlm.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'polytok' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
