"""ZeTT in training: the hypernetwork over a frozen language model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polytok.core.config import override
from polytok.core.contracts import Batch, Stage, StepContext, StepOutput
from polytok.core.errors import SignalError
from polytok.layers import Frozen
from polytok.systems.text.zett.config import HypernetConfig
from polytok.systems.text.zett.hypernet import Embeddings, Hypernet
from polytok.systems.text.zett.losses import (
    MASKED_LOGIT,
    identity_loss,
    language_loss,
    lexical_loss,
)
from polytok.systems.text.zett.surgery import LMEmbeddings

NUM_ANCHORS = 2048
IDENTITY_ROWS = 16_384


class Zett(nn.Module):
    """A hypernetwork, and the frozen model whose loss it lowers for ever new tokenizers.

    A batch holds B tokenizers: ``surface`` (B, N, L), ``tokens`` (B, N) bool, what is a token and
    not padding, ``special`` (B, N) the source id of a special token or -1, and texts in their ids:
    ``text`` (B, T, n), ``targets`` (B, T, n), ``mask`` (B, T, n) bool, where a target counts, and
    ``seen`` (B, T, n) bool, where ``text`` is no padding.

    Args:
        config: what the model decides in it is filled in, see :func:`fitted`.
        model: a Hugging Face language model; its weights are never trained or saved.
    """

    source: Tensor
    source_bias: Tensor | None

    def __init__(self, config: HypernetConfig, model: Any) -> None:
        super().__init__()
        where = LMEmbeddings(model)
        self.config = fitted(config, where)
        self.hypernet = Hypernet(self.config)
        self.model = Frozen(model)
        self.objective: Literal["identity", "transfer"] = "transfer"
        self._where = (where,)
        truth = where.read(config.vocab_size)
        self.register_buffer("source", truth.joined, persistent=False)
        self.register_buffer("source_bias", truth.bias, persistent=False)

    def start_stage(self, stage: Stage, batches: Iterable[Batch]) -> None:
        """Set the scalers before the first step, on the first 2,048 ids in a fixed random order."""
        if bool((self.hypernet.in_scaler.gain == 1).all()):
            rng = torch.Generator().manual_seed(0)
            ids = torch.randperm(self.config.vocab_size, generator=rng)[:NUM_ANCHORS]
            language = 0 if self.config.num_languages else None
            self.hypernet.calibrate(ids.to(self.source.device), self.source, language)

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """One step of the stage's objective; losses ``identity``, or ``lm`` and ``lexical``."""
        return self._identity(ctx) if self.objective == "identity" else self.transfer_step(batch)

    def transfer_step(self, batch: Batch) -> StepOutput:
        """Losses of the frozen model under the tokenizers of a batch.

        Raises:
            SignalError: the batch lacks a key.
        """
        for key in ("surface", "tokens", "special", "text", "targets", "mask", "seen"):
            if key not in batch:
                raise SignalError(f"a training batch of tokenizers needs {key}")
        count = len(batch["surface"])
        steps = [self._transfer({k: v[i] for k, v in batch.items()}) for i in range(count)]
        return StepOutput(
            losses={k: torch.stack([s.losses[k] for s in steps]).mean() for k in steps[0].losses},
            metrics={
                k: torch.stack([s.metrics[k] for s in steps]).mean() for k in steps[0].metrics
            },
            output={"embeddings": torch.cat([s.output["embeddings"] for s in steps])},
        )

    def _identity(self, ctx: StepContext) -> StepOutput:
        size, device = self.config.vocab_size, self.source.device
        ids = torch.randperm(size, generator=ctx.rng, device=device)[:IDENTITY_ROWS]
        found = self.hypernet(ids[:, None], self.source, self._language(None))
        truth = self._truth(ids)
        with torch.no_grad():
            cosine = torch.cosine_similarity(found.input.float(), truth.input, dim=-1).mean()
        return StepOutput(
            losses={"identity": identity_loss(found, truth)},
            metrics={"cosine": cosine},
            output={"embeddings": found.input},
        )

    def _transfer(self, batch: Batch) -> StepOutput:
        # Tokenizers of a batch differ in size; what fills them up at the end is not worth work.
        size = int(batch["tokens"].nonzero().max()) + 1
        surface, tokens, special = (batch[k][:size] for k in ("surface", "tokens", "special"))
        found = self.hypernet.by_length(surface, self.source, self._language(batch))
        embeddings = found.with_rows(special, self._truth())
        logits = self.logits(embeddings, batch["text"], batch["seen"])
        logits = logits.masked_fill(~tokens, MASKED_LOGIT)
        is_single = (surface != self.config.pad_id).sum(1) == 1
        single = is_single & tokens & (special < 0)
        loss = language_loss(logits, batch["targets"], batch["mask"])
        return StepOutput(
            losses={
                "lm": loss,
                "lexical": lexical_loss(found, self._truth(surface[:, 0]), single),
            },
            metrics={"overlap": single.float().mean(), "tokens": tokens.float().sum()},
            output={"embeddings": found.joined},
        )

    def logits(self, embeddings: Embeddings, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, n, V) of the frozen model with other embeddings, for ids (B, n)."""
        out = torch.func.functional_call(
            self.model.module,
            self._where[0].lent(embeddings),
            kwargs={"input_ids": ids, "attention_mask": mask.long()},
            tie_weights=False,
        )
        return out.logits

    def _truth(self, ids: Tensor | None = None) -> Embeddings:
        """True embeddings of source ids, or of all; those that are none get the last one's."""
        parts = self.source.chunk(1 if self.config.is_tied else 2, dim=-1)
        every = Embeddings(parts[0], None if self.config.is_tied else parts[1], self.source_bias)
        if ids is None:
            return every
        return every.map(lambda t: t[ids.clamp(max=len(t) - 1)])

    def _language(self, batch: Batch | None) -> Tensor | int | None:
        if not self.config.num_languages:
            return None
        return 0 if batch is None or "language" not in batch else batch["language"]


def fitted(config: HypernetConfig, where: LMEmbeddings) -> HypernetConfig:
    """The configuration with what the language model decides: width, tying, bias."""
    return override(config, embed_dim=where.dim, is_tied=where.is_tied, has_bias=where.has_bias)
