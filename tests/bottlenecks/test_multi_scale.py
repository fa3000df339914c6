"""The multi-scale residual quantizer: what it computes, learns, counts and restarts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polytok.bottlenecks import RESAMPLERS, MultiScaleVQ, multi_scale
from polytok.bottlenecks.codebook import nearest
from polytok.bottlenecks.multi_scale import Refinement
from polytok.core.errors import ConfigError, PolytokError

SLOTS = (1, 4, 9, 16)
DIM, VOCAB = 6, 32
every = pytest.mark.parametrize("name", sorted(RESAMPLERS))


def build(name: str = "grid2d", **changes: object) -> MultiScaleVQ:
    options = {"codebook_size": VOCAB, "codebook_dim": DIM, "slots": SLOTS, "resampler": name}
    return MultiScaleVQ(**{**options, **changes}).eval()  # type: ignore[arg-type]


def latents(count: int = 3, slots: tuple[int, ...] = SLOTS, dim: int = DIM) -> Tensor:
    return torch.randn(count, slots[-1], dim)


@every
@torch.no_grad()
def test_embed_of_the_indices_is_the_output_bit_for_bit(name: str) -> None:
    quantizer = build(name)
    out = quantizer(latents())
    assert out.is_exact and quantizer.vocab_sizes == (VOCAB,) * len(SLOTS)
    assert [ids.shape for ids in out.indices] == [(3, count) for count in SLOTS]
    assert all(int(ids.min()) >= 0 and int(ids.max()) < VOCAB for ids in out.indices)
    assert torch.equal(quantizer.embed(out.indices), out.latents)
    for level in range(len(SLOTS)):
        prefix = quantizer.embed(out.indices, num_levels=level + 1)
        assert torch.equal(prefix, out.stats["prefixes"][level])
        assert torch.equal(prefix, quantizer.embed(out.indices[: level + 1]))


@every
@torch.no_grad()
def test_lifts_sum_to_the_output_and_the_rest_is_what_is_left(name: str) -> None:
    quantizer, z = build(name), latents()
    out = quantizer(z)
    lifts = [
        quantizer._lift(quantizer.embedding(ids), level) for level, ids in enumerate(out.indices)
    ]
    torch.testing.assert_close(sum(lifts), out.latents, atol=1e-6, rtol=1e-6)
    energy = z.square().mean()
    for level in range(len(SLOTS)):
        rest = z - sum(lifts[: level + 1])
        share = rest.square().mean() / energy
        torch.testing.assert_close(out.stats["rest_energy"][level], share, atol=1e-5, rtol=1e-5)
        before = z - sum(lifts[:level], torch.zeros_like(z))
        pooled = quantizer.resampler.down(before, level)
        torch.testing.assert_close(out.stats["inputs"][level], pooled, atol=1e-5, rtol=1e-5)


@every
@torch.no_grad()
def test_teacher_inputs_are_what_a_sampler_meets_step_by_step(name: str) -> None:
    quantizer = build(name)
    indices = quantizer(latents()).indices
    inputs = quantizer.teacher_inputs(indices).split(SLOTS[1:], dim=1)
    total = torch.zeros(3, SLOTS[-1], DIM)
    for level in range(len(SLOTS) - 1):
        total = total + quantizer._lift(quantizer.embedding(indices[level]), level)
        met = quantizer.resampler.down(total, level + 1)
        torch.testing.assert_close(inputs[level], met, atol=1e-5, rtol=0)
    # The last level is a target only: no input depends on it.
    poisoned = (*indices[:-1], (indices[-1] + 1) % VOCAB)
    assert torch.equal(quantizer.teacher_inputs(poisoned), quantizer.teacher_inputs(indices))


@every
@torch.no_grad()
def test_probabilities_embed_as_soft_tokens(name: str) -> None:
    quantizer = build(name)
    indices = quantizer(latents()).indices
    hard = [F.one_hot(ids, VOCAB).float() for ids in indices]
    torch.testing.assert_close(quantizer.embed(hard), quantizer.embed(indices), atol=1e-5, rtol=0)
    if name != "attn":  # the others are affine in the codes
        other = [F.one_hot((ids + 1) % VOCAB, VOCAB).float() for ids in indices]
        mixed = quantizer.embed([(a + b) / 2 for a, b in zip(hard, other, strict=True)])
        mean = (quantizer.embed(hard) + quantizer.embed(other)) / 2
        torch.testing.assert_close(mixed, mean, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_embed_refuses_levels_that_are_not_there() -> None:
    quantizer = build()
    indices = quantizer(latents()).indices
    for count in (0, 5, -1):
        with pytest.raises(PolytokError, match="num_levels"):
            quantizer.embed(indices, num_levels=count)
    with pytest.raises(PolytokError, match="num_levels=2"):
        quantizer.embed(indices[:1], num_levels=2)


@pytest.mark.parametrize("name", sorted(RESAMPLERS))
@torch.no_grad()
def test_one_full_scale_is_ordinary_vector_quantization(name: str) -> None:
    quantizer = build(name, slots=(16,), refine_ratio=0.0)
    z = latents()
    out = quantizer(z)
    ids = torch.cdist(z.double(), quantizer.embedding.weight.double()).argmin(-1)
    assert torch.equal(out.indices[0], ids)
    assert torch.equal(out.latents, quantizer.embedding.weight[ids])
    again = quantizer(out.latents)
    assert torch.equal(again.indices[0], ids) and torch.equal(again.latents, out.latents)


@torch.no_grad()
def test_full_scales_alone_are_residual_quantization_and_never_add_error() -> None:
    quantizer = build("linear1d", slots=(16, 16, 16), refine_ratio=0.0)
    quantizer.embedding.weight[0] = 0.0  # adding nothing is allowed, so no level can hurt
    rest = quantizer(latents(20)).stats["rest_energy"]
    assert bool((rest.diff() <= 1e-6).all())


@every
def test_gradient_passes_straight_through_to_the_input(name: str) -> None:
    quantizer = build(name).train()
    z = latents().requires_grad_()
    out = quantizer(z)
    assert not out.is_exact
    out.latents.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))
    assert quantizer.embedding.weight.grad is None
    with torch.no_grad():
        exact = quantizer.eval()(z)
    torch.testing.assert_close(out.latents.detach(), exact.latents, atol=1e-6, rtol=1e-6)


@every
def test_the_loss_teaches_codebook_refinement_and_input(name: str) -> None:
    quantizer = build(name).train()
    z = latents().requires_grad_()
    quantizer(z).losses["vq"].backward()
    assert bool(z.grad.any()) and bool(quantizer.embedding.weight.grad.any())
    for parameter in quantizer.phi.parameters():
        assert bool(parameter.grad.any())


@torch.no_grad()
def test_the_loss_is_the_mean_over_scales_with_beta_on_the_commitment() -> None:
    z = latents()
    for beta in (0.0, 0.25, 1.0):
        torch.manual_seed(0)
        quantizer = build(beta=beta)
        prefixes = quantizer(z).stats["prefixes"]
        wanted = (1 + beta) * torch.stack([F.mse_loss(p, z) for p in prefixes]).mean()
        torch.testing.assert_close(quantizer(z).losses["vq"], wanted)


def test_only_the_commitment_pulls_the_input() -> None:
    quantizer = build(beta=0.0).train()
    z = latents().requires_grad_()
    quantizer(z).losses["vq"].backward()
    assert not bool(z.grad.any())


def test_the_codebook_s_gradient_does_not_depend_on_beta() -> None:
    z, grads = latents(), []
    for beta in (0.0, 0.25):
        torch.manual_seed(0)
        quantizer = build(beta=beta).train()
        quantizer(z).losses["vq"].backward()
        grads.append(quantizer.embedding.weight.grad)
    assert torch.equal(*grads)


@every
def test_what_update_and_logs_get_carries_no_graph(name: str) -> None:
    stats = build(name).train()(latents().requires_grad_()).stats
    tensors = [stats["rest_energy"], *stats["inputs"], *stats["prefixes"]]
    assert not any(tensor.requires_grad for tensor in tensors)


@torch.no_grad()
def test_the_loss_averages_over_the_levels_that_ran() -> None:
    quantizer, z = build(), latents()
    out = quantizer(z, start_level=2)
    wanted = 1.25 * torch.stack([F.mse_loss(p, z) for p in out.stats["prefixes"]]).mean()
    torch.testing.assert_close(out.losses["vq"], wanted)


def test_the_maths_is_fp32_under_autocast() -> None:
    quantizer, z = build(), latents()
    plain = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = quantizer(z)
        embedded = quantizer.embed(plain.indices)
    assert torch.equal(plain.latents, mixed.latents) and mixed.latents.dtype == torch.float32
    assert torch.equal(embedded, plain.latents)
    half = quantizer(z.bfloat16())
    assert torch.equal(half.latents, quantizer(z.bfloat16().float()).latents)


@torch.no_grad()
def test_start_level_quantizes_what_earlier_levels_left_over() -> None:
    quantizer, z = build(), latents()
    full = quantizer(z)
    for start in range(1, len(SLOTS)):
        late = quantizer(z - full.stats["prefixes"][start - 1], start_level=start)
        for found, wanted in zip(late.indices, full.indices[start:], strict=True):
            assert torch.equal(found, wanted)
        total = full.stats["prefixes"][start - 1] + late.latents
        torch.testing.assert_close(total, full.latents, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_smallest_sizes_and_an_empty_batch() -> None:
    tiny = build("linear1d", codebook_size=2, codebook_dim=1, slots=(1,), refine_ratio=0.0)
    out = tiny(torch.tensor([[[5.0]], [[-5.0]]]))
    assert out.indices[0].flatten().tolist() == [
        int(tiny.embedding.weight.argmax()),
        int(tiny.embedding.weight.argmin()),
    ]
    empty = build()(torch.empty(0, 16, DIM))
    assert empty.latents.shape == (0, 16, DIM)
    assert [ids.shape for ids in empty.indices] == [(0, count) for count in SLOTS]


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4, 4), (16,), ()])
def test_a_refinement_of_ratio_0_is_the_identity(shape: tuple[int, ...]) -> None:
    phi = Refinement(DIM, shape, 4, ratio=0.0, count=4)
    h = latents()
    assert phi(h, 2) is h
    assert not list(phi.parameters())


@torch.no_grad()
@pytest.mark.parametrize("shape", [(4, 4), (16,), ()])
def test_a_refinement_mixes_linearly(shape: tuple[int, ...]) -> None:
    h = latents()
    torch.manual_seed(1)
    half = Refinement(DIM, shape, 4, ratio=0.5, count=4)
    torch.manual_seed(1)
    whole = Refinement(DIM, shape, 4, ratio=1.0, count=4)
    for level in range(4):
        torch.testing.assert_close(half(h, level), (h + whole(h, level)) / 2)


# Training: usage, start, restarts.


@torch.no_grad()
def test_usage_is_a_moving_average_of_relative_frequencies() -> None:
    quantizer = build()
    mean = torch.zeros(len(SLOTS), VOCAB)
    for step in range(5):
        out = quantizer(latents(7))
        quantizer.update(out)
        share = torch.stack(
            [torch.bincount(ids.flatten(), minlength=VOCAB) / ids.numel() for ids in out.indices]
        )
        decay = multi_scale.USAGE_DECAY if step else 0.0
        mean = decay * mean + (1 - decay) * share
        torch.testing.assert_close(quantizer.usage, mean)
        torch.testing.assert_close(quantizer.usage.sum(1), torch.ones(len(SLOTS)))
    assert int(quantizer.steps) == 5


@torch.no_grad()
def test_restarts_replace_dead_codes_only_by_vectors_of_the_batch() -> None:
    quantizer = build(restart_every=1)
    quantizer.embedding.weight[VOCAB // 2 :] = 1e3  # far away: never nearest
    before = quantizer.embedding.weight.clone()
    out = quantizer(latents(40))
    used = torch.cat([ids.flatten() for ids in out.indices]).bincount(minlength=VOCAB)
    weights = torch.tensor(SLOTS) / sum(SLOTS)
    share = torch.stack(
        [ids.flatten().bincount(minlength=VOCAB) / ids.numel() for ids in out.indices]
    )
    dead = (share * weights[:, None]).sum(0) < multi_scale.DEAD_BELOW / VOCAB
    assert bool(dead[VOCAB // 2 :].all()) and not bool(dead.all())
    assert not bool(dead[used > 0.02 * used.sum()].any())
    quantizer.update(out)
    after = quantizer.embedding.weight
    assert torch.equal(after[~dead], before[~dead])
    pool = torch.cat([v.flatten(0, 1) for v in out.stats["inputs"]])
    for row in after[dead]:
        assert bool((pool == row).all(1).any())
    assert bool((quantizer.usage[:, dead] == 1 / VOCAB).all())


@torch.no_grad()
def test_restarts_wait_for_their_turn_and_repeat_themselves() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        quantizer = build(restart_every=3)
        quantizer.embedding.weight[4:] = 1e3
        start = quantizer.embedding.weight.clone()
        for step in range(1, 4):
            quantizer.update(quantizer(latents(10)))
            changed = not torch.equal(quantizer.embedding.weight, start)
            assert changed == (step == 3)
        runs.append(quantizer.embedding.weight.clone())
    assert torch.equal(*runs)


@torch.no_grad()
def test_without_restarts_update_leaves_the_codebook() -> None:
    quantizer = build()
    before = quantizer.embedding.weight.clone()
    quantizer.update(quantizer(latents()))
    assert torch.equal(quantizer.embedding.weight, before)


@every
@torch.no_grad()
def test_the_start_makes_every_scale_remove_energy(name: str) -> None:
    quantizer = build(name, codebook_size=256, refine_ratio=0.0)
    z = 10 * (latents(200) + 2 * torch.randn(200, 1, DIM))
    untrained = quantizer(z).stats["rest_energy"][-1]
    quantizer.start(z, rng=torch.Generator().manual_seed(0))
    rest = quantizer(z).stats["rest_energy"]
    assert float(rest[-1]) < 0.3 * float(untrained)
    if name != "attn":  # its lift is not a projection before training
        assert bool((rest.diff() <= 1e-3).all())
        assert float(rest[0]) < 1.0
    assert quantizer.usage.unique().tolist() == [pytest.approx(1 / 256)]


@torch.no_grad()
def test_the_start_fills_the_codebook_and_needs_a_code_per_scale() -> None:
    quantizer = build(codebook_size=37)
    before = quantizer.embedding.weight.clone()
    quantizer.start(latents(30), rng=torch.Generator().manual_seed(0))
    assert quantizer.embedding.weight.shape == (37, DIM)
    assert bool((quantizer.embedding.weight != before).any(1).all())
    with pytest.raises(ConfigError, match="codebook_size=3"):
        build(codebook_size=3).start(latents(30), rng=torch.Generator().manual_seed(0))


def mixture(count: int) -> Tensor:
    """A mixture of 64 Gaussians in the plane, one token per item."""
    centres = torch.randn(64, 2) * 4
    return (centres[torch.randint(64, (count,))] + 0.05 * torch.randn(count, 2)).unsqueeze(1)


def learn(quantizer: MultiScaleVQ, data: Tensor, steps: int) -> float:
    """Train the codebook; the share of codes that the data then use."""
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2)
    quantizer.train()
    for _ in range(steps):
        out = quantizer(data[torch.randint(len(data), (512,))])
        optimizer.zero_grad()
        out.losses["vq"].backward()
        optimizer.step()
        quantizer.update(out)
    ids = nearest(data, quantizer.embedding.weight)
    return len(ids.unique()) / quantizer.embedding.num_embeddings


def test_a_kmeans_start_with_restarts_uses_the_codebook() -> None:
    torch.manual_seed(1)
    quantizer = build(
        codebook_size=64, codebook_dim=2, slots=(1,), refine_ratio=0.0, restart_every=20
    )
    data = mixture(4096)
    quantizer.start(data, rng=torch.Generator().manual_seed(0))
    assert learn(quantizer, data, 100) > 0.95


def test_a_far_start_without_restarts_does_not() -> None:
    torch.manual_seed(1)
    quantizer = build(codebook_size=64, codebook_dim=2, slots=(1,), refine_ratio=0.0)
    torch.nn.init.uniform_(quantizer.embedding.weight, 30.0, 60.0)
    assert learn(quantizer, mixture(4096), 100) < 0.6


def test_more_scales_of_a_trained_codebook_leave_less() -> None:
    quantizer = build("grid2d", codebook_size=64, refine_ratio=0.0).train()
    base = torch.randn(256, 16, DIM) + 1.5 * torch.randn(256, 1, DIM)
    quantizer.start(base, rng=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=3e-3)
    for _ in range(40):
        out = quantizer(base[torch.randint(256, (32,))])
        optimizer.zero_grad()
        out.losses["vq"].backward()
        optimizer.step()
    with torch.no_grad():
        rest = quantizer.eval()(base).stats["rest_energy"]
    assert float(rest[0]) < 1.0 and bool((rest.diff() < 0).all())


def test_a_state_dict_holds_codes_refinement_and_usage() -> None:
    keys = set(build().state_dict())
    assert {"embedding.weight", "usage", "steps"} <= keys
    assert {key.split(".")[0] for key in keys} == {"embedding", "usage", "steps", "phi"}


@torch.no_grad()
def test_skipped_levels_keep_their_usage() -> None:
    quantizer = build()
    quantizer.update(quantizer(latents()))
    before = quantizer.usage.clone()
    quantizer.update(quantizer(latents(), start_level=2))
    assert torch.equal(quantizer.usage[:2], before[:2])
    assert not torch.equal(quantizer.usage[2:], before[2:])
    torch.testing.assert_close(quantizer.usage.sum(1), torch.ones(len(SLOTS)))
