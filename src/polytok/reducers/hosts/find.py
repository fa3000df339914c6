"""Finding what of a model can be reduced, and saying why the rest cannot."""

from __future__ import annotations

from torch import nn

from polytok.core.errors import PolytokError
from polytok.reducers.hosts.base import Host
from polytok.reducers.hosts.timm_vit import TimmViT

HOSTS: tuple[Host, ...] = (TimmViT(),)


def find_core(model: nn.Module) -> tuple[nn.Module, Host]:
    """The one vision transformer within ``model``, or ``model`` itself, and its family.

    Raises:
        PolytokError: there is none, several, or one of a family that cannot work.
    """
    found = [(m, host) for m in model.modules() for host in HOSTS if host.matches(m)]
    if len(found) == 1:
        return found[0]
    raise PolytokError("none" if not found else "several")
