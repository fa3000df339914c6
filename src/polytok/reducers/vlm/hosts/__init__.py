"""Model families, by ``config.model_type``."""

from __future__ import annotations

from typing import Any

from polytok.core.errors import ConfigError
from polytok.reducers.vlm.hosts.base import Host, Tower
from polytok.reducers.vlm.hosts.internvl import InternVL
from polytok.reducers.vlm.hosts.llava import Llava
from polytok.reducers.vlm.hosts.llava_next import LlavaNext
from polytok.reducers.vlm.hosts.qwen2_5_vl import Qwen2_5VL

HOSTS: dict[str, Host] = {
    host.name: host for host in (Llava(), LlavaNext(), Qwen2_5VL(), InternVL())
}


def host_of(model: Any) -> Host:
    """The family of a model.

    Raises:
        ConfigError: it is none of the supported ones.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in HOSTS:
        raise ConfigError(f"{kind!r} is not a supported family (supported: {', '.join(HOSTS)})")
    return HOSTS[kind]


__all__ = ["HOSTS", "Host", "Tower", "host_of"]
