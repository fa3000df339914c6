"""Virtual adversarial losses: the mechanism checks, against independent oracles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from polytok.core.errors import ConfigError, PolytokError, UnknownNameError
from polytok.layers.score_hook import added_scores, read_scores
from polytok.layers.transformer import Attention
from polytok.losses.virtual_adversarial import (
    KINDS,
    Space,
    VirtualAdversarialLoss,
    adversarial,
    cross_entropy,
    difference_directions,
    divergence,
    neighbour_directions,
    random_unit,
    score_space,
    steepest,
    virtual_adversarial,
)

B, T, D = 6, 7, 10


class Reader(nn.Module):
    """Attention over fixed states: what every forward below starts from."""

    def __init__(self, num_logits: int = 3, *, count: int = B, seed: int = 4) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.states = nn.Parameter(torch.randn(count, T, D, generator=rng))
        self.scores = nn.Parameter(torch.randn(count, T, generator=rng))
        self.head = nn.Linear(D, num_logits)
        self.mask = torch.arange(T) < torch.arange(count)[:, None] % T + 1

    def forward(self, r: Tensor | None = None, items: Tensor | None = None) -> Tensor:
        items = torch.arange(len(self.scores)) if items is None else items
        scores = self.scores[items] if r is None else self.scores[items] + r
        weights = scores.masked_fill(~self.mask[items], -torch.inf).softmax(-1)
        return self.head((weights[..., None] * self.states[items]).sum(1))

    def space(self, kind: str) -> Space:
        return score_space(kind, self.scores, self.mask)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def labels(reader: Reader) -> Tensor:
    num_classes = max(2, reader.head.out_features)
    return torch.arange(len(reader.scores)) % num_classes


def loss_of(reader: Reader, kind: str, eps: float = 2.0, **options: object) -> Tensor:
    loss = VirtualAdversarialLoss(kind=kind, eps=eps, **options)
    return loss(reader, reader.space(kind), reader(), labels=labels(reader), rng=rng())


logits = st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3)


@given(logits, logits)
@settings(max_examples=200, deadline=None)
def test_the_divergence_is_torchs_and_never_negative(left: list[float], right: list[float]) -> None:
    p, q = torch.tensor([left]).double(), torch.tensor([right]).double()
    for mine, wanted in (
        (divergence(p, q), kl_divergence(Categorical(logits=p), Categorical(logits=q))),
        (
            divergence(p[:, :1], q[:, :1]),
            kl_divergence(Bernoulli(logits=p[:, 0]), Bernoulli(logits=q[:, 0])),
        ),
    ):
        assert float(mine) >= 0
        torch.testing.assert_close(mine, wanted.float(), rtol=1e-4, atol=1e-5)


def test_one_logit_is_two_logits_that_differ_by_it() -> None:
    z, w, label = torch.randn(9, 1), torch.randn(9, 1), torch.arange(9) % 2
    two = [torch.cat([torch.zeros_like(x), x], dim=-1) for x in (z, w)]
    torch.testing.assert_close(divergence(z, w), divergence(*two))
    torch.testing.assert_close(
        cross_entropy(z, label), F.cross_entropy(two[0], label, reduction="none")
    )


def test_half_precision_is_computed_in_single() -> None:
    z = torch.tensor([[3.0], [-4.0]])
    exact = divergence(z, z + 0.5)
    assert divergence(z.bfloat16(), (z + 0.5).bfloat16()).dtype == torch.float32
    torch.testing.assert_close(divergence(z.bfloat16(), (z + 0.5).bfloat16()), exact)


@pytest.mark.parametrize("kind", ["vat", "ivat", "random"])
@pytest.mark.parametrize("num_logits", [1, 3])
def test_nothing_is_lost_at_eps_zero_and_nothing_negative_above(kind: str, num_logits: int) -> None:
    reader = Reader(num_logits)
    assert torch.equal(loss_of(reader, kind, eps=0.0), torch.zeros(B))
    values = loss_of(reader, kind)
    # The first example has one word: no perturbation moves its attention.
    assert float(values[0].detach()) < 1e-6 and bool((values[1:] > 0).all())


@pytest.mark.parametrize("kind", ["at", "vat", "random"])
def test_a_perturbation_has_norm_eps_and_leaves_padding_alone(kind: str) -> None:
    reader = Reader()
    loss = VirtualAdversarialLoss(kind=kind, eps=3.5)
    r = loss.perturbation(reader, reader.space(kind), reader(), labels=labels(reader), rng=rng())
    assert torch.equal(r[~reader.mask], torch.zeros(int((~reader.mask).sum())))
    several = reader.mask.sum(1) > 1
    torch.testing.assert_close(r[several].norm(dim=1), torch.full((B - 1,), 3.5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["iat", "ivat"])
def test_differences_leave_padding_alone(kind: str) -> None:
    reader = Reader()
    loss = VirtualAdversarialLoss(kind=kind, eps=3.5)
    r = loss.perturbation(reader, reader.space(kind), reader(), labels=labels(reader), rng=rng())
    assert torch.equal(r[~reader.mask], torch.zeros(int((~reader.mask).sum())))
    assert float(r.abs().sum()) > 0


def test_a_constant_shift_of_scores_gets_no_gradient() -> None:
    reader = Reader()
    space, clean = reader.space("vat"), reader().detach()
    unit = steepest(lambda r: divergence(clean, reader(r)), space, random_unit(space, rng()))
    assert float(unit.sum(1)[1:].abs().max()) < 1e-5
    shift = 4.0 * reader.mask
    torch.testing.assert_close(reader(shift), reader())


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_the_batch_permutes_the_perturbation(kind: str) -> None:
    reader, order = Reader(), torch.tensor([3, 0, 5, 1, 4, 2])
    space, target = reader.space(kind), labels(reader)
    start = random_unit(space, rng())

    def found(items: Tensor) -> Tensor:
        directions = None if space.directions is None else space.directions[items]
        part = Space(space.mask[items], directions)
        clean = reader(items=items).detach()
        objective: Callable[[Tensor], Tensor] = (
            (lambda r: cross_entropy(reader(r, items), target[items]))
            if kind in ("at", "iat")
            else (lambda r: divergence(clean, reader(r, items)))
        )
        return part.perturb(steepest(objective, part, start[items]))

    every = torch.arange(B)
    torch.testing.assert_close(found(order), found(every)[order])


def test_the_permutation_check_sees_differences_between_examples() -> None:
    """Differences to other examples of the batch, as public code forms them, are caught by it."""
    scores = torch.randn(4, T, generator=rng())
    part = torch.tensor([2, 0])

    def between(s: Tensor) -> Tensor:
        return F.normalize(s[:, None] - s[None], dim=1).sum(1)

    within = difference_directions(scores, torch.ones(4, T, dtype=torch.bool))
    torch.testing.assert_close(
        difference_directions(scores[part], torch.ones(2, T, dtype=torch.bool)), within[part]
    )
    assert not torch.allclose(between(scores[part]), between(scores)[part], atol=0.1)


def test_differences_are_those_of_the_formula() -> None:
    reader = Reader()
    found = difference_directions(reader.scores, reader.mask)
    for b in range(B):
        n = int(reader.mask[b].sum())
        s = reader.scores[b, :n].detach()
        rows = torch.stack([F.normalize(s[t] - s, dim=0) for t in range(n)])
        torch.testing.assert_close(found[b, :n, :n], rows)
        assert float(found[b, n:].abs().sum() + found[b, :, n:].abs().sum()) == 0
    assert not found.requires_grad


def test_one_parameter_shifts_one_score_by_its_direction() -> None:
    reader = Reader()
    space = reader.space("ivat")
    assert space.directions is not None
    alpha = torch.zeros(B, T, T)
    alpha[5, 2, 4] = 1.0
    r = space.perturb(alpha)
    assert r[5, 2] == space.directions[5, 2, 4] != 0
    assert int((r != 0).sum()) == 1


def test_equal_scores_have_no_directions_and_no_nan() -> None:
    reader = Reader()
    with torch.no_grad():
        reader.scores.fill_(0.7)
    values = loss_of(reader, "ivat")
    assert torch.equal(values, torch.zeros(B))
    values.sum().backward()
    assert bool(reader.head.weight.grad.isfinite().all())


def test_no_gradient_flows_into_the_clean_output() -> None:
    """The gradient is that of the loss with the target and the perturbation held as constants."""
    reader = Reader()
    loss = VirtualAdversarialLoss(eps=2.0)
    loss(reader, reader.space("vat"), reader(), rng=rng()).mean().backward()
    found = {n: p.grad.clone() for n, p in reader.named_parameters()}
    reader.zero_grad()
    clean = reader()
    r = loss.perturbation(reader, reader.space("vat"), clean, rng=rng())
    assert all(p.grad is None or not p.grad.any() for p in reader.parameters()), "a search is free"
    p = Categorical(logits=reader().detach())
    kl_divergence(p, Categorical(logits=reader(r))).mean().backward()
    for name, parameter in reader.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_under_autocast_weights_keep_their_gradient() -> None:
    """Weights that autocast first casts during the search still learn from the loss itself."""
    reader, gradients = Reader(), []
    loss, space = VirtualAdversarialLoss(eps=2.0), reader.space("vat")
    clean = reader().detach()
    for is_mixed in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            loss(reader, space, clean, rng=rng()).mean().backward()
        gradients.append(reader.head.weight.grad.clone())
        reader.zero_grad()
    scale = float(gradients[0].abs().max())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0.1 * scale)


@pytest.mark.parametrize(("num_logits", "num_power"), [(1, 1), (3, 20)])
def test_power_iterations_find_the_direction_of_largest_curvature(
    num_logits: int, num_power: int
) -> None:
    """Against the eigenvectors of the exact Hessian of the divergence at 0."""
    reader = Reader(num_logits).double()
    clean = reader().detach()
    unit = virtual_adversarial(
        reader, reader.space("vat"), clean, xi=1e-3, num_power=num_power, rng=rng()
    )
    for b in range(1, B):
        item = torch.tensor([b])

        def curve(r: Tensor, item: Tensor = item) -> Tensor:
            p, q = (x.log_softmax(-1) for x in (two(clean[item]), two(reader(r[None], item))))
            return (p.exp() * (p - q)).sum()

        zero = torch.zeros(T, dtype=torch.double)
        hessian = torch.autograd.functional.hessian(curve, zero)
        largest = torch.linalg.eigh(hessian).eigenvectors[:, -1]
        assert float((unit[b].double() @ largest).abs()) > 0.99, b


def two(logits: Tensor) -> Tensor:
    return logits if logits.shape[-1] > 1 else torch.cat([torch.zeros_like(logits), logits], dim=-1)


def test_supervised_perturbation_is_the_scaled_gradient() -> None:
    """First a zero tensor with gradient is added to the scores, then size x its unit gradient."""
    reader, target = Reader(1), torch.arange(B) % 2
    zero = torch.zeros(B, T, requires_grad=True)
    F.binary_cross_entropy_with_logits(
        reader(zero)[:, 0], target.float(), reduction="sum"
    ).backward()
    wanted = F.normalize(zero.grad)
    found = adversarial(reader, reader.space("at"), target)
    torch.testing.assert_close(found[1:], wanted[1:], rtol=1e-4, atol=1e-5)
    raised = cross_entropy(reader(0.1 * found), target) - cross_entropy(reader(), target)
    assert bool((raised[1:] > 0).all())


def test_unit_rows_make_differences_a_free_perturbation() -> None:
    """r = A alpha with A A^T = I: a gradient step in alpha is one in r, of the same length."""
    reader, target = Reader(), labels(Reader())
    free, differences = reader.space("at"), reader.space("iat")
    step = adversarial(reader, free, target)
    alpha = adversarial(reader, differences, target)
    torch.testing.assert_close(differences.perturb(alpha)[1:], step[1:], rtol=1e-3, atol=1e-5)


def test_neighbours_are_the_nearest_other_words() -> None:
    table = torch.randn(12, 5, generator=rng(), requires_grad=True)
    tokens = torch.tensor([[3, 0, 11], [7, 7, 1]])
    found = neighbour_directions(tokens, table, 4)
    assert found.shape == (2, 3, 4, 5) and not found.requires_grad
    for b, t in ((0, 0), (0, 2), (1, 1)):
        word = int(tokens[b, t])
        distances = [
            (float((table[k] - table[word]).detach().norm()), k) for k in range(12) if k != word
        ]
        near = [k for _, k in sorted(distances)[:4]]
        wanted = F.normalize(table[near] - table[word], dim=-1)
        torch.testing.assert_close(found[b, t], wanted)
    with pytest.raises(ConfigError, match="count=12"):
        neighbour_directions(tokens, table, 12)


def test_vectors_are_perturbed_along_their_directions() -> None:
    directions = torch.randn(2, 3, 4, 5, generator=rng())
    space = Space(torch.ones(2, 3, 4, dtype=torch.bool), directions)
    alpha = torch.randn(2, 3, 4)
    torch.testing.assert_close(
        space.perturb(alpha), torch.einsum("btk,btkd->btd", alpha, directions)
    )


def test_scores_of_every_head_of_a_transformer_are_perturbed_through_the_hook() -> None:
    attention, head = Attention(8, 2), nn.Linear(8, 3)
    x = torch.randn(4, T, 8, generator=rng())

    def forward(r: Tensor) -> Tensor:
        with added_scores(attention, r):
            return head(attention(x, x).mean(1))

    with read_scores(attention) as found:
        clean = head(attention(x, x).mean(1))
    scores = found[0]
    mask = torch.ones(1, 1, 1, T, dtype=torch.bool)
    values = {}
    for kind in ("random", "vat", "ivat"):
        loss = VirtualAdversarialLoss(kind=kind, eps=6.0)
        space = score_space(kind, scores, mask)
        r = loss.perturbation(forward, space, clean, rng=rng())
        assert r.shape == scores.shape == (4, 2, T, T)
        values[kind] = float(loss(forward, space, clean, rng=rng()).detach().mean())
    assert values["vat"] > 4 * values["random"] and values["ivat"] > 4 * values["random"]


def test_tiny_gradients_still_have_a_direction() -> None:
    space = Space(torch.ones(2, 3, dtype=torch.bool))
    tiny = 1e-30 * torch.tensor([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(space.unit(tiny), torch.tensor([[0.6, 0.0, 0.8], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"kind": "vta", "eps": 1.0}, UnknownNameError, "did you mean 'vat'"),
        ({"eps": -1.0}, ConfigError, "eps=-1.0"),
        ({"eps": float("nan")}, ConfigError, "eps=nan"),
        ({"eps": 1.0, "xi": 0.0}, ConfigError, "xi=0.0"),
        ({"eps": 1.0, "num_power": 0}, ConfigError, "num_power=0"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        VirtualAdversarialLoss(**options)


def test_sizes_that_do_not_match_are_refused() -> None:
    reader = Reader()
    with pytest.raises(PolytokError, match=r"mask \(6, 3\) does not fit scores \(6, 7\)"):
        score_space("vat", reader.scores, torch.ones(B, 3, dtype=torch.bool))
    loss = VirtualAdversarialLoss(eps=1.0)
    with pytest.raises(PolytokError, match="2 outputs for a mask of 6"):
        loss(reader, reader.space("vat"), reader()[:2])
    with pytest.raises(PolytokError, match="'at' needs labels"):
        VirtualAdversarialLoss(kind="at", eps=1.0)(reader, reader.space("at"), reader())
