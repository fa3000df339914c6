"""A trained classifier with its words: texts in, classes and attention out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from polytok.core import hub
from polytok.core.config import from_dict
from polytok.core.errors import SignalError, WeightsError
from polytok.losses.virtual_adversarial import log_probabilities
from polytok.systems.theory.attention_vat.config import AttentionVATConfig
from polytok.systems.theory.attention_vat.evaluation import classified
from polytok.systems.theory.attention_vat.model import AttentionClassifier
from polytok.systems.theory.attention_vat.text import Example, Vocabulary, words_of

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A class with its probability, and the attention that each word got (sums to 1)."""

    label: str
    probability: float
    attention: tuple[tuple[str, float], ...]


class TextClassifier:
    """A model and its vocabulary.

    >>> classifier = polytok.load("runs/mine")
    >>> classifier.classify(["Return a new list."])[0].label
    """

    def __init__(self, model: AttentionClassifier, vocabulary: Vocabulary, *, name: str) -> None:
        sizes = (model.config.vocab_size, model.config.num_classes)
        if sizes != (len(vocabulary.words), len(vocabulary.labels)):
            raise WeightsError(
                f"{name}: the vocabulary has {len(vocabulary.words)} words and "
                f"{len(vocabulary.labels)} classes, the model {sizes[0]} and {sizes[1]}"
            )
        self.model, self.vocabulary, self.name = model.eval(), vocabulary, name

    def classify(
        self, texts: Sequence[str], queries: Sequence[str] | None = None
    ) -> list[Prediction]:
        """Classify texts, with one query each if the model reads pairs.

        Raises:
            SignalError: a text has no words, or texts and queries differ in number.
        """
        if queries is not None and len(queries) != len(texts):
            raise SignalError(f"{len(queries)} queries for {len(texts)} texts")
        examples = [Example(text=text) for text in texts]
        if queries is not None:
            pairs = zip(texts, queries, strict=True)
            examples = [Example(text=text, query=query) for text, query in pairs]
        return self.predict(examples)

    @torch.inference_mode()
    def predict(self, examples: Sequence[Example]) -> list[Prediction]:
        """Classify examples, whatever labels they have.

        Raises:
            SignalError: a text has no words. PolytokError: queries are missing or too many.
        """
        parts = (examples[i : i + BATCH] for i in range(0, len(examples), BATCH))
        return [found for part in parts for found in self._classify(part)]

    def _classify(self, examples: Sequence[Example]) -> list[Prediction]:
        device = next(self.model.parameters()).device
        batch = {k: v.to(device) for k, v in self.vocabulary.batch(examples).items()}
        out = classified(self.model, batch)
        chances, classes = log_probabilities(out.logits).exp().max(-1)
        return [
            Prediction(
                label=self.vocabulary.labels[int(label)],
                probability=float(chance),
                # A text that was cut has more words than attention.
                attention=tuple(zip(words_of(e.text), weights[: int(n)].tolist(), strict=False)),
            )
            for e, label, chance, weights, n in zip(
                examples, classes, chances, out.attention, batch["mask"].sum(1), strict=True
            )
        ]


def load_model(folder: Path, info: hub.Info, *, name: str, device: str = "cpu") -> TextClassifier:
    """Build the model of a folder, fill it with its weights and join it with its words."""
    model = AttentionClassifier(from_dict(AttentionVATConfig, info.config))
    hub.load_weights(model, folder)
    return TextClassifier(model.to(device), Vocabulary.load(folder), name=name)
