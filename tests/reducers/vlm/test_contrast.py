"""Two branches in one call of generate, against both recomputed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import polytok
from polytok.core.errors import ConfigError
from polytok.reducers.vlm import Contrast, Inverse, Plan, contrasted
from polytok.reducers.vlm.hosts.release import call_of
from reducers.vlm.models import FAMILIES, IMAGE, batch, build, single
from reducers.vlm.reference import generated, masked_logits, row_of


def plan_of(family: str, **options: Any) -> Plan:
    negative = polytok.vlm("fastervlm", keep=2, row=row_of(family), positions="keep").visual
    return Plan(name="contrast", decode=Contrast(negative=negative, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_equal_both_branches_recomputed(family: str) -> None:
    model, inputs = build(family), batch(family, [single(family, 0), single(family, 1)])
    plan = plan_of(family, alpha=1.5, beta=0.2)
    _, report = plan.decode.negative.prepare(model, inputs)
    with plan.applied(model):
        found = generated(model, inputs, output_scores=True)
    gone = inputs["input_ids"] == IMAGE
    where, hidden, start = gone.flatten().nonzero().flatten(), gone.flatten().clone(), 0
    for image, count in enumerate(report.before):
        hidden[where[start : start + count][report.kept(image)]] = False
        start += count
    whole = masked_logits(model, inputs, found.sequences, torch.zeros_like(gone))
    negative = masked_logits(model, inputs, found.sequences, hidden.view_as(gone))
    expected = contrasted(whole, negative, 1.5, 0.2)
    scores = torch.stack(found.scores, 1)
    assert torch.equal(scores.isinf(), expected.isinf())
    finite = ~expected.isinf()
    torch.testing.assert_close(scores[finite], expected[finite], atol=2e-5, rtol=0)
    assert (negative - whole).abs().max() > 0.01


def test_several_answers_have_a_branch_each() -> None:
    model, inputs = build("llava"), batch("llava", [single("llava", 0), single("llava", 1)])
    with plan_of("llava").applied(model):
        found = model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=True,
            top_k=0,
            num_return_sequences=2,
            output_scores=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert len(found.sequences) == 4
    cut = torch.stack(found.logits, 1)
    scores = torch.stack(found.scores, 1)
    assert torch.equal(scores.isinf(), cut < cut.amax(-1, keepdim=True) + math.log(0.1))


logits = st.lists(st.floats(-5, 5), min_size=4, max_size=4).map(lambda x: torch.tensor([x]))


@settings(deadline=None)
@given(l=logits, c=logits, alpha=st.floats(0, 3), beta=st.floats(0.01, 1))
def test_the_formula(l: torch.Tensor, c: torch.Tensor, alpha: float, beta: float) -> None:  # noqa: E741
    found = contrasted(l, c, alpha, beta)
    kept = ~found.isinf()
    # Kept is what has at least beta of the best probability, up to rounding at the border.
    ratio = (l.softmax(-1) / l.softmax(-1).max()).double()
    assert bool((ratio[kept] >= beta - 1e-5).all() and (ratio[~kept] <= beta + 1e-5).all())
    torch.testing.assert_close(found[kept], ((1 + alpha) * l - alpha * c)[kept])
    torch.testing.assert_close(contrasted(l, l, alpha, beta)[kept], l[kept], atol=1e-5, rtol=1e-5)
    assert torch.equal(contrasted(l, c, 0.0, 0.0), l)
    best = contrasted(l, c, alpha, 1.0)
    assert bool((l[~best.isinf()] == l.max()).all())


def test_a_branch_that_sees_everything_changes_nothing() -> None:
    model, inputs = build("llava"), single("llava", 0)
    negative = polytok.vlm("fastervlm", keep=1.0).visual
    plan = Plan(name="same", decode=Contrast(negative=negative, alpha=2.0, beta=0.0))
    plain = generated(model, inputs)
    with plan.applied(model):
        found = generated(model, inputs, output_scores=True)
    assert torch.equal(found.sequences, plain.sequences)
    for a, b in zip(found.scores, plain.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_contrast_composes_and_the_branch_is_not_cut() -> None:
    model, inputs = build("llava"), single("llava", 0)
    contrast = plan_of("llava", alpha=1.0, beta=0.0)
    with (contrast | polytok.vlm("dyvte", layer=0)).applied(model):
        found = generated(model, inputs, output_scores=True)
    prepared, _ = contrast.decode.negative.prepare(model, inputs)
    with torch.no_grad():
        negative = model(**call_of(model, prepared)).logits[:, -1]
    expected = contrasted(found.logits[0], negative, 1.0, 0.0)
    torch.testing.assert_close(found.scores[0], expected, atol=1e-5, rtol=0)


def test_refusals() -> None:
    model, inputs = build("llava"), single("llava", 0)
    with pytest.raises(ConfigError, match=r"alpha=-1 must be 0 or more, beta=2 within \[0, 1\]"):
        plan_of("llava", alpha=-1, beta=2)
    with pytest.raises(ConfigError, match="alpha=nan must be 0 or more"):
        plan_of("llava", alpha=float("nan"))
    with plan_of("llava").applied(model), pytest.raises(ConfigError, match="num_beams=1"):
        model.generate(**inputs, max_new_tokens=2, num_beams=2)
    assert Inverse(plan_of("llava").decode.negative.score).taps is not None
