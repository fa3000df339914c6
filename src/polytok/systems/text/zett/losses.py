"""What the hypernetwork learns from: true embeddings, and the language model's own loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from polytok.systems.text.zett.hypernet import Embeddings

MASKED_LOGIT = -100_000.0


def identity_loss(found: Embeddings, truth: Embeddings) -> Tensor:
    """Mean over tokens of the L2 distance to the true embedding, averaged over input and output.

    Source: arXiv 2405.07883, section 3 (warm-up); ``train.py`` of its repository.
    """
    pairs = _pairs(found, truth)
    return torch.stack([(a.float() - b.float()).norm(dim=-1).mean() for a, b in pairs]).mean()


def lexical_loss(found: Embeddings, truth: Embeddings, mask: Tensor) -> Tensor:
    """Mean squared distance over the tokens of ``mask`` (N,), by the mean norm of all targets.

    Averaged over input and output; 0 where the mask is empty.
    """
    terms = []
    for a, b in _pairs(found, truth):
        distance = (a.float() - b.float()).square().sum(-1)
        norm = b.float().norm(dim=-1).mean()
        terms.append((distance * mask).sum() / mask.sum().clamp(min=1) / norm.clamp(min=1e-8))
    return torch.stack(terms).mean()


def language_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the valid places.

    Args:
        logits: (B, T, V). targets: (B, T) ids. mask: (B, T).
    """
    each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return (each * mask.flatten()).sum() / mask.sum().clamp(min=1)


def _pairs(found: Embeddings, truth: Embeddings) -> list[tuple[Tensor, Tensor]]:
    pairs = [(found.input, truth.input)]
    if found.output is not None and truth.output is not None:
        pairs.append((found.output, truth.output))
    return pairs
