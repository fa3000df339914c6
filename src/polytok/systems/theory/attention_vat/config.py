"""Configuration and presets of virtual adversarial training on attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polytok.core.config import override
from polytok.core.errors import ConfigError, UnknownNameError


@dataclass(frozen=True, kw_only=True)
class AttentionVATConfig:
    """Sizes of the classifier and choices of its training (card attention-vat).

    Args:
        vocab_size: words, among them padding (0) and unknown (1); training sets it.
        num_classes: of the labels; two share one logit. Training sets it.
        embedding_dim, hidden_dim, attention_dim: of a word, of the LSTM in each direction, and of
            the additive scorer.
        encoder: ``lstm``, or ``projection`` of each word by itself, whose states say nothing of
            other words (the average encoder of Jain & Wallace 2019).
        scorer: ``additive`` (v tanh(W h + b)) or ``dot`` (w h / sqrt(2 hidden_dim)).
        is_pair: a second sequence, the query, joins the scorer.
        dropout: of words, before they are perturbed.
        embedding_std: of random word vectors; those given keep theirs.
        kind: of the regulariser; ``at`` and ``iat`` need labels, ``random`` is a perturbation of
            the same norm in a random direction.
        target: what is perturbed, attention scores or word embeddings.
        eps: L2 norm per example of the perturbation, or of its parameters along directions.
        xi, num_power: probe and power iterations of ``vat`` and ``ivat``.
        picks_sign: ``vat`` and ``ivat`` take the worse end of the axis they find (ours, not the
            papers').
        weight: of the regulariser beside the cross-entropy [lambda].
        num_neighbours: directions per word of ``iat`` and ``ivat`` on words.
        class_weights: of the cross-entropy, one per class; () for equal ones.
    """

    vocab_size: int = 2
    num_classes: int = 2
    embedding_dim: int = 300
    hidden_dim: int = 128
    attention_dim: int = 128
    encoder: Literal["lstm", "projection"] = "lstm"
    scorer: Literal["additive", "dot"] = "additive"
    is_pair: bool = False
    dropout: float = 0.0
    embedding_std: float = 0.1
    kind: Literal["vanilla", "at", "iat", "vat", "ivat", "random"] = "ivat"
    target: Literal["attention", "words"] = "attention"
    eps: float = 5.0
    xi: float = 1e-1
    num_power: int = 1
    picks_sign: bool = True
    weight: float = 1.0
    num_neighbours: int = 10
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "hidden_dim", "attention_dim", "num_power", "num_neighbours"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("vocab_size", "num_classes"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 2")
        for name in ("eps", "weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} must be finite and at least 0")
        if not 0 < self.xi < float("inf"):
            raise ConfigError(f"xi={self.xi} must be finite and above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} is not within [0, 1)")
        if self.class_weights and len(self.class_weights) != self.num_classes:
            raise ConfigError(
                f"{len(self.class_weights)} class_weights for {self.num_classes} classes"
            )


BASE = AttentionVATConfig(vocab_size=20_000)
SMALL = override(BASE, vocab_size=4_000, embedding_dim=64, hidden_dim=64, attention_dim=64)

PRESETS: dict[str, AttentionVATConfig] = {
    "attention-vat-tiny": override(
        SMALL, vocab_size=60, embedding_dim=8, hidden_dim=8, attention_dim=8
    ),
    "attention-vat-small": SMALL,
    "attention-vat-projection-small": override(SMALL, encoder="projection"),
    "attention-vat-pair-small": override(SMALL, is_pair=True),
    "attention-vat": BASE,
    "attention-vat-pair": override(BASE, is_pair=True),
}


def preset(name: str) -> AttentionVATConfig:
    """Return the configuration of a preset.

    Raises:
        UnknownNameError: no such preset.
    """
    if name not in PRESETS:
        raise UnknownNameError("attention-vat preset", name, PRESETS)
    return PRESETS[name]
