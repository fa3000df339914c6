"""Cheaper transformers: reduce the tokens of models that people already use."""

from polytok.reducers.api import applied, paused, reduce, unreduce
from polytok.reducers.maps import Chain, Fuse, Merge, Mix, Select, TokenMap
from polytok.reducers.methods import method_names
from polytok.reducers.reducer import Reducer
from polytok.reducers.reduction import reduction_of
from polytok.reducers.saved import load, save, write_reduction
from polytok.reducers.schedule import Rule, Schedule
from polytok.reducers.scores import Scores
from polytok.reducers.state import TokenState
from polytok.reducers.tracing import Trace, trace

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
    "Trace",
    "applied",
    "load",
    "method_names",
    "paused",
    "reduce",
    "reduction_of",
    "save",
    "trace",
    "unreduce",
    "write_reduction",
]
