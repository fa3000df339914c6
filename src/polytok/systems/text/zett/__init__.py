"""ZeTT: zero-shot tokenizer transfer (arXiv 2405.07883).

A small transformer reads how the old tokenizer of a language model spells a token of a new one, and
gives the token's embeddings. It is trained once per model, with the model frozen, over ever new
random tokenizers; any tokenizer can then be put in without training. Official weights exist
(benjamin/zett-hypernetwork-*); their code has no licence, so this is written from the paper and
from what the code does, and :func:`convert_hypernet` reads their weights.
"""

from __future__ import annotations

from polytok.systems.text.zett.bytelevel import ByteLevel, byte_level, surface_forms
from polytok.systems.text.zett.config import PRESETS, HypernetConfig, preset
from polytok.systems.text.zett.convert import convert_hypernet, save_hypernet
from polytok.systems.text.zett.evaluate import BitsPerByte, bits_per_byte
from polytok.systems.text.zett.heuristics import METHODS
from polytok.systems.text.zett.hypernet import Embeddings, Hypernet
from polytok.systems.text.zett.loading import (
    LanguageModel,
    load_hypernet,
    load_language_model,
    load_model,
    load_tokenizer,
    of_parts,
    quieten,
)
from polytok.systems.text.zett.model import Zett
from polytok.systems.text.zett.training import STAGES, prepare_training
from polytok.systems.text.zett.transfer import (
    Transfer,
    initialize_embeddings,
    save_transfer,
    transfer_sibling,
    transfer_tokenizer,
)
from polytok.systems.text.zett.unigramify import Unigramified, unigramify

__all__ = [
    "METHODS",
    "PRESETS",
    "STAGES",
    "BitsPerByte",
    "ByteLevel",
    "Embeddings",
    "Hypernet",
    "HypernetConfig",
    "LanguageModel",
    "Transfer",
    "Unigramified",
    "Zett",
    "bits_per_byte",
    "byte_level",
    "convert_hypernet",
    "initialize_embeddings",
    "load_hypernet",
    "load_language_model",
    "load_model",
    "load_tokenizer",
    "of_parts",
    "prepare_training",
    "preset",
    "quieten",
    "save_hypernet",
    "save_transfer",
    "surface_forms",
    "transfer_sibling",
    "transfer_tokenizer",
    "unigramify",
]
