"""Embeddings of new tokens without training: what the hypernetwork is measured against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polytok.core.errors import UnknownNameError
from polytok.systems.text.zett.bytelevel import ByteLevel
from polytok.systems.text.zett.hypernet import Embeddings
from polytok.systems.text.zett.vocabulary import Token

TEMPERATURE = 0.1  # of cosines, so that a few likenesses get all of the weight


@dataclass(frozen=True)
class Request:
    """What a heuristic knows.

    Args:
        tokens: the N new tokens. constituents: the source ids that spell each of them, uncut.
        shared: the source id of the same bytes, or -1. source: embeddings (V_old, d).
        source_tokenizer: whose embeddings they are. rng: of random rows.
    """

    tokens: tuple[Token, ...]
    constituents: tuple[tuple[int, ...], ...]
    shared: Tensor
    source: Embeddings
    source_tokenizer: ByteLevel
    rng: torch.Generator


def constituents(tokens: tuple[Token, ...], source: ByteLevel) -> tuple[tuple[int, ...], ...]:
    """Source ids that spell each token, those alone that have an embedding."""
    size = source.vocabulary.num_original
    return tuple(
        tuple(i for i in source.spell(t.text) if i < size) if t.kind == "piece" else ()
        for t in tokens
    )


def shared_ids(tokens: tuple[Token, ...], source: ByteLevel) -> Tensor:
    """Id of the same token in the source vocabulary (N,), -1 where it has none."""
    size = source.vocabulary.num_original
    ids = {t.text: i for i, t in enumerate(source.vocabulary.tokens[:size]) if t.kind != "dead"}
    return torch.tensor([ids.get(t.text, -1) for t in tokens])


def random(request: Request) -> Embeddings:
    """Normal draws with the mean and deviation of each dimension of the source."""
    count = len(request.tokens)

    def draw(matrix: Tensor) -> Tensor:
        noise = torch.randn(count, matrix.shape[1], generator=request.rng)
        return matrix.mean(0) + matrix.std(0) * noise

    return _per_matrix(request, draw)


def mean(request: Request) -> Embeddings:
    """The mean of all source embeddings, for every token."""
    return _per_matrix(request, lambda m: m.mean(0).expand(len(request.tokens), -1).clone())


def unk(request: Request) -> Embeddings:
    """The embedding of the source's unknown token for every token; their mean without one."""
    names = ("<unk>", "[UNK]", "<|endoftext|>")
    specials = request.source_tokenizer.vocabulary.specials
    index = next((specials[n] for n in names if n in specials), None)
    if index is None:
        return mean(request)
    return _per_matrix(request, lambda m: m[index].expand(len(request.tokens), -1).clone())


def fvt(request: Request) -> Embeddings:
    """The mean of the embeddings of a token's source pieces (FVT, arXiv 2402.09977, eq. 1)."""
    rows = [i for i, ids in enumerate(request.constituents) for _ in ids]
    columns = [c for ids in request.constituents for c in ids]
    values = [1.0 / len(ids) for ids in request.constituents for _ in ids]
    weights = torch.sparse_coo_tensor(
        torch.tensor([rows, columns]).view(2, -1),
        torch.tensor(values),
        (len(request.tokens), len(request.source.input)),
        check_invariants=True,
    ).coalesce()
    has_none = torch.tensor([not ids for ids in request.constituents])
    return _per_matrix(
        request,
        lambda m: torch.where(has_none[:, None], m.mean(0), torch.sparse.mm(weights, m)),
    )


def lexical(request: Request) -> Embeddings:
    """The source's own embedding where it has the token, a random draw elsewhere."""
    return random(request).with_rows(request.shared, request.source)


def focus(request: Request) -> Embeddings:
    """Shared tokens as they are; others as sums of shared ones, weighted by likeness of meaning.

    The likeness is the cosine of the mean source embeddings of their pieces, and the weights are
    its sparsemax. FOCUS (arXiv 2305.14481) takes the likeness from word vectors trained on texts of
    the new language instead, which a transfer without texts does not have.
    """
    shared = (request.shared >= 0).nonzero()[:, 0]
    if not len(shared):
        return fvt(request)
    auxiliary = fvt(request).input
    auxiliary = torch.nn.functional.normalize(auxiliary - auxiliary.mean(0), dim=-1)
    anchors = auxiliary[shared]

    def weighted(matrix: Tensor) -> Tensor:
        known = matrix[request.shared[shared]]
        parts = auxiliary.split(1024)
        return torch.cat([sparsemax(part @ anchors.T / TEMPERATURE) @ known for part in parts])

    return _per_matrix(request, weighted).with_rows(request.shared, request.source)


def sparsemax(logits: Tensor) -> Tensor:
    """Euclidean projection of each row (N, K) onto the simplex (arXiv 1602.02068, eq. 2)."""
    ordered = logits.sort(dim=-1, descending=True).values
    count = torch.arange(1, logits.shape[-1] + 1, dtype=logits.dtype)
    total = ordered.cumsum(-1) - 1
    support = (ordered * count > total).sum(-1, keepdim=True)
    return (logits - total.gather(-1, support - 1) / support).clamp(min=0)


METHODS: dict[str, Callable[[Request], Embeddings]] = {
    "focus": focus,
    "fvt": fvt,
    "lexical": lexical,
    "mean": mean,
    "random": random,
    "unk": unk,
}


def initialised(name: str, request: Request) -> Embeddings:
    """Embeddings by a method's name.

    Raises:
        UnknownNameError: no such method.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name](request)


def _per_matrix(request: Request, make: Callable[[Tensor], Tensor]) -> Embeddings:
    """Treat input, output and bias alike, the bias as a matrix of one column."""
    return request.source.map(
        lambda t: make(t) if t.ndim == 2 else make(t[:, None]).squeeze(1),
    )
