"""Every registered system of kind ``model``: its tiny preset trains, saves and repeats itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polytok.core import hub, registry
from polytok.core.config import override
from polytok.core.contracts import Batch, StepContext, StepOutput
from polytok.core.seeding import torch_rng
from polytok.networks.pretrained.optional import import_hf


@dataclass(frozen=True)
class Case:
    """A model under test.

    Args:
        build: makes a preset with fresh random weights; it has ``config``, and called with a batch
            and a ``StepContext`` it gives a ``StepOutput`` whose output holds a tensor.
        batch: makes a training batch that uses every trainable parameter of the tiny preset.
    """

    build: Callable[[str], nn.Module]
    batch: Callable[[], Batch]


def _attention_vat(name: str) -> nn.Module:
    system = importlib.import_module("polytok.systems.theory.attention_vat")
    return system.AttentionClassifier(system.preset(name))


def _attention_vat_batch() -> Batch:
    lengths = torch.tensor([7, 3, 5, 1])
    mask = torch.arange(7) < lengths[:, None]
    tokens = torch.randint(1, 60, (4, 7), generator=torch.Generator().manual_seed(3))
    return {"tokens": tokens * mask, "mask": mask, "label": torch.tensor([0, 1, -1, -1])}


def _vit_classifier(name: str) -> nn.Module:
    system = importlib.import_module("polytok.systems.classics.vit_classifier")
    return system.ViTClassifier(system.preset(name))


def _vit_classifier_batch() -> Batch:
    image = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    return {"image": image, "label": torch.tensor([0, 1, 2, 1])}


def _zett(name: str) -> nn.Module:
    system = importlib.import_module("polytok.systems.text.zett")
    hf = import_hf("transformers")
    shape = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    language_model = hf.GPT2LMHeadModel(hf.GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    sizes = {"vocab_size": 40, "num_extra": 3, "pad_id": 43, "num_languages": 2}
    return system.Zett(override(system.preset(name), **sizes), language_model)


def _zett_batch() -> Batch:
    rng = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 8, (2, 24, 1), generator=rng)
    pieces = torch.randint(43, (2, 24, 7), generator=rng)
    special = torch.full((2, 24), -1)
    special[:, 0] = 0
    text = torch.randint(24, (2, 3, 6), generator=rng)
    return {
        "surface": pieces.where(torch.arange(7) < lengths, 43),
        "tokens": torch.ones(2, 24, dtype=torch.bool),
        "special": special,
        "text": text,
        "targets": text.roll(-1, dims=-1),
        "mask": torch.ones_like(text, dtype=torch.bool),
        "seen": torch.ones_like(text, dtype=torch.bool),
        "language": torch.tensor([1, 0]),
    }


# How to build and feed each registered model; a system without a row fails its tests.
BUILDERS: dict[str, Case] = {
    "attention-vat": Case(_attention_vat, _attention_vat_batch),
    "zett": Case(_zett, _zett_batch),
    "vit-classifier": Case(_vit_classifier, _vit_classifier_batch),
}

TINY = [
    (s.name, preset)
    for s in registry.SYSTEMS.values()
    if s.kind == "model"
    for preset in s.presets
    if preset.endswith("-tiny")
]
tiny = pytest.mark.parametrize(("system", "preset"), TINY)


def built(system: str, preset: str) -> nn.Module:
    torch.manual_seed(0)
    return BUILDERS[system].build(preset)


def stepped(system: str, model: nn.Module, seed: int = 0) -> StepOutput:
    torch.manual_seed(seed)
    out = model(BUILDERS[system].batch(), StepContext(rng=torch_rng(seed)))
    assert isinstance(out, StepOutput)
    return out


def outputs(out: StepOutput) -> dict[str, Tensor]:
    found = {k: v.detach() for k, v in out.output.items() if isinstance(v, Tensor)}
    assert found, "the step shows no output"
    return found


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    assert [k for k in left if not torch.equal(left[k], right[k])] == []


def test_every_model_has_a_builder_and_a_tiny_preset() -> None:
    models = {s.name for s in registry.SYSTEMS.values() if s.kind == "model"}
    assert models == set(BUILDERS) == {name for name, _ in TINY}


@tiny
def test_a_model_gives_finite_named_losses(system: str, preset: str) -> None:
    losses = stepped(system, built(system, preset)).losses
    assert losses
    for name, loss in losses.items():
        assert loss.shape == () and bool(loss.isfinite()), name


@tiny
def test_its_losses_have_weights_in_every_stage(system: str, preset: str) -> None:
    losses = stepped(system, built(system, preset)).losses
    for stage in registry.SYSTEMS[system].load().STAGES:
        assert set(losses) <= set(stage.weights), stage.name


@tiny
def test_gradient_reaches_every_trainable_parameter(system: str, preset: str) -> None:
    model = built(system, preset).train()
    torch.stack([*stepped(system, model).losses.values()]).sum().backward()
    without = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not bool(p.grad.abs().sum() > 0))
    ]
    assert without == []
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@tiny
def test_saving_and_loading_keeps_every_tensor(system: str, preset: str, tmp_path: Path) -> None:
    model = built(system, preset)
    hub.save_pretrained(model, model.config, tmp_path, system=system, preset=preset)
    torch.manual_seed(1)
    again = BUILDERS[system].build(preset)
    hub.load_weights(again, tmp_path)
    assert_same(model.state_dict(), again.state_dict())
    assert hub.read_info(tmp_path).system == system


@tiny
def test_a_seed_repeats_a_step(system: str, preset: str) -> None:
    first, second = (stepped(system, built(system, preset).train()) for _ in range(2))
    assert_same(first.losses, second.losses)
    assert_same(outputs(first), outputs(second))


@tiny
def test_losses_leave_the_model_in_eval_as_it_was(system: str, preset: str) -> None:
    """The output in eval depends on weights alone: not on earlier steps, nor on the seed."""
    model = built(system, preset).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = outputs(stepped(system, model, seed=0))
    torch.stack([*stepped(system, model.train(), seed=1).losses.values()]).sum().backward()
    # Batch norm follows its inputs by design. Nothing else may, in the state or beside it.
    followed = {
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
        for buffer, _ in module.named_buffers(recurse=False)
    }
    after = model.state_dict()
    assert {k for k, v in before.items() if not torch.equal(v, after[k])} == followed
    model.load_state_dict(before)
    assert_same(first, outputs(stepped(system, model.eval(), seed=2)))
