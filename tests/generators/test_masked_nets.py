"""The nets of masked generation: their maths against other code, what they see, what they learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polytok.core.contracts import StepContext
from polytok.core.errors import ConfigError, SignalError
from polytok.generators import (
    CategoricalHead,
    ClassConditioner,
    Cond,
    FallingSampling,
    Generator,
    Guide,
    Known,
    MaskedOrder,
    Net,
    PostNormTransformer,
    Query,
    SkipTransformer,
)

VOCAB, LENGTH, DIM = 9, 6, 16
KINDS: dict[str, type[Net]] = {"post": PostNormTransformer, "skip": SkipTransformer}
kinds = pytest.mark.parametrize("kind", KINDS)


def built(kind: str, **changes: Any) -> Net:
    torch.manual_seed(0)
    sizes = {"dim": DIM, "depth": 4, "num_heads": 2, "vocab": VOCAB, "length": LENGTH}
    net = KINDS[kind](**{**sizes, **changes}).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def query(count: int = 3, seed: int = 1) -> Query:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB + 1, (count, LENGTH), generator=rng)
    return Query(inp=ids, index=torch.arange(LENGTH))


def cond(count: int = 3) -> Cond:
    return Cond(vector=torch.randn(count, DIM, generator=torch.Generator().manual_seed(2)))


@torch.no_grad()
def test_post_norm_is_torchs_own_encoder_layer() -> None:
    net = built("post")
    x = net.norm(net.inputs(query(), cond()))
    for block in net.blocks:
        other = nn.TransformerEncoderLayer(
            DIM, 2, 4 * DIM, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        ).eval()
        other.load_state_dict(
            {
                "self_attn.in_proj_weight": block.qkv.weight,
                "self_attn.in_proj_bias": block.qkv.bias,
                "self_attn.out_proj.weight": block.out.weight,
                "self_attn.out_proj.bias": block.out.bias,
                "linear1.weight": block.mlp.up.weight,
                "linear1.bias": block.mlp.up.bias,
                "linear2.weight": block.mlp.down.weight,
                "linear2.bias": block.mlp.down.bias,
                "norm1.weight": block.norm_attention.weight,
                "norm1.bias": block.norm_attention.bias,
                "norm2.weight": block.norm_mlp.weight,
                "norm2.bias": block.norm_mlp.bias,
            }
        )
        with torch.enable_grad():  # keeps torch from its fast path, which is another kernel
            x = other(x).detach()
    torch.testing.assert_close(net(query(), cond()), x[:, 1:], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_long_skips_join_outermost_with_outermost() -> None:
    """The output follows from the modules in the order that the paper draws them."""
    net = built("skip")
    x = net.inputs(query(), cond())
    one = net.early[0](x)
    two = net.early[1](one)
    y = net.middle(two)
    y = net.late[0](net.joins[0](torch.cat([y, two], dim=-1)))
    y = net.late[1](net.joins[1](torch.cat([y, one], dim=-1)))
    assert torch.equal(net(query(), cond()), net.norm(y)[:, 1:])
    blocks = [*net.early, net.middle, *net.late]
    assert len(blocks) == 5
    assert all(block.attention.qkv.bias is None for block in blocks)


@kinds
@torch.no_grad()
def test_every_slot_sees_every_slot_the_condition_and_its_place(kind: str) -> None:
    net, base = built(kind), query(1)
    given = cond(1)
    before = net(base, given)[0]
    others = [Cond(vector=given.vector + torch.randn(1, DIM))]
    changed = []
    for slot in range(LENGTH):
        ids = base.inp.clone()
        ids[0, slot] = (ids[0, slot] + 1) % (VOCAB + 1)
        changed.append(net(Query(inp=ids, index=base.index), given)[0])
    for after in [*changed, *(net(base, other)[0] for other in others)]:
        assert bool(((after - before).abs().amax(1) > 1e-4).all())
    # Equal ids at two places differ by the place alone.
    same = net(Query(inp=torch.full((1, LENGTH), VOCAB), index=base.index), given)[0]
    assert torch.pdist(same).min() > 1e-3


@kinds
@torch.no_grad()
def test_slots_may_be_asked_for_by_number(kind: str) -> None:
    net, base = built(kind), query()
    turned = torch.tensor([3, 0, 5, 1, 4, 2])
    found = net(Query(inp=base.inp[:, turned], index=turned), cond())
    torch.testing.assert_close(found, net(base, cond())[:, turned], rtol=1e-4, atol=1e-5)


@kinds
@torch.no_grad()
def test_rows_do_not_mix(kind: str) -> None:
    net, many, given = built(kind), query(3), cond(3)
    one = Query(inp=many.inp[1:2], index=many.index)
    alone = net(one, Cond(vector=given.vector[1:2]))
    torch.testing.assert_close(net(many, given)[1:2], alone, rtol=1e-4, atol=1e-5)


def test_dropout_is_on_the_weights_of_attention_too_and_off_in_eval() -> None:
    net = built("post", dropout=0.5)
    assert torch.equal(net(query(), cond()), net(query(), cond()))
    net.train()
    assert not torch.equal(net(query(), cond()), net(query(), cond()))
    # With every other dropout off, what is left is that of attention.
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    assert not torch.equal(net(query(), cond()), net(query(), cond()))


def test_the_sizes_of_the_published_nets() -> None:
    """Parameters of the official checkpoints, without embeddings of classes and token types."""
    with torch.device("meta"):
        bert = PostNormTransformer(dim=768, depth=24, num_heads=16, vocab=4096, length=32)
        uvit = SkipTransformer(dim=1024, depth=20, num_heads=16, vocab=4096, length=128)

    def count(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    norm, block = 2 * 768, 4 * (768 * 768 + 768) + 2 * 4 * 768 * 768 + 5 * 768 + 4 * 768
    assert count(bert) == (4097 + 33) * 768 + norm + 24 * block
    plain = 4 * 1024 * 1024 + 1024 + 8 * 1024 * 1024 + 5 * 1024 + 4 * 1024
    joins = 10 * (2 * 1024 * 1024 + 1024)
    assert count(uvit) == (4097 + 129) * 1024 + 2 * 1024 + 21 * plain + joins


@kinds
def test_what_the_nets_do_not_know_is_refused(kind: str) -> None:
    net, base, given = built(kind), query(), cond()
    tokens = Cond(vector=given.vector, tokens=torch.zeros(3, 2, DIM), mask=torch.ones(3, 2) > 0)
    wrong = [
        (Query(inp=base.inp, index=base.index, tau=torch.zeros(3)), given),
        (Query(inp=base.inp, index=base.index, mask=torch.ones(6, 6) > 0), given),
        (Query(inp=None, index=base.index), given),
        (Query(inp=base.inp[:, :2], index=base.index), given),
        (base, tokens),
    ]
    for asked, conditions in wrong:
        with pytest.raises(ConfigError):
            net(asked, conditions)


def test_wrong_sizes_are_refused() -> None:
    for kind, changes in (
        ("post", {"dim": 15}),
        ("skip", {"dim": 15}),
        ("skip", {"depth": 3}),
        ("skip", {"depth": 0}),
    ):
        with pytest.raises(ConfigError):
            built(kind, **changes)


CODES = torch.tensor(
    [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [8, 8, 7, 7, 6, 6], [0, 3, 0, 3, 0, 3]]
)


def trained(kind: str, num_classes: int, steps: int = 160) -> Generator:
    """A generator that has seen four codes, of as many classes or none, over and over."""
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 2, "num_heads": 2, "vocab": VOCAB, "length": LENGTH}
    net = PostNormTransformer(**sizes, dropout=0.0) if kind == "post" else SkipTransformer(**sizes)
    generator = Generator(
        net,
        CategoricalHead(32, VOCAB, smoothing=0.1),
        MaskedOrder(LENGTH, VOCAB, schedule="arccos", num_steps=6, temperature=0.5, visible=0.1),
        Guide(),
        ClassConditioner(num_classes, 32),
        sampling=FallingSampling(temperature=0.5),
    )
    optimiser = torch.optim.AdamW(generator.parameters(), lr=3e-3)
    for step in range(steps):
        batch: dict[str, Tensor] = {
            "ids": CODES.repeat(4, 1),
            "seed": torch.arange(16) + 16 * step,
        }
        if num_classes:
            batch["label"] = torch.arange(4).repeat(4)
        loss = generator(batch, StepContext()).losses["ce"]
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        optimiser.step()
    return generator.eval()


@kinds
def test_four_codes_of_four_classes_are_learnt_by_heart(kind: str) -> None:
    generator = trained(kind, 4)
    label = torch.arange(4).repeat_interleave(4)
    codes = generator.generate(
        {"label": label},
        count=16,
        rng=torch.Generator().manual_seed(3),
        guide=Guide(shares={"label": 1.0}, strength=1.0),
    )
    assert torch.equal(codes.indices[0], CODES[label])


def test_without_classes_the_second_half_tells_the_first() -> None:
    generator = trained("post", 0, steps=300)
    ids = CODES.repeat(4, 1)
    mask = torch.arange(LENGTH).expand_as(ids) >= LENGTH // 2  # no two end alike
    found = generator.generate(
        {}, count=16, rng=torch.Generator().manual_seed(3), known=Known(ids=ids * mask, mask=mask)
    )
    assert torch.equal(found.indices[0], ids)
    with pytest.raises(SignalError, match="label"):
        generator.conditioner.encode({"label": torch.zeros(1, dtype=torch.int64)})
