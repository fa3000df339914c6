"""What training and benchmarks measure: accuracy, faithfulness of attention, robustness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from polytok.core.contracts import Batch
from polytok.losses.virtual_adversarial import (
    VirtualAdversarialLoss,
    divergence,
    log_probabilities,
    score_space,
)
from polytok.metrics.rationale import kendall_tau
from polytok.systems.theory.attention_vat.model import AttentionClassifier, ClassifierOutput


def classified(model: AttentionClassifier, batch: Batch) -> ClassifierOutput:
    """The plain output for a batch."""
    return model.attend(model.encode(model.embed(batch), batch))


Importance = Literal["gradient", "gradient_fixed", "onehot", "onehot_fixed"]


def word_importance(
    model: AttentionClassifier, batch: Batch, kind: Importance = "gradient"
) -> Tensor:
    """How much each word matters to the output by its gradient, (B, T).

    y is the log-probability of the class that the model chooses.

    Args:
        kind: ``gradient`` is |dy / de_t|, the length of the gradient by the word's vector, and
            ``onehot`` |e_t dy / de_t|, the gradient by its one-hot code; ``_fixed`` lets none
            through the attention weights (Jain & Wallace 2019 take onehot_fixed).
    """
    # cuDNN has no backward of LSTMs in eval mode.
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        words = model.embed(batch).detach().requires_grad_()
        encoded = model.encode(words, batch)
        if kind.endswith("_fixed"):
            encoded = replace(encoded, scores=encoded.scores.detach())
        chosen = log_probabilities(model.attend(encoded).logits).amax(-1)
        (gradient,) = torch.autograd.grad(chosen.sum(), words)
    if kind.startswith("onehot"):
        size = (gradient * words.detach()).sum(-1).abs()
    else:
        size = gradient.norm(dim=-1)
    return size.masked_fill(~batch["mask"], 0)


def faithfulness(model: AttentionClassifier, batch: Batch, kind: Importance = "gradient") -> Tensor:
    """Kendall's tau (B,) of attention with :func:`word_importance`; NaN for a single word."""
    with torch.no_grad():
        attention = classified(model, batch).attention
    return kendall_tau(attention, word_importance(model, batch, kind), batch["mask"])


def perturbed(
    model: AttentionClassifier,
    batch: Batch,
    loss: VirtualAdversarialLoss,
    *,
    rng: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (B, C) without and with a perturbation of the scores that ``loss`` chooses."""
    with torch.no_grad():
        encoded = model.encode(model.embed(batch), batch)
        clean = model.attend(encoded).logits
        r = loss.perturbation(
            lambda r: model.attend(encoded, r).logits,
            score_space(loss.kind, encoded.scores, encoded.mask),
            clean,
            labels=batch["label"],
            rng=rng,
        )
        return clean, model.attend(encoded, r).logits


def shift(
    model: AttentionClassifier,
    batch: Batch,
    loss: VirtualAdversarialLoss,
    *,
    rng: torch.Generator | None = None,
) -> Tensor:
    """KL divergence (B,) that a perturbation of the scores causes, in nats."""
    return divergence(*perturbed(model, batch, loss, rng=rng))


def accuracy(model: AttentionClassifier, batches: Sequence[Batch], *, eps: float = 0.0) -> float:
    """Share of right answers while the scores are attacked with the true labels at norm ``eps``."""
    loss = VirtualAdversarialLoss(kind="at", eps=eps)
    right = [
        log_probabilities(perturbed(model, batch, loss)[1]).argmax(-1) == batch["label"]
        for batch in batches
    ]
    return float(torch.cat(right).float().mean())


def scores(model: AttentionClassifier, batches: Sequence[Batch]) -> dict[str, float]:
    """Accuracy, area under the ROC curve of two classes, tau of attention and gradients."""
    device = next(model.parameters()).device
    batches = [{k: v.to(device) for k, v in batch.items()} for batch in batches]
    with torch.no_grad():
        logits = torch.cat([log_probabilities(classified(model, b).logits) for b in batches])
    label = torch.cat([b["label"] for b in batches])
    found = {"accuracy": float((logits.argmax(-1) == label).float().mean())}
    if logits.shape[-1] == 2:
        found["auc"] = area_under_roc(logits[:, 1] - logits[:, 0], label == 1)
    tau = torch.cat([faithfulness(model, b) for b in batches])
    return {**found, "kendall_tau": float(tau.nanmean())}


def area_under_roc(score: Tensor, positive: Tensor) -> float:
    """Chance that a positive example scores above a negative one, ties half; NaN without either."""
    ranks = torch.searchsorted(score.sort().values, score) + torch.searchsorted(
        score.sort().values, score, right=True
    )
    count, rest = int(positive.sum()), int((~positive).sum())
    if not count or not rest:
        return float("nan")
    mean_rank = (ranks.double() + 1)[positive].sum() / 2
    return float((mean_rank - count * (count + 1) / 2) / (count * rest))
