"""How ZeTT is trained: its stages, its samples, its scores (card 2d and 2e)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytok.core import hub
from polytok.core.config import from_dict, override
from polytok.core.contracts import Stage
from polytok.core.errors import ConfigError, SignalError
from polytok.core.files import opened_folder
from polytok.core.seeding import derive, numpy_rng
from polytok.systems.text.zett.bytelevel import ByteLevel, surface_forms
from polytok.systems.text.zett.config import HypernetConfig, preset
from polytok.systems.text.zett.loading import LanguageModel, load_language_model
from polytok.systems.text.zett.model import Zett
from polytok.systems.text.zett.sampler import SamplerConfig, TokenizerSampler
from polytok.training import Recipe

# "identity" teaches single source tokens to come out as they went in; "transfer" lowers the frozen
# model's own loss. A fifth of the first one's rate is the published ratio.
STAGES = (
    Stage(
        name="identity",
        weights={"identity": 1.0, "lm": 0.0, "lexical": 0.0},
        options={"objective": "identity"},
    ),
    Stage(
        name="transfer",
        weights={"lm": 1.0, "lexical": 0.5},
        lr={"*": 0.2},
        options={"objective": "transfer"},
    ),
)

VAL_SEED = 1_000_003
CHARS_PER_TOKEN = 16
MAX_SPELT = 1_000_000  # tokens whose spelling is remembered
MASKED_SHARE, KEPT_SHARE, RANDOM_SHARE = 0.15, 0.1, 0.1


@dataclass(frozen=True, kw_only=True)
class TransferSampling:
    """What a sample holds: one tokenizer and some texts in its tokens.

    Args:
        num_texts: texts per tokenizer. num_tokens: tokens per text.
        exponent: languages are drawn with their share of bytes to this power.
        tokenizer: how tokenizers are drawn.
    """

    num_texts: int = 128
    num_tokens: int = 128
    exponent: float = 0.3
    tokenizer: SamplerConfig = field(default_factory=SamplerConfig)

    def __post_init__(self) -> None:
        for name in ("num_texts", "num_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")


class TransferSource:
    """Numbered samples: sample n is a tokenizer drawn for it and texts of one language.

    Args:
        texts: the text of each language by name.
        length: ids per row of surface forms. num_languages: 0 takes all texts as one language.
        first: samples before this one are blank: stage "identity" reads none, and drawing costs.

    Raises:
        SignalError: a language has no text. ConfigError: it is another number of languages.
    """

    def __init__(
        self,
        texts: Mapping[str, str],
        lm: LanguageModel,
        sampling: TransferSampling,
        *,
        length: int,
        pad_id: int,
        num_languages: int = 0,
        first: int = 0,
        seed: int = 0,
    ) -> None:
        empty = [name for name, text in texts.items() if not text.strip()]
        if empty or not texts:
            raise SignalError(f"no text in {', '.join(empty) or 'the training data'}")
        if num_languages not in (0, len(texts)):
            raise ConfigError(f"num_languages={num_languages}, but there are {len(texts)} texts")
        self.lm, self.sampling, self.first, self.seed = lm, sampling, first, seed
        self.length, self.pad_id = length, pad_id
        self.texts = list(texts.values()) if num_languages else ["\n".join(texts.values())]
        sizes = np.array([len(text) for text in self.texts], float) ** sampling.exponent
        self.shares = sizes / sizes.sum()
        self.samplers = [
            TokenizerSampler(self._spans_of(i), lm.tokenizer, sampling.tokenizer)
            for i in range(len(self.texts))
        ]
        self._rows: dict[str, np.ndarray] = {}
        self._blank: dict[str, Tensor] = {}

    def __len__(self) -> int:
        size = CHARS_PER_TOKEN * self.sampling.num_tokens
        return max(sum(len(text) // size for text in self.texts), 1)

    def sample(self, n: int) -> dict[str, Tensor]:
        """Sample n: ``surface, tokens, special, text, targets, mask, seen, language, seed``."""
        if n < self.first:
            self._blank = self._blank or self.sample(self.first)
            return {key: torch.zeros_like(value) for key, value in self._blank.items()}
        rng = numpy_rng(self.seed, "sample", n)
        language = int(rng.choice(len(self.texts), p=self.shares))
        tokenizer = self.samplers[language].sample(n, rng)
        found = {**self.rows(tokenizer), **self._framed(tokenizer, language, n, rng)}
        out = {key: torch.from_numpy(value) for key, value in found.items()}
        out["language"] = torch.tensor(language)
        out["seed"] = torch.tensor(derive(self.seed, "seed", n))
        return out

    def rows(self, tokenizer: ByteLevel) -> dict[str, np.ndarray]:
        """What the hypernetwork reads, filled up to the largest size of a tokenizer."""
        source = self.lm.tokenizer
        specials = source.vocabulary.specials
        size = self.sampling.tokenizer.size_max + len(specials)
        if len(self._rows) > MAX_SPELT:
            self._rows.clear()
        surface = np.full((size, self.length), self.pad_id, np.int64)
        special = np.full(size, -1, np.int64)
        for index, token in enumerate(tokenizer.vocabulary.tokens):
            if token.kind == "special":
                special[index] = specials[token.text]
            if token.text not in self._rows:
                self._rows[token.text] = surface_forms(
                    [token], source, length=self.length, pad=self.pad_id
                )[0][0]
            surface[index] = self._rows[token.text]
        return {"surface": surface, "tokens": np.arange(size) < len(tokenizer), "special": special}

    def _spans_of(self, language: int) -> Callable[[int], Sequence[str]]:
        """Batch n of texts of a language: spans at random places."""
        text = self.texts[language]
        size = CHARS_PER_TOKEN * self.sampling.num_tokens

        def spans(n: int) -> Sequence[str]:
            rng = numpy_rng(self.seed, "spans", language, n)
            starts = rng.integers(max(len(text) - size, 0) + 1, size=self.sampling.num_texts)
            return [text[start : start + size] for start in starts]

        return spans

    def _framed(
        self, tokenizer: ByteLevel, language: int, n: int, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        texts = list(self.samplers[language].texts(n))
        if self.lm.embeddings.is_masked:
            return self._masked(tokenizer, texts, rng)
        count = self.sampling.num_tokens
        start = [] if self.lm.start is None else [tokenizer.vocabulary.specials[self.lm.start]]
        encoded = tokenizer.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids = [(start + e.ids)[: count + 1] for e in encoded]
        full, seen = _padded(ids, count + 1)
        return {
            "text": full[:, :-1],
            "targets": full[:, 1:],
            "mask": seen[:, 1:],
            "seen": seen[:, :-1],
        }

    def _masked(
        self, tokenizer: ByteLevel, texts: Sequence[str], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Texts with 15% of the tokens to guess: 80% masked, 10% kept, 10% at random."""
        specials = tokenizer.vocabulary.specials
        encoded = tokenizer.tokenizer.encode_batch_fast(texts)
        full, seen = _padded([e.ids for e in encoded], self.sampling.num_tokens)
        draw, how = rng.random(full.shape), rng.random(full.shape)
        mask = seen & ~np.isin(full, list(specials.values())) & (draw < MASKED_SHARE)
        text = np.where(mask & (how >= KEPT_SHARE), specials[self.lm.frame.mask_token], full)
        is_random = mask & (how >= KEPT_SHARE) & (how < KEPT_SHARE + RANDOM_SHARE)
        others = rng.integers(len(tokenizer), size=full.shape)
        return {
            "text": np.where(is_random, others, text),
            "targets": full,
            "mask": mask,
            "seen": seen,
        }


@dataclass
class ZettTraining:
    """A run that is ready to start: what :func:`polytok.training.fit` takes."""

    model: Zett
    source: TransferSource
    validate: Callable[[Any], Mapping[str, float]] | None


def prepare_training(recipe: Recipe) -> ZettTraining:
    """Load the language model of a recipe and the texts.

    Raises:
        ConfigError: the recipe names no language model, or a value does not fit.
        PolytokError: the model or the texts cannot be read.
    """
    config = override(preset(recipe.preset), **recipe.config)
    if not config.language_model:
        raise ConfigError("set language_model under [config]: a folder or a hub id")
    lm = load_language_model(config.language_model, config.revision)
    lm.model.float()
    sampling = from_dict(TransferSampling, recipe.sampling)
    return of_language_model(lm, config, sampling, recipe)


def of_language_model(
    lm: LanguageModel, config: HypernetConfig, sampling: TransferSampling, recipe: Recipe
) -> ZettTraining:
    """Build the hypernetwork, the samples and the scores of a run over a loaded model."""
    from polytok.systems import api

    config = override(
        config,
        vocab_size=lm.tokenizer.vocabulary.num_original,
        num_extra=lm.tokenizer.num_extra,
        pad_id=lm.pad_id,
    )
    torch.manual_seed(recipe.train.seed)
    model = Zett(config, lm.model)
    if recipe.init:
        hub.load_weights(model, api.find_weights(recipe.init)[0])
    stage = recipe.stages[0]
    first = stage.samples if stage.name == "identity" else 0

    def source(path: str, seed: int, first: int = 0) -> TransferSource:
        return TransferSource(
            read_texts(path),
            lm,
            sampling,
            length=config.max_pieces,
            pad_id=config.pad_id,
            num_languages=config.num_languages,
            first=first,
            seed=seed,
        )

    validate = None
    if recipe.data.val and not lm.embeddings.is_masked:
        validate = Validation(source(recipe.data.val, VAL_SEED), recipe.data.num_val)
    return ZettTraining(model, source(recipe.data.train, recipe.train.seed, first), validate)


class Validation:
    """Loss in nats per token of unseen texts, under tokenizers that no step has drawn."""

    def __init__(self, source: TransferSource, count: int) -> None:
        self.samples = [source.sample(n) for n in range(min(count, len(source)))]

    def __call__(self, model: Zett) -> dict[str, float]:
        device, losses = model.source.device, []
        for sample in self.samples:
            batch = {k: v[None].to(device) for k, v in sample.items()}
            losses.append(float(model.transfer_step(batch).losses["lm"]))
        return {"lm": float(np.mean(losses))}


def read_texts(source: str) -> dict[str, str]:
    """The .txt files of a folder or zip, or one file, by name.

    Raises:
        SignalError: there is none, or one is not UTF-8. PolytokError: the source is missing.
    """
    path = Path(source)
    if path.is_file() and path.suffix == ".txt":
        return {path.stem: _text(path)}
    with opened_folder(path) as folder:
        files = sorted(folder.rglob("*.txt"))
        if not files:
            raise SignalError(f"{source} has no .txt file")
        return {str(file.relative_to(folder).with_suffix("")): _text(file) for file in files}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SignalError(f"{path.name} is no UTF-8 text: {error.reason}") from error


def _padded(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids (B, length), cut or filled up with 0, and where they are valid."""
    ids = np.zeros((len(rows), length), np.int64)
    seen = np.zeros((len(rows), length), bool)
    for row, values in enumerate(rows):
        count = min(len(values), length)
        ids[row, :count] = values[:count]
        seen[row, :count] = True
    return ids, seen
