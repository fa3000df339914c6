"""VAT's generator over a small quantizer: caches, order, guidance, and coding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from polytok.bottlenecks import RESAMPLERS, MultiScaleVQ
from polytok.core.contracts import StepContext
from polytok.core.errors import PolytokError
from polytok.generators import Guide, Known, Sampling
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
    model(batch, StepContext()).losses["ce"].backward()
    missing = {n for n, p in model.named_parameters() if p.grad is None}
    assert not {n for n in missing if "image" not in n}


def test_scales_weighted_by_their_slots_give_the_whole_loss() -> None:
    model = build()
    out = model({"ids": ids_of(2), "seed": torch.arange(2)}, StepContext())
    parts = [out.metrics[f"ce_{k + 1}"] * s for k, s in enumerate(SLOTS)]
    torch.testing.assert_close(torch.stack(parts).sum() / sum(SLOTS), out.losses["ce"])


def test_a_hidden_condition_is_as_good_as_none() -> None:
    model, seeds = build(), torch.arange(2)
    plain = {"ids": ids_of(2), "seed": seeds}
    batch = {**plain, **prompt_of(model, 2)}
    shown, bare = model(batch, StepContext()), model(plain, StepContext())
    assert not torch.equal(shown.losses["ce"], bare.losses["ce"])
    model.hidden = ("text",)
    assert torch.equal(model(batch, StepContext()).losses["ce"], bare.losses["ce"])


def test_learning_the_first_scales_alone_is_the_head_of_learning_all() -> None:
    model = build()
    batch = {"ids": ids_of(2), "seed": torch.arange(2)}
    whole = model(batch, StepContext())
    model.process.trained = 2
    part = model(batch, StepContext())
    torch.testing.assert_close(part.output["losses"], whole.output["losses"][:, :5])
    assert set(part.metrics) == {"ce_1", "ce_2"}
    assert model.generate({}, count=1, rng=torch.Generator()).indices[-1].shape == (1, SLOTS[-1])
    model.process.trained = 1
    assert model(batch, StepContext()).output["losses"].shape == (2, 1)


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
