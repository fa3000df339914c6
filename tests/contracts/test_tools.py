"""Every registered tool works: one small run of each, checked for what it promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from polytok.core import registry
from polytok.systems.text._bpe import train_bpe
from polytok.systems.text.data_mixture_inference import TokenizerFile, infer_mixture
from polytok.systems.text.data_mixture_inference.counting import count_words
from polytok.systems.text.data_mixture_inference.rules import rules_of
from polytok.systems.theory.posterior_collapse import linear_vae_optimum
from polytok.systems.theory.posterior_collapse.models import LinearVAE, minimise


def collapse_is_predicted() -> None:
    """A tiny linear VAE, optimised, has the closed form's loss and active units."""
    cov = torch.tensor([2.0, 1.0, 0.1], dtype=torch.float64).diag()
    wanted = linear_vae_optimum(cov.numpy(), eta_dec=0.6)
    model = LinearVAE(3, 3, eta_dec=0.6).double()
    loss = minimise(model, lambda: model.exact_loss(cov), num_starts=2)
    assert wanted.num_active == 2
    assert loss == pytest.approx(wanted.loss, abs=1e-6)


def a_mixture_is_found() -> None:
    """From the training text itself, a tokenizer's merges give away the shares exactly."""
    texts = {"en": "the then other weather of them " * 50, "de": "der die und oder nieder " * 90}
    words = count_words(texts.values(), rules_of(TokenizerFile(model="BPE", vocab={}), "gpt2"))[0]
    found = infer_mixture(train_bpe(words, 20), texts, rules="gpt2", num_parts=1)
    assert found.fit.misfit + found.fit.gap < 1e-9
    assert sum(found.byte_share.values()) == pytest.approx(1)


# A run of each registered tool that ends in seconds and asserts its promise.
RUNS: dict[str, Callable[[], None]] = {
    "data-mixture-inference": a_mixture_is_found,
    "posterior-collapse": collapse_is_predicted,
}


def test_every_tool_has_a_run() -> None:
    assert {s.name for s in registry.SYSTEMS.values() if s.kind == "tool"} == set(RUNS)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_tool_runs(name: str) -> None:
    system = registry.SYSTEMS[name]
    assert system.load().__doc__ and not system.default_weights
    RUNS[name]()
