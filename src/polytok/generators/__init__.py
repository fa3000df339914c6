"""Generators: net x head x process x guide x conditioner, and one loop that draws codes."""

from polytok.generators.cache import KVCache
from polytok.generators.cond import ClassConditioner, Cond, Conditioner, SlotConditioner
from polytok.generators.draft import DraftConditioner, DraftExpert
from polytok.generators.draws import Rng
from polytok.generators.generator import Generator
from polytok.generators.guide import Guide, constant, interval, lagging, linear, power_cosine
from polytok.generators.head import CategoricalHead, CodebookHead, DrawHook, Head
from polytok.generators.loop import Expert, generate
from polytok.generators.masked import MaskedOrder
from polytok.generators.masked_nets import PostNormTransformer, SkipTransformer
from polytok.generators.net import AdaptiveTransformer, Net, QuarterQK, UnitQK
from polytok.generators.orders import GroupOrder, RasterOrder, ScaleFeed, ScaleOrder, TokenFeed
from polytok.generators.process import Draw, Example, Known, Process, Query, State, Step
from polytok.generators.sampling import FallingSampling, Sampler, Sampling

__all__ = [
    "AdaptiveTransformer",
    "CategoricalHead",
    "ClassConditioner",
    "CodebookHead",
    "Cond",
    "Conditioner",
    "DraftConditioner",
    "DraftExpert",
    "Draw",
    "DrawHook",
    "Example",
    "Expert",
    "FallingSampling",
    "Generator",
    "GroupOrder",
    "Guide",
    "Head",
    "KVCache",
    "Known",
    "MaskedOrder",
    "Net",
    "PostNormTransformer",
    "Process",
    "QuarterQK",
    "Query",
    "RasterOrder",
    "Rng",
    "Sampler",
    "Sampling",
    "ScaleFeed",
    "ScaleOrder",
    "SkipTransformer",
    "SlotConditioner",
    "State",
    "Step",
    "TokenFeed",
    "UnitQK",
    "constant",
    "generate",
    "interval",
    "lagging",
    "linear",
    "power_cosine",
]
