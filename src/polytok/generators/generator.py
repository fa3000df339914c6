"""A generator: net x head x process x guide x conditioner."""

from __future__ import annotations

import torch
from torch import nn

from polytok.core.contracts import Batch, Codes, StepContext, StepOutput
from polytok.core.seeding import derive
from polytok.generators.cond import Cond, Conditioner
from polytok.generators.draws import Rng
from polytok.generators.guide import Guide
from polytok.generators.head import DrawHook, Head
from polytok.generators.loop import Expert, generate
from polytok.generators.net import Net
from polytok.generators.process import Known, Process
from polytok.generators.sampling import Sampler, Sampling


class Generator(nn.Module):
    """Draws codes, and learns to from batches of codes and conditions.

    Training batches hold what the process takes (``ids``), what the conditioner takes, and seed
    (B,) int64, from which the draws of each sample are made.

    Args:
        guide, sampling: used by ``generate`` unless others are given; by default ids are drawn as
            probable as they are.
        condition_dropout: probability that a training sample loses each of its conditions.

    Attributes:
        hidden: conditions that training samples do not show at all.
    """

    hidden: tuple[str, ...] = ()

    def __init__(
        self,
        net: Net,
        head: Head,
        process: Process,
        guide: Guide,
        conditioner: Conditioner,
        *,
        condition_dropout: float = 0.1,
        sampling: Sampler | None = None,
    ) -> None:
        super().__init__()
        self.net, self.head, self.conditioner = net, head, conditioner
        self.process, self.guide, self.sampling = process, guide, sampling or Sampling()
        self.condition_dropout = condition_dropout

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """One training step: loss ``ce`` in nats per slot, and its parts as the process reports."""
        seeds = [int(s) for s in batch["seed"]]
        draws = [torch.Generator().manual_seed(derive(s, "process")) for s in seeds]
        example = self.process.corrupt(batch, rng=draws)
        cond = self.condition(batch)
        losses = self.head.loss(self.net(example.query, cond), example.target)
        mean = losses.mean()
        if example.weight is not None:
            mean = (losses * example.weight).sum() / example.weight.sum().clamp(min=1)
        return StepOutput(
            losses={"ce": mean},
            metrics=self.process.report(losses.detach()),
            output={"losses": losses, "cond": cond},
        )

    def condition(self, batch: Batch) -> Cond:
        """Conditions of a training batch, as many dropped as is due."""
        rate = self.condition_dropout if self.training else 0.0
        features = self.conditioner.encode({k: batch[k] for k in batch if k not in self.hidden})
        return self.conditioner.dropped(features, [int(s) for s in batch["seed"]], rate)

    def generate(
        self,
        prompt: Batch,
        *,
        count: int,
        rng: Rng,
        steps: int | None = None,
        known: Known | None = None,
        guide: Guide | None = None,
        sampling: Sampler | None = None,
        draw: DrawHook | None = None,
        expert: Expert | None = None,
    ) -> Codes:
        """Draw ``count`` codes for a prompt of as many items; see :func:`generate`."""
        return generate(
            self.net,
            self.head,
            self.process,
            guide or self.guide,
            self.conditioner,
            prompt,
            count=count,
            rng=rng,
            steps=steps,
            known=known,
            sampling=sampling or self.sampling,
            draw=draw,
            expert=expert,
        )
