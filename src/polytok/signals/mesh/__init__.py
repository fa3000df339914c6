"""Meshes: read, write, make solid, sample, extract, clean and draw."""

from polytok.signals.mesh.clean import clean
from polytok.signals.mesh.extract import extract
from polytok.signals.mesh.frame import Frame, evening
from polytok.signals.mesh.io import EXTENSIONS, WRITABLE, dropped, read, write
from polytok.signals.mesh.prepare import (
    COMPACT,
    Prepared,
    Profile,
    Surface,
    from_compact,
    prepare,
    surface,
    to_compact,
)
from polytok.signals.mesh.preview import render
from polytok.signals.mesh.solid import Solid, solidify
from polytok.signals.mesh.views import ViewSampling, views

__all__ = [
    "COMPACT",
    "EXTENSIONS",
    "WRITABLE",
    "Frame",
    "Prepared",
    "Profile",
    "Solid",
    "Surface",
    "ViewSampling",
    "clean",
    "dropped",
    "evening",
    "extract",
    "from_compact",
    "prepare",
    "read",
    "render",
    "solidify",
    "surface",
    "to_compact",
    "views",
    "write",
]
