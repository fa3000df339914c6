"""A stub tokenizer and source that train in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from polytok.bottlenecks.codebook import gather_over_ranks
from polytok.core.contracts import (
    Batch,
    Bottleneck,
    BottleneckOutput,
    Stage,
    StepContext,
    StepOutput,
    Tokenizer,
)
from polytok.core.seeding import derive, torch_rng
from polytok.training import Adversary


class Counter(Bottleneck):
    """Passes latents on, and counts its updates."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, z: Tensor, **_: object) -> BottleneckOutput:
        return BottleneckOutput(latents=z, stats={"mean": z.mean()})

    def update(self, out: BottleneckOutput) -> None:
        self.updates += 1


class Stub(Tokenizer):
    """Regresses points to their negatives through noise that each sample's seed draws."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.norm = nn.Linear(3, dim), nn.LayerNorm(dim)
        self.bottleneck = Counter()
        self.decoder, self.unused = nn.Linear(dim, 3), nn.Linear(2, 2)
        self.is_noisy, self.starts, self.bad_steps = True, 0, ()

    def start_stage(self, stage: Stage, batches: Iterable[Batch]) -> None:
        self.starts += 1
        points = gather_over_ranks(torch.cat([b["points"] for b in batches]))
        with torch.no_grad():
            self.encoder.bias[:3] += 10 * points.mean((0, 1))

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        out = self.bottleneck(self.norm(self.encoder(batch["points"])))
        noise = [torch_rng(int(seed)).initial_seed() % 1000 / 1e4 for seed in batch["seed"]]
        latents = out.latents + self.is_noisy * torch.tensor(noise)[:, None, None]
        made = self.decoder(latents.tanh())
        error = (made + batch["points"]).square().mean()
        if ctx.step in self.bad_steps:
            error = error * float("nan")
        losses = {"rec": error, "size": out.latents.abs().mean(), "idle": error.detach()}
        metrics, output = {"rms": error.sqrt()}, {"points": made}
        return StepOutput(losses=losses, metrics=metrics, output=output, bottleneck=out)


class Source:
    """Random points, a pure function of the sample's number."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __len__(self) -> int:
        return 10

    def sample(self, n: int) -> dict[str, Tensor]:
        self.seen.append(n)
        points = torch.randn(5, 3, generator=torch_rng(n))
        return {"points": points, "seed": torch.tensor(derive(7, n))}


def adversary(width: int = 8, **settings: Any) -> Adversary:
    """A critic of single points."""
    torch.manual_seed(1)
    critic = nn.Sequential(nn.Linear(3, width), nn.LeakyReLU(0.1), nn.Linear(width, 1))
    return Adversary(critic, key="points", regularisation=0.01, **settings)


STAGE = Stage(name="all", weights={"rec": 1.0, "size": 0.01, "idle": 0.0})
JUDGED = Stage(name="judged", weights={**STAGE.weights, "adversarial": 0.1})
