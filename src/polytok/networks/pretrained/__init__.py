"""Slots for pretrained networks, each with a small one: towers of tokens, judges by maps."""

from polytok.networks.pretrained.huggingface import HFImageTower, HFTextTower
from polytok.networks.pretrained.image import SmallImageConfig, SmallImageTower
from polytok.networks.pretrained.maps import (
    FeatureMaps,
    SmallMaps,
    SmallMapsConfig,
    TowerMaps,
    map_distance,
)
from polytok.networks.pretrained.slots import Tower, TowerOutput
from polytok.networks.pretrained.text import SmallTextConfig, SmallTextTower, TextTokenizer

__all__ = [
    "FeatureMaps",
    "HFImageTower",
    "HFTextTower",
    "SmallImageConfig",
    "SmallImageTower",
    "SmallMaps",
    "SmallMapsConfig",
    "SmallTextConfig",
    "SmallTextTower",
    "TextTokenizer",
    "Tower",
    "TowerMaps",
    "TowerOutput",
    "map_distance",
]
