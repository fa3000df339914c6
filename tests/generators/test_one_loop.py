"""Kinds of generators that the loop has never heard of: it runs each of them as it is."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polytok.bitstream.prior import SymbolReader, SymbolWriter
from polytok.core.contracts import Batch, Codes
from polytok.generators import (
    CategoricalHead,
    Cond,
    Conditioner,
    Draw,
    Example,
    Generator,
    Guide,
    Head,
    MaskedOrder,
    Net,
    Process,
    Query,
    RasterOrder,
    State,
    Step,
    generate,
)
from polytok.generators.draws import categorical
from polytok.networks.pretrained.optional import settle_torchvision

settle_torchvision()

SECOND = 3
PAIRS = 2 * SECOND


class Given(Conditioner):
    """The prompt's ``rows`` as the vector of every branch, shifted by what the branch is called."""

    def __init__(self, shifts: dict[str, float] | None = None) -> None:
        super().__init__()
        self.shifts = shifts or {}

    def encode(self, prompt: Batch) -> Any:
        return prompt

    def branch(self, features: Any, name: str, count: int) -> Cond:
        return Cond(vector=features["rows"] + self.shifts.get(name, 0.0))


class LogProbHead(Head):
    """Takes features for log-probabilities."""

    def sample(self, features, combine, step, *, rng, sampling, draw=None):  # type: ignore[no-untyped-def]
        log_probs = combine(features)
        ids = categorical(log_probs.exp(), rng) if draw is None else draw(log_probs, step)
        return Draw(value=ids, confidence=log_probs.gather(-1, ids[..., None])[..., 0])


# A head that is a generator: an id of six is drawn as one of two, then one of three.


class ChainNet(Net):
    """Log-probabilities of the next id of two, from a joint table (R, 36) of both."""

    def new_cache(self, rows: int, capacity: int, cond: Cond) -> list[Tensor]:
        return []

    def forward(self, query: Query, cond: Cond, *, cache: Any = None) -> Tensor:
        joint = cond.vector.unflatten(1, (PAIRS, PAIRS))
        if query.inp is None:
            return joint.sum(2).log()[:, None]
        first = query.inp[:, 0]
        row = joint[torch.arange(len(first)), first]
        return (row / row.sum(1, keepdim=True)).log()[:, None]


class PartNet(Net):
    """Log-probabilities of the parts of an id: which two, and then which three of them."""

    def forward(self, query: Query, cond: Cond, *, cache: Any = None) -> Tensor:
        table = cond.vector.unflatten(1, (2, SECOND))
        if query.inp is None:
            whole = table.logsumexp(2)
            return nn.functional.pad(whole, (0, SECOND - 2), value=-torch.inf)[:, None]
        return table[torch.arange(len(table)), query.inp[:, 0]].log_softmax(-1)[:, None]


class PartHead(Head):
    """Draws an id by its parts, in the very loop that drew the ids before it."""

    def sample(self, features, combine, step, *, rng, sampling, draw=None):  # type: ignore[no-untyped-def]
        guided = combine(features)
        rows = guided.flatten(0, 1)
        parts = generate(
            PartNet(),
            LogProbHead(),
            RasterOrder(2, SECOND),
            Guide(),
            Given(),
            {"rows": rows},
            count=len(rows),
            rng=rng,
        ).indices[0]
        ids = (parts[:, 0] * SECOND + parts[:, 1]).view(guided.shape[:2])
        return Draw(value=ids, confidence=guided.gather(-1, ids[..., None])[..., 0])


def test_a_head_may_be_a_generator_itself() -> None:
    rng = torch.Generator().manual_seed(0)
    joint = torch.softmax(1.5 * torch.randn(PAIRS**2, generator=rng), 0)
    count = 6000
    codes = generate(
        ChainNet(),
        PartHead(),
        RasterOrder(2, PAIRS),
        Guide(),
        Given(),
        {"rows": joint.expand(count, -1)},
        count=count,
        rng=rng,
    )
    ids = codes.indices[0]
    found = torch.bincount(ids[:, 0] * PAIRS + ids[:, 1], minlength=PAIRS**2)
    expected = joint * count
    # Chi-square over 35 degrees of freedom is above 1.9 times these once in a thousand runs.
    assert float(((found - expected).square() / expected).sum() / (PAIRS**2 - 1)) < 1.9


# Masked generation that reuses features of slots that did not change.


class Costly(nn.Module):
    """A slot's feature from its id and place alone; counts the slots it has looked at."""

    def __init__(self, vocab: int, length: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocab + 1, length, 8))
        self.visits = 0

    def forward(self, ids: Tensor, index: Tensor) -> Tensor:
        self.visits += ids.numel()
        return self.table[ids, index]


class ReusingNet(Net):
    """Costly features, each made once, and a cheap mix of them. The cache holds (ids, features)."""

    def __init__(self, costly: Costly, vocab: int, *, reuses: bool) -> None:
        super().__init__()
        self.costly, self.reuses = costly, reuses
        self.out = nn.Linear(8, vocab)

    def new_cache(self, rows: int, capacity: int, cond: Cond) -> dict[str, Tensor]:
        return {}

    def forward(self, query: Query, cond: Cond, *, cache: Any = None) -> Tensor:
        ids = query.inp
        assert ids is not None
        index = query.index.expand_as(ids)
        if not cache or not self.reuses:
            features = self.costly(ids, index)
        else:
            features, changed = cache["features"].clone(), ids != cache["ids"]
            features[changed] = self.costly(ids[changed], index[changed])
        cache.update(ids=ids, features=features)
        return self.out(features + features.mean(1, keepdim=True)).log_softmax(-1)


def test_a_net_may_reuse_features_between_masked_steps() -> None:
    torch.manual_seed(0)
    vocab, length, count, steps = 5, 16, 3, 8
    costly = Costly(vocab, length)
    codes, visits = [], []
    one = ReusingNet(costly, vocab, reuses=False)
    for reuses in (False, True):
        one.reuses, costly.visits = reuses, 0
        codes.append(
            generate(
                one,
                LogProbHead(),
                MaskedOrder(length, vocab, num_steps=steps),
                Guide(),
                Given(),
                {"rows": torch.zeros(count, 1)},
                count=count,
                rng=torch.Generator().manual_seed(3),
            ).indices[0]
        )
        visits.append(costly.visits)
    assert torch.equal(*codes)
    last = round(visits[0] / steps)  # of one step; what the last step reveals is never looked at
    assert last == count * length
    assert visits[0] == steps * last and last < visits[1] < 2 * last


# Flow matching with a time per slot and three branches.


class TrueVelocity(Net):
    """E[noise - data | state] of Gaussian data around ``cond.vector`` (R, n), time per slot."""

    def __init__(self, covariance: Tensor) -> None:
        super().__init__()
        self.covariance = covariance

    def forward(self, query: Query, cond: Cond, *, cache: Any = None) -> Tensor:
        assert query.inp is not None and query.tau is not None
        x, tau, mean = query.inp[..., 0], query.tau, cond.vector
        keep = 1 - tau
        total = keep[:, :, None] * self.covariance * keep[:, None] + (tau**2).diag_embed()
        cross = tau.diag_embed() - self.covariance * keep[:, None]
        return -mean[..., None] + cross @ torch.linalg.solve(total, x - keep * mean)[..., None]


class DirectHead(Head):
    """Returns the guided features themselves."""

    def sample(self, features, combine, step, *, rng, sampling, draw=None):  # type: ignore[no-untyped-def]
        value = combine(features)
        return Draw(value=value, confidence=torch.zeros(value.shape[:2]))


class Flow(Process):
    """Euler steps from noise to data, slot 0 given clean: its own time is 0 throughout."""

    def __init__(self, length: int, given: float) -> None:
        self.length, self.given = length, given

    def corrupt(self, batch: Batch, *, rng: Any = None) -> Example:
        raise AssertionError("this test trains nothing")

    def plan(self, steps: int | None) -> list[Step]:
        return [Step(number=k, total=steps or 1) for k in range(steps or 1)]

    def start(self, count: int, device: torch.device, *, rng: Any, known: Any) -> State:
        value = torch.randn(count, self.length, 1, generator=rng)
        value[:, 0] = self.given
        return State(value=value)

    def query(self, state: State, step: Step) -> Query:
        tau = torch.full(state.value.shape[:2], 1 - step.number / step.total)
        tau[:, 0] = 0
        return Query(inp=state.value, index=torch.arange(self.length), tau=tau)

    def advance(self, state: State, step: Step, draw: Draw, *, rng: Any) -> State:
        moved = state.value - draw.value / step.total
        moved[:, 0] = state.value[:, 0]
        return State(value=moved)

    def finish(self, state: State) -> Codes:
        return Codes(latents=state.value)


def test_time_may_differ_per_slot_under_three_branches() -> None:
    rng = torch.Generator().manual_seed(1)
    factor = torch.randn(3, 3, generator=rng)
    covariance = factor @ factor.T + torch.eye(3)
    mean, given, count = torch.tensor([0.5, -1.0, 2.0]), 1.5, 3000
    shifts = {"text": 1.0, "image": -2.0}
    guide = Guide(shares={"text": 1.5, "image": 0.5})  # and -1 of the null branch
    assert len(guide.branches([Step(number=0, total=1)])) == 3
    codes = generate(
        TrueVelocity(covariance),
        DirectHead(),
        Flow(3, given),
        guide,
        Given(shifts),
        {"rows": mean.expand(count, -1)},
        count=count,
        rng=rng,
        steps=40,
    )
    assert codes.latents is not None
    found = codes.latents[..., 0]
    assert bool((found[:, 0] == given).all())
    # Velocities are linear in the mean, so branches of shifted means make one of a shifted mean.
    centre = mean + 1.5 * shifts["text"] + 0.5 * shifts["image"]
    gain = covariance[1:, 0] / covariance[0, 0]
    expected = centre[1:] + gain * (given - centre[0])
    spread = covariance[1:, 1:] - gain[:, None] * covariance[0, 1:]
    error = (found[:, 1:].mean(0) - expected).abs() / (spread.diagonal() / count).sqrt()
    assert float(error.max()) < 5
    torch.testing.assert_close(found[:, 1:].T.cov(), spread, rtol=0.1, atol=0.1)


# A stream of tokens over a language model from another library.


class LMNet(Net):
    """Hidden states of a Hugging Face language model; condition tokens are its first inputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        names = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"

    def new_cache(self, rows: int, capacity: int, cond: Cond) -> Any:
        return pytest.importorskip("transformers").DynamicCache(config=self.model.config)

    def forward(self, query: Query, cond: Cond, *, cache: Any = None) -> Tensor:
        embed = self.model.get_input_embeddings()
        parts = [] if query.inp is None else [embed(query.inp)]
        is_first = cache is None or cache.get_seq_length() == 0
        if is_first:
            assert cond.tokens is not None
            parts = [cond.tokens, *parts]
        inputs = torch.cat(parts, dim=1)
        given = {self.cache_name: cache, "use_cache": cache is not None}
        hidden = self.model(inputs_embeds=inputs, **given).last_hidden_state
        return hidden[:, -len(query.index) :]


class PrefixConditioner(Conditioner):
    """The prompt's ``tokens`` (B, m, W) as they are: those of a picture, say."""

    def encode(self, prompt: Batch) -> Any:
        return prompt

    def branch(self, features: Any, name: str, count: int) -> Cond:
        tokens = features["tokens"]
        return Cond(vector=tokens.mean(1), tokens=tokens)


def test_a_stream_over_a_language_model_is_one_more_net() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vocab, width, length = 17, 32, 12
    config = transformers.GPT2Config(
        vocab_size=vocab, n_embd=width, n_layer=2, n_head=2, n_positions=64
    )
    net = LMNet(transformers.GPT2Model(config).eval())
    head, process = CategoricalHead(width, vocab), RasterOrder(length, vocab)
    nn.init.normal_(head.proj.weight, std=0.5)
    prompt = {"tokens": torch.randn(2, 5, width)}
    seen: list[Tensor] = []

    def draw(log_probs: Tensor, step: Step) -> Tensor:
        seen.append(log_probs)
        return categorical(log_probs.exp(), torch.Generator().manual_seed(step.number))

    conditioner = PrefixConditioner()
    codes = generate(
        net,
        head,
        process,
        Guide(),
        conditioner,
        prompt,
        count=2,
        rng=torch.Generator(),
        draw=draw,
    )
    with torch.no_grad():
        query = process.corrupt({"ids": codes.indices[0]}).query
        cond = conditioner.branch(prompt, "null", 2)
        whole = head.logits(net(query, cond)).log_softmax(-1)
    torch.testing.assert_close(torch.cat(seen, dim=1), whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch", [1, 8])
def test_codes_of_a_batch_come_back_through_the_loop_that_draws_them(batch: int) -> None:
    torch.manual_seed(0)
    transformers = pytest.importorskip("transformers")
    vocab, width, length = 17, 32, 12
    config = transformers.GPT2Config(
        vocab_size=vocab, n_embd=width, n_layer=1, n_head=2, n_positions=64
    )
    generator = Generator(
        LMNet(transformers.GPT2Model(config)),
        CategoricalHead(width, vocab),
        RasterOrder(length, vocab),
        Guide(),
        PrefixConditioner(),
    ).eval()
    prompt = {"tokens": torch.randn(batch, 3, width)}
    ids = torch.randint(vocab, (batch, length))
    writers = [SymbolWriter() for _ in range(batch)]

    def write(log_probs: Tensor, step: Step) -> Tensor:
        now = ids[:, step.number, None]
        for writer, row, table in zip(writers, now.numpy(), log_probs.exp().numpy(), strict=True):
            writer.write(row, table)
        return now

    generator.generate(prompt, count=batch, rng=torch.Generator(), draw=write)
    readers = [SymbolReader(writer.payload()) for writer in writers]

    def read(log_probs: Tensor, step: Step) -> Tensor:
        tables = log_probs.exp().numpy()
        rows = [reader.read(table) for reader, table in zip(readers, tables, strict=True)]
        return torch.from_numpy(np.stack(rows))

    back = generator.generate(prompt, count=batch, rng=torch.Generator(), draw=read).indices[0]
    assert torch.equal(back, ids)
