"""How the classifier is trained: labelled and unlabelled sentences, mixed in every batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from polytok.core import hub
from polytok.core.config import from_dict, override
from polytok.core.contracts import Stage
from polytok.core.errors import ConfigError, SignalError
from polytok.core.seeding import derive, numpy_rng
from polytok.systems.theory.attention_vat.config import AttentionVATConfig, preset
from polytok.systems.theory.attention_vat.evaluation import scores
from polytok.systems.theory.attention_vat.model import AttentionClassifier
from polytok.systems.theory.attention_vat.text import (
    Example,
    Vocabulary,
    read_examples,
    read_vectors,
)
from polytok.training import Recipe

STAGES = (Stage(name="train", weights={"classify": 1.0, "perturbed": 1.0}),)


@dataclass(frozen=True, kw_only=True)
class TextSampling:
    """What a batch is drawn from.

    Args:
        unlabelled: file of sentences; "" for none.
        labelled_share: of the samples of a batch, where there are unlabelled sentences.
        max_length: longer texts are cut to so many words.
        min_count: rarer words are unknown ones.
        vectors: file of word vectors to start from; "" for random ones.
        is_balanced: weigh the classes inversely to their frequency.
    """

    unlabelled: str = ""
    labelled_share: float = 0.25
    max_length: int = 64
    min_count: int = 2
    vectors: str = ""
    is_balanced: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.labelled_share <= 1:
            raise ConfigError(f"labelled_share={self.labelled_share} is not within (0, 1]")
        for name in ("max_length", "min_count"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")


class TextSource:
    """Sample number n -> tokens and mask (T,), label (); a pure function of (seed, n).

    Labelled and unlabelled sentences each come once per epoch of their own, spread evenly.
    """

    def __init__(
        self,
        labelled: Sequence[Example],
        unlabelled: Sequence[Example],
        vocabulary: Vocabulary,
        *,
        labelled_share: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.rows = {
            "labelled": [vocabulary.row(e) for e in labelled],
            "unlabelled": [vocabulary.row(Example(text=e.text, query=e.query)) for e in unlabelled],
        }
        self.share = labelled_share if unlabelled else 1.0
        self.seed = seed

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows.values())

    def sample(self, n: int) -> dict[str, Tensor]:
        """Draw sample n; its label is -1 if it is unlabelled."""
        before = int(n * self.share)
        is_labelled = int((n + 1) * self.share) > before
        kind, number = ("labelled", before) if is_labelled else ("unlabelled", n - before)
        rows = self.rows[kind]
        epoch, place = divmod(number, len(rows))
        order = numpy_rng(self.seed, kind, epoch).permutation(len(rows))
        return {**rows[order[place]], "seed": torch.tensor(derive(self.seed, "sample", n))}


@dataclass
class AttentionVATTraining:
    """A run that is ready to start: what :func:`polytok.training.fit` takes."""

    model: AttentionClassifier
    source: TextSource
    validate: Callable[[AttentionClassifier], Mapping[str, float]] | None
    vocabulary: Vocabulary

    def write_files(self, folder: Path) -> None:
        """Write what the model's folder needs besides its configuration and weights."""
        self.vocabulary.save(folder)


def prepare_training(recipe: Recipe) -> AttentionVATTraining:
    """Build the model and the sources of a recipe.

    Raises:
        SignalError: a file cannot be used. ConfigError: the recipe does not fit it, or its
            labelled sentences are all of one class.
    """
    from polytok.systems import api

    sampling = from_dict(TextSampling, recipe.sampling)
    labelled = read_examples(recipe.data.train)
    unlabelled = read_examples(sampling.unlabelled) if sampling.unlabelled else []
    config = override(preset(recipe.preset), **recipe.config)
    check_examples(labelled, unlabelled, recipe.data.train, is_pair=config.is_pair)
    vocabulary = Vocabulary.build(
        [*labelled, *unlabelled],
        size=config.vocab_size,
        min_count=sampling.min_count,
        max_length=sampling.max_length,
    )
    torch.manual_seed(recipe.train.seed)
    model = AttentionClassifier(
        fitted(config, vocabulary, labelled, is_balanced=sampling.is_balanced)
    )
    if sampling.vectors:
        start_from(model, read_vectors(sampling.vectors, vocabulary.words, config.embedding_dim))
    if recipe.init:
        hub.load_weights(model, api.find_weights(recipe.init)[0])
    source = TextSource(
        labelled,
        unlabelled,
        vocabulary,
        labelled_share=sampling.labelled_share,
        seed=recipe.train.seed,
    )
    validate = None
    if recipe.data.val:
        held = read_examples(recipe.data.val)
        check_examples(held, [], recipe.data.val, is_pair=config.is_pair)
        # Evenly from all of the file, which may be sorted by class.
        count = min(recipe.data.num_val, len(held))
        held = [held[i * len(held) // count] for i in range(count)]
        validate = Validation(held, vocabulary)
    return AttentionVATTraining(
        model=model, source=source, validate=validate, vocabulary=vocabulary
    )


def check_examples(
    labelled: Sequence[Example], unlabelled: Sequence[Example], name: str, *, is_pair: bool
) -> None:
    """Refuse examples that nothing can be learnt from.

    Raises:
        SignalError: labels are missing or all the same, or queries are missing or too many.
    """
    if any(e.label is None for e in labelled):
        raise SignalError(f"{name}: a sentence has no label; give it as sampling.unlabelled")
    labels = sorted({str(e.label) for e in labelled})
    if len(labels) < 2:
        raise SignalError(f"{name} has one class only, {labels[0]!r}; at least two are needed")
    for example in [*labelled, *unlabelled]:
        if (example.query is not None) != is_pair:
            wanted = "a query with every text" if is_pair else "texts without a query"
            raise SignalError(f"this preset reads {wanted}, unlike {example.text[:40]!r}")


def fitted(
    config: AttentionVATConfig,
    vocabulary: Vocabulary,
    labelled: Sequence[Example],
    *,
    is_balanced: bool = False,
) -> AttentionVATConfig:
    """The configuration with the sizes that the data decides."""
    counts = [sum(e.label == label for e in labelled) for label in vocabulary.labels]
    even = len(labelled) / len(counts)
    return override(
        config,
        vocab_size=len(vocabulary.words),
        num_classes=len(vocabulary.labels),
        class_weights=tuple(even / c for c in counts) if is_balanced else config.class_weights,
    )


@torch.no_grad()
def start_from(model: AttentionClassifier, vectors: Mapping[int, Tensor]) -> None:
    """Put given word vectors in place of the random ones; the others take their spread."""
    weight, given = model.embedding.weight, torch.stack(list(vectors.values()))
    weight.mul_(given.std() / weight[1:].std().clamp(min=1e-12))
    weight[list(vectors)] = given


class Validation:
    """Scores on labelled sentences that training does not see."""

    def __init__(self, examples: Sequence[Example], vocabulary: Vocabulary) -> None:
        self.batches = [
            vocabulary.batch(examples[i : i + 128]) for i in range(0, len(examples), 128)
        ]

    def __call__(self, model: AttentionClassifier) -> dict[str, float]:
        """Accuracy, area under the ROC curve (two classes), tau of attention and gradients."""
        return scores(model, self.batches)
