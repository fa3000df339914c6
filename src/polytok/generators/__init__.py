"""Generators: net x head x process x guide x conditioner, and one loop that draws codes."""

from polytok.generators.cache import KVCache
from polytok.generators.cond import ClassConditioner, Cond, Conditioner, SlotConditioner
from polytok.generators.draws import Rng, Sampling
from polytok.generators.generator import Generator
from polytok.generators.guide import Guide, constant, interval, linear, power_cosine
from polytok.generators.head import CategoricalHead, CodebookHead, DrawHook, Head
from polytok.generators.loop import generate
from polytok.generators.masked import MaskedOrder
from polytok.generators.net import AdaptiveTransformer, Net, QuarterQK, UnitQK
from polytok.generators.orders import GroupOrder, RasterOrder, ScaleFeed, ScaleOrder, TokenFeed
from polytok.generators.process import Draw, Example, Known, Process, Query, State, Step

__all__ = [
    "AdaptiveTransformer",
    "CategoricalHead",
    "ClassConditioner",
    "CodebookHead",
    "Cond",
    "Conditioner",
    "Draw",
    "DrawHook",
    "Example",
    "Generator",
    "GroupOrder",
    "Guide",
    "Head",
    "KVCache",
    "Known",
    "MaskedOrder",
    "Net",
    "Process",
    "QuarterQK",
    "Query",
    "RasterOrder",
    "Rng",
    "Sampling",
    "ScaleFeed",
    "ScaleOrder",
    "SlotConditioner",
    "State",
    "Step",
    "TokenFeed",
    "UnitQK",
    "constant",
    "generate",
    "interval",
    "linear",
    "power_cosine",
]
