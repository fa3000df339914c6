"""Tokens that leave inside the language model, against masks in a pass without a cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import polytok
from polytok.core.errors import PolytokError
from polytok.reducers.vlm import Plan, Prefill, StaticExit
from polytok.reducers.vlm.cut import Cutter, cut, spread
from polytok.reducers.vlm.hosts.base import cache_name
from reducers.vlm.models import DECODER, FAMILIES, IMAGE, batch, build, padded, right, single
from reducers.vlm.reference import errors, generated, going_on, masked_logits

KERNELS = ["sdpa", "eager"]
DEPTH = DECODER["num_hidden_layers"]


def inputs_of(family: str, is_padded: bool) -> dict[str, Any]:
    if is_padded:
        return batch(family, [single(family, 0), single(family, 1)])
    return single(family, 1)


def caches(found: Any) -> list[int]:
    cache = found["cache"] if "cache" in found else found["past_key_values"]
    return [cache.get_seq_length(i) for i in range(DEPTH)]


@pytest.mark.parametrize("is_padded", [False, True], ids=["alone", "padded"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exit_equals_hiding_the_picture_from_later_layers(
    family: str, kernel: str, is_padded: bool
) -> None:
    model, inputs = build(family, kernel), inputs_of(family, is_padded)
    image = inputs["input_ids"] == IMAGE
    plain = generated(model, inputs)
    for layer in range(DEPTH):
        with polytok.vlm("dyvte", layer=layer).applied(model):
            found = generated(model, inputs)
        expected = masked_logits(model, inputs, found.sequences, image, layer + 1)
        assert errors(found, expected) <= 1e-5
        # Rows of a batch end up with different numbers of text tokens: the longest counts.
        text = int(((~image) & inputs["attention_mask"].bool()).sum(1).max()) + 3
        full = image.shape[1] + 3
        assert caches(found) == [full] * (layer + 1) + [text] * (DEPTH - layer - 1)
        is_same = all(torch.equal(a, b) for a, b in zip(found.logits, plain.logits, strict=True))
        assert is_same == (layer == DEPTH - 1)


@dataclass
class Scripted:
    """Rows lose given shares of their picture after given layers."""

    script: dict[int, list[float]]
    hidden: dict[int, Tensor] = field(default_factory=dict)

    def taps(self) -> tuple[Any, ...]:
        return ()

    def check(self, model: Any) -> None: ...

    def after(self, layer: int, hidden: Tensor, prompt: Prefill) -> Tensor | None:
        if layer not in self.script:
            return None
        drop = torch.zeros_like(prompt.image)
        for row, share in enumerate(self.script[layer]):
            where = prompt.image[row].nonzero().flatten()
            drop[row, where[: round(share * len(where))]] = True
        self.hidden[layer] = drop
        return prompt.left & ~drop


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_may_leave_at_layers_of_their_own(family: str, kernel: str) -> None:
    model, inputs = build(family, kernel), inputs_of(family, True)
    rule = Scripted({0: [0.0, 1.0], 2: [1.0, 1.0]})
    with Plan(name="scripted", inside=rule).applied(model):
        found = generated(model, inputs)
    image = inputs["input_ids"] == IMAGE
    expected = masked_logits(model, inputs, found.sequences, image, torch.tensor([3, 1]))
    assert errors(found, expected) <= 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_second_cut_starts_from_the_first(kernel: str) -> None:
    # No padding and equal lengths: without a mask, rows with fewer tokens still need one.
    model = build("llava", kernel)
    inputs = batch("llava", [single("llava", 0, 4), single("llava", 1, 4)])
    rule = Scripted({0: [0.25, 0.5], 1: [0.5, 0.75]})
    with Plan(name="scripted", inside=rule).applied(model):
        found = generated(model, inputs)
    # Layer 1 hides the first set, later layers the second.
    hidden = {1: rule.hidden[0], 2: rule.hidden[1]}
    expected = masked_by_layer(model, inputs, found.sequences, hidden)
    assert errors(found, expected) <= 1e-5
    assert caches(found) == [75, 59, 43, 43]


def masked_by_layer(
    model: Any, inputs: dict[str, Any], sequences: Tensor, hidden: dict[int, Tensor]
) -> Tensor:
    """As :func:`masked_logits`, with what is hidden growing from layer to layer."""
    from reducers.vlm import reference

    stages = sorted(hidden.items())
    handles = []

    def more(mask: Tensor, gone: Tensor) -> Tensor:
        later = torch.nn.functional.pad(gone, (0, mask.shape[-1] - gone.shape[1]))
        eye = torch.eye(mask.shape[-1], dtype=torch.bool)
        return mask.masked_fill(later[:, None, None] & ~eye, torch.finfo(mask.dtype).min)

    def hide(gone: Tensor) -> Any:
        return lambda _, args, options: (
            args,
            {**options, "attention_mask": more(options["attention_mask"], gone)},
        )

    nothing = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for start, gone in stages:
        for layer in model.model.language_model.layers[start:]:
            handles.append((layer, hide(gone)))
    # Registered after those of the reference, so that they see its masks.
    original = torch.nn.Module.register_forward_pre_hook
    placed: list[Any] = []

    def register(module: Any, hook: Any, **options: Any) -> Any:
        handle = original(module, hook, **options)
        placed.extend(
            original(layer, extra, with_kwargs=True) for layer, extra in handles if layer is module
        )
        return handle

    torch.nn.Module.register_forward_pre_hook = register  # type: ignore[method-assign]
    try:
        return reference.masked_logits(model, inputs, sequences, nothing)
    finally:
        torch.nn.Module.register_forward_pre_hook = original  # type: ignore[method-assign]
        for handle in placed:
            handle.remove()


def test_a_cut_composes_with_a_reduction_before_it() -> None:
    model, inputs = build("llava"), inputs_of("llava", True)
    both = polytok.vlm("fastervlm", keep=9) | polytok.vlm("dyvte", layer=1)
    assert both.name == "fastervlm | dyvte"
    prepared, report = polytok.vlm("fastervlm", keep=9).visual.prepare(model, inputs)
    with polytok.vlm("dyvte", layer=1).applied(model):
        expected = generated(model, prepared)
    with both.applied(model) as run:
        found = generated(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, expected.logits, strict=True))
    assert torch.equal(found.sequences[:, :-4], inputs["input_ids"])
    assert run.report.after == (9, 9)
    assert run.report.kv_after < report.kv_after


def test_beams_share_the_cut_of_their_prompt() -> None:
    model, inputs = build("llava"), inputs_of("llava", True)
    with polytok.vlm("dyvte", layer=1).applied(model):
        found = generated(model, inputs, num_beams=3, output_scores=True)
    image = inputs["input_ids"] == IMAGE
    logits = masked_logits(model, inputs, found.sequences, image, 2).log_softmax(-1)
    scores = logits.gather(-1, found.sequences[:, -4:, None]).mean((1, 2))
    torch.testing.assert_close(found.sequences_scores, scores, atol=1e-5, rtol=0)


def test_logits_keep_the_shape_of_the_prompt() -> None:
    model, inputs = build("llava"), inputs_of("llava", True)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    with polytok.vlm("dyvte", layer=1).applied(model), torch.no_grad():
        out = model(**inputs, labels=labels)
        cacheless = model(**inputs, use_cache=False)
    assert out.logits.shape[:2] == labels.shape and out.loss.isfinite()
    text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    torch.testing.assert_close(out.logits[text], cacheless.logits[text], atol=1e-5, rtol=0)


def test_a_loop_by_hand_goes_on_from_the_cut() -> None:
    model, inputs = build("llava"), inputs_of("llava", True)
    with polytok.vlm("dyvte", layer=1).applied(model), torch.no_grad():
        expected = generated(model, inputs)
        positions = inputs["attention_mask"].cumsum(-1) - 1
        out = model(**inputs, position_ids=positions.clamp(min=0))
        mask = inputs["attention_mask"]
        for step in range(1, 4):
            mask = torch.cat([mask, mask[:, -1:]], 1)
            out = model(
                input_ids=out.logits[:, -1:].argmax(-1),
                attention_mask=mask,
                position_ids=positions[:, -1:] + step,
                **going_on(model, out),
            )
            torch.testing.assert_close(out.logits[:, -1], expected.logits[step], atol=1e-5, rtol=0)


def test_cutting_and_spreading_are_inverse() -> None:
    hidden = torch.randn(2, 6, 3)
    valid = torch.tensor([[True] * 6, [False] + [True] * 5])
    image = torch.tensor([[False, True, True, False, False, False]] * 2)
    alive = valid & ~image
    prompt, short = cut(hidden, Prefill(image=image, valid=valid), alive)
    assert short.shape[1] == 4 and prompt.seen.tolist() == [[True] * 4, [False] + [True] * 3]
    assert torch.equal(spread(short, prompt), hidden * alive[..., None])


def test_what_cannot_be_cut_is_refused_before_anything_changes() -> None:
    plan = polytok.vlm("dyvte", layer=1)
    model, inputs = build("llava"), single("llava", 0)
    with pytest.raises(PolytokError, match=r"layer=4 is not one of the layers 0..3"):
        polytok.vlm("dyvte", layer=4).apply(model)
    model.config.text_config.sliding_window = 8
    with pytest.raises(PolytokError, match="sliding windows cannot be cut"):
        plan.apply(model)
    model.config.text_config.sliding_window = None
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(PolytokError, match="flash_attention_2 takes no mask per layer"):
        plan.apply(model)
    model.config.text_config._attn_implementation_internal = "sdpa"
    with plan.applied(model):
        for options, words in (
            ({"cache_implementation": "static"}, "a static cache cannot hold"),
            ({"prefill_chunk_size": 8}, "needs the whole prompt"),
            ({"prompt_lookup_num_tokens": 2}, "assisted decoding"),
        ):
            with pytest.raises(PolytokError, match=words):
                model.generate(**inputs, max_new_tokens=2, **options)
        from transformers import StaticCache

        cache = StaticCache(config=model.config.text_config, max_cache_len=99)
        with pytest.raises(PolytokError, match="StaticCache"), torch.no_grad():
            model(**inputs, **{cache_name(model): cache})
        with pytest.raises(PolytokError, match="input_ids"):
            model(inputs_embeds=torch.zeros(1, 3, 32))
    assert not any(layer._forward_pre_hooks for layer in model.model.language_model.layers)


def test_other_threads_run_the_layers_as_they_are() -> None:
    model = build("llava")
    cutter = Cutter(StaticExit(0), model, lambda: False)
    inputs = single("llava", 0)
    plain = model(**inputs).logits
    cutter.install()
    assert torch.equal(model(**inputs).logits, plain)
    cutter.remove()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_last_token_attends_to_stays(family: str, kernel: str) -> None:
    model, inputs = build(family, kernel), inputs_of(family, True)
    plan = polytok.vlm("fastv", layer=1, keep=0.4)
    with plan.applied(model) as run:
        found = generated(model, inputs)
    assert model.model.language_model.config._attn_implementation == kernel
    assert run.exit_layers == (None, None)
    # The eager maps of the whole model say which.
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(kernel)
    image = inputs["input_ids"] == IMAGE
    hidden = image.clone()
    for row in range(2):
        scores = maps[1][row].mean(0)[-1].masked_fill(~image[row], -1)
        hidden[row, scores.topk(round(0.4 * int(image[row].sum()))).indices] = False
    expected = masked_logits(model, inputs, found.sequences, hidden, 2)
    assert errors(found, expected) <= 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_fewer_tokens_first_and_none_later(kernel: str) -> None:
    model, inputs = build("llava", kernel), inputs_of("llava", True)
    both = polytok.vlm("fastv", layer=0, keep=20) | polytok.vlm("dyvte", layer=2)
    with both.applied(model) as run:
        found = generated(model, inputs)
    with polytok.vlm("fastv", layer=0, keep=20).applied(model):
        few = generated(model, inputs)
    assert run.exit_layers == (2, 2)
    assert [a - b for a, b in zip(caches(few), caches(found), strict=True)] == [0, 0, 0, 20]
    assert caches(few) == [77, 33, 33, 33]
    plain = generated(model, inputs)
    for options in ({"keep": 1.0}, {"keep": 64}, {"layer": DEPTH - 1}):
        with polytok.vlm("fastv", **options).applied(model):
            same = generated(model, inputs)
        assert all(torch.equal(a, b) for a, b in zip(same.logits, plain.logits, strict=True))
    with pytest.raises(PolytokError, match="keep=0 is neither a number of tokens per prompt"):
        polytok.vlm("fastv", keep=0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_token_is_no_padding(family: str, kernel: str) -> None:
    model, inputs = build(family, kernel), right(inputs_of(family, True))
    plan = polytok.vlm("fastv", layer=1, keep=0.3) | polytok.vlm("fastv", layer=2, keep=0.5)
    with plan.applied(model), torch.no_grad():
        both = model(**inputs).logits
        for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            alone = model(**single(family, row)).logits[0, -1]
            torch.testing.assert_close(both[row, length - 1], alone, atol=1e-4, rtol=0)


def test_a_prompt_without_a_picture_has_no_exit() -> None:
    model, inputs = build("llava"), single("llava", 0)
    inputs |= padded([inputs["input_ids"][0], torch.arange(3, 9)])
    with polytok.vlm("dyvte", layer=1).applied(model) as run, torch.no_grad():
        model(**inputs)
    assert run.exit_layers == (1, None)


def test_choices_that_change_from_step_to_step_need_a_cache() -> None:
    from polytok.systems.vlm.dyvte import DyVTEGates

    model, inputs = build("llava"), single("llava", 0)
    plans = [polytok.vlm("fastv", layer=1), polytok.vlm("dyvte", gates=DyVTEGates.like(model, 4))]
    static = polytok.vlm("dyvte", layer=1)
    for plan in (*plans, static | plans[0]):
        with plan.applied(model), pytest.raises(PolytokError, match="choose anew at every step"):
            generated(model, inputs, use_cache=False)
    with (static | polytok.vlm("dyvte", layer=2)).applied(model):
        anew = generated(model, inputs, use_cache=False)
        assert torch.equal(anew.sequences, generated(model, inputs).sequences)
