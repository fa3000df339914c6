"""DyVTE: gates, what they read, what they learn from, and when rows leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import polytok
from polytok.core.errors import ConfigError, WeightsError
from polytok.systems.vlm.dyvte import (
    DyVTEGates,
    GatedExit,
    exit_labels,
    gate_features,
    oracle_exit,
    train_gates,
)
from reducers.vlm.models import DECODER, FAMILIES, IMAGE, batch, build, single
from reducers.vlm.reference import errors, generated, masked_logits

DEPTH, DIM = DECODER["num_hidden_layers"], DECODER["hidden_size"]


def gates_that(leave: dict[int, float]) -> DyVTEGates:
    """Gates whose margin is a number per layer, whatever they read."""
    gates = DyVTEGates(DEPTH, DIM, inner=4)
    for layer, gate in enumerate(gates.gates):
        margin = torch.tensor([0.0, leave.get(layer, 0.0)])
        gate.forward = lambda x, m=margin: m.expand(len(x), 2)  # type: ignore[method-assign]
    return gates


def pair(family: str) -> dict[str, Any]:
    return batch(family, [single(family, 0), single(family, 1)])


def test_a_gate_reads_the_text_after_the_image_and_the_end() -> None:
    hidden = torch.randn(2, 8, 3)
    image = torch.zeros(2, 8, dtype=torch.bool)
    image[0, 1:3] = image[1, 3:5] = True
    valid = torch.ones(2, 8, dtype=torch.bool)
    valid[1, :2] = False  # padding on the left
    found = gate_features(hidden, image, valid)
    first = torch.cat([hidden[0, 3:7].mean(0), hidden[0, 7]])
    second = torch.cat([hidden[1, 5:7].mean(0), hidden[1, 7]])
    torch.testing.assert_close(found, torch.stack([first, second]))
    valid[0, 6:] = False  # an answer, or padding on the right
    found = gate_features(hidden, image, valid)
    torch.testing.assert_close(found[0], torch.cat([hidden[0, 3:5].mean(0), hidden[0, 5]]))


def test_a_prompt_without_text_after_the_image_never_leaves() -> None:
    image = torch.tensor([[False, True, True, False]])
    features = gate_features(torch.randn(1, 4, DIM), image, torch.ones_like(image))
    logits = DyVTEGates(DEPTH, DIM, 4)(0, features)
    assert not bool((logits[:, 1] > logits[:, 0]).any())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tie_stays(family: str) -> None:
    model, inputs = build(family), pair(family)
    plain = generated(model, inputs)
    with polytok.vlm("dyvte", gates=gates_that({})).applied(model) as run:
        found = generated(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, plain.logits, strict=True))
    assert run.exit_layers == (None, None)
    assert run.report.kv_after == run.report.kv_before


@pytest.mark.parametrize("family", FAMILIES)
def test_gates_that_all_agree_are_a_static_exit(family: str) -> None:
    model, inputs = build(family), pair(family)
    with polytok.vlm("dyvte", layer=2).applied(model) as run:
        static = generated(model, inputs)
        assert run.exit_layers == (2, 2)
    gates = gates_that({1: 1.0, 2: 1.0})
    with polytok.vlm("dyvte", gates=gates, min_layer=2).applied(model) as run:
        found = generated(model, inputs)
    assert run.exit_layers == (2, 2)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, static.logits, strict=True))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_rows_leave_by_their_own_gates(kernel: str) -> None:
    model, inputs = build("llava", kernel), pair("llava")

    class Rows(DyVTEGates):
        """The first row leaves after layer 2, the second after layer 0."""

        def forward(self, layer: int, features: Tensor) -> Tensor:
            leave = torch.tensor([layer >= 2, layer >= 0])
            return torch.stack([torch.zeros(2), leave.float()], -1)

    with polytok.vlm("dyvte", gates=Rows(DEPTH, DIM, 4)).applied(model) as run:
        found = generated(model, inputs)
    assert run.exit_layers == (2, 0)
    image = inputs["input_ids"] == IMAGE
    expected = masked_logits(model, inputs, found.sequences, image, torch.tensor([3, 1]))
    assert errors(found, expected) <= 1e-5
    full = sum(run.report.prompt_before)
    assert run.report.kv_after < run.report.kv_before and full > 0


def labelled(family: str) -> dict[str, Any]:
    """Prompts whose last two tokens are the answer."""
    inputs = batch(family, [single(family, 0, 5), single(family, 1, 7)])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    return {**inputs, "labels": labels}


@pytest.mark.parametrize("family", FAMILIES)
def test_twins_are_the_plain_pass_and_the_static_exit(family: str) -> None:
    model, batch_ = build(family), labelled(family)
    inputs = {k: v for k, v in batch_.items() if k != "labels"}
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True)
        with polytok.vlm("dyvte", layer=1).applied(model):
            without = model(**inputs).logits
    answer = batch_["labels"][:, -2:]

    def loss(logits: Tensor) -> Tensor:
        found = torch.nn.functional.cross_entropy(
            logits[:, -3:-1].transpose(1, 2), answer, reduction="none"
        )
        return found.mean(1)

    same = (plain.logits[:, -3:-1].argmax(-1) == without[:, -3:-1].argmax(-1)).float().mean(1)
    expected = (same > 0.99) & (loss(without) < 1.03 * loss(plain.logits))
    found, features = exit_labels(model, batch_, 1)
    assert torch.equal(found.bool(), expected)
    # The end of the prompt is the token before the answer, in the output of layer 1.
    end = plain.hidden_states[2][:, -3]
    torch.testing.assert_close(features[:, DIM:], end, atol=1e-5, rtol=1e-4)
    always, _ = exit_labels(model, batch_, 1, agree=-1.0, loss_ratio=1e9)
    never, _ = exit_labels(model, batch_, 1, loss_ratio=0.0)
    assert always.tolist() == [1, 1] and never.tolist() == [0, 0]


def test_the_oracle_is_the_first_harmless_layer() -> None:
    model, batch_ = build("llava"), labelled("llava")
    assert oracle_exit(model, batch_, agree=-1.0, loss_ratio=1e9).tolist() == [0, 0]
    assert oracle_exit(model, batch_, loss_ratio=0.0).tolist() == [DEPTH - 1] * 2


def test_only_gates_learn_and_they_do() -> None:
    model, batch_ = build("llava"), labelled("llava")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(0)
    gates = DyVTEGates.like(model, inner=16)
    rng = torch.Generator().manual_seed(0)
    losses = train_gates(model, gates, [batch_] * 40, rng=rng, lr=1e-2, agree=-1.0, loss_ratio=1e9)
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with polytok.vlm("dyvte", gates=gates).applied(model) as run:
        generated(model, {k: v for k, v in batch_.items() if k != "labels"})
    assert run.exit_layers == (0, 0)


def test_published_keys_load() -> None:
    gates = DyVTEGates(DEPTH, DIM, 8)
    state = {
        f"model.visual_gates_router.{i}.{w}.weight": torch.randn(shape)
        for i in range(DEPTH)
        for w, shape in (("w1", (8, 2 * DIM)), ("w2", (2, 8)))
    }
    gates.load_reference({**state, "model.embed_tokens.weight": torch.zeros(1)})
    x = torch.randn(3, 2 * DIM)
    w1, w2 = (state[f"model.visual_gates_router.2.{w}.weight"] for w in ("w1", "w2"))
    expected = torch.nn.functional.gelu(x @ w1.T) @ w2.T
    torch.testing.assert_close(gates(2, x), expected)
    with pytest.raises(WeightsError, match="do not fit"):
        DyVTEGates(DEPTH + 1, DIM, 8).load_reference(state)
    published = DyVTEGates(1, 4096)
    assert sum(p.numel() for p in published.parameters()) == 2048 * (2 * 4096 + 2)


def test_refusals() -> None:
    for options, words in (
        ({}, "give either gates=DyVTEGates or layer=int"),
        ({"gates": DyVTEGates(DEPTH, DIM, 4), "layer": 1}, "give either"),
        ({"gates": "trained"}, "gates=str is no DyVTEGates"),
    ):
        with pytest.raises(ConfigError, match=words):
            polytok.vlm("dyvte", **options)
    with pytest.raises(ConfigError, match=r"gates for 2 layers of width 32, but the model has 4"):
        polytok.vlm("dyvte", gates=DyVTEGates(2, DIM, 4)).apply(build("llava"))
    assert GatedExit(DyVTEGates(DEPTH, DIM, 4)).min_layer == 0
