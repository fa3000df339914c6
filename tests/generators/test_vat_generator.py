"""VAT's generator over a small quantizer: caches, order, guidance, and coding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from polytok.bottlenecks import RESAMPLERS, MultiScaleVQ
from polytok.core.config import override
from polytok.core.contracts import StepContext
from polytok.core.errors import PolytokError
from polytok.generators import DraftConditioner, DraftExpert, Guide, Known, Sampling, ScaleOrder
from polytok.systems.prior import PriorCoder
from polytok.systems.shape.vat.generator import VATGenerator, preset

SLOTS = (1, 4, 9, 16)


def build(resampler: str = "grid2d") -> VATGenerator:
    quantizer = MultiScaleVQ(codebook_size=64, codebook_dim=8, slots=SLOTS, resampler=resampler)
    model = VATGenerator(preset("vat-512b-tiny-gen"), quantizer).eval()
    with torch.no_grad():
        model.head.proj.weight.normal_(std=0.5)
    return model


def ids_of(count: int) -> Tensor:
    return torch.randint(64, (count, sum(SLOTS)), generator=torch.Generator().manual_seed(3))


def prompt_of(model: VATGenerator, count: int) -> dict[str, Tensor]:
    tower = model.tower("text")
    assert tower is not None
    return tower.prepare(["wooden barrel"] * count)


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_cached_steps_give_the_teacher_forced_logits(resampler: str) -> None:
    model, ids = build(resampler), ids_of(2)
    prompt, seen = prompt_of(model, 2), []

    def draw(log_probs: Tensor, step: object) -> Tensor:
        seen.append(log_probs)
        return model.process.split(ids)[len(seen) - 1]

    guide = Guide(shares={"text": 1.0})
    model.generate(prompt, count=2, rng=torch.Generator(), guide=guide, draw=draw)
    with torch.no_grad():
        cond = model.conditioner.branch(model.conditioner.encode(prompt), "text", 2)
        example = model.process.corrupt({"ids": ids})
        whole = model.head.logits(model.net(example.query, cond)).log_softmax(-1)
    torch.testing.assert_close(torch.cat(seen, dim=1), whole, atol=1e-4, rtol=0)


def test_logits_of_a_scale_see_no_finer_scale() -> None:
    model, ids = build(), ids_of(1)
    changed = ids.clone()
    changed[:, 5:14] = (changed[:, 5:14] + 1) % 64  # the third scale
    cond = model.conditioner.branch({}, "null", 1)
    with torch.no_grad():
        one, two = (
            model.net(model.process.corrupt({"ids": i}).query, cond) for i in (ids, changed)
        )
    assert torch.equal(one[:, :14], two[:, :14])
    assert not torch.equal(one[:, 14:], two[:, 14:])


def test_it_takes_one_pass_per_scale_whatever_the_branches() -> None:
    model, rows = build(), []
    model.net.register_forward_hook(lambda *args: rows.append(len(args[2])))
    guide = Guide(shares={"text": 1.0}, strength=2.0)
    model.generate(prompt_of(model, 3), count=3, rng=torch.Generator(), guide=guide)
    assert rows == [6] * len(SLOTS)


def test_no_guidance_runs_one_branch() -> None:
    plan = build().process.plan(None)
    assert Guide(shares={"text": 1.0}).branches(plan) == ["text"]
    assert Guide(shares={"text": 0.0}, strength=3.0).branches(plan) == ["null"]


def test_weights_of_branches_sum_to_one() -> None:
    guide = Guide(shares={"text": 0.3, "image": 0.7}, strength=2.5)
    for step in build().process.plan(None):
        assert sum(guide.weights(step).values()) == pytest.approx(1)


def test_known_ids_stay() -> None:
    model, ids = build(), ids_of(2)
    mask = torch.arange(sum(SLOTS)).expand(2, -1) % 3 == 0
    codes = model.generate(
        {}, count=2, rng=torch.Generator(), known=Known(ids=ids, mask=mask), guide=Guide()
    )
    assert torch.equal(torch.cat(codes.indices, dim=1)[mask], ids[mask])


def test_an_item_does_not_depend_on_its_neighbours() -> None:
    model = build()

    def rngs(seeds: list[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s) for s in seeds]

    one = model.generate({}, count=3, rng=rngs([1, 2, 3])).indices
    two = model.generate({}, count=3, rng=rngs([1, 9, 8])).indices
    assert all(torch.equal(a[0], b[0]) for a, b in zip(one, two, strict=True))
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(one, two, strict=True))


def test_top_1_is_the_likeliest_id() -> None:
    logits = torch.randn(2, 3, 8)
    kept = Sampling(top_k=1).filter(logits).isfinite()
    assert torch.equal(kept.float().argmax(-1), logits.argmax(-1))
    assert bool((kept.sum(-1) == 1).all())


def test_training_reaches_towers_and_net() -> None:
    model = build().train()
    batch = {"ids": ids_of(4), "seed": torch.arange(4), **prompt_of(model, 4)}
    losses = model(batch, StepContext()).losses
    (losses["ce"] + losses["draft"]).backward()
    missing = {n for n, p in model.named_parameters() if p.grad is None}
    assert not {n for n in missing if "image" not in n}


def test_scales_weighted_by_their_slots_give_the_whole_loss() -> None:
    model = build()
    out = model({"ids": ids_of(2), "seed": torch.arange(2)}, StepContext())
    parts = [out.metrics[f"ce_{k + 1}"] * s for k, s in enumerate(SLOTS)]
    torch.testing.assert_close(torch.stack(parts).sum() / sum(SLOTS), out.losses["ce"])


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_a_balance_weighs_slots_by_the_size_of_their_scale(balance: float) -> None:
    model = build()
    batch = {"ids": ids_of(3), "seed": torch.arange(3)}
    with torch.no_grad():
        losses = model(batch, StepContext()).output["losses"]
        balanced = VATGenerator(override(model.config, scale_balance=balance), model._quantizer)
        balanced.load_state_dict(model.state_dict())
        loss = balanced.eval()(batch, StepContext()).losses["ce"]
    # Scales of n slots count n^(1 - balance) as wholes; at 1 they all count alike.
    means = torch.stack([losses[:, span].mean() for span in model.process.spans])
    share = torch.tensor(SLOTS).float() ** (1 - balance)
    torch.testing.assert_close(loss, (means * share).sum() / share.sum())


def test_a_balance_is_within_0_and_1() -> None:
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(PolytokError, match=r"balance=.* is not within"):
            ScaleOrder(build()._quantizer, balance=wrong)


def expert_of(model: VATGenerator, draft: Tensor, strength: float) -> DraftExpert:
    quantizer = model.quantizer.module
    assert isinstance(quantizer, MultiScaleVQ)
    return DraftExpert(draft, quantizer, strength)


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_a_strong_draft_is_drawn_as_the_quantizer_encodes_it(resampler: str) -> None:
    model = build(resampler)
    draft = torch.randn(2, SLOTS[-1], 8, generator=torch.Generator().manual_seed(0))
    codes = model.generate(
        {}, count=2, rng=torch.Generator(), guide=Guide(), expert=expert_of(model, draft, 1e6)
    )
    wanted = model.quantizer(draft).indices
    assert all(torch.equal(a, b) for a, b in zip(codes.indices, wanted, strict=True))


def test_an_expert_of_no_strength_changes_nothing_and_one_of_some_comes_nearer() -> None:
    model = build()
    draft = torch.randn(1, SLOTS[-1], 8, generator=torch.Generator().manual_seed(0))
    quantizer = model.quantizer.module
    assert isinstance(quantizer, MultiScaleVQ)

    def drawn(expert: DraftExpert | None) -> tuple[Tensor, ...]:
        rng = torch.Generator().manual_seed(1)
        return model.generate({}, count=1, rng=rng, guide=Guide(), expert=expert).indices

    plain = drawn(None)
    none = drawn(expert_of(model, draft, 0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain, none, strict=True))
    errors = [
        float((quantizer.embed(drawn(expert_of(model, draft, s))) - draft).square().mean())
        for s in (0.0, 0.3, 3.0)
    ]
    assert errors == sorted(errors, reverse=True)
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(PolytokError, match="not a finite number"):
            expert_of(model, draft, strength)


def test_an_expert_drafts_from_the_branch_it_is_asked_for() -> None:
    model = build()
    prompt = prompt_of(model, 1)
    text, bare = (model.expert(prompt, branch, 1, 1.0).draft for branch in ("text", "null"))
    assert text.shape == (1, SLOTS[-1], 8)
    assert not torch.equal(text, bare)
    torch.testing.assert_close(bare, model.expert({}, "null", 1, 1.0).draft)


def test_a_draft_of_the_codes_own_latents_costs_nothing() -> None:
    model, ids = build(), ids_of(1)
    quantizer = model.quantizer.module
    assert isinstance(quantizer, MultiScaleVQ)
    latents = quantizer.embed(model.process.split(ids))
    assert isinstance(model.conditioner, DraftConditioner)
    model.conditioner.draft.register_forward_hook(lambda *_: latents)
    batch = {"ids": ids, "seed": torch.arange(1)}
    assert float(model(batch, StepContext()).losses["draft"]) == 0
    model.is_drafting = True
    out = model(batch, StepContext())
    assert set(out.losses) == {"draft"}
    assert float(out.losses["draft"]) == 0


def test_drafting_takes_a_model_with_drafts() -> None:
    quantizer = MultiScaleVQ(codebook_size=64, codebook_dim=8, slots=SLOTS)
    plain = VATGenerator(override(preset("vat-512b-tiny-gen"), is_drafted=False), quantizer)
    assert set(plain({"ids": ids_of(1), "seed": torch.arange(1)}, StepContext()).losses) == {"ce"}
    plain.is_drafting = True
    with pytest.raises(PolytokError, match="is_drafted is off"):
        plain({"ids": ids_of(1), "seed": torch.arange(1)}, StepContext())
    with pytest.raises(PolytokError, match="drafts nothing"):
        plain.expert({}, "null", 1, 1.0)
    bare = override(preset("vat-512b-tiny-gen"), text=None, image=None)
    with pytest.raises(PolytokError, match="no towers"):
        VATGenerator(bare, quantizer)


@pytest.mark.parametrize("levels", [1, 2, len(SLOTS)])
def test_the_generator_decodes_what_it_coded(levels: int) -> None:
    model = build()
    coder = PriorCoder(model, {}, Guide(), fingerprint="00c0ffee")
    for item in ids_of(20):
        ids = [i[0].numpy() for i in model.process.split(item[None])][:levels]
        found = coder.decode(coder.encode(ids), [len(level) for level in ids])
        assert all(map(np.array_equal, ids, found))


def test_ids_of_another_size_are_refused() -> None:
    with pytest.raises(PolytokError, match="ids"):
        build().process.corrupt({"ids": torch.zeros(1, 5, dtype=torch.int64)})
