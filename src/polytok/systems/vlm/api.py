"""``polytok.vlm``: a plan by the name of its method."""

from __future__ import annotations

from typing import Any

from polytok.core import registry
from polytok.core.config import from_dict, override
from polytok.core.errors import UnknownNameError
from polytok.reducers.vlm import Plan
from polytok.systems.vlm import baselines


def vlm(name: str, **options: Any) -> Plan:
    """Build the plan of a method, a preset of one, or a baseline (``random``, ``uniform``, ...).

    >>> plan = polytok.vlm("fastervlm", keep=64)
    >>> with plan.applied(model):
    ...     model.generate(**inputs)

    Raises:
        UnknownNameError: no such method or option.
        ConfigError: an option is out of range.
    """
    if name in baselines.CONFIGS:
        return from_dict(baselines.CONFIGS[name], options).plan()
    if name in (systems := methods()):
        return from_dict(systems[name].load().CONFIG, options).plan()
    for system in systems.values():
        if name in system.presets:
            return override(system.load().PRESETS[name], **options).plan()
    presets = [preset for system in systems.values() for preset in system.presets]
    raise UnknownNameError("method for VLMs", name, [*systems, *baselines.CONFIGS, *presets])


def methods() -> dict[str, registry.System]:
    """The registered methods for vision-language models."""
    return {
        s.name: s
        for s in registry.SYSTEMS.values()
        if s.kind == "reducer" and s.modality == "multimodal"
    }
