"""Our quantizers against those of vector-quantize-pytorch (MIT), with the same codes, where both
define the same thing. What is ours alone (names of losses, pure forward) is set aside.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import vector_quantize_pytorch as theirs
from torch import Tensor
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from polytok.bottlenecks import (
    EMAQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
    rotation,
    straight_through,
)
from polytok.core.contracts import BottleneckOutput

pytestmark = pytest.mark.parity

SIZE, DIM = 96, 8
ESTIMATORS = {"straight-through": straight_through, "rotation": rotation}


def inputs(count: int = 4, length: int = 50, dim: int = DIM) -> Tensor:
    return torch.randn(count, length, dim)


def same_codes(out: BottleneckOutput, quantized: Tensor, ids: Tensor) -> None:
    """Ids, and outputs."""
    assert out.indices is not None and torch.equal(out.indices[0], ids)
    torch.testing.assert_close(out.latents, quantized, atol=1e-5, rtol=1e-5)


def same_gradient(z: Tensor, ours: Tensor, peer: Tensor, *, atol: float = 1e-5) -> None:
    """Gradients to z of a weighted sum of two outputs."""
    weights = torch.randn_like(ours)
    first, second = (torch.autograd.grad((out * weights).sum(), z)[0] for out in (ours, peer))
    torch.testing.assert_close(first, second, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_vq_and_its_learnt_codes(estimator: str) -> None:
    ours = VectorQuantizer(SIZE, DIM, estimator=ESTIMATORS[estimator])
    peer = theirs.VectorQuantize(
        dim=DIM,
        codebook_size=SIZE,
        learnable_codebook=True,
        ema_update=False,
        rotation_trick=estimator == "rotation",
    )
    peer._codebook.embed.data.copy_(ours.codes[None])
    z = inputs().requires_grad_()
    out = ours(z)
    quantized, ids, loss = peer(z)
    same_codes(out, quantized, ids)
    # Their one loss has both gradients: it is either of ours in value, and their sum in gradient.
    torch.testing.assert_close(out.losses["vq/commit"], loss)
    torch.testing.assert_close(out.losses["vq/codebook"], loss)
    both = out.losses["vq/commit"] + out.losses["vq/codebook"]
    mine = torch.autograd.grad(both, [z, ours.embedding.weight], retain_graph=True)
    other = torch.autograd.grad(loss, [z, peer._codebook.embed], retain_graph=True)
    torch.testing.assert_close(mine[0], other[0])
    torch.testing.assert_close(mine[1], other[1][0])
    same_gradient(z, out.latents, quantized)


def test_cosine_vq() -> None:
    ours = VectorQuantizer(SIZE, DIM, metric="cosine")
    peer = theirs.VectorQuantize(
        dim=DIM, codebook_size=SIZE, use_cosine_sim=True, ema_update=False, rotation_trick=False
    )
    peer.codebook = ours.codes.detach()
    z = inputs().requires_grad_()
    out = ours(z)
    quantized, ids, loss = peer(z)
    same_codes(out, quantized, ids)
    torch.testing.assert_close(out.losses["vq/commit"], loss)
    same_gradient(z, out.latents, quantized)


def test_rotation() -> None:
    z, q = inputs().requires_grad_(), inputs()
    ours, peer = rotation(z, q), rotate_to(z, q)
    torch.testing.assert_close(ours, peer, atol=1e-5, rtol=1e-4)
    same_gradient(z, ours, peer, atol=1e-4)


@torch.no_grad()
def test_ema_updates() -> None:
    ours = EMAQuantizer(SIZE, DIM, decay=0.9)
    peer = theirs.VectorQuantize(dim=DIM, codebook_size=SIZE, decay=0.9, rotation_trick=False)
    book = peer._codebook
    book.embed.copy_(ours.codes[None])
    book.embed_avg.copy_(ours.codes[None])
    for _ in range(8):
        z = inputs()
        out = ours(z)
        ours.update(out)
        quantized, ids, loss = peer(z)
        same_codes(out, quantized, ids)
        torch.testing.assert_close(out.losses["vq/commit"], loss)
        for mine, other in (
            (ours.codes, book.embed[0]),
            (ours.counts, book.cluster_size[0]),
            (ours.sums, book.embed_avg[0]),
        ):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_residual_vq() -> None:
    levels = [EMAQuantizer(SIZE, DIM) for _ in range(3)]
    for before, after in pairwise(levels):
        after.codes.copy_(before.codes / 2)
    ours = ResidualQuantizer(levels, gradient="each")
    peer = theirs.ResidualVQ(
        dim=DIM, num_quantizers=3, codebook_size=SIZE, ema_update=False, rotation_trick=False
    )
    for level, layer in zip(levels, peer.layers, strict=True):
        layer._codebook.embed.copy_(level.codes[None])
    z = inputs().requires_grad_()
    out = ours(z)
    quantized, ids, losses = peer(z)
    assert torch.equal(torch.stack(out.indices, dim=-1), ids)
    torch.testing.assert_close(out.latents, quantized, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.losses["vq/commit"], losses.mean())
    same_gradient(z, out.latents, quantized)


@pytest.mark.parametrize("form", ["shifted", "symmetric"])
@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (7, 5, 5, 5, 5), (3, 4, 6)])
def test_fsq(form: str, levels: tuple[int, ...]) -> None:
    ours = FiniteScalarQuantizer(levels, form=form)  # type: ignore[arg-type]
    peer = theirs.FSQ(levels=list(levels), preserve_symmetry=form == "symmetric")
    z = (2 * inputs(20, dim=len(levels))).requires_grad_()
    out = ours(z)
    quantized, ids = peer(z)
    assert torch.equal(out.indices[0], ids.long())
    torch.testing.assert_close(out.latents, quantized, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.embed([ids.long()]), peer.indices_to_codes(ids))
    same_gradient(z, out.latents, quantized)


def test_lfq() -> None:
    bits, temperature = 7, 0.4
    ours = LookupFreeQuantizer(bits, entropy_temperature=temperature)
    peer = theirs.LFQ(dim=bits, entropy_loss_weight=1.0, commitment_loss_weight=0.25)
    z = inputs(dim=bits).requires_grad_()
    out = ours(z)
    (quantized, ids, loss), parts = peer(
        z, inv_temperature=1 / temperature, return_loss_breakdown=True
    )
    # Their first channel is the most significant bit, ours the least.
    reversed_ids = ours(z.flip(-1)).indices[0]
    assert torch.equal(reversed_ids, ids.long())
    torch.testing.assert_close(out.latents, quantized)
    torch.testing.assert_close(out.losses["vq/commit"], parts.commitment)
    # They clamp probabilities at 1e-5 inside the logarithm.
    sample, batch = out.losses["vq/entropy_sample"], out.losses["vq/entropy_batch"]
    torch.testing.assert_close(sample, parts.per_sample_entropy, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(-batch, parts.batch_entropy, atol=1e-3, rtol=1e-3)
    total = sample + batch + 0.25 * out.losses["vq/commit"]
    torch.testing.assert_close(total, loss, atol=1e-3, rtol=1e-3)
    same_gradient(z, out.latents, quantized)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_simvq(estimator: str) -> None:
    ours = SimVQ(SIZE, DIM, estimator=ESTIMATORS[estimator])
    peer = theirs.SimVQ(dim=DIM, codebook_size=SIZE, rotation_trick=estimator == "rotation")
    peer.frozen_codebook.copy_(ours.frozen)
    peer.code_transform.load_state_dict(ours.map.state_dict())
    z = inputs().requires_grad_()
    out = ours(z)
    quantized, ids, loss = peer(z)
    same_codes(out, quantized, ids)
    total = out.losses["vq/codebook"] + 0.25 * out.losses["vq/commit"]
    torch.testing.assert_close(total, loss)
    mine = torch.autograd.grad(total, [z, ours.map.weight], retain_graph=True)
    other = torch.autograd.grad(loss, [z, peer.code_transform.weight], retain_graph=True)
    torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-4)
    same_gradient(z, out.latents, quantized)
    torch.testing.assert_close(ours.embed([ids]), peer.indices_to_codes(ids))
