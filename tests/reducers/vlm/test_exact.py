"""What is kept is not touched: bits with everything kept, masks with gaps, rows with other rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import polytok
from polytok.reducers.maps import Select
from polytok.reducers.vlm.hosts import host_of
from polytok.reducers.vlm.reduction import rebuild
from reducers.models import IS_NEWER
from reducers.vlm.models import DECODER, FAMILIES, IMAGE, batch, build, single
from reducers.vlm.reference import errors, generated, generated_from, masked_logits, row_of

KERNELS = ["sdpa", "eager"]


def pair(family: str) -> dict[str, Any]:
    """Two prompts that differ in length, and in size where the family knows sizes."""
    return batch(family, [single(family, 0), single(family, 1)])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{"keep": 1.0}, {"ratio": 0.0}], ids=str)
def test_keeping_all_is_the_model_itself(family: str, kernel: str, options: dict[str, Any]) -> None:
    model, inputs = build(family, kernel), pair(family)
    plan = polytok.vlm("fastervlm", row=row_of(family), **options)
    plain, logits = generated(model, inputs), model(**inputs).logits
    with plan.applied(model) as run:
        found = generated(model, inputs)
        assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(found.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, plain.logits, strict=True))
    assert run.report is not None and run.report.before == run.report.after


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 2])
def test_inputs_rebuilt_with_all_tokens_give_the_same_bits(
    family: str, kernel: str, beams: int
) -> None:
    # The path of kept subsets, which a plan that keeps all does not take.
    model, inputs = build(family, kernel), pair(family)
    if beams > 1 and family == "internvl":
        # Of an image in several tiles, transformers 4 itself gives beams the wrong ones.
        inputs = single(family, int(IS_NEWER))
    host = host_of(model)
    layouts = host.layouts(model, inputs)
    with torch.no_grad():
        maps = [Select(torch.arange(x.tokens)[None], x.tokens) for x in layouts]
        found = rebuild(host, model, inputs, host.encode(model, inputs), maps, host.positions)
    # Scores of beams are what generation goes by; logits are those of one beam.
    options = {"num_beams": beams, "output_scores": True}
    plain = generated(model, inputs, **options)
    rebuilt = generated_from(model, found, **options)
    assert torch.equal(rebuilt.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(rebuilt.scores, plain.scores, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_positions_equal_the_whole_prompt_with_the_rest_hidden(
    family: str, kernel: str
) -> None:
    model, inputs = build(family, kernel), pair(family)
    plan = polytok.vlm("fastervlm", keep=0.3, row=row_of(family), positions="keep")
    with plan.applied(model) as run:
        found = generated(model, inputs)
    hidden = inputs["input_ids"] == IMAGE
    where = hidden.flatten().nonzero().flatten()
    kept, start = hidden.flatten().clone(), 0
    for image, count in enumerate(run.report.before):
        kept[where[start : start + count][run.report.kept(image)]] = False
        start += count
    expected = masked_logits(model, inputs, found.sequences, kept.view_as(hidden))
    assert errors(found, expected) <= 1e-5


@pytest.mark.parametrize("positions", ["keep", "contiguous"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_ragged_batch_equals_its_prompts_one_by_one(family: str, positions: str) -> None:
    model = build(family)
    items = [single(family, 0), single(family, 1)]
    plan = polytok.vlm("fastervlm", keep=0.3, row=row_of(family), positions=positions)
    with plan.applied(model):
        together = generated(model, batch(family, items))
        alone = [generated(model, item) for item in items]
    for row, one in enumerate(alone):
        assert torch.equal(one.sequences[0, -4:], together.sequences[row, -4:])
        for a, b in zip(one.logits, together.logits, strict=True):
            torch.testing.assert_close(a[0], b[row], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_contiguous_positions_are_what_a_fresh_prompt_would_have(family: str) -> None:
    # The two conventions differ; neither is the other by accident.
    model, inputs = build(family), pair(family)
    logits = {}
    for positions in ("keep", "contiguous"):
        plan = polytok.vlm("fastervlm", keep=0.3, row=row_of(family), positions=positions)
        prepared, _ = plan.visual.prepare(model, inputs)
        assert ("position_ids" in prepared) == (positions == "keep")
        logits[positions] = generated_from(model, prepared).logits[0]
    assert (logits["keep"] - logits["contiguous"]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_follow_the_best_answer(family: str) -> None:
    # The first beam's score is the mean log probability that a plain pass over the answer gives,
    # and with as many beams as words no other two words are better.
    model, inputs = build(family), single(family, 1)
    plan = polytok.vlm("fastervlm", keep=0.3, row=row_of(family), positions="keep")
    with plan.applied(model) as run:
        beams = {"num_beams": DECODER["vocab_size"], "output_scores": True}
        found = generated(model, inputs, 2, **beams)
        one = generated(model, inputs, 2)
    hidden = (inputs["input_ids"] == IMAGE)[0]
    hidden[hidden.nonzero().flatten()[run.report.kept(0)]] = False

    def score(sequences: torch.Tensor) -> torch.Tensor:
        logits = masked_logits(model, inputs, sequences, hidden[None])
        chosen = sequences[:, -2:, None]
        return logits.log_softmax(-1).gather(-1, chosen).mean()

    torch.testing.assert_close(found.sequences_scores[0], score(found.sequences), atol=1e-5, rtol=0)
    assert score(found.sequences) >= score(one.sequences) - 1e-6


def test_several_answers_per_prompt_share_its_reduction() -> None:
    model, inputs = build("llava"), pair("llava")
    with polytok.vlm("fastervlm", keep=9).applied(model):
        found = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=2)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(found[:, :length], inputs["input_ids"].repeat_interleave(2, 0))


def test_labels_are_cut_with_their_tokens() -> None:
    model, inputs = build("llava"), pair("llava")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    with polytok.vlm("fastervlm", keep=9).applied(model):
        out = model(**inputs, labels=labels)
    reduction = polytok.vlm("fastervlm", keep=9).visual
    prepared, _ = reduction.prepare(model, {**inputs, "labels": labels})
    ids = prepared["input_ids"]
    assert torch.equal(
        prepared["labels"],
        ids.masked_fill((ids == IMAGE) | (prepared["attention_mask"] == 0), -100),
    )
    assert out.logits.shape[:2] == ids.shape
    out.loss.backward()
    assert model.model.language_model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
