"""A plan on a model and off again: what is refused, what is put back, who meets whom."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from typing import Any

import pytest
import torch

import polytok
from polytok.core.errors import ConfigError, PolytokError, SignalError, UnknownNameError
from polytok.reducers import versions
from polytok.reducers.vlm import Contrast, Plan
from polytok.reducers.vlm.hosts import host_of, release
from polytok.reducers.vlm.hosts.base import cache_name
from reducers.models import IS_NEWER
from reducers.vlm.models import FAMILIES, IMAGE, batch, build, padded, prompt, single
from reducers.vlm.reference import generated, going_on, row_of


def traces(model: Any) -> tuple[Any, ...]:
    """Everything that a plan could leave behind on a model."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    own = {name: set(vars(m)) for name, m in model.named_modules()}
    kernels = [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")]
    return hooks, own, kernels, repr(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_what_it_was(family: str) -> None:
    model, inputs = build(family), single(family, 0)
    plain = generated(model, inputs)  # transformers leaves hooks of its own in a first call
    before = traces(model)
    both = polytok.vlm("fastervlm", keep=2, row=row_of(family)) | polytok.vlm("dyvte", layer=1)
    with both.applied(model):
        generated(model, inputs)
        assert "fastervlm | dyvte" in repr(model)
    assert traces(model) == before
    with pytest.raises(RuntimeError, match="stop"), both.applied(model):
        raise RuntimeError("stop")
    assert traces(model) == before

    def fail(*_: Any) -> None:
        raise RuntimeError("inside")

    handle = host_of(model).tower(model).layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="inside"), both.applied(model):
        generated(model, inputs)
    handle.remove()
    assert traces(model) == before
    after = generated(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(after.logits, plain.logits, strict=True))


def test_a_generate_of_its_own_comes_back() -> None:
    model, inputs = build("llava"), single("llava", 0)
    calls = []
    original = model.generate

    def own(**options: Any) -> Any:
        calls.append(1)
        return original(**options)

    model.generate = own
    with polytok.vlm("fastervlm", keep=2).applied(model):
        model.generate(**inputs, max_new_tokens=1)
    assert calls == [1] and model.generate is own


def test_applying_twice_and_removing_twice_are_refused() -> None:
    model = build("llava")
    first, second = polytok.vlm("fastervlm", keep=2), polytok.vlm("random", keep=3)
    run = first.apply(model)
    before = traces(model)
    with pytest.raises(ConfigError, match="fastervlm is already applied to this Llava"):
        second.apply(model)
    assert traces(model) == before
    run.remove()
    with pytest.raises(ConfigError, match="fastervlm is not applied to this Llava"):
        run.remove()
    with second.applied(model) as other:
        other.remove()  # leaving the context is then nothing new
    assert model.generate.__func__ is type(model).generate


def test_two_threads_have_plans_of_their_own_on_one_model() -> None:
    model, inputs = build("llava"), batch("llava", [single("llava", 0), single("llava", 1)])
    plans = [
        polytok.vlm("fastervlm", keep=5) | polytok.vlm("dyvte", layer=1),
        polytok.vlm("uniform", keep=20) | polytok.vlm("dyvte", layer=0),
    ]
    alone = []
    for each in plans:
        with each.applied(model):
            alone.append(generated(model, inputs))
    barrier, found = threading.Barrier(2), {}

    def work(i: int) -> None:
        with plans[i].applied(model):
            barrier.wait(60)
            found[i] = [generated(model, inputs) for _ in range(3)]
            barrier.wait(60)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(2):
        for result in found[i]:
            for a, b in zip(result.logits, alone[i].logits, strict=True):
                assert torch.equal(a, b)
    assert host_of(model).tower(model).module.config._attn_implementation == "sdpa"
    assert model.generate.__func__ is type(model).generate


def test_a_thread_without_the_plan_is_told_so() -> None:
    model, inputs = build("llava"), single("llava", 0)
    plain = generated(model, inputs)
    told: list[Any] = []

    def work() -> None:
        try:
            generated(model, inputs)
        except UserWarning as warning:
            told.append(str(warning))
        logits = model(**inputs).logits[:, -1]
        told.append(logits)

    with polytok.vlm("fastervlm", keep=5).applied(model):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert "applied to this model in another thread" in told[0]
    torch.testing.assert_close(told[1], plain.logits[0])


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_generate_takes_and_returns_whole_prompts() -> None:
    model, inputs = build("llava"), batch("llava", [single("llava", 0), single("llava", 1)])
    length = inputs["input_ids"].shape[1]
    with polytok.vlm("fastervlm", keep=2).applied(model):
        found = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        limited = model.generate(**inputs, max_length=length + 3, do_sample=False)
        rest = {k: v for k, v in inputs.items() if k != "input_ids"}
        positional = model.generate(inputs["input_ids"], **rest, max_new_tokens=3, do_sample=False)
        config = model.generation_config.from_dict(model.generation_config.to_dict())
        config.max_length = length + 3
        configured = model.generate(**inputs, generation_config=config, do_sample=False)
    assert found.shape == (2, length + 3)
    assert torch.equal(found[:, :length], inputs["input_ids"])
    for other in (limited, positional, configured):
        assert torch.equal(other, found)
    assert config.max_length == length + 3
    config.max_length = type(config)().max_length  # the default: 20 new tokens
    with polytok.vlm("fastervlm", keep=2).applied(model):
        assert model.generate(**inputs, generation_config=config).shape == (2, length + 20)


@pytest.mark.parametrize("positions", ["keep", "contiguous"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_the_first_step_of_generate(family: str, positions: str) -> None:
    model, inputs = build(family), batch(family, [single(family, 0), single(family, 1)])
    plan = polytok.vlm("fastervlm", keep=0.3, row=row_of(family), positions=positions)
    with plan.applied(model), torch.no_grad():
        called = model(**inputs).logits[:, -1]
        torch.testing.assert_close(called, generated(model, inputs).logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_without_a_cache_see_the_reduced_prompt(family: str) -> None:
    model, inputs = build(family), batch(family, [single(family, 0), single(family, 1)])
    with polytok.vlm("fastervlm", keep=0.3, row=row_of(family)).applied(model):
        cached = generated(model, inputs)
        anew = generated(model, inputs, use_cache=False)
    for a, b in zip(anew.logits, cached.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.skipif(not IS_NEWER, reason="models of transformers 4 take no features")
def test_prepared_inputs_are_what_the_context_runs() -> None:
    model, inputs = build("llava"), batch("llava", [single("llava", 0), single("llava", 1)])
    method = polytok.vlm("fastervlm", keep=2)
    before = {k: v.clone() for k, v in inputs.items()}
    prepared, report = method.prepare(model, inputs)
    assert all(torch.equal(inputs[k], before[k]) for k in before)
    outside = generated(model, prepared)
    with method.applied(model) as run:
        inside = generated(model, inputs)
        assert str(report) == str(run.report)
        again = generated(model, prepared)  # already reduced: as it is
    assert all(torch.equal(a, b) for a, b in zip(outside.logits, inside.logits, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(outside.logits, again.logits, strict=True))
    assert run.report is None
    assert report.after == (2, 2) and report.prompt_after == tuple(
        n - 62 for n in report.prompt_before
    )


@pytest.mark.skipif(IS_NEWER, reason="models of transformers 5 take features")
def test_prepared_inputs_would_have_no_model_to_run_on() -> None:
    model, inputs = build("llava"), single("llava", 0)
    with pytest.raises(ConfigError, match=r"within applied\(model\), whose report says the same"):
        polytok.vlm("fastervlm", keep=2).prepare(model, inputs)


def test_streams_by_hand_go_on_after_the_reduction() -> None:
    model, inputs = build("llava"), single("llava", 0)
    with polytok.vlm("fastervlm", keep=2).applied(model), torch.no_grad():
        expected = generated(model, inputs)
        out = model(**inputs)
        positional = model(inputs["input_ids"], inputs["pixel_values"])
        assert torch.equal(out.logits, positional.logits)
        out = model(input_ids=out.logits[:, -1:].argmax(-1), **going_on(model, out))
    torch.testing.assert_close(out.logits[:, -1], expected.logits[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_that_do_not_fit_are_refused(family: str) -> None:
    model, inputs = build(family), single(family, 0)
    method = polytok.vlm("random", keep=2)
    text = padded([prompt([], 5, 0)])
    more = dict(inputs)
    more["input_ids"] = torch.cat([torch.full((1, 16), IMAGE), inputs["input_ids"]], 1)
    more["attention_mask"] = torch.ones_like(more["input_ids"])
    cases: list[tuple[dict[str, Any], str]] = [
        (text, r"no image \(pixel_values\); for text alone"),
        (more, "image placeholders in the prompt for|tiles of image tokens for"),
        ({**inputs, "input_ids": None}, "input_ids"),
    ]
    with method.applied(model):
        for wrong, words in cases:
            with pytest.raises(SignalError, match=words):
                model.generate(**wrong, max_new_tokens=2)
            with pytest.raises(SignalError, match=words):
                model(**wrong)
    for name in host_of(model).pixels[1:]:
        with pytest.raises(SignalError, match=f"the inputs lack {name}"):
            method.visual.prepare(model, {k: v for k, v in inputs.items() if k != name})


def test_an_image_spread_over_two_prompts_is_refused() -> None:
    model, inputs = build("llava"), batch("llava", [single("llava", 0), single("llava", 1)])
    ids = inputs["input_ids"].clone()
    ids[0, -1], ids[1, ids[1] == IMAGE] = IMAGE, torch.where(torch.arange(64) < 63, IMAGE, 5)
    with pytest.raises(SignalError, match="spread over two prompts"):
        polytok.vlm("random", keep=2).visual.prepare(model, {**inputs, "input_ids": ids})


def test_models_that_do_not_fit_are_refused() -> None:
    method = polytok.vlm("fastervlm", keep=2)
    with pytest.raises(ConfigError, match=r"'Linear' is not a supported family \(supported: llava"):
        method.apply(torch.nn.Linear(1, 1))
    model = build("llava")
    with pytest.raises(ConfigError, match=r"pass the ...ForConditionalGeneration model itself"):
        method.apply(model.model)
    tower = host_of(model).tower(model).module
    tower.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ConfigError, match=r"'flash_attention_2', which gives no scores"):
        method.apply(model)
    polytok.vlm("random", keep=2).check(model)  # needs no scores
    tower.config._attn_implementation_internal = "sdpa"
    with pytest.raises(ConfigError, match="SiglipVisionModel has no class token"):
        method.apply(build("llava_siglip"))
    polytok.vlm("fastervlm", keep=2, row="received").visual.prepare(
        build("llava_siglip"), single("llava_siglip", 0)
    )
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ConfigError, match="borders between prompts; use positions='contiguous'"):
        polytok.vlm("fastervlm", keep=2, positions="keep").apply(model)
    method.check(model)


def test_settings_that_do_not_fit_are_refused() -> None:
    model, inputs = build("llava"), single("llava", 0)
    filled = model(**inputs)[cache_name(model)]
    with polytok.vlm("fastervlm", keep=2, positions="keep").applied(model):
        for options, words in (
            ({"assistant_model": model}, "assisted decoding"),
            ({"use_cache": False}, "positions='keep' needs a cache"),
            ({"prefill_chunk_size": 8}, "fastervlm needs the whole prompt"),
            ({cache_name(model): filled}, "goes on with a cache"),
        ):
            with pytest.raises(ConfigError, match=words):
                model.generate(**inputs, max_new_tokens=2, **options)
    model = build("internvl")
    ragged = batch("internvl", [single("internvl", 0), single("internvl", 1)])
    with polytok.vlm("fastervlm", keep=2).applied(model):
        if IS_NEWER:
            with pytest.raises(ConfigError, match="generate one prompt at a time"):
                model.generate(**ragged, max_new_tokens=2, num_beams=2)
        else:  # where embeddings go in, with a row for each prompt
            both = generated(model, ragged, num_beams=2).sequences[:, -4:]
            alone = [generated(model, single("internvl", i), num_beams=2) for i in range(2)]
            assert torch.equal(both, torch.cat([x.sequences[:, -4:] for x in alone]))
        same = batch("internvl", [single("internvl", 0), single("internvl", 0)])
        one = generated(model, single("internvl", 0), num_beams=2)
        two = generated(model, same, num_beams=2)
    assert torch.equal(one.sequences[0], two.sequences[0])
    assert torch.equal(one.sequences[0], two.sequences[1])


def test_a_static_cache_holds_a_shortened_prompt() -> None:
    model, inputs = build("llava"), single("llava", 0)
    with polytok.vlm("fastervlm", keep=2).applied(model):
        dynamic = generated(model, inputs)
        static = generated(model, inputs, cache_implementation="static", disable_compile=True)
    assert torch.equal(dynamic.sequences, static.sequences)


def test_names_and_joins() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'fastervlm'"):
        polytok.vlm("fastervl", keep=2)
    with pytest.raises(UnknownNameError, match="did you mean 'keep'"):
        polytok.vlm("fastervlm", kep=2)
    one = polytok.vlm("fastervlm", keep=2)
    with pytest.raises(ConfigError, match="both have the stage 'visual'"):
        one | polytok.vlm("random", keep=2)
    with pytest.raises(ConfigError, match="plan 'none' has no stage"):
        Plan(name="none")
    with pytest.raises(PolytokError, match="dyvte leaves the inputs as they are"):
        polytok.vlm("dyvte", layer=1).prepare(build("llava"), single("llava", 0))


def test_other_releases_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava")
    monkeypatch.setitem(versions.TESTED, "transformers", ("5.99",))
    versions.warn_untested.cache_clear()
    with pytest.warns(UserWarning, match=r"tested with transformers 5\.99, this is"):
        polytok.vlm("random", keep=2).check(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        polytok.vlm("random", keep=2).check(model)
    versions.warn_untested.cache_clear()


def test_a_release_without_encoder_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava")
    monkeypatch.setattr(type(model), "forward", lambda self, input_ids=None: None)
    monkeypatch.setattr(release.metadata, "version", lambda _: "5.22.2")
    with pytest.raises(ConfigError, match=r"mm_encoder_outputs; use transformers 5.23 or newer"):
        polytok.vlm("random", keep=2).apply(model)


def test_steps_by_hand_must_say_where_kept_positions_go_on() -> None:
    model, inputs = build("llava"), single("llava", 0)
    method = polytok.vlm("fastervlm", keep=2, positions="keep")
    with method.applied(model), torch.no_grad():
        expected = generated(model, inputs)
        out = model(**inputs)
        step = {"input_ids": out.logits[:, -1:].argmax(-1), **going_on(model, out)}
        with pytest.raises(SignalError, match="needs position_ids that go on from them"):
            model(**step)
        positions = method.visual.prepare(model, inputs)[0]["position_ids"][:, -1:] + 1
        out = model(**step, position_ids=positions)
    torch.testing.assert_close(out.logits[:, -1], expected.logits[1], atol=1e-5, rtol=0)


def test_a_mask_of_another_shape_is_refused() -> None:
    model, inputs = build("llava"), single("llava", 0)
    wrong = {**inputs, "attention_mask": torch.ones(1, 1, 70, 70)}
    with pytest.raises(SignalError, match=r"shape \(1, 1, 70, 70\); give one number per token"):
        polytok.vlm("fastervlm", keep=2).visual.prepare(model, wrong)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_processors_return_is_taken_as_it_is(family: str) -> None:
    from transformers import BatchFeature

    model, inputs = build(family), single(family, 0)
    method = polytok.vlm("uniform", keep=2)
    prepared, _ = method.visual.prepare(model, BatchFeature(inputs))
    expected, _ = method.visual.prepare(model, inputs)
    assert prepared.keys() == expected.keys()
    assert torch.equal(prepared["input_ids"], expected["input_ids"])
    with method.applied(model):
        found = model.generate(**BatchFeature(inputs), max_new_tokens=2)
    assert found.shape[1] == inputs["input_ids"].shape[1] + 2


PLANS = {
    "visual": lambda: polytok.vlm("fastervlm", keep=2),
    "inside": lambda: polytok.vlm("fastv", layer=1, keep=0.4),
}


@pytest.mark.parametrize("where", ["option", "config", "model", "model below config"])
def test_lengths_mean_whole_prompts_wherever_they_are_set(where: str) -> None:
    model, inputs = build("llava"), single("llava", 0)
    length = inputs["input_ids"].shape[1]
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": list(range(1, 96))}
    lengths = {"min_length": length + 5, "max_length": length + 9}
    config = copy.deepcopy(model.generation_config)
    if where == "option":
        options |= lengths
    elif where == "config":
        options["generation_config"] = config
        config.update(**lengths)
    else:
        model.generation_config.update(**lengths)
        if where == "model below config":
            options["generation_config"] = config
    before = copy.deepcopy((config.to_dict(), model.generation_config.to_dict()))
    # All tokens but one end the answer: it has the least length, unless only 0 is likely.
    plain = model.generate(**inputs, **options).shape
    with PLANS["visual"]().applied(model):
        assert model.generate(**inputs, **options).shape == plain == (1, length + 6)
    assert (config.to_dict(), model.generation_config.to_dict()) == before


def test_an_empty_cache_may_be_given() -> None:
    from transformers import DynamicCache

    model, inputs = build("llava"), single("llava", 0)
    contrast = Contrast(negative=polytok.vlm("random", keep=1).visual)
    for plan in (*(make() for make in PLANS.values()), Plan(name="contrast", decode=contrast)):
        with plan.applied(model):
            usual = generated(model, inputs)
            given = generated(model, inputs, use_cache=True, **{cache_name(model): DynamicCache()})
        assert torch.equal(usual.sequences, given.sequences)


@pytest.mark.parametrize("stage", PLANS)
def test_copies_of_a_model_with_a_plan_are_refused(stage: str) -> None:
    model = build("llava")
    with PLANS[stage]().applied(model):
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(ConfigError, match="would drive the original; copy or pickle it"):
                copied(model)
            if stage == "inside":
                with pytest.raises(ConfigError, match="would drive the original"):
                    copied(model.model.language_model)
    twin = copy.deepcopy(model)
    assert twin.generate.__self__ is twin


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_projector_and_tower(family: str) -> None:
    model, inputs = build(family), single(family, 0)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    with polytok.vlm("fastervlm", keep=4, row=row_of(family)).applied(model):
        model(**inputs, labels=labels).loss.backward()
    host = host_of(model)
    tower = {id(p) for p in host.tower(model).module.parameters()}
    trained = [p for p in model.parameters() if p.grad is not None and bool(p.grad.any())]
    outside = [n for n, _ in model.named_parameters() if "projector" in n or "merger" in n]
    assert any(id(p) in tower for p in trained)
    named = dict(model.named_parameters())
    assert outside and all(any(named[n] is p for p in trained) for n in outside)
    with polytok.vlm("fastervlm", keep=4, row=row_of(family)).applied(model):
        assert model.generate(**inputs, max_new_tokens=2).shape[1] > 2
