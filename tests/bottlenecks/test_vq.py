"""Vector quantizers with a codebook: what they compute, and how their codes start and restart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bottlenecks._kinds import tokens
from polytok.bottlenecks import (
    IBQ,
    ClusteringQuantizer,
    CosineEMAQuantizer,
    DistanceLogits,
    EMAQuantizer,
    GumbelQuantizer,
    LinearLogits,
    SimVQ,
    VectorQuantizer,
    usage,
)
from polytok.bottlenecks.codebook import to_unit
from polytok.bottlenecks.gumbel import gumbel_noise
from polytok.core.contracts import Bottleneck
from polytok.core.errors import UnknownNameError

SIZE, DIM = 24, 5


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Gradient-learnt codes.


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_vq_by_hand(metric: str) -> None:
    quantizer = VectorQuantizer(SIZE, DIM, metric=metric)  # type: ignore[arg-type]
    z = tokens(dim=DIM).requires_grad_()
    inputs, codes = z, quantizer.embedding.weight
    if metric == "cosine":
        inputs, codes = F.normalize(inputs, dim=-1), F.normalize(codes, dim=-1)
    squares = (inputs.double().unsqueeze(-2) - codes.double()).square().sum(-1)
    ids = squares.argmin(-1)
    q = codes[ids]
    out = quantizer(z)
    assert torch.equal(out.indices[0], ids)
    torch.testing.assert_close(out.latents, q)
    commit, book = (q.detach() - inputs).square().mean(), (q - inputs.detach()).square().mean()
    torch.testing.assert_close(out.losses, {"vq/commit": commit, "vq/codebook": book})
    grads = torch.autograd.grad(
        0.25 * commit + book + (2 * inputs).sum(), [z, quantizer.embedding.weight]
    )
    ours = 0.25 * out.losses["vq/commit"] + out.losses["vq/codebook"] + (2 * out.latents).sum()
    found = torch.autograd.grad(ours, [z, quantizer.embedding.weight])
    torch.testing.assert_close(found, grads)


def test_each_loss_moves_its_own_side() -> None:
    quantizer, z = VectorQuantizer(SIZE, DIM), tokens(dim=DIM).requires_grad_()
    losses = quantizer(z).losses
    both = [z, quantizer.embedding.weight]
    for name, is_moved in (("vq/commit", (True, False)), ("vq/codebook", (False, True))):
        grads = torch.autograd.grad(losses[name], both, allow_unused=True)
        assert tuple(grad is not None and bool(grad.any()) for grad in grads) == is_moved


def test_maps_lie_around_the_codes() -> None:
    quantizer = VectorQuantizer(SIZE, DIM, codebook_dim=3)
    assert quantizer.codes.shape == (SIZE, 3)
    out = quantizer(tokens(dim=DIM))
    rows = quantizer.project_out(quantizer.codes[out.indices[0]])
    torch.testing.assert_close(out.latents, rows)
    assert isinstance(VectorQuantizer(SIZE, DIM).project_in, torch.nn.Identity)


def test_an_unknown_metric_is_refused() -> None:
    for build in (VectorQuantizer, ClusteringQuantizer):
        with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
            build(4, 2, metric="cosin")


@torch.no_grad()
def test_simvq_codes_are_frozen_vectors_under_one_map() -> None:
    quantizer = SimVQ(SIZE, DIM)
    assert [name for name, _ in quantizer.named_parameters()] == ["map.weight"]
    rows = torch.stack([quantizer.map(row) for row in quantizer.frozen])
    torch.testing.assert_close(quantizer.codes, rows)
    assert SimVQ(4000, 64).frozen.norm(dim=-1).mean() == pytest.approx(1.0, abs=0.02)


def test_one_step_of_simvq_moves_codes_that_nothing_chose() -> None:
    quantizer = SimVQ(SIZE, DIM)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    before = quantizer.codes.detach().clone()
    out = quantizer(tokens(1, 2, DIM))
    out.losses["vq/codebook"].backward()
    optimizer.step()
    assert bool((quantizer.codes != before).any(-1).all())


def test_ibq_by_hand() -> None:
    quantizer, z = IBQ(SIZE, DIM), tokens(dim=DIM).requires_grad_()
    weight = quantizer.embedding.weight
    scores = z @ weight.T
    soft = scores.softmax(-1)
    hard = F.one_hot(scores.argmax(-1), SIZE).float()
    index = (hard + soft - soft.detach()) @ weight
    chosen = hard @ weight
    wanted = {
        "vq/index": (index - z).square().mean(),
        "vq/commit": (chosen.detach() - z).square().mean(),
        "vq/codebook": (chosen - z.detach()).square().mean(),
    }
    out = quantizer(z)
    assert torch.equal(out.indices[0], scores.argmax(-1))
    torch.testing.assert_close(out.losses, wanted)
    torch.testing.assert_close(out.latents, index)
    for theirs, ours in ((index.square().sum(), out.latents.square().sum()), *pairs(wanted, out)):
        expected = torch.autograd.grad(theirs, [z, weight], retain_graph=True, allow_unused=True)
        found = torch.autograd.grad(ours, [z, weight], retain_graph=True, allow_unused=True)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(
                torch.zeros(1) if b is None else b, a if a is not None else torch.zeros(1)
            )
    assert bool(torch.autograd.grad(out.latents.sum(), weight)[0].any(-1).all())


@torch.no_grad()
def test_a_started_ibq_can_choose_every_code() -> None:
    quantizer, z = IBQ(64, 2), torch.randn(40, 50, 2)
    quantizer.start(z, rng=rng())
    assert len(quantizer(z).indices[0].unique()) == 64
    lengths = quantizer.codes.norm(dim=-1)
    torch.testing.assert_close(lengths, z.norm(dim=-1).mean().expand(64))


def pairs(wanted: dict[str, Tensor], out: object) -> list[tuple[Tensor, Tensor]]:
    return [(loss, out.losses[name]) for name, loss in wanted.items()]  # type: ignore[attr-defined]


# Draws.


def test_gumbel_by_hand() -> None:
    quantizer, z = GumbelQuantizer(SIZE, DIM, temperature=0.7), tokens(dim=DIM).requires_grad_()
    weight = quantizer.embedding.weight
    logits = z @ quantizer.logits.map.weight.T + quantizer.logits.map.bias
    noise = gumbel_noise(logits.flatten(0, 1), rng(3)).view(logits.shape)
    soft = ((logits + noise) / 0.7).softmax(-1)
    hard = F.one_hot((logits + noise).argmax(-1), SIZE).float()
    wanted = (hard + soft - soft.detach()) @ weight
    out = quantizer(z, rng=rng(3))
    torch.testing.assert_close(out.latents, wanted)
    leaves = [z, weight, *quantizer.logits.parameters()]
    expected = torch.autograd.grad(wanted.square().sum(), leaves)
    found = torch.autograd.grad(out.latents.square().sum(), leaves)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    p = logits.softmax(-1)
    kl = (p * (p * SIZE).log()).sum(-1).mean()
    torch.testing.assert_close(out.losses["vq/kl"], kl)


@torch.no_grad()
def test_gumbel_draws_codes_as_often_as_their_probabilities_say() -> None:
    quantizer = GumbelQuantizer(5, 2)
    z = torch.randn(1, 1, 2)
    ids = quantizer(z.expand(200, 200, 2), rng=rng()).indices[0]
    share = torch.bincount(ids.flatten(), minlength=5) / ids.numel()
    p = quantizer.logits(z[0], quantizer.codes).softmax(-1)[0]
    torch.testing.assert_close(share, p, atol=0.012, rtol=0)
    likeliest = quantizer(z).indices[0]
    assert int(likeliest) == int(p.argmax())
    assert torch.equal(
        quantizer(z.expand(9, 9, 2), rng=rng(1)).indices[0],
        quantizer(z.expand(9, 9, 2), rng=rng(1)).indices[0],
    )


@torch.no_grad()
@pytest.mark.parametrize("head", [LinearLogits(SIZE, DIM), DistanceLogits()])
def test_a_started_gumbel_quantizer_takes_the_nearest_code(
    head: LinearLogits | DistanceLogits,
) -> None:
    quantizer = GumbelQuantizer(SIZE, DIM, logits=head)
    z = tokens(60, dim=DIM)
    quantizer.start(z, rng=rng())
    ids = torch.cdist(z.double(), quantizer.codes.double()).argmin(-1)
    assert float((quantizer(z).indices[0] == ids).float().mean()) > 0.999


# Running means.


@pytest.mark.parametrize("eps", [1e-5, 0.1])
@torch.no_grad()
def test_ema_equals_a_loop_over_codes(eps: float) -> None:
    quantizer = EMAQuantizer(SIZE, DIM, decay=0.9, eps=eps)
    codes = quantizer.codes.double().tolist()
    counts, sums = [1.0] * SIZE, [list(row) for row in codes]
    for _ in range(6):
        z = tokens(dim=DIM)
        out = quantizer(z)
        ids = out.indices[0].flatten().tolist()
        rows = z.double().flatten(0, 1).tolist()
        for k in range(SIZE):
            mine = [row for row, i in zip(rows, ids, strict=True) if i == k]
            counts[k] = 0.9 * counts[k] + 0.1 * len(mine)
            sums[k] = [0.9 * sums[k][c] + 0.1 * sum(row[c] for row in mine) for c in range(DIM)]
        total = sum(counts)
        for k in range(SIZE):
            smooth = (counts[k] + eps) / (total + SIZE * eps) * total
            codes[k] = [value / smooth for value in sums[k]]
        quantizer.update(out)
        torch.testing.assert_close(
            quantizer.codes.double(), torch.tensor(codes).double(), atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(quantizer.counts, torch.tensor(counts), atol=1e-5, rtol=1e-5)
    assert list(quantizer(z).losses) == ["vq/commit"]
    assert not list(quantizer.parameters())


@torch.no_grad()
def test_cosine_ema_equals_a_loop_over_codes() -> None:
    quantizer = CosineEMAQuantizer(SIZE, DIM, decay=0.9)
    for _ in range(4):
        z, before = tokens(1, 9, DIM), quantizer.codes.clone()
        out = quantizer(z)
        quantizer.update(out)
        unit = F.normalize(z[0], dim=-1)
        for k in range(SIZE):
            mine = unit[out.indices[0][0] == k]
            wanted = before[k]
            if len(mine):
                mean = F.normalize(mine.mean(0), dim=0)
                wanted = F.normalize(0.9 * before[k] + 0.1 * mean, dim=0)
            torch.testing.assert_close(quantizer.codes[k], wanted)
        torch.testing.assert_close(quantizer.codes.norm(dim=-1), torch.ones(SIZE))


@torch.no_grad()
def test_ema_of_fixed_clusters_settles_at_their_means() -> None:
    quantizer = EMAQuantizer(2, 1, decay=0.5)
    quantizer.codes.copy_(torch.tensor([[-0.1], [0.1]]))
    z = torch.tensor([[[-3.0], [-5.0], [2.0]]])
    for _ in range(60):
        quantizer.update(quantizer(z))
    torch.testing.assert_close(quantizer.codes, torch.tensor([[-4.0], [2.0]]), atol=1e-3, rtol=0)


@torch.no_grad()
def test_the_first_update_after_a_start_keeps_the_start() -> None:
    quantizer, z = EMAQuantizer(SIZE, DIM), tokens(60, dim=DIM)
    quantizer.start(z, rng=rng())
    torch.testing.assert_close(quantizer.sums, quantizer.codes * quantizer.counts[:, None])
    before = quantizer.codes.clone()
    quantizer.update(quantizer(z))
    assert float((quantizer.codes - before).norm() / before.norm()) < 0.02


# Moves of clustering.


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@torch.no_grad()
def test_clustering_moves_every_code_by_the_published_share(metric: str) -> None:
    quantizer = ClusteringQuantizer(SIZE, DIM, metric=metric)  # type: ignore[arg-type]
    p = torch.zeros(SIZE, dtype=torch.float64)
    for _ in range(3):
        z, before = tokens(1, 9, DIM), quantizer.embedding.weight.double()
        out = quantizer(z)
        quantizer.update(out)
        share = torch.bincount(out.indices[0].flatten(), minlength=SIZE) / 9
        p = 0.99 * p + 0.01 * share.double()
        alpha = torch.exp(-10 * SIZE * p / (1 - 0.99) - 1e-3)
        rows = z[0].double()
        compared, codes = rows, before
        if metric == "cosine":
            compared, codes = F.normalize(rows, dim=-1), F.normalize(before, dim=-1)
        closest = rows[torch.cdist(codes, compared).argmin(1)]
        wanted = (1 - alpha[:, None]) * before + alpha[:, None] * closest
        torch.testing.assert_close(
            quantizer.embedding.weight.double(), wanted, atol=1e-5, rtol=1e-4
        )


# Usage and restarts.

RESTARTED = {
    "vq": lambda: VectorQuantizer(SIZE, DIM, restart_every=5),
    "vq-cosine": lambda: VectorQuantizer(SIZE, DIM, metric="cosine", restart_every=5),
    "ema": lambda: EMAQuantizer(SIZE, DIM, restart_every=5),
    "ema-cosine": lambda: CosineEMAQuantizer(SIZE, DIM, restart_every=5),
    "simvq": lambda: SimVQ(SIZE, DIM, restart_every=5),
    "ibq": lambda: IBQ(SIZE, DIM, restart_every=5),
    "gumbel": lambda: GumbelQuantizer(SIZE, DIM, logits=DistanceLogits(), restart_every=5),
}


def kill(quantizer: Bottleneck, codes: slice) -> None:
    """Make codes look unused for long."""
    tracked = quantizer.counts if isinstance(quantizer, EMAQuantizer) else quantizer.usage
    tracked[codes] = 0.0


@pytest.mark.parametrize("name", RESTARTED)
@torch.no_grad()
def test_restarts_put_dead_codes_on_inputs_and_leave_the_others(name: str) -> None:
    quantizer = RESTARTED[name]()
    z = tokens(dim=DIM)
    for _ in range(4):
        quantizer.update(quantizer(z))
    dead = slice(SIZE - 3, SIZE)
    far = quantizer.codes.clone()
    kill(quantizer, dead)
    tracked = quantizer.counts if name == "ema" else quantizer.usage
    assert int(quantizer.steps) == 4
    out = quantizer(z)
    is_dead = torch.zeros(SIZE, dtype=torch.bool)
    is_dead[dead] = True
    is_dead &= torch.bincount(out.indices[0].flatten(), minlength=SIZE) == 0
    assert bool(is_dead.any())
    quantizer.update(out)
    pool, found = out.stats["inputs"].flatten(0, 1).double(), quantizer.codes[is_dead].double()
    if name == "ibq":
        lengths = found.float().norm(dim=-1)
        torch.testing.assert_close(lengths, far.norm(dim=-1).mean().expand_as(lengths))
        pool, found = to_unit(pool), to_unit(found)
    reach = torch.cdist(found, pool)
    assert float(reach.amin(1).max()) < 1e-4
    assert len(reach.argmin(1).unique()) == int(is_dead.sum()), "each on another input"
    if "ema" not in name:
        assert torch.equal(quantizer.codes[: SIZE - 3], far[: SIZE - 3])
    assert not bool(usage.dead_codes(tracked)[is_dead].any())
    if name == "ema":
        torch.testing.assert_close(
            quantizer.sums[is_dead], quantizer.codes[is_dead] * quantizer.counts[is_dead, None]
        )
        # The next update keeps what a restart placed.
        placed = quantizer.codes[is_dead].clone()
        quantizer.update(quantizer(pool[:1].view(1, 1, DIM)))
        unmoved = quantizer(pool[:1].view(1, 1, DIM)).indices[0].item()
        rows = is_dead.nonzero().squeeze(1).tolist()
        keep = [i for i, row in enumerate(rows) if row != unmoved]
        torch.testing.assert_close(
            quantizer.codes[is_dead][keep], placed[keep], atol=1e-3, rtol=1e-3
        )


@torch.no_grad()
def test_restarts_come_at_their_time_and_not_without_being_asked() -> None:
    for every, wanted in ((0, []), (3, [3, 6])):
        quantizer = VectorQuantizer(SIZE, DIM, restart_every=every)
        moved = []
        for step in range(1, 8):
            kill(quantizer, slice(4, None))
            before = quantizer.embedding.weight.clone()
            quantizer.update(quantizer(tokens(1, 5, DIM)))
            if not torch.equal(before, quantizer.embedding.weight):
                moved.append(step)
        assert moved == wanted


@torch.no_grad()
def test_with_fewer_inputs_than_dead_codes_some_codes_wait() -> None:
    quantizer = VectorQuantizer(SIZE, DIM, restart_every=1)
    z = tokens(1, 2, DIM)
    quantizer.usage.zero_()
    before = quantizer.embedding.weight.clone()
    quantizer.update(quantizer(z))
    moved = (quantizer.embedding.weight != before).any(-1)
    assert int(moved.sum()) == 2
    assert sorted(quantizer.embedding.weight[moved].tolist()) == sorted(z[0].tolist())


@torch.no_grad()
def test_usage_is_a_running_mean_of_frequencies() -> None:
    quantizer, mean = VectorQuantizer(SIZE, DIM), torch.full((SIZE,), 1 / SIZE)
    for _ in range(5):
        out = quantizer(tokens(dim=DIM))
        quantizer.update(out)
        share = torch.bincount(out.indices[0].flatten(), minlength=SIZE) / 33
        mean = 0.99 * mean + 0.01 * share
        torch.testing.assert_close(quantizer.usage, mean)
    assert int(quantizer.steps) == 5


@torch.no_grad()
def test_a_dead_code_is_one_below_a_tenth_of_the_mean_use() -> None:
    use = torch.tensor([0.5, 0.4, 0.076, 0.024])
    assert usage.dead_codes(use).tolist() == [False, False, False, True]
    assert float(usage.dead_share(use)) == 0.25
    assert float(usage.dead_share(torch.zeros(8))) == 0.0


@pytest.mark.parametrize(
    ("share", "perplexity", "num_tokens", "words"),
    [
        (0.1, 50.0, 1000, "1000 tokens cannot tell"),
        (0.05, 30.0, 100_000, "5% of 1024 codes occur, as if 30 were used evenly: start"),
        (0.7, 500.0, 100_000, "restart dead codes"),
        (0.95, 200.0, 100_000, "up to 2.4 bits per token"),
        (0.97, 800.0, 100_000, "nothing to change"),
    ],
)
def test_advice_is_one_line_that_fits(
    share: float, perplexity: float, num_tokens: int, words: str
) -> None:
    told = usage.advise(usage=share, perplexity=perplexity, size=1024, num_tokens=num_tokens)
    assert words in told and "\n" not in told
