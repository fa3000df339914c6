"""What people do to models: compile, export, checkpoint, copy, pickle, cast, run in threads."""

from __future__ import annotations

import copy
import pickle
import shutil
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polytok
from polytok.reducers import method_names, reduction_of
from polytok.reducers.families import FAMILIES
from reducers.models import image, logits, tiny_deit, tiny_hf

KEEP = {1: 0.7, 2: 0.7}
# One name per method: a preset that is only another list of counts is left out.
METHODS = [n for n in method_names() if "deit" not in n]
# Compilers take seconds for each.
SOME = [m if m == "evit" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
MODELS = {"timm": tiny_deit, "transformers": tiny_hf}
DEIT = next(f for f in FAMILIES if f.name == "DeiT")


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # Inductor and dynamo warn of their own doings.
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("method", SOME)
@torch.no_grad()
def test_compiles_to_one_graph(model: nn.Module, method: str, compiler: None) -> None:
    polytok.reduce(model, method, keep=KEEP)
    x = image(DEIT)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled(x)), logits(model(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@torch.no_grad()
def test_compiles_with_inductor(compiler: None) -> None:
    model, x = tiny_deit(), image(DEIT)
    polytok.reduce(model, "evit", keep=KEEP)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_training_gives_the_gradients(compiler: None) -> None:
    model, x = tiny_deit(), image(DEIT)
    polytok.reduce(model, "evit", keep=KEEP)
    wanted = _gradients(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = _gradients(model, x, call=compiled)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", SOME)
@torch.no_grad()
def test_exports_with_a_free_batch_size(model: nn.Module, method: str, compiler: None) -> None:
    options = {"backend": "onehot"} if method in ("tome", "mctf", "diffrate") else {}
    polytok.reduce(model, method, keep=KEEP, **options)
    free = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(_Logits(model), (image(DEIT, 3),), dynamic_shapes=({0: free},))
    assert not options or "scatter_add" not in program.graph_module.code
    for batch in (2, 5):
        x = image(DEIT, batch)
        exported = program.module()(x)
        torch.testing.assert_close(exported, logits(model(x)), rtol=1e-4, atol=1e-5)


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return logits(self.model(x))


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_gives_the_same_gradients(model: nn.Module, method: str) -> None:
    polytok.reduce(model, method, keep=KEEP)
    x = image(DEIT)
    wanted = _gradients(model, x)
    _checkpointed(model)
    found = _gradients(model, x)
    assert wanted.keys() == found.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def _checkpointed(model: nn.Module) -> None:
    names = (
        "set_grad_checkpointing",  # timm
        "activation_checkpointing_enable",  # transformers 5
        "gradient_checkpointing_enable",
    )
    getattr(model, next(name for name in names if hasattr(model, name)))()


def test_backward_may_run_twice(model: nn.Module) -> None:
    polytok.reduce(model, "tome", keep=KEEP)
    _checkpointed(model)
    loss = logits(model.train()(image(DEIT))).square().sum()
    loss.backward(retain_graph=True)
    once = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    loss.backward()
    for name, parameter in model.named_parameters():
        if name in once:
            torch.testing.assert_close(parameter.grad, 2 * once[name], rtol=1e-5, atol=1e-6)


def _gradients(model: nn.Module, x: Tensor, call: Any = None) -> dict[str, Tensor]:
    model.train()
    model.zero_grad()
    logits((model if call is None else call)(x)).square().sum().backward()
    model.eval()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert any("blocks" in n or "layer" in n for n in found)
    return found


@torch.no_grad()
def test_copies_and_pickles_stay_reduced(model: nn.Module) -> None:
    polytok.reduce(model, "tome", keep=KEEP)
    x = image(DEIT)
    wanted = logits(model(x))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert type(twin) is type(model)
        assert torch.equal(logits(twin(x)), wanted)
        polytok.unreduce(twin)
        assert not torch.equal(logits(twin(x)), wanted)
    assert torch.equal(logits(model(x)), wanted)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_autocast_to_bfloat16(model: nn.Module, method: str) -> None:
    polytok.reduce(model, method, keep=KEEP)
    with torch.autocast("cpu", torch.bfloat16):
        out = logits(model(image(DEIT)))
    assert out.isfinite().all()
    half = model.to(torch.bfloat16)
    assert logits(half(image(DEIT).bfloat16())).isfinite().all()


@torch.no_grad()
def test_threads_do_not_meet(model: nn.Module) -> None:
    polytok.reduce(model, "tome", keep=KEEP)
    inputs = [image(DEIT, batch) for batch in (1, 2, 3, 4)]
    wanted = [logits(model(x)) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                found = logits(model(inputs[number]))
                if not torch.allclose(found, wanted[number], atol=1e-5):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_load_into_and_out_of_a_reduced_model(model: nn.Module) -> None:
    plain = copy.deepcopy(model)
    polytok.reduce(model, "evit", keep=KEEP)
    plain.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert reduction_of(model).method == "evit"
