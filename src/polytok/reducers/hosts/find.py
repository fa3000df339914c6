"""Finding what of a model can be reduced, and saying why the rest cannot."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from torch import nn

from polytok.core.errors import PolytokError
from polytok.reducers.hosts.base import Host

# The class of a model in its library -> our hosts, of which the first that fits is taken. They are
# imported when a model of the family turns up, so its library is there.
CLASSES = {
    ("timm", "VisionTransformer"): ("timm_vit.TimmViT",),
    ("timm", "Eva"): ("timm_eva.TimmEva",),
    ("transformers", "ViTModel"): ("hf_vit.HFViT", "hf4.HF4ViT"),
    ("transformers", "DeiTModel"): ("hf_vit.HFViT", "hf4.HF4ViT"),
    ("transformers", "Dinov2Model"): ("hf_dinov2.HFDinov2", "hf4.HF4Dinov2"),
    ("transformers", "Dinov2WithRegistersModel"): ("hf_dinov2.HFDinov2", "hf4.HF4Dinov2"),
}

WORKING = "timm VisionTransformer and Eva, transformers ViT, DeiT and DINOv2 models work"

REFUSED = {
    ("timm", "Beit"): "BEiT has a position bias for every pair of patches, which merged or missing "
    "patches have no row in",
    ("transformers", "BeitModel"): "BEiT has a position bias for every pair of patches, which "
    "merged or missing patches have no row in",
    ("timm", "NaFlexVit"): "NaFlexViT pads its sequences and masks them by their full length",
    ("timm", "VisionTransformerRelPos"): "its relative position bias has a row for every pair of "
    "patches",
    ("timm", "SwinTransformer"): "Swin's windows need every patch in its place",
    ("timm", "SwinTransformerV2"): "Swin's windows need every patch in its place",
    ("transformers", "SwinModel"): "Swin's windows need every patch in its place",
    ("transformers", "Dinov2Backbone"): "backbones return maps of every block",
    ("transformers", "Dinov2WithRegistersBackbone"): "backbones return maps of every block",
    ("torch", "OptimizedModule"): "it is compiled already; reduce the model first, then compile it",
    ("torch", "ScriptModule"): "it is scripted already; reduce the Python model",
}


def find_core(model: nn.Module) -> tuple[nn.Module, Host]:
    """The one vision transformer within ``model``, or ``model`` itself, and its family.

    Raises:
        PolytokError: there is none, several, or one of a family that cannot work.
    """
    if not isinstance(model, nn.Module):
        raise PolytokError(f"a model is wanted, got {type(model).__name__}; {WORKING}")
    found: list[tuple[nn.Module, Host]] = []
    for module in model.modules():
        key = _known(module, REFUSED)
        if key is not None:
            raise PolytokError(f"{key[1]} cannot be reduced: {REFUSED[key]}; {WORKING}")
        host = host_of(module)
        if host is not None:
            found.append((module, host))
    if not found:
        raise PolytokError(
            f"{type(model).__name__} has no vision transformer of a known family; {WORKING}"
        )
    if len(found) > 1:
        raise PolytokError(
            f"{type(model).__name__} has {len(found)} vision transformers; reduce one of them, "
            "such as an attribute of the model"
        )
    return found[0]


def host_of(module: nn.Module) -> Host | None:
    """The family of a module, None if it is of none."""
    key = _known(module, CLASSES)
    if key is None:
        return None
    hosts = [_host(path) for path in CLASSES[key]]
    return next((host for host in hosts if host.fits(module)), hosts[0])


def _host(path: str) -> Host:
    home, name = path.split(".")
    made: Host = getattr(importlib.import_module(f"polytok.reducers.hosts.{home}"), name)()
    return made


def _known(module: nn.Module, table: Mapping[tuple[str, str], object]) -> tuple[str, str] | None:
    """Library and class of a module that ``table`` has a row for; subclasses count too."""
    for cls in type(module).__mro__:
        key = (cls.__module__.partition(".")[0], cls.__name__)
        if key in table:
            return key
    return None
