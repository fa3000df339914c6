"""Condition towers: one contract for all, the text tokenizer, and pretrained models as slots."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from polytok.core import hub
from polytok.core.errors import ConfigError, PolytokError, SignalError, WeightsError
from polytok.networks.pretrained import (
    HFImageTower,
    HFTextTower,
    SmallImageConfig,
    SmallImageTower,
    SmallTextConfig,
    SmallTextTower,
    TextTokenizer,
    Tower,
)
from polytok.networks.pretrained.optional import settle_torchvision
from polytok.networks.pretrained.text import END, FIRST_MERGE, LETTERS, PAD
from polytok.signals.image import framed
from polytok.training.ema import own_parameters

pytest.importorskip("tokenizers")
settle_torchvision()

CAPTIONS = [
    f"a {size} {colour} {thing} {place}"
    for size in ("small", "large", "tall")
    for colour in ("red", "blue", "wooden")
    for thing in ("chair", "table", "lamp with a round shade", "armchair")
    for place in ("", "on the floor")
]
TEXTS = ["a chair", "", "a tall wooden lamp with a round shade on the floor, and more of it"]
IMAGES = [Image.new("RGBA", (20, 30), (200, 30, 60, 255)), Image.linear_gradient("L")]
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
PROCESSOR = {"size": 16, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY_MLP = TINY | {"intermediate_size": 32}
TINY_VIT = TINY | {"image_size": 16, "patch_size": 8}


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(CAPTIONS, 400)


def hf_tokenizer() -> Any:
    """A word-level tokenizer: 0 pads, 1 ends, 2 begins, 3 is unknown."""
    transformers = pytest.importorskip("transformers")
    import tokenizers as library

    words = ["<pad>", "<end>", "<begin>", "<unk>", "a", "chair", "tall", "lamp", "of", "it"]
    vocab = {word: i for i, word in enumerate(words)}
    core = library.Tokenizer(library.models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = library.pre_tokenizers.Whitespace()
    core.post_processor = library.processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", 2), ("<end>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", bos_token="<begin>"
    )


def clip_text() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        **TINY_MLP,
        vocab_size=10,
        max_position_embeddings=12,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return transformers.CLIPTextModel(config)


def t5() -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    return transformers.T5Model(transformers.T5Config(vocab_size=10, **sizes))


def dinov2() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.Dinov2Model(transformers.Dinov2Config(**TINY_VIT))


def vit() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**TINY_VIT, intermediate_size=32)
    return transformers.ViTModel(config, add_pooling_layer=False)


def clip_vision() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(**TINY_VIT, intermediate_size=32)
    )


def small_text() -> SmallTextTower:
    config = SmallTextConfig(vocab_size=400, max_tokens=12, dim=16, num_layers=2, num_heads=2)
    return SmallTextTower(config, TextTokenizer.train(CAPTIONS, 400))


def small_image(stem: Literal["linear", "conv"] = "linear") -> SmallImageTower:
    config = SmallImageConfig(size=16, patch=8, stem=stem, dim=16, num_layers=2, num_heads=2)
    return SmallImageTower(config)


def conv_image() -> SmallImageTower:
    return small_image("conv")


TOWERS: dict[str, Callable[[], Tower]] = {
    "small-text": small_text,
    "small-image": small_image,
    "conv-image": conv_image,
    "clip-text": lambda: HFTextTower.from_model(clip_text(), hf_tokenizer(), 12),
    "t5": lambda: HFTextTower.from_model(t5(), hf_tokenizer(), 12),
    "dinov2": lambda: HFImageTower.from_model(dinov2(), PROCESSOR),
    "vit": lambda: HFImageTower.from_model(vit(), PROCESSOR),
    "clip-vision": lambda: HFImageTower.from_model(clip_vision(), PROCESSOR),
}


@pytest.fixture(params=TOWERS)
def tower(request: pytest.FixtureRequest) -> Tower:
    return TOWERS[request.param]()


def signals(tower: Tower) -> list[Any]:
    return list(TEXTS if isinstance(tower, (SmallTextTower, HFTextTower)) else IMAGES)


def rows(inputs: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    return {key: value[i : i + 1] for key, value in inputs.items()}


# the contract


def test_signals_become_tensors_and_tensors_tokens(tower: Tower) -> None:
    given = signals(tower)
    inputs = tower.prepare(given)
    assert all(len(value) == len(given) for value in inputs.values())
    assert inputs.keys() == ({"text", "text_mask"} if "text" in inputs else {"image"})
    out = tower(inputs)
    assert out.tokens.shape == (len(given), out.mask.shape[1], tower.dim)
    assert out.pooled.shape == (len(given), tower.dim)
    assert out.mask.dtype == torch.bool
    assert out.mask.any(1).all()
    assert out.tokens.isfinite().all()
    assert out.pooled.isfinite().all()


def test_items_of_a_batch_know_nothing_of_each_other(tower: Tower) -> None:
    inputs = tower.prepare(signals(tower))
    together = tower(inputs)
    for i, signal in enumerate(signals(tower)):
        alone = tower.prepare([signal])
        assert all(torch.equal(alone[key], rows(inputs, i)[key]) for key in inputs)
        found, mask = tower(alone), together.mask[i]
        torch.testing.assert_close(found.tokens[0][mask], together.tokens[i][mask])
        torch.testing.assert_close(found.pooled[0], together.pooled[i])


def test_different_signals_differ_and_equal_ones_do_not(tower: Tower) -> None:
    first, second = signals(tower)[:2]
    pooled = tower(tower.prepare([first, second, first])).pooled
    torch.testing.assert_close(pooled[0], pooled[2])
    assert (pooled[0] - pooled[1]).abs().max() > 1e-4


def test_what_else_a_batch_holds_is_left_alone(tower: Tower) -> None:
    inputs = tower.prepare(signals(tower))
    more = inputs | {"points": torch.zeros(1)}
    assert torch.equal(tower(more).tokens, tower(inputs).tokens)
    with pytest.raises(PolytokError, match=r"no '(text|image)' \(keys: points\)"):
        tower({"points": torch.zeros(1)})


def test_signals_must_be_a_list_of_the_right_kind(tower: Tower) -> None:
    for wrong in ([], [3], signals(tower)[0], [*signals(tower), None]):
        with pytest.raises(SignalError, match=r"a list of (texts|PIL images)"):
            tower.prepare(wrong)


def test_tensors_of_other_shapes_are_refused(tower: Tower) -> None:
    inputs = tower.prepare(signals(tower))
    for key, value in inputs.items():
        with pytest.raises(PolytokError, match=rf"{key} has shape"):
            tower(inputs | {key: value[..., None]})
    if "image" in inputs:
        with pytest.raises(PolytokError, match=r"\(2, 3, 8, 8\), not \(\*, 3, 16, 16\)"):
            tower({"image": inputs["image"][..., :8, :8]})
    else:
        with pytest.raises(PolytokError, match="text has 24 tokens, more than 12"):
            tower({key: value.repeat(1, 2) for key, value in inputs.items()})
        with pytest.raises(PolytokError, match=r"int64 and torch\.float32, not int64 and bool"):
            tower(inputs | {"text_mask": inputs["text_mask"].float()})


def test_towers_run_in_bf16(tower: Tower) -> None:
    inputs = tower.prepare(signals(tower))
    wanted = tower(inputs).pooled
    with torch.autocast("cpu", torch.bfloat16):
        found = tower(inputs).pooled
    torch.testing.assert_close(found.float(), wanted, atol=0.15, rtol=0.1)


@pytest.mark.parametrize("make", [small_text, small_image, conv_image])
def test_every_weight_of_a_small_tower_trains(make: Callable[[], Tower]) -> None:
    tower = make()
    inputs = tower.prepare(signals(tower))
    out = tower(inputs)
    (out.tokens.square() * torch.randn_like(out.tokens)).sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert own_parameters(tower).keys() == dict(tower.named_parameters()).keys()


# the small image tower


def test_a_patch_is_one_token_at_first_and_places_matter() -> None:
    tower = SmallImageTower(SmallImageConfig(size=16, patch=8, dim=16, num_layers=0))
    image = torch.rand(1, 3, 16, 16)
    changed = image.clone()
    changed[..., 8:, :8] = torch.rand(3, 8, 8)
    moved = (tower({"image": image}).tokens != tower({"image": changed}).tokens).any(-1)
    assert moved.tolist() == [[False, False, True, False]]
    flat = tower({"image": torch.full((1, 3, 16, 16), 0.3)}).tokens[0]
    assert (flat[0] - flat[1]).abs().max() > 0.1


def test_images_are_framed_on_white() -> None:
    found = small_image().prepare(IMAGES)["image"]
    for image, row in zip(IMAGES, found, strict=True):
        assert torch.equal(row, torch.from_numpy(framed(image, 16)))


def test_sizes_of_the_small_towers_are_checked() -> None:
    with pytest.raises(ConfigError, match="size=60 is not a multiple of patch=8"):
        SmallImageConfig(size=60)
    with pytest.raises(ConfigError, match="patch=6 is not a power of two"):
        SmallImageConfig(size=60, patch=6, stem="conv")
    for config in (SmallImageConfig, SmallTextConfig):
        with pytest.raises(ConfigError, match="dim=128 is not a multiple of num_heads=3"):
            config(num_heads=3)
    with pytest.raises(ConfigError, match="vocab_size=257 is less than 258"):
        SmallTextConfig(vocab_size=257)
    with pytest.raises(ConfigError, match="max_tokens=0"):
        SmallTextConfig(max_tokens=0)


# the small text tower


def test_padding_changes_nothing() -> None:
    tower = small_text()
    inputs = tower.prepare(TEXTS[:2])
    wanted, mask = tower(inputs), inputs["text_mask"]
    other = inputs["text"].masked_fill(~mask, 77)
    found = tower(inputs | {"text": other})
    assert torch.equal(found.tokens[mask], wanted.tokens[mask])
    assert torch.equal(found.pooled, wanted.pooled)
    short = int(mask.sum(1).max())
    cut = tower({key: value[:, :short] for key, value in inputs.items()})
    torch.testing.assert_close(cut.pooled, wanted.pooled)


def test_pooled_is_the_mean_of_what_is_valid() -> None:
    tower = small_text()
    out = tower(tower.prepare(TEXTS))
    for tokens, mask, pooled in zip(out.tokens, out.mask, out.pooled, strict=True):
        torch.testing.assert_close(pooled, tokens[mask].mean(0))


def test_the_order_of_words_matters() -> None:
    tower = small_text()
    pooled = tower(tower.prepare(["a chair on a table", "a table on a chair"])).pooled
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


def test_a_row_without_a_valid_token_is_harmless() -> None:
    tower = small_text()
    inputs = tower.prepare(["", "a chair"])
    inputs["text_mask"][0] = False
    out = tower(inputs)
    assert out.pooled[0].abs().max() == 0
    out.tokens.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tower.parameters())


@dataclass(frozen=True)
class Config:
    """What hub writes beside the weights."""


def test_the_tokenizer_is_saved_with_the_weights(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    config = SmallTextConfig(vocab_size=500, dim=16, num_layers=1)
    tower, other = SmallTextTower(config), SmallTextTower(config)
    tower.tokenizer = tokenizer
    assert other.tokenizer.vocab_size == FIRST_MERGE
    hub.save_pretrained(tower, Config(), tmp_path, system="s", preset="p", dtype=torch.bfloat16)
    hub.load_weights(other, tmp_path)
    assert other.tokenizer.to_json() == tokenizer.to_json()
    assert torch.equal(other.prepare(TEXTS)["text"], tower.prepare(TEXTS)["text"])
    assert other.is_cut(TEXTS) == tower.is_cut(TEXTS) == tokenizer.is_cut(TEXTS, 16)
    assert torch.equal(other.to(torch.bfloat16).merges, tower.merges)


def test_a_tokenizer_must_fit(tokenizer: TextTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"has \d+ ids, more than vocab_size=300"):
        SmallTextTower(SmallTextConfig(vocab_size=300), tokenizer)
    tower = SmallTextTower(SmallTextConfig(vocab_size=tokenizer.vocab_size), tokenizer)
    assert int(tower.prepare(CAPTIONS)["text"].max()) < tokenizer.vocab_size
    tower(tower.prepare(CAPTIONS))


# the tokenizer


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_normalised(text: str) -> None:
    tokenizer = SHARED
    ids, mask = tokenizer.encode([text], 2000)
    assert not tokenizer.is_cut([text], 2000)[0]
    assert tokenizer.decode(ids) == [tokenizer._core.normalizer.normalize_str(text)]
    assert int(mask.sum()) >= 1
    assert int(ids[0, int(mask.sum()) - 1]) == END


SHARED = TextTokenizer.train(CAPTIONS, 400)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  A\tRed \n CHAIR ", "a red chair"),
        ("ﬁve １２", "five 12"),
        ("椅子 🪑 كرسي ÉTÉ", "椅子 🪑 كرسي été"),
        ("👩‍👩‍👧", "👩‍👩‍👧"),
        ("<pad> <end> \0", "<pad> <end> \0"),
        (" \n ", ""),
    ],
)
def test_case_width_and_spacing_are_normalised(text: str, wanted: str) -> None:
    ids, mask = SHARED.encode([text, wanted], 64)
    assert torch.equal(ids[0], ids[1])
    assert SHARED.decode(ids) == [wanted, wanted]
    assert (ids[0] == END).sum() == 1
    assert torch.equal(ids[0] == PAD, ~mask[0])


def test_ids_are_those_of_the_library(tokenizer: TextTokenizer) -> None:
    """Rebuilt from merges, the tokenizer splits as the one that was trained."""
    import tokenizers as library

    core = library.Tokenizer(library.models.BPE())
    core.normalizer = tokenizer._core.normalizer
    core.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    assert sorted(alphabet) == sorted(LETTERS)
    trainer = library.trainers.BpeTrainer(
        vocab_size=398, min_frequency=2, show_progress=False, initial_alphabet=alphabet
    )
    core.train_from_iterator(CAPTIONS, trainer)
    for text in [*CAPTIONS, "a chairlamp floored wood 椅"]:
        wanted = core.encode(text).tokens
        assert tokenizer._core.encode(text).tokens == wanted
        ids, mask = tokenizer.encode([text], 99)
        assert int(mask.sum()) == len(wanted) + 1
        assert ids[0].tolist()[len(wanted)] == END


def test_merges_make_captions_short(tokenizer: TextTokenizer) -> None:
    _, mask = tokenizer.encode(CAPTIONS, 64)
    assert mask.sum(1).float().mean() < 10
    _, bare = TextTokenizer().encode(CAPTIONS, 64)
    assert bare.sum(1).tolist() == [len(" ".join(text.split())) + 2 for text in CAPTIONS]


def test_training_is_the_same_in_any_order_and_process(tokenizer: TextTokenizer) -> None:
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert TextTokenizer.train(iter(shuffled), 400).to_json() == tokenizer.to_json()
    digest = hashlib.sha256(json.dumps(tokenizer.merges).encode()).hexdigest()[:16]
    assert digest == "3158596fd9c7f0c8"


@pytest.mark.parametrize("size", [258, 259, 300, 400])
def test_no_more_ids_than_asked_for(size: int) -> None:
    tokenizer = TextTokenizer.train(CAPTIONS, size)
    assert tokenizer.vocab_size <= size
    assert int(tokenizer.encode(CAPTIONS, 64)[0].max()) < tokenizer.vocab_size
    if size < 300:
        assert tokenizer.vocab_size == size


def test_long_texts_are_cut_and_say_so(tokenizer: TextTokenizer) -> None:
    text = "a tall wooden chair on the floor"
    needed = int(tokenizer.encode([text], 99)[1].sum())
    whole, mask = tokenizer.encode([text], needed)
    assert mask.all()
    assert tokenizer.is_cut([text, ""], needed) == [False, False]
    cut, mask = tokenizer.encode([text], needed - 1)
    assert mask.all()
    assert tokenizer.is_cut([text, ""], needed - 1) == [True, False]
    assert cut[0].tolist() == [*whole[0, : needed - 2].tolist(), END]
    assert tokenizer.encode([text], 1)[0].tolist() == [[END]]
    assert tokenizer.encode(["x" * 100_000], 16)[0].shape == (1, 16)


def test_an_empty_text_is_the_end_token(tokenizer: TextTokenizer) -> None:
    ids, mask = tokenizer.encode(["", " "], 4)
    assert ids.tolist() == [[END, PAD, PAD, PAD]] * 2
    assert mask.tolist() == [[True, False, False, False]] * 2
    assert ids.dtype == torch.int64


def test_json_brings_the_tokenizer_back(tokenizer: TextTokenizer) -> None:
    again = TextTokenizer.from_json(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json()
    assert torch.equal(again.encode(TEXTS, 20)[0], tokenizer.encode(TEXTS, 20)[0])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{}", '{"merges": 3}', '{"merges": [[2]]}', '{"merges": [[2, 258]]}',
     '{"merges": [[1, 2]]}', '{"merges": [[-1, 2]]}', '{"merges": [["a", "b"]]}', "null"],
)  # fmt: skip
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        TextTokenizer.from_json(text)
    assert "\n" not in str(error.value)


def test_wrong_texts_are_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(SignalError, match=r"not valid Unicode: '\\ud800' at place 2"):
        tokenizer.encode(["ab\ud800"], 8)
    with pytest.raises(SignalError, match="got one str"):
        tokenizer.encode("a chair", 8)
    with pytest.raises(SignalError, match="item 1 of a list of texts is of type bytes"):
        tokenizer.encode(["a", b"b"], 8)  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="max_tokens=0"):
        tokenizer.encode(["a"], 0)
    with pytest.raises(ConfigError, match="vocab_size=100 is less than 258"):
        TextTokenizer.train(CAPTIONS, 100)


# pretrained towers


def test_a_text_tower_gives_what_the_model_gives() -> None:
    model = clip_text().eval()
    tower = HFTextTower.from_model(model, hf_tokenizer(), 6)
    inputs = tower.prepare(["a tall chair", "", "a lamp of it of it of it"])
    assert inputs["text"].tolist() == [[2, 4, 6, 5, 1, 0], [2, 1, 0, 0, 0, 0], [2, 4, 7, 8, 9, 1]]
    assert torch.equal(inputs["text_mask"], inputs["text"] != 0)
    assert tower.is_cut(["a tall chair", "", "a lamp of it of it of it"]) == [False, False, True]
    out = tower(inputs)
    wanted = model(input_ids=inputs["text"], attention_mask=inputs["text_mask"].long())
    assert torch.equal(out.tokens, wanted.last_hidden_state)
    assert torch.equal(out.pooled, wanted.pooler_output)
    assert torch.equal(out.mask, inputs["text_mask"])


def test_of_a_model_that_also_writes_the_encoder_is_used() -> None:
    model = t5()
    tower = HFTextTower.from_model(model, hf_tokenizer(), 6)
    out = tower(tower.prepare(["a chair", "a"]))
    assert tower.model.module is model.get_encoder()
    for tokens, mask, pooled in zip(out.tokens, out.mask, out.pooled, strict=True):
        torch.testing.assert_close(pooled, tokens[mask].mean(0))


def test_of_a_model_with_two_sides_the_right_one_is_used() -> None:
    transformers = pytest.importorskip("transformers")
    both = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=clip_text().config.to_dict(), vision_config=clip_vision().config.to_dict()
        )
    )
    text = HFTextTower.from_model(both, hf_tokenizer(), 6)
    image = HFImageTower.from_model(both, PROCESSOR)
    assert text.model.module is both.text_model
    assert image.model.module is both.vision_model


@pytest.mark.parametrize("make", [dinov2, vit, clip_vision])
def test_an_image_tower_gives_what_the_model_gives(make: Callable[[], Any]) -> None:
    model = make().eval()
    tower = HFImageTower.from_model(model, PROCESSOR)
    image = tower.prepare(IMAGES)["image"]
    out = tower({"image": image})
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    wanted = model(pixel_values=(image - mean) / std)
    torch.testing.assert_close(out.tokens, wanted.last_hidden_state)
    assert out.mask.all()
    own = getattr(wanted, "pooler_output", None)
    torch.testing.assert_close(out.pooled, wanted.last_hidden_state[:, 0] if own is None else own)
    assert (own is None) == (make is vit)


def test_the_mean_stands_in_where_there_is_no_class_token() -> None:
    model = vit()
    tower = HFImageTower.from_model(model, PROCESSOR)
    # As if the first of the five tokens were a patch too.
    tower.num_patches = 5
    out = tower(tower.prepare(IMAGES))
    torch.testing.assert_close(out.pooled, out.tokens.mean(1))


@pytest.mark.parametrize("make", [clip_text, dinov2])
def test_pretrained_weights_are_nobodys(make: Callable[[], Any]) -> None:
    model = make()
    tower = (
        HFTextTower.from_model(model, hf_tokenizer(), 12)
        if make is clip_text
        else HFImageTower.from_model(model, PROCESSOR)
    )
    assert not own_parameters(tower)
    assert not tower.state_dict()
    tower.train().requires_grad_(True)
    # Of some models a part is taken, which is all that the tower may set.
    assert not any(part.training for part in tower.model.module.modules())
    assert not any(p.requires_grad for p in model.parameters())
    tower.to(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_gradient_reaches_the_image() -> None:
    tower = HFImageTower.from_model(dinov2(), PROCESSOR)
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    tower({"image": image}).pooled.square().sum().backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": 30}, 30),
        ({"size": {"height": 31, "width": 31}}, 31),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 32}, 32),
        ({"size": {"shortest_edge": 33}, "do_center_crop": False, "crop_size": 32}, 33),
        ({"size": 9, "do_center_crop": True, "crop_size": {"height": 34, "width": 34}}, 34),
    ],
)
def test_the_size_is_that_of_the_processor(settings: dict[str, Any], size: int) -> None:
    tower = HFImageTower.from_model(dinov2(), PROCESSOR | settings)
    assert tower.size == size
    assert tower.prepare(IMAGES)["image"].shape[2:] == (size, size)


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({}, (0.8 - 0.4) / 0.3),
        ({"do_normalize": False}, 0.8),
        ({"do_normalize": False, "rescale_factor": 1 / 127.5}, 1.6),
        ({"do_normalize": False, "do_rescale": False}, 204.0),
    ],
)
def test_pixels_reach_the_model_as_the_processor_makes_them(
    settings: dict[str, Any], value: float
) -> None:
    model, seen = dinov2(), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    HFImageTower.from_model(model, PROCESSOR | settings)({"image": torch.full((1, 3, 16, 16), 0.8)})
    assert float(seen[0][0, 1, 0, 0]) == pytest.approx(value, rel=1e-5)


def test_a_processor_object_will_do() -> None:
    class Processor:
        def to_dict(self) -> dict[str, Any]:
            return PROCESSOR

    assert HFImageTower.from_model(dinov2(), Processor()).size == 16


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"size": {"height": 8, "width": 9}}, r"size=\{'height': 8, 'width': 9\}"),
        ({"size": None}, "size=None"),
        ({"image_mean": None}, "image_mean=None"),
        ({"image_std": [1.0]}, r"image_std=\[1.0\]"),
    ],
)
def test_settings_that_say_too_little_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        HFImageTower.from_model(dinov2(), PROCESSOR | settings)


def test_a_text_model_has_a_longest_text() -> None:
    with pytest.raises(ConfigError, match=r"max_tokens=77 is not within 1\.\.12"):
        HFTextTower.from_model(clip_text(), hf_tokenizer())
    bare = hf_tokenizer()
    bare.pad_token = None
    with pytest.raises(ConfigError, match="no token to pad with"):
        HFTextTower.from_model(clip_text(), bare, 12)


def test_towers_load_from_a_folder(tmp_path: Path) -> None:
    text, image = tmp_path / "text", tmp_path / "image"
    writer, seer = clip_text(), dinov2()
    writer.save_pretrained(text)
    hf_tokenizer().save_pretrained(text)
    seer.half().save_pretrained(image)
    (image / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    reads = HFTextTower(str(text), max_tokens=12)
    wanted = HFTextTower.from_model(writer, hf_tokenizer(), 12)
    inputs = wanted.prepare(TEXTS)
    assert torch.equal(reads.prepare(TEXTS)["text"], inputs["text"])
    torch.testing.assert_close(reads(inputs).pooled, wanted(inputs).pooled)
    sees = HFImageTower(str(image))
    batch = sees.prepare(IMAGES)
    expected = HFImageTower.from_model(seer.float(), PROCESSOR)(batch)
    torch.testing.assert_close(sees(batch).pooled, expected.pooled)


@pytest.mark.parametrize("kind", [HFTextTower, HFImageTower])
def test_what_cannot_be_had_is_named_in_one_line(kind: type[Tower], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(WeightsError, match=r"cannot fetch .*nothing@v1") as error:
        kind(str(tmp_path / "nothing"), revision="v1")
    assert "\n" not in str(error.value)


def test_without_the_extras_the_small_towers_are_there() -> None:
    code = """
import sys
sys.modules["transformers"] = sys.modules["tokenizers"] = None
import torch
from polytok.core.errors import PolytokError
from polytok.networks.pretrained import *
SmallImageTower()({"image": torch.zeros(1, 3, 64, 64)})
ids = torch.zeros(1, 4, dtype=torch.int64)
SmallTextTower()({"text": ids, "text_mask": ids == 0})
for make, extra in (
    (TextTokenizer, "tokenizers"),
    (lambda: SmallTextTower().prepare(["a"]), "tokenizers"),
    (lambda: HFTextTower("a/b"), "'polytok[hf]'"),
    (lambda: HFImageTower("a/b"), "'polytok[hf]'"),
):
    try:
        make()
    except PolytokError as error:
        assert f"pip install {extra}" in str(error), error
    else:
        raise AssertionError(extra)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
