"""Virtual adversarial training on attention (arXiv 2104.08763). No official code or weights exist.

A small classifier reads words with an encoder and attention. While it trains, the scores of
attention are perturbed in the direction that changes the output most, and the change is penalised;
since the model's own output is the target, text without labels helps.
"""

from __future__ import annotations

from polytok.systems.theory.attention_vat.classifier import Prediction, TextClassifier, load_model
from polytok.systems.theory.attention_vat.config import PRESETS, AttentionVATConfig, preset
from polytok.systems.theory.attention_vat.model import AttentionClassifier, ClassifierOutput
from polytok.systems.theory.attention_vat.training import STAGES, TextSampling, prepare_training

__all__ = [
    "PRESETS",
    "STAGES",
    "AttentionClassifier",
    "AttentionVATConfig",
    "ClassifierOutput",
    "Prediction",
    "TextClassifier",
    "TextSampling",
    "load_model",
    "prepare_training",
    "preset",
]
