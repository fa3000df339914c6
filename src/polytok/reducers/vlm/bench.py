"""Times of a plan against the model as it is, in interleaved pairs of the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from polytok.reducers.vlm.plan import Plan
from polytok.reducers.vlm.report import Report


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of pairs that ran one after the other; ``report`` is of the last reduced prompt."""

    plain: tuple[float, ...]
    reduced: tuple[float, ...]
    report: Report

    @property
    def speedup(self) -> float:
        """Median of the pairs' ratios."""
        return median(a / b for a, b in zip(self.plain, self.reduced, strict=True))

    @property
    def spread(self) -> tuple[float, float]:
        """Least and greatest ratio of a pair."""
        ratios = [a / b for a, b in zip(self.plain, self.reduced, strict=True)]
        return min(ratios), max(ratios)


def time_generation(
    model: Any,
    inputs: Mapping[str, Any],
    plan: Plan,
    *,
    pairs: int = 5,
    new_tokens: int = 1,
    warmups: int = 1,
) -> Timing:
    """Time ``generate`` from pixels to the last of ``new_tokens``, without and with a plan.

    One new token is the time to first token. Pairs are interleaved, and every other one begins
    with the reduced run, so that a machine that slows down slows both.
    """
    plain: list[float] = []
    reduced: list[float] = []

    def run() -> None:
        model.generate(
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
        )

    report = None
    for pair in range(-warmups, pairs):
        order = (plain, reduced) if pair % 2 else (reduced, plain)
        for times in order:
            if times is plain:
                seconds = _seconds(run, model)
            else:
                with plan.applied(model) as applied:
                    seconds = _seconds(run, model)
                    report = applied.report
            if pair >= 0:
                times.append(seconds)
    assert report is not None
    return Timing(plain=tuple(plain), reduced=tuple(reduced), report=report)


def _seconds(run: Callable[[], None], model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    start = time.perf_counter()
    run()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start
