"""The public surface: explicit, lazy and light."""

from __future__ import annotations

import subprocess
import sys

import polytok


def test_the_surface_is_what_it_says() -> None:
    assert polytok.__all__ == sorted(polytok.__all__)
    assert polytok.__all__ == [
        "Codes",
        "__version__",
        "list_systems",
        "load",
        "open",
        "pack",
        "save",
        "unpack",
    ]
    assert set(polytok.__all__) <= set(dir(polytok))


def test_every_public_name_resolves() -> None:
    for name in polytok.__all__:
        assert getattr(polytok, name) is not None


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys, polytok; assert 'vat' in polytok.list_systems();"
        "assert not {'torch', 'numpy', 'trimesh', 'rich'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_refused() -> None:
    assert not hasattr(polytok, "tokenise")
