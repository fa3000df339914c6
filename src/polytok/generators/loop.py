"""The one sampling loop. It knows no kind of generator."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from polytok.core.contracts import Batch, Codes
from polytok.generators.cond import Cond, Conditioner
from polytok.generators.draws import Rng
from polytok.generators.guide import Guide
from polytok.generators.head import Combine, DrawHook, Head
from polytok.generators.net import Net
from polytok.generators.process import Known, Process, Query, Step
from polytok.generators.sampling import Sampler, Sampling


class Expert(Protocol):
    """Says of the ids of a query what the net does not: what to add (B, n, V) to its logits."""

    def __call__(self, query: Query, step: Step) -> Tensor: ...


@torch.no_grad()
def generate(
    net: Net,
    head: Head,
    process: Process,
    guide: Guide,
    conditioner: Conditioner,
    prompt: Batch,
    *,
    count: int,
    rng: Rng,
    steps: int | None = None,
    known: Known | None = None,
    sampling: Sampler | None = None,
    draw: DrawHook | None = None,
    expert: Expert | None = None,
) -> Codes:
    """Draw ``count`` codes. The net runs once per step; branches are rows of its batch.

    Without a cache, a branch that has no weight at a step is left out of it.

    Args:
        prompt: conditions of the ``count`` items. known: ids that are given.
        rng: of every draw; one per item makes items independent of their neighbours.
        draw: draws ids in the sampler's stead, such as an entropy coder.
        expert: what else is known of the ids, added to the guided logits.
    """
    plan = process.plan(steps)
    every = guide.branches(plan)
    features = conditioner.encode(prompt)
    conds = {name: conditioner.branch(features, name, count) for name in every}
    cond = Cond.cat(list(conds.values()))
    state = process.start(count, cond.vector.device, rng=rng, known=known)
    cache = net.new_cache(len(every) * count, process.capacity, cond)
    for step in plan:
        names = every if cache is not None else guide.branches([step])
        cond = Cond.cat([conds[name] for name in names])
        query = process.query(state, step)
        rows = _repeated(query, len(names))
        hidden = net(rows, cond, cache=cache).unflatten(0, (len(names), count))
        combine = partial(guide.combine, names=names, step=step)
        out = head.sample(
            hidden,
            combine if expert is None else _with(expert(query, step), combine),
            step,
            rng=rng,
            sampling=sampling or Sampling(),
            draw=draw,
        )
        state = process.advance(state, step, out, rng=rng)
    return process.finish(state)


def _with(known: Tensor, combine: Combine) -> Combine:
    return lambda logits: combine(logits) + known


def _repeated(query: Query, times: int) -> Query:
    """The same query for every branch."""
    if times == 1:
        return query
    inp, tau = (
        None if t is None else t.repeat(times, *[1] * (t.ndim - 1)) for t in (query.inp, query.tau)
    )
    return Query(index=query.index, inp=inp, mask=query.mask, tau=tau)
