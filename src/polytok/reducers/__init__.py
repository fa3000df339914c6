"""Cheaper transformers: reduce the tokens of models that people already use."""

from polytok.reducers.maps import Chain, Fuse, Merge, Mix, Select, TokenMap
from polytok.reducers.reducer import Reducer
from polytok.reducers.schedule import Rule, Schedule
from polytok.reducers.scores import Scores
from polytok.reducers.state import TokenState

__all__ = [
    "Chain",
    "Fuse",
    "Merge",
    "Mix",
    "Reducer",
    "Rule",
    "Schedule",
    "Scores",
    "Select",
    "TokenMap",
    "TokenState",
]
