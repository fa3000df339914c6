"""Masked sampling as 1d-tokenizer does it: noise, confidence, how many stay, guidance by step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from polytok.core.contracts import Batch
from polytok.generators import (
    CategoricalHead,
    ClassConditioner,
    Cond,
    Conditioner,
    FallingSampling,
    Generator,
    Guide,
    Known,
    MaskedOrder,
    Net,
    PostNormTransformer,
    Query,
    Sampling,
    SkipTransformer,
    constant,
    generate,
    lagging,
    power_cosine,
)
from polytok.generators.process import Draw, Step

VOCAB, LENGTH, CLASSES = 11, 12, 3
LABEL = {"label": 1.0}


def built(net: str = "post", **options: Any) -> Generator:
    torch.manual_seed(0)
    sizes = {"dim": 16, "depth": 2, "num_heads": 2, "vocab": VOCAB, "length": LENGTH}
    made: Net = PostNormTransformer(**sizes) if net == "post" else SkipTransformer(**sizes)
    generator = Generator(
        made,
        CategoricalHead(16, VOCAB),
        MaskedOrder(LENGTH, VOCAB, schedule="arccos", num_steps=6, **options),
        Guide(shares=LABEL, strength=2.0, schedule=lagging),
        ClassConditioner(CLASSES, 16),
        sampling=FallingSampling(temperature=options.get("temperature", 4.5)),
    ).eval()
    with torch.no_grad():
        generator.head.proj.weight.normal_(std=0.5)
    return generator


class Watched:
    """Runs a generator and keeps the rows, inputs and vectors of every pass of its net."""

    def __init__(self, generator: Generator) -> None:
        self.rows: list[int] = []
        self.inputs: list[Tensor] = []
        generator.net.register_forward_hook(self._keep)

    def _keep(self, _: object, given: tuple[Query, Cond], out: Tensor) -> None:
        self.rows.append(len(out))
        assert given[0].inp is not None
        self.inputs.append(given[0].inp.clone())

    def hidden(self) -> list[int]:
        """How many slots of the first row were masked at every pass."""
        return [int((ids[0] == VOCAB).sum()) for ids in self.inputs]


def drawn(generator: Generator, count: int = 2, seed: int = 0, **options: Any) -> Tensor:
    options = {"prompt": {"label": torch.arange(count) % CLASSES}, **options}
    codes = generator.generate(count=count, rng=torch.Generator().manual_seed(seed), **options)
    return codes.indices[0]


def kept(length: int, steps: int) -> list[int]:
    """Masked slots at every pass, by the formula of card titok 3.6."""
    left = [length]
    for i in range(steps - 1):
        wanted = math.floor(length * math.acos((i + 1) / steps) / (math.pi / 2))
        left.append(max(1, min(wanted, left[-1] - 1)))
    return left


@pytest.mark.parametrize("net", ["post", "skip"])
@pytest.mark.parametrize("steps", [1, 2, 5, 11, LENGTH])
def test_every_step_is_one_pass_and_leaves_what_the_formula_says(net: str, steps: int) -> None:
    generator = built(net)
    watched = Watched(generator)
    ids = drawn(generator, steps=steps)
    assert watched.hidden() == kept(LENGTH, steps)
    assert len(watched.rows) == steps
    assert 0 <= int(ids.min()) <= int(ids.max()) < VOCAB


@pytest.mark.parametrize(("length", "steps"), [(32, 8), (64, 8), (128, 64), (256, 16), (96, 2)])
def test_the_published_lengths_keep_what_double_precision_says(length: int, steps: int) -> None:
    process = MaskedOrder(length, VOCAB, schedule="arccos", num_steps=steps)
    rng = torch.Generator().manual_seed(0)
    state = process.start(1, torch.device("cpu"), rng=rng, known=None)
    found = []
    for step in process.plan(None):
        found.append(int((state.value == VOCAB).sum()))
        draw = Draw(value=torch.zeros(1, length).long(), confidence=torch.zeros(1, length))
        state = process.advance(state, step, draw, rng=rng)
    assert found == kept(length, steps)


def test_ids_follow_the_probabilities_that_the_sampling_states() -> None:
    sampling, step = FallingSampling(temperature=2.0, flatness=(1.3, 0.5)), Step(number=1, total=4)
    logits = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(1))
    wanted = (logits / (0.5 + 0.8 * 0.5) / (2.0 * 0.5)).softmax(-1)[0, 0]
    torch.testing.assert_close(sampling.log_probs(logits, step)[0, 0].exp(), wanted)
    count = 20_000
    draw = sampling.draw(logits.expand(1, count, 6), step, rng=torch.Generator().manual_seed(2))
    found = torch.bincount(draw.value[0], minlength=6)
    # Chi-square over 5 degrees of freedom is above 20.5 once in a thousand runs.
    assert float(((found - count * wanted).square() / (count * wanted)).sum()) < 20.5


def test_a_draw_is_as_sure_as_its_logit_and_not_its_log_probability() -> None:
    logits = torch.randn(2, 5, 7)
    for step in (Step(number=0, total=3), Step(number=2, total=3)):
        draw = FallingSampling(temperature=9.5).draw(logits, step, rng=torch.Generator())
        assert torch.equal(draw.confidence, logits.gather(-1, draw.value[..., None])[..., 0])
        plain = Sampling().draw(logits, step, rng=torch.Generator())
        assert float(plain.confidence.max()) <= 0


def test_the_last_step_takes_the_likeliest() -> None:
    logits, last = torch.randn(2, 5, 7), Step(number=7, total=8)
    sampling = FallingSampling(temperature=9.5, flatness=(1.3, 0.5))
    draw = sampling.draw(logits, last, rng=torch.Generator())
    assert torch.equal(draw.value, logits.argmax(-1))
    assert torch.equal(sampling.log_probs(logits, last).exp().argmax(-1), draw.value)
    torch.testing.assert_close(draw.confidence, logits.amax(-1) / 0.5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.5, 6.9])
@pytest.mark.parametrize("total", [1, 2, 8, 64])
def test_guidance_by_step_is_the_published_formula(scale: float, total: int) -> None:
    """Brute force: the weights as the code of 1d-tokenizer steps through them."""
    cond, null = torch.randn(2, 3, 5, dtype=torch.float64).unbind(0)
    both = torch.stack([cond, null])
    lag = 0.0
    for number in range(total):
        step = Step(number=number, total=total)
        bent = (1 - math.cos(math.pi * (number / total) ** 3)) / 2 * (scale - 1) + 1
        wanted = {
            (scale, constant): cond + (cond - null) * scale,
            (scale, lagging): cond + (cond - null) * lag,
            (scale - 1, power_cosine(3.0)): null + (cond - null) * bent,
        }
        for (strength, schedule), result in wanted.items():
            guide = Guide(shares=LABEL, strength=strength, schedule=schedule)
            found = guide.combine(both, ["label", "null"], step)
            torch.testing.assert_close(found, result, rtol=1e-9, atol=1e-9)
        lag = (number + 1) / total * scale


def test_a_branch_without_weight_at_a_step_is_not_run() -> None:
    for guide, rows in (
        (Guide(shares=LABEL, strength=2.0, schedule=lagging), [2, 4, 4, 4, 4, 4]),
        (Guide(shares=LABEL, strength=2.0, schedule=power_cosine(3.0)), [2, 4, 4, 4, 4, 4]),
        (Guide(shares=LABEL, strength=2.0, schedule=constant), [4] * 6),
        (Guide(shares=LABEL, strength=0.0), [2] * 6),
        (Guide(), [2] * 6),
    ):
        generator = built()
        watched = Watched(generator)
        drawn(generator, guide=guide)
        assert watched.rows == rows


def test_leaving_a_branch_out_changes_no_logit() -> None:
    generator = built(temperature=0.0)
    one = drawn(generator)
    # With a cache, though nothing uses it, the loop runs every branch.
    generator.net.new_cache = lambda *_: {}  # type: ignore[method-assign, assignment]
    watched = Watched(generator)
    other = drawn(generator)
    assert watched.rows == [4] * 6
    assert torch.equal(one, other)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_known_ids_are_seen_and_stay_through_the_whole_sampling(share: float) -> None:
    generator = built()
    watched = Watched(generator)
    rng = torch.Generator().manual_seed(5)
    ids = torch.randint(VOCAB, (2, LENGTH), generator=rng)
    mask = torch.rand(2, LENGTH, generator=rng) < share
    found = drawn(generator, known=Known(ids=ids, mask=mask))
    assert torch.equal(found[mask], ids[mask])
    for shown in watched.inputs:
        rows = shown.view(-1, 2, LENGTH)
        assert all(torch.equal(row[mask], ids[mask]) for row in rows)
    assert len(watched.inputs) == 6  # T passes, however few slots are open
    assert int(found.max()) < VOCAB


def test_shares_are_of_the_slots_that_were_open() -> None:
    generator = built()
    watched = Watched(generator)
    mask = torch.arange(LENGTH).expand(2, -1) < 4
    drawn(generator, known=Known(ids=torch.zeros(2, LENGTH).long(), mask=mask))
    assert watched.hidden() == kept(LENGTH - 4, 6)


def test_an_item_does_not_depend_on_its_neighbours() -> None:
    generator = built()

    def rows(seeds: list[int], labels: list[int]) -> Tensor:
        rngs = [torch.Generator().manual_seed(s) for s in seeds]
        prompt = {"label": torch.tensor(labels)}
        return generator.generate(prompt, count=3, rng=rngs).indices[0]

    one, two = rows([1, 2, 3], [0, 1, 2]), rows([1, 8, 9], [0, 2, 2])
    assert torch.equal(one[0], two[0]) and not torch.equal(one[1], two[1])


SYMBOLS = 3
# A joint of three tokens that no product of its marginals equals.
JOINT = torch.softmax(
    2 * torch.randn(SYMBOLS**3, generator=torch.Generator().manual_seed(4)), 0
).view(3, 3, 3)


class NoConditioner(Conditioner):
    """Conditions of nothing."""

    def encode(self, prompt: Batch) -> Any:
        return {}

    def branch(self, features: Any, name: str, count: int) -> Cond:
        return Cond(vector=torch.zeros(count, 1))


class TrueNet(Net):
    """The true log-conditionals of every hidden slot of :data:`JOINT`, times how flat they get."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors, self.calls = factors, 0

    def forward(self, query: Query, cond: Cond, *, cache: Any = None) -> Tensor:
        assert query.inp is not None
        factor = self.factors[self.calls]
        self.calls += 1
        return factor * torch.stack([self._row(row.tolist()) for row in query.inp])

    @staticmethod
    def _row(shown: list[int]) -> Tensor:
        table = JOINT
        for axis, symbol in enumerate(shown):
            if symbol < SYMBOLS:
                table = table.narrow(axis, symbol, 1)
        out = torch.zeros(3, SYMBOLS)
        for axis, symbol in enumerate(shown):
            if symbol == SYMBOLS:
                others = [a for a in range(3) if a != axis]
                out[axis] = (table.sum(dim=others) / table.sum()).log()
        return out


class LogitHead(CategoricalHead):
    """Takes features for logits."""

    def __init__(self) -> None:
        super().__init__(SYMBOLS, SYMBOLS)

    def logits(self, features: Tensor) -> Tensor:
        return features


def test_noise_of_temperature_one_samples_a_toy_joint_exactly() -> None:
    """Noise t g on logits t log p draws from p; all three steps do so, but for the last."""
    count, steps = 4000, 3
    # At step i the noise is 3 (1 - (i + 1) / 3): logits as many times as large undo it. The last
    # step has none and takes the likeliest, so its share of the joint is a hard conditional.
    net = TrueNet([2.0, 1.0, 1.0])
    codes = generate(
        net,
        LogitHead(),
        MaskedOrder(3, SYMBOLS, schedule="linear", temperature=1e9, num_steps=steps),
        Guide(),
        NoConditioner(),
        {},
        count=count,
        rng=torch.Generator().manual_seed(11),
        sampling=FallingSampling(temperature=3.0),
    )
    # Which slot comes last is random: each of the three makes a joint of a hard last slot.
    wanted = torch.zeros_like(JOINT)
    for last in range(3):
        pair = JOINT.sum(dim=last, keepdim=True)
        hard = (JOINT.amax(dim=last, keepdim=True) == JOINT).float()
        wanted += hard * pair / 3
    assert float(wanted.sum()) == pytest.approx(1)
    numbers = (codes.indices[0] * torch.tensor([9, 3, 1])).sum(1)
    found = torch.bincount(numbers, minlength=27)
    wanted = wanted.flatten()
    assert int(found[wanted == 0].sum()) == 0
    some = wanted > 0
    expected = count * wanted[some]
    chi = ((found[some] - expected).square() / expected).sum() / (int(some.sum()) - 1)
    assert float(chi) < 2.2
