"""Encode effort: never worse than the effort below, repeatable, and honest about its score."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from polytok.core.config import override
from polytok.core.errors import PolytokError
from polytok.systems.shape.vat import VAT, preset, search
from polytok.systems.shape.vat.search import PATH, SearchResult, refine


@pytest.fixture
def model() -> VAT:
    return VAT(preset("vat-512b-tiny")).eval().requires_grad_(False)


@pytest.fixture
def task(model: VAT) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, queries and distances of a ball of radius 0.6."""
    config = model.config
    latents = 0.5 * torch.randn(1, config.num_latents, config.code_dim)
    queries = torch.rand(1, 1500, 3) * 2.1 - 1.05
    return latents, queries, queries.norm(dim=-1) - 0.6


def score(model: VAT, indices: tuple[Tensor, ...], queries: Tensor, sdf: Tensor) -> float:
    """The encoder's own objective of a code, computed from its ids alone."""
    field = model.field(model.bottleneck.embed(indices))
    return float(model.reconstruction_loss(field(queries), sdf))


def test_objective_never_rises_with_effort(model: VAT, task: tuple[Tensor, Tensor, Tensor]) -> None:
    results = [refine(model, *task, effort=effort, seed=2) for effort in range(4)]
    assert [r.steps for r in results] == [sum(part) for part in PATH[:4]]
    assert all(b.objective <= a.objective for a, b in pairwise(results))
    assert results[-1].objective < results[0].objective
    assert {r.start for r in results} == {results[0].objective}
    for result in results:
        assert score(model, result.indices, *task[1:]) == pytest.approx(result.objective, rel=1e-5)


def test_effort_0_is_the_code_of_the_encoder(
    model: VAT, task: tuple[Tensor, Tensor, Tensor]
) -> None:
    result = refine(model, *task, effort=0)
    expected = model.bottleneck.quantizer(task[0]).indices
    assert expected is not None
    assert all(torch.equal(a, b) for a, b in zip(result.indices, expected, strict=True))


def test_search_repeats_by_seed_and_leaves_the_model_alone(
    model: VAT, task: tuple[Tensor, Tensor, Tensor]
) -> None:
    # More queries than one step looks at, so that the seed chooses among them.
    queries = torch.rand(1, 4000, 3) * 2.1 - 1.05
    sdf = queries.norm(dim=-1) - 0.6
    before = {k: v.clone() for k, v in model.state_dict().items()}
    latents = task[0].clone()

    def run(seed: int) -> SearchResult:
        torch.rand(7)  # the global generator plays no part
        return refine(model, latents, queries, sdf, effort=2, seed=seed)

    first, again = run(5), run(5)
    assert first.objective == again.objective
    assert all(torch.equal(a, b) for a, b in zip(first.indices, again.indices, strict=True))
    assert run(6).objective != first.objective
    assert torch.equal(latents, task[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_progress_is_told(model: VAT, task: tuple[Tensor, Tensor, Tensor]) -> None:
    told: list[tuple[int, int]] = []
    refine(model, *task, effort=1, on_step=lambda *step: told.append(step))
    assert told == [(n, PATH[1][0]) for n in range(1, PATH[1][0] + 1)]


def test_a_code_of_fewer_scales_is_better_than_a_prefix(
    monkeypatch: pytest.MonkeyPatch, model: VAT, task: tuple[Tensor, Tensor, Tensor]
) -> None:
    monkeypatch.setattr(search, "PATH", ((0, 0), (20, 0), (20, 4)))
    for effort in (1, 2):
        whole = refine(model, *task, effort=effort)
        short = refine(model, *task, effort=effort, levels=2)
        assert [ids.shape for ids in short.indices] == [(1, n) for n in model.config.slots[:2]]
        assert short.objective < score(model, whole.indices[:2], *task[1:])
        assert score(model, short.indices, *task[1:]) == pytest.approx(short.objective, rel=1e-5)


@pytest.mark.parametrize("levels", [0, 5])
def test_scales_have_bounds(model: VAT, task: tuple[Tensor, Tensor, Tensor], levels: int) -> None:
    with pytest.raises(PolytokError, match=rf"levels={levels} is not within 1..4"):
        refine(model, *task, effort=0, levels=levels)


@pytest.mark.parametrize("effort", [-1, len(PATH)])
def test_effort_has_bounds(model: VAT, task: tuple[Tensor, Tensor, Tensor], effort: int) -> None:
    with pytest.raises(PolytokError, match=rf"effort={effort} is not within"):
        refine(model, *task, effort=effort)


def test_efforts_are_prefixes_of_one_path() -> None:
    assert PATH[0] == (0, 0) and len(PATH) == 10
    for (steps, rounds), (more_steps, more_rounds) in pairwise(PATH):
        assert steps + rounds < more_steps + more_rounds
        # Rounds begin when all steps are done.
        assert more_steps == steps or rounds == 0
        assert more_rounds >= rounds


def test_rounds_of_re_choice_go_on_where_steps_end(
    monkeypatch: pytest.MonkeyPatch, model: VAT, task: tuple[Tensor, Tensor, Tensor]
) -> None:
    monkeypatch.setattr(search, "PATH", ((0, 0), (10, 0), (10, 4), (10, 8)))
    steps, few, many = (refine(model, *task, effort=effort) for effort in (1, 2, 3))
    assert many.objective <= few.objective < steps.objective
    assert score(model, many.indices, *task[1:]) == pytest.approx(many.objective, rel=1e-5)
    changed = sum(int((a != b).sum()) for a, b in zip(steps.indices, many.indices, strict=True))
    assert 1 <= changed <= 8 * search.CANDIDATES


def test_a_round_finds_the_id_that_was_spoilt(model: VAT) -> None:
    """The target is a code's own field; with one id wrong, rounds bring most of it back."""
    model = VAT(override(model.config, loss="occupancy")).eval().requires_grad_(False)
    quantizer = model.bottleneck.quantizer
    truth = quantizer(torch.randn(1, model.config.num_latents, model.config.code_dim)).indices
    queries = torch.rand(1, 3000, 3) * 2.1 - 1.05
    # Distances whose soft occupancy is the field itself.
    occupancy = model.field(quantizer.embed(truth))(queries).sigmoid()
    sdf = (0.5 - occupancy) * 2 * model.config.band
    spoilt = [ids.clone() for ids in truth]
    spoilt[1][0, 2] = (spoilt[1][0, 2] + 7) % model.config.codebook_size
    run = search._Search(model, queries, sdf, torch.Generator().manual_seed(0), len(truth))
    floor = float(run.losses(quantizer.embed(truth)))
    start = run.offer(tuple(spoilt))
    for number in range(12):
        run.rechoose(number)
    assert start > floor
    assert run.objective - floor < 0.5 * (start - floor)


def test_drafts_in_bf16_end_with_an_exact_objective(
    monkeypatch: pytest.MonkeyPatch, model: VAT, task: tuple[Tensor, Tensor, Tensor]
) -> None:
    monkeypatch.setattr(search, "PATH", ((0, 0), (10, 0), (10, 4)))
    results = {}
    for is_fast in (False, True):
        monkeypatch.setattr(search, "has_fast_bf16", lambda _, is_fast=is_fast: is_fast)
        results[is_fast] = refine(model, *task, effort=2, seed=3)
        found = results[is_fast]
        exact = score(model, found.indices, *task[1:])
        assert found.objective == pytest.approx(exact, rel=1e-5)
        assert found.objective < found.start
    # Rounding steers the search a little, or bf16 was not used; it must not cost its gain.
    gain, fast_gain = (results[k].start - results[k].objective for k in (False, True))
    assert results[True].objective != results[False].objective
    assert fast_gain > 0.7 * gain


def test_bf16_is_used_only_where_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for capabilities in ({}, {"amx_bf16": False}, {"amx_bf16": True}, {"avx512_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c, raising=False)
        assert search.has_fast_bf16(cpu) is any(capabilities.values())
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert search.has_fast_bf16(cpu) is False
    assert search.has_fast_bf16(torch.device("meta")) is False
