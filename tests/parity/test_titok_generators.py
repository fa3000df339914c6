"""Generators of TiTok and One-D-Piece against the official code, on random weights.

``data/titok_generators.npz`` holds what ``ImageBert`` (``bert/``, seed 11, 3 layers) and
``UViTBert`` (``uvit/``, seed 12, 4 layers and one in the middle) of bytedance/1d-tokenizer
(Apache-2.0, commit 942a96f) gave in fp32 on one CPU thread: width 32, 4 heads, feed-forward 128, 64
codes, 10 classes, K = 8; ids with masks among them, labels, logits with and without the class, and
ids sampled after torch.manual_seed(100 + n) as SAMPLES says. For the samples, the draw that hides
labels was made constant, so that noise on ids and on confidences is all that is drawn.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parity.official import arrays, assert_covered, filled, shapes_of
from polytok.generators import Query
from polytok.systems.classics import maskgit
from polytok.systems.classics.maskgit import MaskGIT, MaskGITConfig, key_map
from polytok.systems.keymap import to_ours, to_theirs

pytestmark = pytest.mark.parity

SIZES: dict[str, Any] = {"vocab": 64, "length": 8, "num_classes": 10, "dim": 32, "num_heads": 4}
CONFIGS = {
    "bert": MaskGITConfig(**SIZES, depth=3),
    "uvit": MaskGITConfig(**SIZES, depth=4, net="uvit", dropout=0.0),
}
SEEDS = {"bert": 11, "uvit": 12}
# Strengths as ours count them: power-cosine's is 1 less than the official 6.9.
SAMPLES: list[dict[str, Any]] = [
    {"guidance": "linear", "cfg": 4.5, "temperature": 9.5, "flatness": (1.0, 1.0), "steps": 4},
    {"guidance": "constant", "cfg": 1.5, "temperature": 2.0, "flatness": (1.3, 0.5), "steps": 5},
    {
        "guidance": "power-cosine",
        "cfg": 5.9,
        "temperature": 2.8,
        "flatness": (1.3, 0.5),
        "steps": 6,
    },
]
RELEASED = [name for name in shapes_of("titok_keys.json") if name.endswith("-gen")]


def built(name: str, **changes: Any) -> MaskGIT:
    """Our generator with the official weights."""
    config = MaskGITConfig(**{**vars(CONFIGS[name]), **changes})
    return filled(MaskGIT(config), key_map(config), SEEDS[name])  # type: ignore[return-value]


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def test_logits_are_those_of_the_official_code(name: str) -> None:
    model, found = built(name), arrays("titok_generators.npz", f"{name}/")
    query = Query(inp=found["ids"], index=torch.arange(8))
    features = model.conditioner.encode({"label": found["label"]})
    for branch, key in (("label", "logits"), ("null", "null")):
        cond = model.conditioner.branch(features, branch, 4)
        logits = model.head.logits(model.net(query, cond))
        torch.testing.assert_close(logits, found[key], atol=1e-4, rtol=0)
    assert 8 < int((found["ids"] == 64).sum()) < 24
    assert float((found["logits"] - found["null"]).abs().max()) > 1


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_sampled_ids_are_those_of_the_official_code(number: int, name: str) -> None:
    found = arrays("titok_generators.npz", f"{name}/")
    model = built(name, **SAMPLES[number])
    rng = torch.Generator().manual_seed(100 + number)
    codes = model.draw({"label": found["label"]}, count=4, rng=rng)
    assert torch.equal(codes.indices[0], found[f"sample_{number}"])


def test_a_checkpoint_written_back_is_the_same_generator(name: str) -> None:
    model = built(name)
    ours = model.state_dict()
    names = key_map(model.config)
    again = to_ours(names, to_theirs(names, ours))
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[k], t) for k, t in ours.items())


def test_every_released_generator_has_a_preset() -> None:
    assert len(RELEASED) == 6
    assert set(RELEASED) <= set(maskgit.PRESETS)


@pytest.mark.parametrize("preset", RELEASED)
def test_the_key_map_covers_every_released_size(preset: str) -> None:
    config = maskgit.preset(preset)
    with torch.device("meta"):
        model = MaskGIT(config)
    assert_covered(model, key_map(config), shapes_of("titok_keys.json")[preset])
