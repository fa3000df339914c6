"""The classifier: words -> encoder -> attention -> class, and its regulariser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.core.contracts import Batch, StepContext, StepOutput
from polytok.core.errors import PolytokError
from polytok.losses.virtual_adversarial import (
    DIFFERENCES,
    SUPERVISED,
    Space,
    VirtualAdversarialLoss,
    cross_entropy,
    log_probabilities,
    neighbour_directions,
    score_space,
)
from polytok.systems.theory.attention_vat.config import AttentionVATConfig

PADDING = 0
UNLABELLED = -1


@dataclass(frozen=True, kw_only=True)
class ClassifierOutput:
    """logits (B, C), or (B, 1) for two classes; attention (B, T), 0 on padding, sums to 1."""

    logits: Tensor
    attention: Tensor


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What attention starts from: states (B, T, 2 hidden_dim), scores (B, T), mask (B, T)."""

    states: Tensor
    scores: Tensor
    mask: Tensor


class AdditiveScorer(nn.Module):
    """s_t = v tanh(W h_t + U q + b) for states (B, T, D) and a query (B, D); U only for pairs."""

    def __init__(self, dim: int, hidden_dim: int, *, is_pair: bool) -> None:
        super().__init__()
        self.states = nn.Linear(dim, hidden_dim)
        self.query = nn.Linear(dim, hidden_dim, bias=False) if is_pair else None
        self.out = nn.Linear(hidden_dim, 1, bias=False)

    def forward(self, states: Tensor, query: Tensor | None) -> Tensor:
        hidden = self.states(states)
        if self.query is not None:
            hidden = hidden + self.query(query)[:, None]
        return self.out(hidden.tanh())[..., 0]


class DotScorer(nn.Module):
    """s_t = w h_t / sqrt(D); for pairs w is a linear map of the query."""

    def __init__(self, dim: int, *, is_pair: bool) -> None:
        super().__init__()
        self.out = nn.Linear(dim, dim if is_pair else 1, bias=False)

    def forward(self, states: Tensor, query: Tensor | None) -> Tensor:
        if query is None:
            scores = self.out(states)[..., 0]
        else:
            scores = (states @ self.out(query)[..., None])[..., 0]
        return scores * states.shape[-1] ** -0.5


class BiLSTM(nn.Module):
    """One LSTM from the first word on, one from the last; padding comes last, and changes nothing.

    Two plain ones: packed sequences cost a quarter to a half more on a CPU.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(dim, hidden_dim, batch_first=True)
        self.back = nn.LSTM(dim, hidden_dim, batch_first=True)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """States (B, T, 2 hidden_dim) of words (B, T, dim); 0 on padding."""
        last = mask.sum(1, keepdim=True) - 1
        steps = torch.arange(mask.shape[1], device=mask.device)
        turned = (last - steps).clamp(min=0)[..., None]
        back = self.back(words.take_along_dim(turned, 1))[0].take_along_dim(turned, 1)
        return torch.cat([self.ahead(words)[0], back], dim=-1) * mask[..., None]

    def summary(self, words: Tensor, mask: Tensor) -> Tensor:
        """What both have read at their ends, (B, 2 hidden_dim)."""
        ahead, back = self(words, mask).chunk(2, dim=-1)
        end = mask.sum(1)[:, None, None] - 1
        return torch.cat([ahead.take_along_dim(end, 1)[:, 0], back[:, 0]], dim=-1)


class Projection(nn.Module):
    """relu(W e_t + b) for every word by itself."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, 2 * hidden_dim)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """States (B, T, 2 hidden_dim) of words (B, T, dim); 0 on padding."""
        return self.out(words).relu() * mask[..., None]

    def summary(self, words: Tensor, mask: Tensor) -> Tensor:
        """The mean state, (B, 2 hidden_dim)."""
        return self(words, mask).sum(1) / mask.sum(1, keepdim=True)


Encoder = BiLSTM | Projection
ENCODERS: dict[str, type[Encoder]] = {"lstm": BiLSTM, "projection": Projection}


class AttentionClassifier(nn.Module):
    """An encoder with attention over words, for one sequence or a sequence and a query.

    Sources: card attention-vat 2a; Jain & Wallace 2019 (the classifiers).
    """

    class_weights: Tensor

    def __init__(self, config: AttentionVATConfig) -> None:
        super().__init__()
        self.config = config
        dim = 2 * config.hidden_dim
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim, padding_idx=PADDING)
        with torch.no_grad():
            self.embedding.weight.mul_(config.embedding_std)
        encoder = ENCODERS[config.encoder]
        self.encoder: Encoder = encoder(config.embedding_dim, config.hidden_dim)
        self.query_encoder: Encoder | None = (
            encoder(config.embedding_dim, config.hidden_dim) if config.is_pair else None
        )
        self.scorer = (
            AdditiveScorer(dim, config.attention_dim, is_pair=config.is_pair)
            if config.scorer == "additive"
            else DotScorer(dim, is_pair=config.is_pair)
        )
        self.head = nn.Linear(dim, 1 if config.num_classes == 2 else config.num_classes)
        weights = torch.tensor(config.class_weights or [1.0] * config.num_classes)
        self.register_buffer("class_weights", weights, persistent=False)
        self.regulariser = (
            None
            if config.kind == "vanilla"
            else VirtualAdversarialLoss(
                kind=config.kind,
                eps=config.eps,
                xi=config.xi,
                num_power=config.num_power,
                picks_sign=config.picks_sign,
            )
        )

    def classify(
        self,
        tokens: Tensor,
        mask: Tensor,
        *,
        query: Tensor | None = None,
        query_mask: Tensor | None = None,
        score_perturbation: Tensor | None = None,
    ) -> ClassifierOutput:
        """Classify sequences.

        Args:
            tokens: (B, T) int64 word ids. mask: (B, T) bool, words first, at least one.
            query, query_mask: the second sequence (B, S), if the model reads pairs.
            score_perturbation: (B, T), added to the scores.

        Raises:
            PolytokError: sizes do not match, ids are unknown, a sequence is empty, or a query is
                missing or too many.
        """
        batch = {"tokens": tokens, "mask": mask, "query": query, "query_mask": query_mask}
        batch = {key: value for key, value in batch.items() if value is not None}
        encoded = self.encode(self.embed(batch), batch)
        return self.attend(encoded, score_perturbation)

    def embed(self, batch: Batch) -> Tensor:
        """Vectors (B, T, D) of the words of a batch, with dropout in training."""
        self._check(batch)
        return F.dropout(self.embedding(batch["tokens"]), self.config.dropout, self.training)

    def encode(self, words: Tensor, batch: Batch) -> Encoded:
        """Run the encoders over words (B, T, D) up to the scores."""
        query = None
        if self.query_encoder is not None:
            vectors = self.embedding(batch["query"])
            query = self.query_encoder.summary(vectors, batch["query_mask"])
        states = self.encoder(words, batch["mask"])
        return Encoded(states=states, scores=self.scorer(states, query), mask=batch["mask"])

    def attend(self, encoded: Encoded, perturbation: Tensor | None = None) -> ClassifierOutput:
        """Classify from the scores, or from scores + ``perturbation`` (B, T), on."""
        scores = encoded.scores.float()
        if perturbation is not None:
            if perturbation.shape != scores.shape:
                raise PolytokError(
                    f"a perturbation {tuple(perturbation.shape)} does not fit scores "
                    f"{tuple(scores.shape)}"
                )
            scores = scores + perturbation
        attention = scores.masked_fill(~encoded.mask, -torch.inf).softmax(-1)
        context = (attention[:, None].to(encoded.states.dtype) @ encoded.states)[:, 0]
        return ClassifierOutput(logits=self.head(context), attention=attention)

    def perturbable(self, words: Tensor, encoded: Encoded, batch: Batch) -> Perturbable:
        """Where the regulariser may perturb, and the forward from there on."""
        kind, mask = self.config.kind, encoded.mask
        if self.config.target == "attention":
            space = score_space(kind, encoded.scores, mask)
            return Perturbable(space, lambda r: self.attend(encoded, r).logits)
        if kind in DIFFERENCES:
            count = min(self.config.num_neighbours, self.config.vocab_size - 1)
            directions = neighbour_directions(batch["tokens"], self.embedding.weight, count)
            space = Space(mask[..., None].expand(*mask.shape, count), directions)
        else:
            space = Space(mask[..., None].expand(words.shape))
        return Perturbable(space, lambda r: self.attend(self.encode(words + r, batch)).logits)

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """One training step.

        Args:
            batch: tokens and mask (B, T), label (B,) with -1 for no label; for pairs query and
                query_mask (B, S) too. Columns of padding alone are cut off.
        """
        self._check(batch)
        batch = _trimmed(batch)
        words = self.embed(batch)
        encoded = self.encode(words, batch)
        out, label = self.attend(encoded), batch["label"]
        self._check_labels(label, len(words))
        known = label != UNLABELLED
        right = log_probabilities(out.logits).argmax(-1) == label
        losses = {"classify": self._classify_loss(out.logits, label)}
        if self.regulariser is not None:
            where = self.perturbable(words, encoded, batch)
            loss = self.regulariser(
                where.forward, where.space, out.logits, labels=label.clamp(min=0), rng=ctx.rng
            )
            # What needs a label cannot use the others.
            used = known if self.config.kind in SUPERVISED else torch.ones_like(known)
            losses["perturbed"] = self.config.weight * _mean(loss, used)
        return StepOutput(
            losses=losses,
            metrics={"accuracy": _mean(right.float(), known)},
            output={"logits": out.logits, "attention": out.attention},
        )

    def _classify_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        known, label = label != UNLABELLED, label.clamp(min=0)
        return _mean(cross_entropy(logits, label) * self.class_weights[label], known)

    def _check(self, batch: Batch) -> None:
        pairs = [("tokens", "mask"), ("query", "query_mask")]
        for ids, mask in pairs[: 1 + self.config.is_pair]:
            if ids not in batch or mask not in batch:
                raise PolytokError(f"a batch for this model needs {ids} and {mask}")
            _check_sequence(ids, batch[ids], batch[mask], self.config.vocab_size)
        if not self.config.is_pair and "query" in batch:
            raise PolytokError("this model reads single sequences, not pairs with a query")

    def _check_labels(self, label: Tensor, count: int) -> None:
        if label.shape != (count,):
            raise PolytokError(f"labels {tuple(label.shape)} for {count} sequences")
        if bool((label < UNLABELLED).any() | (label >= self.config.num_classes).any()):
            raise PolytokError(
                f"labels {int(label.min())}..{int(label.max())} are not within "
                f"-1..{self.config.num_classes - 1}"
            )


@dataclass(frozen=True)
class Perturbable:
    """A space of perturbations, and the forward from the perturbed tensor to the logits."""

    space: Space
    forward: Callable[[Tensor], Tensor]


def _trimmed(batch: Batch) -> Batch:
    """Cut the columns that are padding in every sequence."""
    cut = dict(batch)
    for ids, mask in (("tokens", "mask"), ("query", "query_mask")):
        if mask in batch:
            length = int(batch[mask].sum(1).amax())
            cut[ids], cut[mask] = batch[ids][:, :length], batch[mask][:, :length]
    return cut


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the examples that count; 0 if there are none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def _check_sequence(name: str, ids: Tensor, mask: Tensor, vocab_size: int) -> None:
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise PolytokError(f"{name} {tuple(ids.shape)} and its mask {tuple(mask.shape)} differ")
    if not ids.numel() or not bool(mask[:, 0].all()):
        raise PolytokError(f"{name}: a sequence has no words, or does not begin with one")
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise PolytokError(f"{name}: padding comes before words; it must come last")
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise PolytokError(
            f"{name} has ids {int(ids.min())}..{int(ids.max())}, not within 0..{vocab_size - 1}"
        )
