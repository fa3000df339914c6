"""Measured time of a reduced model against its plain twin, in the same run."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError, PolytokError
from polytok.reducers.api import unreduce
from polytok.reducers.cost import cost, counted_macs
from polytok.reducers.reduction import reduction_of
from polytok.reducers.tracing import trace

WARMUP = 0.25


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How much faster the second of two models is.

    Args:
        speedup: median over rounds of plain time / reduced time.
        low, high: the middle 90% of the rounds' ratios.
        noise_low, noise_high: the middle 90% of plain / plain, what chance alone does here.
        plain_seconds, reduced_seconds: medians for one batch.
    """

    speedup: float
    low: float
    high: float
    noise_low: float
    noise_high: float
    plain_seconds: float
    reduced_seconds: float
    rounds: int


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What a reduction saves, and what it changes.

    Args:
        plain_macs, macs: of one image, by formula. counted: by torch's counter.
        tokens: with the prefix, at every block's input and behind the last.
        agreement: share of images with the same highest output. cosine: of the outputs, mean.
    """

    plain_macs: int
    macs: int
    counted: int
    tokens: tuple[int, ...]
    timing: Timing
    agreement: float
    cosine: float


def bench(model: nn.Module, images: Tensor, *, rounds: int = 30) -> BenchReport:
    """Measure a reduced model against a plain copy of it.

    Args:
        images: (B, 3, H, W) one batch, used in every round.

    Raises:
        PolytokError: nothing is applied, or the outputs are unknown. ConfigError: ``rounds`` is
            below 1.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        return _measured(model.eval(), images, rounds)
    finally:
        for module, is_training in modes.items():
            module.training = is_training


def _measured(model: nn.Module, images: Tensor, rounds: int) -> BenchReport:
    reduction = reduction_of(model)
    plain = unreduce(copy.deepcopy(model))
    found = cost(plain, images)
    with torch.inference_mode():
        first, second = (_output(m(images)).float() for m in (plain, model))
    return BenchReport(
        plain_macs=found.plain(),
        macs=found.reduced(reduction.reducer, reduction.schedule),
        counted=counted_macs(model, images),
        tokens=trace(model, images[:1]).tokens,
        timing=compare(plain, model, images, rounds=rounds),
        agreement=float((first.argmax(-1) == second.argmax(-1)).float().mean()),
        cosine=float(torch.cosine_similarity(first, second, dim=-1).mean()),
    )


@torch.inference_mode()
def compare(plain: nn.Module, reduced: nn.Module, images: Tensor, *, rounds: int = 30) -> Timing:
    """Time two models in interleaved rounds of plain, reduced and plain again.

    The order within a round turns, so that a machine that slows down slows both. A quarter as
    many rounds warm up.

    Raises:
        ConfigError: ``rounds`` is below 1.
    """
    if rounds < 1:
        raise ConfigError(f"rounds={rounds} is below 1")
    runs = [lambda: plain(images), lambda: reduced(images), lambda: plain(images)]
    times = []
    for number in range(-max(1, round(WARMUP * rounds)), rounds):
        order = [(number + i) % 3 for i in range(3)]
        taken = {i: _seconds(runs[i], images.device) for i in order}
        if number >= 0:
            times.append((taken[0], taken[1], taken[2]))
    ratios = [(a + b) / 2 / r for a, r, b in times]
    noise = [a / b for a, _, b in times]
    return Timing(
        speedup=statistics.median(ratios),
        low=_quantile(ratios, 0.05),
        high=_quantile(ratios, 0.95),
        noise_low=_quantile(noise, 0.05),
        noise_high=_quantile(noise, 0.95),
        plain_seconds=statistics.median(t for a, _, b in times for t in (a, b)),
        reduced_seconds=statistics.median(r for _, r, _ in times),
        rounds=rounds,
    )


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _quantile(values: Sequence[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def _output(out: Any) -> Tensor:
    """Logits, the class token of features, or the mean of the last map: (B, n)."""
    if isinstance(out, list | tuple):
        out = out[-1]
    if not isinstance(out, Tensor):
        found = getattr(out, "logits", getattr(out, "last_hidden_state", None))
        if not isinstance(found, Tensor):
            raise PolytokError(
                f"outputs of {type(out).__name__} are unknown to bench; models that return a "
                "tensor, logits, a last hidden state or a list of maps work"
            )
        out = found
    if out.ndim == 4:
        return out.flatten(2).mean(2)
    return out if out.ndim == 2 else out[:, 0]
