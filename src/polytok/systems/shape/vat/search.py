"""Encode effort: refine a code against the shape's own field through the frozen decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytok.core.errors import PolytokError
from polytok.core.seeding import torch_rng
from polytok.systems.shape.vat.model import VAT

# Gradient steps, then rounds of re-choice, up to each effort. All efforts walk the same path and
# keep its best code so far, so a higher effort never ends with a worse objective. Steps gain the
# most per second at first; after a hundred of them, 30 rounds gain more than 300 steps do.
PATH = (
    (0, 0),
    (10, 0),
    (25, 0),
    (50, 0),
    (75, 0),
    (100, 0),
    (100, 10),
    (100, 20),
    (100, 35),
    (100, 60),
)
QUERIES_PER_STEP = 2048
CHECK_EVERY = 5
CANDIDATES = 24  # changes of one id that a round tries
QUERIES_PER_ROUND = 4096
NEIGHBOUR = 8  # a change reaches about as far as this nearest code
REST = 5  # rounds that an id which was tried and kept is left alone

Ids = tuple[Tensor, ...]
Change = tuple[int, int, int]  # level, slot, new id


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The best code found: ids (1, s_k) per scale, its objective and that of the start.

    ``num_refused`` counts the codes that were better, but not accepted.
    """

    indices: Ids
    objective: float
    start: float
    steps: int
    num_refused: int = 0


def refine(
    model: VAT,
    latents: Tensor,
    queries: Tensor,
    sdf: Tensor,
    *,
    effort: int,
    levels: int | None = None,
    accept: Callable[[Ids], bool] | None = None,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """Move latents down the gradient of the reconstruction loss, then re-choose ids one by one.

    The objective is the model's reconstruction loss of the *quantized* latents on all queries.

    Args:
        latents: (1, M, d), the encoder's mean. queries: (1, Q, 3). sdf: (1, Q), inside negative.
        effort: 0..9.
        levels: scales of the code; all if None. A code of its own is better than a prefix of one of
            more scales.
        accept: whether a code may be kept; the first one always is.
        on_step: called with the steps done and the steps of this effort.

    Raises:
        PolytokError: effort is outside 0..9, or the model has no so many scales.
    """
    if not 0 <= effort < len(PATH):
        raise PolytokError(f"effort={effort} is not within 0..{len(PATH) - 1}")
    steps, rounds = PATH[effort]
    count = len(model.config.slots)
    if levels is not None and not 1 <= levels <= count:
        raise PolytokError(f"levels={levels} is not within 1..{count}")
    search = _Search(model, queries, sdf, torch_rng(seed, "search"), levels or count)
    start = search.offer(search.quantize(latents.detach())[0])
    search.accept = accept
    descent = search.descend(latents)
    for step in range(1, steps + rounds + 1):
        if step <= steps:
            next(descent)
        else:
            search.rechoose(step)
        if on_step:
            on_step(step, steps + rounds)
    return SearchResult(
        indices=search.best,
        objective=search.objective,
        start=start,
        steps=steps + rounds,
        num_refused=search.num_refused,
    )


def learning_rate(step: int) -> float:
    """Adam's rate at a step; it depends on no total, so that all efforts walk the same path."""
    return 0.15 * (1 + step / 20) ** -0.7


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is computed in hardware; emulated, it would be slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Not in every torch of the range.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    is_fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return device.type == "cpu" and bool(is_fast)


class _Search:
    """The best ids so far, their objective, and the two ways to better ones."""

    def __init__(
        self, model: VAT, queries: Tensor, sdf: Tensor, rng: torch.Generator, levels: int
    ) -> None:
        self.model, self.quantizer, self.levels = model, model.bottleneck.quantizer, levels
        self.queries, self.sdf, self.rng = queries, sdf, rng
        self.best: Ids = ()
        self.objective = float("inf")
        self.accept: Callable[[Ids], bool] | None = None
        self.num_refused = 0
        self.resting: dict[tuple[int, int], int] = {}
        self.is_bf16_fast = has_fast_bf16(queries.device)

    @torch.no_grad()
    def quantize(self, latents: Tensor) -> tuple[Ids, Tensor]:
        """Ids of latents (1, M, d) and the latents that they stand for."""
        out = self.quantizer(latents)
        assert out.indices is not None
        return out.indices[: self.levels], out.stats["prefixes"][self.levels - 1]

    def losses(self, latents: Tensor, pick: Tensor | None = None) -> Tensor:
        """Reconstruction losses (n,) of latents (n, M, d) on all queries, or on picked ones.

        Picked ones only propose codes, so they may be computed in bf16; what is kept is decided on
        all queries in full precision.
        """
        queries, sdf = self.queries, self.sdf
        is_draft = pick is not None
        if is_draft:
            queries, sdf = queries[:, pick], sdf[:, pick]
        is_bf16 = is_draft and self.is_bf16_fast
        with torch.autocast(queries.device.type, torch.bfloat16, enabled=is_bf16):
            logits = self.model.field(latents)(queries.expand(len(latents), -1, -1))
        rows = logits.float().split(1)
        return torch.stack([self.model.reconstruction_loss(row, sdf) for row in rows])

    @torch.no_grad()
    def offer(self, ids: Ids) -> float:
        """Keep ids if they are the best so far and accepted; returns their objective."""
        objective = float(self.losses(self.quantizer.embed(ids)))
        if objective >= self.objective:
            return objective
        if self.accept is None or self.accept(ids):
            self.best, self.objective = ids, objective
        else:
            self.num_refused += 1
        return objective

    def draw(self, count: int) -> Tensor:
        """Numbers of some queries, with repeats."""
        return torch.randint(self.queries.shape[1], (count,), generator=self.rng)

    def descend(self, latents: Tensor) -> Iterator[None]:
        """Adam on continuous latents; the straight-through estimator passes the quantizer."""
        z = latents.detach().clone().requires_grad_()
        momentum, variance = torch.zeros_like(z), torch.zeros_like(z)
        step = 0
        while True:
            step += 1
            through = z + (self.quantize(z)[1] - z).detach()
            loss = self.losses(through, self.draw(QUERIES_PER_STEP)).sum()
            (gradient,) = torch.autograd.grad(loss, z)
            momentum = 0.9 * momentum + 0.1 * gradient
            variance = 0.99 * variance + 0.01 * gradient.square()
            scale = (variance / (1 - 0.99**step)).sqrt() + 1e-8
            with torch.no_grad():
                z -= learning_rate(step) * momentum / (1 - 0.9**step) / scale
            if step % CHECK_EVERY == 0:
                self.offer(self.quantize(z)[0])
            yield

    def rechoose(self, step: int) -> None:
        """One round: try the most promising changes of one id, then the good ones together."""
        pick = self.draw(QUERIES_PER_ROUND)
        before, changes = self._promising(pick, step)
        if not changes:  # every id rests
            return
        with torch.no_grad():
            alone = self.losses(self._embed_changed([[c] for c in changes]), pick)
            order = [int(i) for i in alone.argsort() if alone[i] < before]
            self.resting |= {change[:2]: step for change in changes}
            if not order:
                return
            good = [changes[i] for i in order]
            counts = sorted({min(2**i, len(good)) for i in range(6)})
            joint = self.losses(self._embed_changed([good[:n] for n in counts]), pick)
            chosen = good[: counts[int(joint.argmin())]]
        objective = self.objective
        self.offer(self._changed(chosen))
        if self.objective < objective:
            for level, slot, _ in chosen:
                del self.resting[level, slot]

    def _promising(self, pick: Tensor, step: int) -> tuple[Tensor, list[Change]]:
        """The present loss, and the changes that should lower it the most.

        The loss is taken as linear in a code vector, with a curvature that puts the optimum at
        the distance of a near neighbour: a linear model alone would jump across the codebook.
        """
        table = self.quantizer.embedding.weight
        codes = [self.quantizer.lookup(ids).detach().requires_grad_() for ids in self.best]
        loss = self.losses(self.quantizer.combine(codes), pick).sum()
        gradients = torch.autograd.grad(loss, codes)
        found: list[tuple[float, Change]] = []
        for level, (code, gradient) in enumerate(zip(codes, gradients, strict=True)):
            code, gradient = code[0].detach(), gradient[0]
            slope = gradient @ table.T - (gradient * code).sum(-1, keepdim=True)
            square = torch.cdist(code, table).square()
            rank = min(NEIGHBOUR + 1, len(table))
            reach = square.kthvalue(rank, dim=-1, keepdim=True).values.sqrt().clamp(min=1e-6)
            gain = slope + gradient.norm(dim=-1, keepdim=True) * square / (2 * reach)
            gains, ids = gain.min(dim=-1)
            for slot, (value, new) in enumerate(zip(gains.tolist(), ids.tolist(), strict=True)):
                if step - self.resting.get((level, slot), -REST) >= REST:
                    found.append((value, (level, slot, new)))
        return loss.detach(), [change for _, change in sorted(found)[:CANDIDATES]]

    def _changed(self, changes: Sequence[Change]) -> Ids:
        """The best ids with some of them replaced."""
        ids = [i.clone() for i in self.best]
        for level, slot, new in changes:
            ids[level][0, slot] = new
        return tuple(ids)

    def _embed_changed(self, sets: Sequence[Sequence[Change]]) -> Tensor:
        """Latents (n, M, d) of n sets of changes."""
        codes = zip(*(self._changed(changes) for changes in sets), strict=True)
        return self.quantizer.embed([torch.cat(level) for level in codes])
