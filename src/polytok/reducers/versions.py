"""Which versions of timm and transformers the tests ran with."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import metadata

TESTED = {"timm": ("1.0.31",), "transformers": ("4.57", "5.23", "5.24")}


@cache
def warn_untested(library: str) -> None:
    """Say once that a version is not among those the tests ran with."""
    version = metadata.version(library)
    if not version.startswith(TESTED[library]):
        warnings.warn(
            f"token reduction is tested with {library} {' and '.join(TESTED[library])}, "
            f"this is {version}",
            stacklevel=3,
        )
