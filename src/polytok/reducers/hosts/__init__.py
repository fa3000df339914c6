"""Model families: what each says so that every reduction method works on it."""

from polytok.reducers.hosts.base import Host
from polytok.reducers.hosts.find import find_core

__all__ = ["Host", "find_core"]
