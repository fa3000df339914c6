"""The public names: a change here is a change of the interface, and should be meant."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import polytok

FRONT = ["Codes", "__version__", "list_systems", "load", "open", "pack", "save", "unpack"]

# The whole public surface: what each package offers. A package without a row here fails.
SURFACE: dict[str, list[str]] = {
    "polytok.bitstream": [
        "Header",
        "bits_per_level",
        "pack",
        "read_header",
        "size",
        "sizes",
        "truncate",
        "unpack",
    ],
    "polytok.bottlenecks": [
        "RESAMPLERS",
        "GaussianBottleneck",
        "MultiScaleVQ",
        "ScaleResampler",
        "make_resampler",
    ],
    "polytok.layers": [
        "PLANE_AXES",
        "Block",
        "CrossBlock",
        "FeedForward",
        "FourierEmbedding",
        "attend",
        "compute_dtype",
    ],
    "polytok.losses": ["signed_distance_loss", "soft_occupancy_loss"],
    "polytok.networks.decoders": ["PlaneField", "TriplaneDecoder"],
    "polytok.networks.encoders": ["PointEncoder"],
    "polytok.systems.shape.vat": ["PRESETS", "VAT", "VATConfig", "VariationalQuantizer", "preset"],
}


def packages() -> list[str]:
    """Every package of polytok, by its ``__init__``."""
    found = pkgutil.walk_packages(polytok.__path__, "polytok.")
    return sorted(module.name for module in found if module.ispkg)


def in_order(names: list[str]) -> bool:
    """Constants, then classes, then functions, each sorted."""
    kinds = [0 if n.isupper() else 1 if n[0].isupper() else 2 for n in names]
    return list(zip(kinds, names, strict=True)) == sorted(zip(kinds, names, strict=True))


def test_the_front_door() -> None:
    assert polytok.__all__ == FRONT
    for name in FRONT:
        assert getattr(polytok, name) is not None
    assert set(FRONT) <= set(dir(polytok))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        polytok.lod  # noqa: B018


@pytest.mark.parametrize("name", packages())
def test_names_are_sorted_exist_and_are_documented(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__doc__, name
    names = list(getattr(package, "__all__", []))
    assert in_order(names), names
    assert len(set(names)) == len(names)
    for public in names:
        value = getattr(package, public)
        if callable(value):
            assert value.__doc__, f"{name}.{public}"


@pytest.mark.parametrize("name", sorted(SURFACE))
def test_a_package_offers_what_it_offered(name: str) -> None:
    assert list(importlib.import_module(name).__all__) == SURFACE[name]
