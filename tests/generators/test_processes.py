"""Orders and masks against a toy joint distribution, and the rules each promises."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from polytok.core.contracts import Codes
from polytok.core.errors import ConfigError, PolytokError, UnknownNameError
from polytok.generators import (
    Cond,
    Conditioner,
    FallingSampling,
    GroupOrder,
    Guide,
    Head,
    Known,
    MaskedOrder,
    Net,
    Process,
    Query,
    RasterOrder,
    Sampling,
    TokenFeed,
    constant,
    generate,
    interval,
    lagging,
    linear,
    power_cosine,
)
from polytok.generators.draws import categorical
from polytok.generators.process import Draw, Step

VOCAB, LENGTH = 3, 3
# A joint of three tokens that no product of its marginals equals.
JOINT = torch.softmax(
    2 * torch.randn(VOCAB**LENGTH, generator=torch.Generator().manual_seed(4)), 0
).view(VOCAB, VOCAB, VOCAB)


class NoConditioner(Conditioner):
    """Conditions of nothing."""

    def encode(self, prompt: dict[str, Tensor]) -> dict[str, object]:
        return {}

    def branch(self, features: dict[str, object], name: str, count: int) -> Cond:
        return Cond(vector=torch.zeros(count, 1))


class TrueNet(Net):
    """The true log-conditionals of every slot asked for, given all ids that the net was shown.

    Its cache is the list of ids so far, which autoregressive queries reveal one group at a time.
    """

    def new_cache(self, rows: int, capacity: int, cond: Cond) -> list[Tensor] | None:
        return [] if capacity else None

    def forward(self, query: Query, cond: Cond, *, cache: list[Tensor] | None = None) -> Tensor:
        if cache is None:
            assert query.inp is not None
            shown = query.inp
        else:
            if query.inp is not None:
                cache.append(query.inp)
            seen = torch.cat(cache, dim=1) if cache else torch.empty(len(cond.vector), 0)
            shown = torch.full((len(cond.vector), LENGTH), VOCAB)
            shown[:, : seen.shape[1]] = seen
        return torch.stack([conditional(row) for row in shown])[:, query.index]


class TrueHead(Head):
    """Takes features for log-probabilities."""

    def sample(self, features, combine, step, *, rng, sampling, draw=None):  # type: ignore[no-untyped-def]
        log_probs = combine(features)
        ids = categorical(log_probs.exp(), rng)
        return Draw(value=ids, confidence=log_probs.gather(-1, ids[..., None])[..., 0])


def conditional(shown: Tensor) -> Tensor:
    """Log-probabilities (LENGTH, VOCAB) of every slot given the ids shown; VOCAB hides one."""
    table = JOINT
    for axis, symbol in enumerate(shown.long().tolist()):
        if symbol < VOCAB:
            table = table.index_select(axis, torch.tensor([symbol]))
    out = torch.full((LENGTH, VOCAB), 1 / VOCAB)
    for axis in range(LENGTH):
        if table.shape[axis] == VOCAB:
            others = [a for a in range(LENGTH) if a != axis]
            out[axis] = table.sum(dim=others) / table.sum()
    return out.log()


def drawn(process: Process, count: int, **options: object) -> Codes:
    return generate(
        TrueNet(),
        TrueHead(),
        process,
        Guide(),
        NoConditioner(),
        {},
        count=count,
        rng=torch.Generator().manual_seed(11),
        **options,
    )


def distance(codes: Codes) -> float:
    """Chi-square of a histogram of triples against the joint, per degree of freedom."""
    ids = torch.cat(codes.indices, dim=1)
    numbers = (ids * torch.tensor([VOCAB**2, VOCAB, 1])).sum(1)
    found = torch.bincount(numbers, minlength=JOINT.numel()).double()
    expected = JOINT.flatten().double() * len(ids)
    return float(((found - expected).square() / expected).sum() / (JOINT.numel() - 1))


def test_raster_order_samples_the_joint_exactly() -> None:
    # Chi-square over 26 degrees of freedom is above 2.0 times these once in 700 runs.
    assert distance(drawn(RasterOrder(LENGTH, VOCAB), 4000)) < 2.0


def test_masked_order_samples_the_joint_when_it_takes_a_step_per_slot() -> None:
    # Which slot is kept must not depend on what was drawn, hence noise that drowns confidence.
    exact = MaskedOrder(LENGTH, VOCAB, temperature=1e9, num_steps=LENGTH)
    assert distance(drawn(exact, 4000)) < 2.0
    assert distance(drawn(exact, 4000, steps=1)) > 4.0  # all at once loses how slots go together


def test_raster_order_is_a_chain_of_groups_of_one() -> None:
    chain = GroupOrder((1,) * LENGTH, VOCAB, TokenFeed(), is_levels=False)
    one, other = drawn(RasterOrder(LENGTH, VOCAB), 20), drawn(chain, 20)
    assert torch.equal(one.indices[0], other.indices[0])


def test_raster_inputs_are_the_ids_shifted_by_one() -> None:
    ids = torch.randint(VOCAB, (2, LENGTH))
    example = RasterOrder(LENGTH, VOCAB).corrupt({"ids": ids})
    assert torch.equal(example.query.inp, ids[:, :-1])
    assert torch.equal(example.query.mask, torch.ones(LENGTH, LENGTH).tril().bool())


@pytest.mark.parametrize(
    "process", [RasterOrder(LENGTH, VOCAB), MaskedOrder(LENGTH, VOCAB, num_steps=3)]
)
def test_known_ids_stay_to_the_last_step(process: Process) -> None:
    ids = torch.randint(VOCAB, (50, LENGTH))
    mask = torch.rand(50, LENGTH) < 0.5
    codes = drawn(process, 50, known=Known(ids=ids, mask=mask))
    assert torch.equal(codes.indices[0][mask], ids[mask])


@pytest.mark.parametrize("schedule", ["cosine", "arccos", "linear"])
def test_masked_steps_leave_ever_fewer_and_end_with_none(schedule: str) -> None:
    process = MaskedOrder(16, VOCAB, schedule=schedule, num_steps=8)
    rng = torch.Generator().manual_seed(0)
    state = process.start(2, torch.device("cpu"), rng=rng, known=None)
    left = [16]
    for step in process.plan(None):
        value = torch.randint(VOCAB, (2, 16), generator=rng)
        draw = Draw(value=value, confidence=torch.rand(2, 16, generator=rng))
        state = process.advance(state, step, draw, rng=rng)
        hidden = (state.value == VOCAB).sum(1).tolist()
        assert hidden[0] == hidden[1] < left[-1]
        left.append(hidden[0])
    assert left[-1] == 0
    done = [process.share((s.number + 1) / 8) for s in process.plan(None)]
    assert all(h <= max(1, math.floor(16 * d)) for h, d in zip(left[1:-1], done, strict=False))


def test_masking_hides_at_least_one_and_follows_its_schedule() -> None:
    process = MaskedOrder(64, VOCAB)
    ids = torch.randint(VOCAB, (400, 64))
    example = process.corrupt({"ids": ids}, rng=torch.Generator().manual_seed(2))
    hidden = example.query.inp == VOCAB
    assert torch.equal(hidden.float(), example.weight)
    assert int(hidden.sum(1).min()) >= 1
    # The mean of cos(pi u / 2) is 2 / pi; its spread over 400 draws is 0.015.
    assert float(hidden.float().mean()) == pytest.approx(2 / math.pi, abs=0.06)
    assert torch.equal(example.query.inp[~hidden], ids[~hidden])


def test_what_is_shown_weighs_as_asked_and_the_mean_is_by_weight() -> None:
    process = MaskedOrder(16, VOCAB, schedule="arccos", visible=0.1)
    ids = torch.randint(VOCAB, (400, 16))
    example = process.corrupt({"ids": ids}, rng=torch.Generator().manual_seed(2))
    hidden = example.query.inp == VOCAB
    torch.testing.assert_close(example.weight, torch.where(hidden, 1.0, 0.1))
    # Shares are those of arccos(u) / (pi / 2), whose mean is 2 / pi as well.
    assert float(hidden.float().mean()) == pytest.approx(2 / math.pi, abs=0.06)


def test_masking_of_an_item_depends_on_its_own_stream() -> None:
    process, ids = MaskedOrder(16, VOCAB), torch.randint(VOCAB, (2, 16))
    pair = process.corrupt({"ids": ids}, rng=[torch.Generator().manual_seed(s) for s in (1, 2)])
    alone = process.corrupt({"ids": ids[1:]}, rng=[torch.Generator().manual_seed(2)])
    assert torch.equal(pair.query.inp[1:], alone.query.inp)


def test_schedules_of_guidance() -> None:
    steps = [Step(number=k, total=5) for k in range(5)]
    assert [constant(s) for s in steps] == [1.0] * 5
    assert [linear(s) for s in steps] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [interval(0.25, 0.5)(s) for s in steps] == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert [lagging(s) for s in steps] == [0.0, 0.2, 0.4, 0.6, 0.8]
    for power in (1.0, 3.0):
        assert [power_cosine(power)(s) for s in steps] == pytest.approx(
            [(1 - math.cos(math.pi * (k / 5) ** power)) / 2 for k in range(5)], abs=1e-12
        )


def test_guidance_is_the_formula() -> None:
    step, outputs = Step(number=3, total=4), torch.randn(2, 3, 5)
    guide = Guide(shares={"text": 1.0}, strength=2.0)
    mixed = guide.combine(outputs, ["text", "null"], step)
    torch.testing.assert_close(mixed, 3 * outputs[0] - 2 * outputs[1])


def test_two_interleaved_samplings_do_not_disturb_each_other() -> None:
    process, net, head = RasterOrder(LENGTH, VOCAB), TrueNet(), TrueHead()
    cond = Cond(vector=torch.zeros(4, 1))

    def walk(seed: int):  # type: ignore[no-untyped-def]
        rng = torch.Generator().manual_seed(seed)
        state = process.start(4, torch.device("cpu"), rng=rng, known=None)
        cache = net.new_cache(4, process.capacity, cond)
        for step in process.plan(None):
            features = net(process.query(state, step), cond, cache=cache)[None]
            draw = head.sample(features, lambda parts: parts[0], step, rng=rng, sampling=Sampling())
            state = process.advance(state, step, draw, rng=rng)
            yield state.value

    alone = [list(walk(1))[-1], list(walk(2))[-1]]
    together = list(itertools.zip_longest(walk(1), walk(2)))[-1]
    assert torch.equal(alone[0], together[0])
    assert torch.equal(alone[1], together[1])


def test_filters_take_k_first_and_then_the_mass_of_those() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert Sampling(top_p=0.85).filter(logits).isfinite().tolist() == [True, True, True, False]
    both = Sampling(top_k=2, top_p=0.6)  # of the two that stay the first has 0.625
    assert both.filter(logits).isfinite().tolist() == [True, False, False, False]
    assert torch.equal(Sampling(top_p=1.0).filter(logits), logits)
    assert Sampling(top_p=1e-9).filter(logits).isfinite().tolist() == [True, False, False, False]
    falling = Sampling(top_p=(1.0, 0.85, 1e-9))
    kept = [int(falling.filter(logits, number).isfinite().sum()) for number in range(5)]
    assert kept == [4, 3, 1, 1, 1]
    step = Step(number=3, total=5)
    assert falling.log_probs(logits, step).exp().tolist() == [1.0, 0.0, 0.0, 0.0]
    for wrong in ((), (0.5, 1.5), (0.5, float("nan"))):
        with pytest.raises(ConfigError, match="top_p"):
            Sampling(top_p=wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Sampling(temperature=0.0),
        lambda: Sampling(top_k=-1),
        lambda: Sampling(top_p=1.5),
        lambda: Guide(shares={"null": 1.0}),
        lambda: Guide(strength=float("inf")),
        lambda: GroupOrder((), VOCAB, TokenFeed()),
        lambda: MaskedOrder(4, VOCAB, num_steps=5),
        lambda: MaskedOrder(4, VOCAB, num_steps=2, visible=-0.1),
        lambda: MaskedOrder(4, VOCAB, num_steps=2, temperature=float("nan")),
        lambda: FallingSampling(temperature=-1.0),
        lambda: FallingSampling(flatness=(1.3, 0.0)),
        lambda: RasterOrder(LENGTH, VOCAB).plan(2),
        lambda: MaskedOrder(4, VOCAB, num_steps=2).plan(0),
        lambda: drawn(RasterOrder(LENGTH, VOCAB), 2, known=Known(ids=ZEROS, mask=ZEROS.bool())),
        lambda: drawn(RasterOrder(LENGTH, VOCAB), 1, known=Known(ids=ZEROS + 9, mask=ZEROS == 0)),
    ],
)
def test_wrong_settings_are_refused(wrong) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError) as caught:
        wrong()
    assert "\n" not in str(caught.value)


ZEROS = torch.zeros(1, LENGTH, dtype=torch.int64)


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="cosine"):
        MaskedOrder(4, VOCAB, schedule="cosinus")


def test_masking_without_a_stream_is_refused() -> None:
    with pytest.raises(PolytokError, match="rng"):
        MaskedOrder(LENGTH, VOCAB, num_steps=2).corrupt({"ids": ZEROS})
