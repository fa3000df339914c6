"""What a bug report should say."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "trimesh",
    "point-cloud-utils",
    "manifold3d",
    "scikit-image",
    "embreex",
    "constriction",
    "DracoPy",
    "accelerate",
)


def report() -> dict[str, Any]:
    """Versions, processor, devices and the state of the shipped weights."""
    import torch

    import polytok
    from polytok.core import hub
    from polytok.core.registry import WEIGHTS
    from polytok.systems.api import SHIPPED
    from polytok.training.config import computes_in_bf16

    facts: dict[str, Any] = {"polytok": polytok.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "absent"
    facts["system"] = platform.platform()
    facts["cores"] = os.cpu_count()
    facts["threads"] = torch.get_num_threads()
    accelerator = torch.accelerator.is_available()
    facts["accelerator"] = str(torch.accelerator.current_accelerator()) if accelerator else "none"
    facts["bf16"] = computes_in_bf16("accelerator" if accelerator else "cpu")
    for tag, weights in WEIGHTS.items():
        is_whole = hub.fingerprint(SHIPPED / weights.path) == weights.fingerprint
        facts[tag] = "ok" if is_whole else "damaged: another fingerprint than registered"
    return facts
