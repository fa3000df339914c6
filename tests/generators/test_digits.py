"""One loop for every kind of order, on real data: handwritten digits of 8 x 8 grey values."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from polytok.bottlenecks import MultiScaleVQ
from polytok.core.contracts import StepContext
from polytok.generators import (
    AdaptiveTransformer,
    CategoricalHead,
    ClassConditioner,
    Generator,
    Guide,
    MaskedOrder,
    Process,
    RasterOrder,
    ScaleOrder,
)
from polytok.systems.prior import PriorCoder

GREYS, SIDE = 17, 8
HELD_OUT = 300
KINDS = ("raster", "scales", "masked")


@dataclass
class Trained:
    """A generator of one kind, what it was trained on, and what it never saw."""

    generator: Generator
    train: Tensor
    test: Tensor
    test_labels: Tensor


def digits() -> tuple[Tensor, Tensor]:
    """Grey values (n, 64) of 0..16 and labels (n,), in a fixed order."""
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    values = torch.from_numpy(found.data).long()[order]
    return values, torch.from_numpy(found.target).long()[order]


def pyramid() -> MultiScaleVQ:
    """A code of 1 + 4 + 16 + 64 grey values, each scale what the ones before leave over."""
    quantizer = MultiScaleVQ(
        codebook_size=2 * GREYS - 1, codebook_dim=1, slots=(1, 4, 16, 64), refine_ratio=0.0
    )
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.linspace(-16, 16, 2 * GREYS - 1)[:, None])
    return quantizer.eval().requires_grad_(False)


def built(kind: str) -> tuple[Generator, Tensor, Tensor]:
    """A generator, the ids (n, L) that it learns, and their labels."""
    values, labels = digits()
    process: Process
    embed: nn.Module
    if kind == "scales":
        quantizer = pyramid()
        found = quantizer(values.float()[..., None]).indices
        ids, process = torch.cat(found, dim=1), ScaleOrder(quantizer)
        levels, start, vocab = process.levels().tolist(), 1, 2 * GREYS - 1
        embed = nn.Linear(1, 48)
    else:
        is_masked = kind == "masked"
        ids, levels, vocab = values, [0] * SIDE**2, GREYS
        process = MaskedOrder(SIDE**2, vocab) if is_masked else RasterOrder(SIDE**2, vocab)
        start, embed = (0 if is_masked else 1), nn.Embedding(vocab + 1, 48)
    net = AdaptiveTransformer(
        dim=48, depth=2, num_heads=2, levels=levels, num_start=start, embed=embed
    )
    return (
        Generator(net, CategoricalHead(48, vocab), process, Guide(), ClassConditioner(10, 48)),
        ids,
        labels,
    )


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest) -> Trained:
    torch.manual_seed(0)
    generator, ids, labels = built(request.param)
    steps, rng = 450, torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(generator.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for step in range(steps):
        pick = torch.randint(HELD_OUT, len(ids), (32,), generator=rng)
        batch = {"ids": ids[pick], "label": labels[pick], "seed": pick + step * len(ids)}
        loss = generator(batch, StepContext()).losses["ce"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    generator.eval()
    return Trained(generator, ids[HELD_OUT:], ids[:HELD_OUT], labels[:HELD_OUT])


def test_held_out_digits_cost_less_than_their_slots_counts(trained: Trained) -> None:
    vocab = int(trained.train.max()) + 1
    counts = torch.stack(
        [torch.bincount(column, minlength=vocab) for column in trained.train.T]
    ).double()
    table = ((counts + 0.5) / (counts + 0.5).sum(1, keepdim=True)).log()
    slots = torch.arange(table.shape[0])
    unigram = -float(table[slots, trained.test.clamp(max=vocab - 1)].mean())
    batch = {
        "ids": trained.test,
        "label": trained.test_labels,
        "seed": torch.arange(len(trained.test)),
    }
    with torch.no_grad():
        found = float(trained.generator(batch, StepContext()).losses["ce"])
    assert found < 0.93 * unigram


def test_digits_of_a_class_look_like_it(trained: Trained) -> None:
    generator = trained.generator
    with torch.no_grad():
        codes = generator.generate(
            {"label": torch.arange(10).repeat_interleave(6)},
            count=60,
            rng=torch.Generator().manual_seed(3),
            guide=Guide(shares={"label": 1.0}, strength=1.0),
            steps=12 if isinstance(generator.process, MaskedOrder) else None,
        )
    if isinstance(generator.process, ScaleOrder):
        drawn = pyramid().embed(codes.indices)[..., 0]
    else:
        drawn = codes.indices[0].float()
    values, labels = digits()
    means = torch.stack([values[labels == k].float().mean(0) for k in range(10)])
    nearest = torch.cdist(drawn, means).argmin(1)
    assert float((nearest == torch.arange(10).repeat_interleave(6)).float().mean()) > 0.7


@pytest.mark.parametrize("kind", ["scales"])
def test_a_thousand_codes_come_back_whatever_the_threads(kind: str) -> None:
    torch.manual_seed(0)
    generator, ids, _ = built(kind)
    generator.eval().requires_grad_(False)
    assert isinstance(generator.process, ScaleOrder)
    coder = PriorCoder(generator, {}, Guide(), fingerprint="00000000")
    rows = ids[torch.arange(1000) % len(ids)]
    threads = torch.get_num_threads()
    try:
        for number, row in enumerate(rows):
            parts = [part[0].numpy() for part in generator.process.split(row[None])]
            torch.set_num_threads(1 + number % 2)
            payload = coder.encode(parts)
            torch.set_num_threads(2 - number % 2)
            back = coder.decode(payload, [len(part) for part in parts])
            assert all((a == b).all() for a, b in zip(parts, back, strict=True))
    finally:
        torch.set_num_threads(threads)
