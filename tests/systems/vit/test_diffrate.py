"""DiffRate: prune then merge, rates with gradient, masks that stand for removal, the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import polytok
from polytok.core import hub
from polytok.core.contracts import StepContext
from polytok.core.errors import ConfigError, PolytokError
from polytok.reducers import Chain, Scores, Select, TokenState, reduction_of, trace
from polytok.reducers.cost import cost
from polytok.reducers.families import FAMILIES
from polytok.systems import api
from polytok.systems.vit.diffrate import (
    DiffRate,
    DiffRateTraining,
    DiffRateTrainingConfig,
    Rates,
    RateSearch,
    SearchConfig,
    load_model,
    search_rates,
)
from polytok.systems.vit.diffrate.search import policy_attention
from reducers.models import build, image, tiny_deit
from systems.vit.stripes import write_recipe

DEIT = next(f for f in FAMILIES if f.name == "DeiT")
B, H, T, D = 2, 3, 13, 6


def case() -> tuple[Scores, TokenState]:
    rng = torch.Generator().manual_seed(0)
    q, k = (torch.randn(B, H, T, D, generator=rng) for _ in "qk")
    x = torch.randn(B, T, 5, generator=rng)
    return Scores(x, q, k, D**-0.5), TokenState(num_patches=T - 1, prefix=1, layer=1)


def test_prune_then_merge_by_hand() -> None:
    scores, state = case()
    chosen = DiffRate(prune=(13, 10), merge=(13, 6)).choose(state, scores, 5)
    assert isinstance(chosen, Chain) and chosen.count == 5
    attention = scores.attention()[:, :, 0, 1:].mean(1)
    order = attention.argsort(1, descending=True)
    x = scores.features()
    out, size = chosen.apply(x), chosen.total(torch.ones(B, T - 1))
    for b in range(B):
        kept, moved, dropped = order[b, :5], order[b, 5:9], order[b, 9:]
        assert (chosen.group()[b, dropped] == -1).all()
        alike = F.normalize(x[b, moved], dim=-1) @ F.normalize(x[b, kept], dim=-1).T
        best, goal = alike.max(1)
        assert torch.equal(chosen.group()[b, moved], goal)
        for g in range(5):
            sources = moved[goal == g]
            mean = torch.cat([x[b, kept[g]][None], x[b, sources]]).mean(0)
            torch.testing.assert_close(out[b, g], mean, rtol=1e-5, atol=1e-6)
            added = best[goal == g].clamp(min=0).sum()
            torch.testing.assert_close(size[b, g], 1 + added, rtol=1e-5, atol=1e-6)
    whole = DiffRate(prune=(13, 10), merge=(13, 6), is_discounted=False)
    sizes = whole.choose(state, scores, 5).total(torch.ones(B, T - 1))
    assert sizes.sum(1).tolist() == [9.0, 9.0]


@pytest.mark.parametrize(("share", "pruned"), [(0.0, 12), (0.5, 8), (1.0, 5)])
def test_without_lists_a_share_is_pruned(share: float, pruned: int) -> None:
    scores, state = case()
    chosen = DiffRate(prune_share=share).choose(state, scores, 5)
    selected = chosen.first if isinstance(chosen, Chain) else chosen
    assert isinstance(selected, Select) and (selected.count, chosen.count) == (pruned, 5)


@torch.no_grad()
def test_published_lists_are_counts_with_the_class_token() -> None:
    listed = DiffRate(prune=(17, 15, 12, 9), merge=(17, 13, 10, 3))
    model = tiny_deit()
    polytok.reduce(model, listed)
    assert trace(model, image(DEIT)).tokens == (17, 17, 13, 10, 3)
    with pytest.raises(ConfigError, match="at least 2"):
        DiffRate(prune=(17, 1), merge=(17, 5))


@torch.no_grad()
def test_all_kept_is_the_plain_model() -> None:
    model, x = tiny_deit(), image(DEIT)
    plain = model(x)
    polytok.reduce(model, "diffrate", prune=(17,) * 4, merge=(17,) * 4)
    assert torch.equal(model(x), plain)


def rates(depth: int = 4, **options: Any) -> Rates:
    return Rates(16, depth, **{"granularity": 4, **options})


def test_rates_start_at_half_and_the_first_block_keeps_all() -> None:
    found = rates()
    # Candidates 16, 12, 8, 4: the mean is 10, and the class token is one more.
    assert found.candidates.tolist() == [16, 12, 8, 4]
    assert found.counts() == {"prune": (17, 11, 11, 11), "merge": (17, 11, 11, 11)}
    near = rates(start=50.0)
    assert near.counts()["merge"] == (17,) * 4


@pytest.mark.parametrize("granularity", [1, 2, 5])
def test_a_search_can_begin_with_equal_ratios(granularity: int) -> None:
    plain = cost(tiny_deit(), image(DEIT))
    config = SearchConfig(share=0.7, granularity=granularity, is_even=True)
    search = RateSearch(plain, config)
    reducer = DiffRate()
    kept = plain.kept(reducer, plain.schedule(reducer, 0.7 * plain.plain()))
    found = search.found()
    assert found.merge == tuple(n + 1 for n in kept)
    assert all(k <= n for k, n in zip(found.merge, found.prune, strict=True))
    assert float(search.excess().detach()) < 0.04  # within 5% of the MACs: 16 patches are few


@torch.no_grad()
def test_survival_is_the_chance_of_a_rank() -> None:
    found = rates()
    stays = found.survival("prune", 1)
    assert stays.tolist() == [1.0] * 5 + [0.75] * 4 + [0.5] * 4 + [0.25] * 4
    assert float(stays.sum()) == float(found.kept("prune", 1))


def test_counts_carry_the_gradient_of_the_mean() -> None:
    found = rates()
    with torch.no_grad():
        found.prune[0] += torch.tensor([0.3, 0.0, -0.2, 0.1])
    count = found.kept("prune", 1)
    assert float(count.detach()) == found.count("prune", 1)
    (gradient,) = torch.autograd.grad(count, found.prune)
    mean = (found.prune[0].softmax(-1) * found.candidates).sum()
    (wanted,) = torch.autograd.grad(mean, found.prune)
    assert torch.equal(gradient, wanted) and gradient[0, 0] > 0 > gradient[0, 3]


def test_the_budget_is_the_cost_of_what_is_found() -> None:
    model = tiny_deit()
    plain = cost(model, image(DEIT))
    search = RateSearch(plain, SearchConfig())
    with torch.no_grad():
        search.rates.prune += torch.randn_like(search.rates.prune)
        search.rates.merge += torch.randn_like(search.rates.merge)
    found = search.found()
    schedule = found.schedule(4)
    kept = plain.kept(found, schedule)
    lengths = [16, *kept]
    wanted = plain.fixed + sum(
        block.plain(before + 1, after + 1)
        for block, before, after in zip(plain.blocks, lengths, lengths[1:], strict=False)
    )
    assert float(search.rates.macs(plain).detach()) == pytest.approx(wanted, rel=1e-6)
    everything = RateSearch(plain, SearchConfig(start=50.0))
    assert float(everything.rates.macs(plain).detach()) == pytest.approx(plain.plain(), rel=1e-6)


def test_both_steps_of_a_block_get_the_budgets_gradient() -> None:
    search = RateSearch(cost(tiny_deit(), image(DEIT)), SearchConfig(share=0.3))
    search.excess().backward()
    for logits in (search.rates.prune, search.rates.merge):
        # Too dear: the most tokens should lose chance, the fewest gain it.
        assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, -1] < 0).all()


def test_masked_attention_gives_the_masked_nothing() -> None:
    q, k = torch.randn(B, H, T, D), torch.randn(B, H, T, D)
    ones = torch.ones(B, T)
    plain = ((q * 0.4) @ k.transpose(-2, -1)).softmax(-1)
    torch.testing.assert_close(policy_attention(q, k, 0.4, ones, ones), plain, rtol=1e-4, atol=1e-5)
    mask = ones.clone()
    mask[:, 9:] = 0
    probs = policy_attention(q, k, 0.4, mask, ones)
    some = ((q[:, :, :9] * 0.4) @ k[:, :, :9].transpose(-2, -1)).softmax(-1)
    torch.testing.assert_close(probs[:, :, :9, :9], some, rtol=1e-4, atol=1e-5)
    assert (probs[:, :, :9, 9:] < 1e-6).all()
    assert (probs[:, :, 9:].diagonal(offset=9, dim1=-2, dim2=-1) > 0).all()


@torch.no_grad()
def searched(model: nn.Module, prune: tuple[int, ...], merge: tuple[int, ...]) -> torch.Tensor:
    """Logits of the masked forward when the rates say these counts."""
    search = RateSearch(cost(model, image(DEIT)), SearchConfig(granularity=1))
    for step, counts in (("prune", prune), ("merge", merge)):
        logits = getattr(search.rates, step)
        for layer, count in enumerate(counts[1:]):
            logits[layer] = -1e4
            logits[layer, 17 - count] = 1e4
    assert search.rates.counts() == {"prune": prune, "merge": merge}
    with search.searching(model):
        return model(image(DEIT))


@pytest.mark.parametrize(
    ("prune", "merge"),
    [
        ((17, 17, 17, 17), (17, 17, 17, 17)),
        ((17, 12, 12, 7), (17, 17, 17, 17)),
        ((17, 15, 14, 9), (17, 13, 11, 6)),
        ((17, 17, 17, 17), (17, 12, 9, 8)),
    ],
    ids=["all", "prune", "both", "merge"],
)
def test_masking_is_removing(prune: tuple[int, ...], merge: tuple[int, ...]) -> None:
    model = tiny_deit()
    masked = searched(model, prune, merge)
    with torch.no_grad():
        polytok.reduce(model, DiffRate(prune=prune, merge=merge))
        torch.testing.assert_close(masked, model(image(DEIT)), rtol=1e-3, atol=2e-3)


def test_the_task_reaches_the_rates_through_the_masks() -> None:
    model = tiny_deit()
    search = RateSearch(cost(model, image(DEIT)), SearchConfig())
    with torch.no_grad():
        search.rates.merge[:, -1] += 1  # else both ask for the same count, and merging rests
    learning = [p.requires_grad for p in model.parameters()]
    with search.searching(model):
        assert not any(p.requires_grad for p in model.parameters())
        F.cross_entropy(model(image(DEIT)), torch.tensor([1, 2])).backward()
    assert search.rates.prune.grad.abs().sum() > 0 and search.rates.merge.grad.abs().sum() > 0
    assert [p.requires_grad for p in model.parameters()] == learning
    with pytest.raises(PolytokError, match="not reduced"):
        reduction_of(model)


def test_a_search_lands_on_its_target() -> None:
    model, x = tiny_deit(), image(DEIT, 8)
    labels = model(x).argmax(-1)
    seen: list[dict[str, float]] = []
    config = SearchConfig(share=0.7, granularity=1, lr=0.2, last_lr=0.05, epochs=4)
    found = search_rates(model, lambda: [(x, labels)] * 30, config, report=seen.append)
    plain = cost(model, x)
    share = plain.reduced(found, found.schedule(4)) / plain.plain()
    assert share == pytest.approx(0.7, abs=0.03)
    assert abs(seen[-1]["gmacs"] * 1e9 / plain.plain() - 0.7) < 0.03
    assert len(seen) == 120 and found.prune[0] == found.merge[0] == 17
    polytok.reduce(model, found)
    assert model(x).shape == (8, 7)


def test_what_cannot_be_searched_is_refused() -> None:
    eva = next(f for f in FAMILIES if f.name == "EVA-02")
    model = build(eva, global_pool="token")
    loader = lambda: [(image(eva), torch.tensor([0, 1]))]  # noqa: E731
    with pytest.raises(PolytokError, match="rotary positions"):
        search_rates(model, loader, SearchConfig(epochs=1))
    assert "reduced" not in repr(model)
    averaging = tiny_deit(global_pool="avg")
    with pytest.raises(PolytokError, match="pools by 'avg'"):
        search_rates(averaging, lambda: [(image(DEIT), torch.tensor([0, 1]))], SearchConfig())
    with pytest.raises(ConfigError, match=r"share=1\.5"):
        SearchConfig(share=1.5)
    with pytest.raises(ConfigError, match="both say where to begin"):
        SearchConfig(start=0.1, is_even=True)
    with pytest.raises(ConfigError, match="nothing to search"):
        Rates(4, 4, granularity=4)


def test_a_recipe_searches_saves_and_loads(classifier: Path, stripes: Path, tmp_path: Path) -> None:
    values = {"preset": "diffrate", "stage": "search", "samples": 240, "init": classifier}
    recipe = write_recipe(
        tmp_path, stripes, config="share = 0.7\ngranularity = 2", lr="5e-2", **values
    )
    assert api.train(recipe, tmp_path / "run").is_complete
    info = hub.read_info(tmp_path / "run")
    model = load_model(tmp_path / "run", info, name="")
    assert set(model.state_dict()) == {
        f"search.rates.{n}" for n in ("prune", "merge", "candidates")
    }
    assert model.found().prune[0] == 17
    plain = api.registry.SYSTEMS["vit-classifier"].load()
    loaded = plain.load_model(classifier, hub.read_info(classifier), name="")
    training = DiffRateTraining(loaded, DiffRateTrainingConfig(share=0.7, warmup=0.5))
    batch = {"image": torch.rand(4, 3, 16, 16), "label": torch.tensor([0, 1, 2, 1])}
    early, late = (training(batch, StepContext(progress=p)) for p in (0.0, 0.6))
    assert early.losses["budget"] == 0 < late.losses["budget"]
    assert training.logits(batch["image"]).shape == (4, 3)
