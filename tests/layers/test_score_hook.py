"""The score hook: an explicit softmax is the oracle, for polytok's, timm's and Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.core.errors import PolytokError
from polytok.layers.score_hook import added_scores, read_scores
from polytok.layers.transformer import Attention, Block
from polytok.networks.pretrained.optional import import_hf

B, H, N, D = 2, 2, 5, 8


class Explicit(nn.Module):
    """Attention (B, N, D) with a softmax in plain sight, and a bias argument: the oracle."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, H, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT * (D // H) ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(-2)


class Fused(Explicit):
    """The same through scaled_dot_product_attention."""

    def forward(self, x: Tensor, bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, H, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).flatten(-2)


def polytok_attention() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    return Attention(D, H), lambda module, x: module(x, x)


def timm_attention(is_fused: bool) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    module = import_hf("timm.layers").Attention(D, num_heads=H)
    module.fused_attn = is_fused
    return module, lambda module, x: module(x)


def bert_attention(kind: str) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    bert = import_hf("transformers.models.bert.modeling_bert")
    config = import_hf("transformers").BertConfig(
        hidden_size=D,
        num_attention_heads=H,
        intermediate_size=D,
        attention_probs_dropout_prob=0.0,
        attn_implementation=kind,
    )
    return bert.BertSelfAttention(config), lambda module, x: module(x)[0]


FOREIGN: dict[str, Callable[[], Any]] = {
    "polytok": polytok_attention,
    "timm fused": lambda: timm_attention(True),
    "timm": lambda: timm_attention(False),
    "hf sdpa": lambda: bert_attention("sdpa"),
    "hf eager": lambda: bert_attention("eager"),
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(B, N, D, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def bias() -> Tensor:
    return torch.randn(B, H, N, N, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("shape", [(N, N), (1, N), (H, N, N), (B, 1, N, N), (B, H, 1, N)])
def test_a_bias_is_added_before_the_softmax(x: Tensor, shape: tuple[int, ...]) -> None:
    module, fused = Explicit(), Fused()
    fused.load_state_dict(module.state_dict())
    bias = torch.randn(shape)
    wanted = module(x, bias)
    for hooked in (module, fused):
        with added_scores(hooked, bias):
            torch.testing.assert_close(hooked(x), wanted)
        torch.testing.assert_close(hooked(x), module(x))


def test_gradient_reaches_the_bias(x: Tensor, bias: Tensor) -> None:
    module, fused = Explicit(), Fused()
    fused.load_state_dict(module.state_dict())
    gradients = []
    for hooked in (module, fused):
        given = bias.clone().requires_grad_()
        with added_scores(hooked, given):
            hooked(x).square().sum().backward()
        gradients.append(given.grad)
    torch.testing.assert_close(*gradients)
    assert float(gradients[0].abs().sum()) > 0


@pytest.mark.parametrize("name", FOREIGN)
def test_modules_of_every_library_behave_as_their_scores_say(
    name: str, x: Tensor, bias: Tensor
) -> None:
    """Reading with a bias shows the sum; a constant per row changes nothing; -inf hides a key."""
    module, call = FOREIGN[name]()
    plain = call(module.eval(), x)
    with read_scores(module) as before:
        torch.testing.assert_close(call(module, x), plain)
    with added_scores(module, bias), read_scores(module) as after:
        changed = call(module, x)
    assert [s.shape for s in (*before, *after)] == [(B, H, N, N)] * 2
    torch.testing.assert_close(after[0], before[0] + bias)
    assert not torch.allclose(changed, plain, atol=1e-3)
    with added_scores(module, torch.full((N, 1), 3.0)):
        torch.testing.assert_close(call(module, x), plain)
    hidden = torch.zeros(N)
    hidden[-1] = -torch.inf
    moved = x.clone()
    moved[:, -1] += 1.0
    with added_scores(module, hidden.expand(N, N)):
        torch.testing.assert_close(call(module, x)[:, :-1], call(module, moved)[:, :-1])


def test_masked_scores_stay_masked(x: Tensor, bias: Tensor) -> None:
    mask = torch.ones(N, N, dtype=torch.bool).tril()
    module, fused = Explicit(), Fused()
    fused.load_state_dict(module.state_dict())
    with added_scores(fused, bias):
        torch.testing.assert_close(fused(x, mask=mask), module(x, bias, mask))


def test_causal_and_grouped_attention() -> None:
    class Grouped(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)

    module, q, k = Grouped(), torch.randn(B, 4, N, D), torch.randn(B, 2, N, D)
    bias, every = torch.randn(B, 4, N, N), k.repeat_interleave(2, dim=1)
    allowed = torch.ones(N, N, dtype=torch.bool).tril()
    scores = (q @ every.mT * D**-0.5).masked_fill(~allowed, -torch.inf)
    with added_scores(module, bias):
        torch.testing.assert_close(module(q, k), (scores + bias).softmax(-1) @ every)
    with read_scores(module) as found:
        module(q, k)
    torch.testing.assert_close(found[0], scores)


def test_blocks_nest(x: Tensor, bias: Tensor) -> None:
    module = Fused()
    with added_scores(module, 3 * bias):
        wanted = module(x)
    with added_scores(module, bias), added_scores(module, 2 * bias):
        torch.testing.assert_close(module(x), wanted)


def test_only_the_chosen_module_changes(x: Tensor, bias: Tensor) -> None:
    first, second = Block(D, H), Block(D, H)
    with read_scores(second.attention) as plain:
        second(first(x))
    with added_scores(first.attention, bias), read_scores(second.attention) as changed:
        second(first(x))
    with added_scores(second.attention, bias), read_scores(first.attention) as kept:
        second(first(x))
    with read_scores(first.attention) as untouched:
        second(first(x))
    assert not torch.allclose(plain[0], changed[0])
    assert torch.equal(kept[0], untouched[0])


@pytest.mark.parametrize(
    "module",
    [nn.Identity(), nn.Sequential(Fused(), Explicit()), nn.MultiheadAttention(D, H)],
    ids=["no attention", "two attentions", "hidden attention"],
)
def test_what_is_not_supported_is_refused(module: nn.Module, x: Tensor) -> None:
    inputs = (x, x, x) if isinstance(module, nn.MultiheadAttention) else (x,)
    with added_scores(module, torch.zeros(N, N)), pytest.raises(PolytokError, match="not one"):
        module(*inputs)
    module(*inputs)


def test_a_bias_that_does_not_fit_is_refused_and_leaves_nothing_behind(x: Tensor) -> None:
    module = Fused()
    plain = module(x)
    wrong = r"\(3, 5\) does not fit scores \(2, 2, 5, 5\)"
    with added_scores(module, torch.zeros(3, N)), pytest.raises(PolytokError, match=wrong):
        module(x)
    assert torch.equal(module(x), plain)
    torch.softmax(x, -1)


def test_an_error_of_the_module_is_its_own(x: Tensor) -> None:
    module = Fused()
    with added_scores(module, torch.zeros(N, N)), pytest.raises(RuntimeError, match="shapes"):
        module(x[..., :-1])
    module(x)
