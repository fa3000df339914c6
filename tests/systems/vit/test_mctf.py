"""MCTF against plain loops: the three scores, both directions, the merged attention map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polytok
from polytok.core import hub
from polytok.core.contracts import StepContext
from polytok.core.errors import ConfigError
from polytok.core.seeding import torch_rng
from polytok.reducers import Merge, Schedule, Scores, TokenState, reduction_of
from polytok.reducers.families import FAMILIES
from polytok.reducers.hosts import find_core
from polytok.reducers.passes import merged_attention
from polytok.systems import api
from polytok.systems.classics.tome import ToMe
from polytok.systems.vit.mctf import MCTF, MCTFTuning, MCTFTuningConfig, load_model
from reducers.models import image, tiny_deit, tiny_hf
from systems.vit.stripes import write_recipe

DEIT = next(f for f in FAMILIES if f.name == "DeiT")
B, H, T, D = 2, 3, 14, 6


def case(length: int = T, seed: int = 0) -> tuple[Scores, TokenState]:
    rng = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(B, H, length, D, generator=rng) for _ in "qk")
    x = torch.randn(B, length, 5, generator=rng)
    size = torch.randint(1, 5, (B, length), generator=rng).float()
    size[:, 0] = 1
    state = TokenState(num_patches=length - 1, prefix=1, size=size)
    return Scores(x, q, k, D**-0.5, state.bias()), state


def looped(scores: Scores, state: TokenState, b: int, r: int, tau: tuple) -> list[set[int]]:
    """Groups of one sample, by loops over pairs of the whole sequence, as published."""
    received = scores.attention()[b].mean((0, 1))
    u, v = 1 / received, 1 / state.size[b]
    u, v = u / u.max(), v / v.max()
    x = torch.nn.functional.normalize(scores.x[b], dim=-1)
    left_a = list(range(2, len(u), 2))
    left_b = list(range(1, len(u), 2))
    groups = {i: {i} for i in range(len(u))}

    def fit(i: int, j: int) -> float:
        alike = ((x[i] @ x[j] + 1) / 2) ** (1 / tau[0])
        return float(alike * (u[i] * u[j]) ** (1 / tau[1]) * (v[i] * v[j]) ** (1 / tau[2]))

    first = sorted(((max((fit(i, j), j) for j in left_b), i) for i in left_a), reverse=True)
    for (_, j), i in first[: r // 2]:
        groups[j] |= groups.pop(i)
        left_a.remove(i)
    second = sorted(((max((fit(i, j), i) for i in left_a), j) for j in left_b), reverse=True)
    for (_, i), j in second[: r - r // 2]:
        groups[i] |= groups.pop(j)
    return sorted(groups.values(), key=min)


@pytest.mark.parametrize("tau", [(1.0, 20.0, 40.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize(("length", "r"), [(14, 1), (14, 4), (14, 5), (15, 5)])
def test_groups_are_the_published_ones(length: int, r: int, tau: tuple) -> None:
    scores, state = case(length)
    chosen = MCTF(tau=tau).choose(state, scores, length - 1 - r).behind(1)
    assert chosen.count == length - r
    for b in range(B):
        group = chosen.group()[b]
        found = [set((group == g).nonzero().flatten().tolist()) for g in group.unique().tolist()]
        assert sorted(found, key=min) == looped(scores, state, b, r, tau)


def test_pooling_weights_attention_and_size() -> None:
    scores, state = case()
    chosen = MCTF().choose(state, scores, 9).behind(1)
    received = scores.attention().mean((1, 2))
    weights = received * state.size / state.size[:, 1:].amax(1, keepdim=True)
    out = chosen.apply(scores.x)
    for b in range(B):
        for g in range(chosen.count):
            members = (chosen.group()[b] == g).nonzero().flatten()
            w = weights[b, members]
            mean = (w[:, None] * scores.x[b, members]).sum(0) / w.sum()
            torch.testing.assert_close(out[b, g], mean, rtol=1e-5, atol=1e-6)


def test_the_merged_map_adds_keys_and_averages_queries() -> None:
    scores, state = case()
    chosen = MCTF().choose(state, scores, 9).behind(1)
    assert isinstance(chosen, Merge)
    merged = merged_attention(scores.attention(), chosen)
    torch.testing.assert_close(merged.sum(-1), torch.ones(B, H, 10))
    naive = torch.zeros(B, H, 10, 10)
    for b in range(B):
        members = [(chosen.group()[b] == g).nonzero().flatten() for g in range(10)]
        weights = torch.ones(T) if chosen.weights is None else chosen.weights[b]
        for g, rows in enumerate(members):
            w = weights[rows] / weights[rows].sum()
            mean = (w[None, :, None] * scores.attention()[b][:, rows]).sum(1)
            naive[b, :, g] = torch.stack([mean[:, columns].sum(1) for columns in members], -1)
    torch.testing.assert_close(merged, naive, rtol=1e-5, atol=1e-6)


def test_without_its_criteria_it_is_tomes_partition() -> None:
    scores, state = case()
    plain = MCTF(tau=(1.0, 0.0, 0.0), is_two_way=False, pooling="mean")
    one = plain.choose(state, scores, 10)
    keys = scores.x[:, None]
    other = ToMe().choose(state, Scores(scores.x, keys, keys, 1.0), 10)
    assert torch.equal(one.group(), other.group())


@torch.no_grad()
def test_reuse_recompute_and_behind_differ_little_and_keep_the_counts() -> None:
    model, x = tiny_deit(), image(DEIT)
    plain, outs = model(x), {}
    for ahead in ("reuse", "recompute", "behind"):
        polytok.reduce(model, "mctf", r={1: 2, 2: 2}, ahead=ahead)
        assert polytok.reducers.trace(model, x).tokens == (17, 17, 15, 13, 13)
        outs[ahead] = model(x)
        polytok.unreduce(model)
    for out in outs.values():
        assert not torch.equal(out, plain)
    assert not torch.equal(outs["reuse"], outs["recompute"])


@torch.no_grad()
def test_one_step_ahead_is_exact_for_equal_tokens() -> None:
    """Where merged tokens are equal, the merged map is the map of the merged tokens."""
    model = tiny_deit(pos_embed="none")
    half = torch.randn(1, 3, 4, 16, 2, 1, 16).expand(-1, -1, -1, -1, -1, 2, -1)
    x = half.reshape(1, 3, 64, 64)
    plain = model(x)
    for ahead in ("reuse", "recompute"):
        polytok.reduce(model, "mctf", counts={1: 9}, ahead=ahead, tau=(1.0, 0.0, 0.0))
        torch.testing.assert_close(model(x), plain, rtol=1e-3, atol=1e-3)
        polytok.unreduce(model)


@torch.no_grad()
def test_values_are_projected_from_merged_tokens_only() -> None:
    model, x = tiny_deit(), image(DEIT)
    _, host = find_core(model)
    polytok.reduce(model, "mctf", r={1: 4})
    lengths: list[int] = []
    value = type(host).value

    def watched(self: object, block: object, y: Tensor) -> Tensor:
        lengths.append(y.shape[1])
        return value(self, block, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(host), "value", watched)
        model(x)
    assert lengths == [13]


def test_sampled_queries_need_no_map(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, state = case()
    monkeypatch.setattr(Scores, "attention", lambda self: pytest.fail("the map was made"))
    chosen = MCTF(ahead="recompute", queries=3).choose(state, scores, 10)
    assert chosen.count == 10
    with pytest.raises(ConfigError, match="has the whole map"):
        MCTF(queries=3)
    with pytest.raises(ConfigError, match="three numbers"):
        MCTF(tau=(1.0, -1.0, 1.0))


def tuning(classifier: Path, **config: object) -> MCTFTuning:
    plain = api.registry.SYSTEMS["vit-classifier"].load()
    loaded = plain.load_model(classifier, hub.read_info(classifier), name="")
    return MCTFTuning(loaded, MCTFTuningConfig(**config))


def test_consistency_is_the_distance_of_class_features(classifier: Path) -> None:
    batch = {"image": torch.rand(4, 3, 16, 16), "label": torch.tensor([0, 1, 2, 1])}
    same = tuning(classifier, r=0, teacher_r=0)
    losses = same(batch, StepContext(rng=torch_rng(0))).losses
    assert losses["consistency"] == 0 and torch.equal(losses["ce"], losses["ce_teacher"])
    model = tuning(classifier, r=3, teacher_r=0)
    losses = model(batch, StepContext(rng=torch_rng(0))).losses
    vit, x = model.classifier.vit, batch["image"] * 2 - 1
    student = vit.forward_features(x)[:, 0]
    teacher = vit.forward_features(x, keep=polytok.reducers.Schedule())[:, 0]
    wanted = (student - teacher).square().mean(1).mean()
    torch.testing.assert_close(losses["consistency"], wanted)
    sure = tuning(classifier, r=3, teacher_r=0, threshold=1.0)
    assert sure(batch, StepContext(rng=torch_rng(0))).losses["consistency"] == 0


def test_the_teacher_gets_no_gradient_from_consistency(classifier: Path) -> None:
    model = tuning(classifier, r=3, teacher_r=0)
    batch = {"image": torch.rand(4, 3, 16, 16), "label": torch.tensor([0, 1, 2, 1])}
    vit = model.classifier.vit
    seen: list[Tensor] = []
    vit.norm.register_forward_hook(lambda m, args, out: seen.append(out))
    loss = model(batch, StepContext(rng=torch_rng(0))).losses["consistency"]
    student, teacher = seen
    gradients = torch.autograd.grad(loss, [student, teacher], allow_unused=True)
    assert gradients[0].abs().sum() > 0 and gradients[1] is None


def test_a_recipe_tunes_saves_and_loads(classifier: Path, stripes: Path, tmp_path: Path) -> None:
    values = {"preset": "mctf", "stage": "tune", "samples": 120, "init": classifier}
    recipe = write_recipe(tmp_path, stripes, config="r = 2\nteacher_r = 2", **values)
    assert api.train(recipe, tmp_path / "run").is_complete
    model = load_model(tmp_path / "run", hub.read_info(tmp_path / "run"), name="")
    assert model.logits(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    assert reduction_of(model).schedule.rules[0].value == 2
    with pytest.raises(ConfigError, match="teacher_r"):
        MCTFTuningConfig(teacher_r=-1)


@pytest.mark.parametrize("make", [tiny_deit, tiny_hf], ids=["timm", "transformers"])
def test_the_merged_map_is_dropped_from_in_training(make: Any) -> None:
    model, x = make(), image(DEIT)
    core, host = find_core(model)
    attention = host.blocks(core)[1].attn if make is tiny_deit else host.blocks(core)[1].attention
    if make is tiny_deit:
        attention.attn_drop.p = 1.0
    else:
        setattr(getattr(attention, "attention", attention), host.dropout_name, 1.0)
    polytok.reduce(model, "mctf", r={1: 4})
    seen: list[Tensor] = []
    project = type(host).project

    def watched(self: object, block: object, y: Tensor, out: Tensor) -> Tensor:
        seen.append(out)
        return project(self, block, y, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(host), "project", watched)
        model.train()(x)
        model.eval()(x)
    assert not seen[0].any() and seen[1].all()


def test_nine_patches_are_left_alone() -> None:
    model, x = tiny_deit(), image(DEIT)
    polytok.reduce(model, "mctf", r={1: 20, 2: 20, 3: 20})
    assert polytok.reducers.trace(model, x).tokens == (17, 17, 10, 10, 10)
    counts = [MCTF().least(n) for n in (20, 18, 17, 16, 10, 9, 8, 1)]
    assert counts == [10, 9, 9, 9, 9, 9, 8, 1]
    with pytest.raises(ConfigError, match=r"would keep 8 of 16 .* keeps at least 9"):
        Schedule.counts({1: 8}).resolve(16, 4, least=MCTF().least)
