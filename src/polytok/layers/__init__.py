"""Building blocks that know nothing of a modality: attention, transformer blocks, positions."""

from polytok.layers.anchors import AnchorExchange
from polytok.layers.attention import attend
from polytok.layers.frozen import Frozen
from polytok.layers.positions import (
    PLANE_AXES,
    FourierEmbedding,
    grid_places,
    nested_places,
    sine_embedding,
)
from polytok.layers.prefix_dropout import PrefixDropout, length_odds
from polytok.layers.score_hook import added_scores, read_scores
from polytok.layers.transformer import Block, CrossBlock, FeedForward, compute_dtype, unit_gain
from polytok.layers.vit import SelfAttention, ViTBlock

__all__ = [
    "PLANE_AXES",
    "AnchorExchange",
    "Block",
    "CrossBlock",
    "FeedForward",
    "FourierEmbedding",
    "Frozen",
    "PrefixDropout",
    "SelfAttention",
    "ViTBlock",
    "added_scores",
    "attend",
    "compute_dtype",
    "grid_places",
    "length_odds",
    "nested_places",
    "read_scores",
    "sine_embedding",
    "unit_gain",
]
