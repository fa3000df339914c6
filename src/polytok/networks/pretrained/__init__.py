"""Towers that turn a condition into tokens: small trainable ones, and frozen pretrained ones."""

from polytok.networks.pretrained.huggingface import HFImageTower, HFTextTower
from polytok.networks.pretrained.image import SmallImageConfig, SmallImageTower
from polytok.networks.pretrained.slots import Tower, TowerOutput
from polytok.networks.pretrained.text import SmallTextConfig, SmallTextTower, TextTokenizer

__all__ = [
    "HFImageTower",
    "HFTextTower",
    "SmallImageConfig",
    "SmallImageTower",
    "SmallTextConfig",
    "SmallTextTower",
    "TextTokenizer",
    "Tower",
    "TowerOutput",
]
