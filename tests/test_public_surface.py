"""The public names: a change of the list is a change of the interface, and should be meant.

``POLYTOK_UPDATE_SURFACE=1 pytest tests/test_public_surface.py`` writes the list anew.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import polytok

STORED = Path(__file__).with_name("public_surface.json")


def packages() -> list[str]:
    """polytok and every package below it, by its ``__init__``."""
    found = pkgutil.walk_packages(polytok.__path__, "polytok.")
    return ["polytok", *sorted(module.name for module in found if module.ispkg)]


def public_names(package: str) -> list[str]:
    return list(getattr(importlib.import_module(package), "__all__", []))


def in_order(names: list[str]) -> bool:
    """Constants, then classes, then functions, each sorted."""
    kinds = [0 if n.isupper() else 1 if n[0].isupper() else 2 for n in names]
    keyed = list(zip(kinds, names, strict=True))
    return keyed == sorted(keyed)


def test_the_surface_is_the_stored_one() -> None:
    found = {name: names for name in packages() if (names := public_names(name))}
    if os.environ.get("POLYTOK_UPDATE_SURFACE") == "1":
        STORED.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(STORED.read_text())


@pytest.mark.parametrize("name", packages())
def test_names_are_sorted_exist_and_are_documented(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__doc__, name
    names = public_names(name)
    assert in_order(names), names
    assert len(set(names)) == len(names)
    for public in names:
        value = getattr(package, public)
        if callable(value):
            assert value.__doc__, f"{name}.{public}"


def test_the_front_door_shows_its_names_and_no_others() -> None:
    assert set(polytok.__all__) <= set(dir(polytok))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        polytok.lod  # noqa: B018


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys, polytok; assert 'vat' in polytok.list_systems();"
        "assert not {'torch', 'numpy', 'trimesh', 'rich'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_models_load_without_the_extra_for_training() -> None:
    code = (
        "import sys; sys.modules['accelerate'] = None\n"
        "import polytok; polytok.load('vat-512b-small')\n"
        "from polytok.core.errors import PolytokError\n"
        "from polytok.training import TrainConfig, fit\n"
        "try: fit(None, [], None, TrainConfig(), '.')\n"
        "except PolytokError as error: assert 'polytok[train]' in str(error), error\n"
        "else: raise AssertionError('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
