"""Training: samples that repeat, a frozen model, an identity that is learnt, runs that resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polytok.core.config import from_dict, override
from polytok.core.contracts import StepContext
from polytok.core.errors import ConfigError, PolytokError, SignalError
from polytok.core.seeding import torch_rng
from polytok.systems import api
from polytok.systems.text import zett
from polytok.systems.text.zett.training import STAGES, TransferSampling, TransferSource, read_texts
from polytok.training import Recipe
from systems.text.zett_models import TEXTS, language_model

RECIPES = sorted((Path(__file__).parents[3] / "recipes" / "zett").glob("*.toml"))
SAMPLING: dict[str, Any] = {
    "num_texts": 3,
    "num_tokens": 24,
    "tokenizer": {"size_mean": 480.0, "size_min": 480, "size_max": 480, "queue": 2},
}
WORDS = "\n".join(TEXTS) * 3


def source(
    lm: zett.LanguageModel, texts: dict[str, str] | None = None, **change: Any
) -> TransferSource:
    return TransferSource(
        texts or {"en": WORDS},
        lm,
        from_dict(TransferSampling, SAMPLING),
        **{"length": 7, "pad_id": lm.pad_id, **change},
    )


def model_of(lm: zett.LanguageModel, **change: Any) -> zett.Zett:
    vocabulary = lm.tokenizer.vocabulary
    sizes = {
        "vocab_size": vocabulary.num_original,
        "num_extra": lm.tokenizer.num_extra,
        "pad_id": lm.pad_id,
    }
    model = zett.Zett(override(zett.preset("zett-tiny"), **{**sizes, **change}), lm.model)
    model.start_stage(STAGES[0], [])
    return model


def batch(found: TransferSource, *numbers: int) -> dict[str, torch.Tensor]:
    samples = [found.sample(n) for n in numbers]
    return {key: torch.stack([s[key] for s in samples]) for key in samples[0]}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "roberta"])
def test_samples_repeat_and_have_equal_shapes(kind: str) -> None:
    lm = language_model(kind)
    first, second = source(lm), source(lm)
    for n in (3, 0):
        a, b = first.sample(n), second.sample(n)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    shapes = [{k: v.shape for k, v in first.sample(n).items()} for n in (0, 1, 50)]
    assert shapes[0] == shapes[1] == shapes[2]
    assert not torch.equal(first.sample(0)["surface"], first.sample(1)["surface"])


def test_samples_before_the_first_are_blank() -> None:
    lm = language_model()
    found, plain = source(lm, first=3), source(lm)
    assert found.sample(0).keys() == found.sample(3).keys()
    assert all(not value.any() for value in found.sample(2).values())
    assert torch.equal(found.sample(3)["surface"], plain.sample(3)["surface"])


def test_targets_follow_the_text_after_the_start_token() -> None:
    lm = language_model()
    sample = source(lm).sample(0)
    start = int((sample["special"] == lm.tokenizer.vocabulary.specials[lm.start]).nonzero())
    assert (sample["text"][:, 0] == start).all()
    assert torch.equal(sample["targets"][:, :-1], sample["text"][:, 1:])
    assert sample["mask"].all() and sample["seen"].all()


def test_masked_models_guess_some_tokens() -> None:
    lm = language_model("roberta")
    sample = source(lm).sample(0)
    mask, specials = sample["mask"], lm.tokenizer.vocabulary.specials
    assert 0 < int(mask.sum()) < 0.4 * mask.numel()
    assert torch.equal(
        sample["text"][~mask & sample["seen"]], sample["targets"][~mask & sample["seen"]]
    )
    assert not torch.isin(sample["targets"][mask], torch.tensor(list(specials.values()))).any()
    hidden = sample["text"][mask] == specials["<mask>"]
    assert 0.5 < hidden.float().mean() < 1


@pytest.mark.parametrize("kind", ["gpt2", "llama", "roberta", "gemma"])
def test_the_frozen_model_gets_no_gradient(kind: str) -> None:
    lm = language_model(kind)
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    model = model_of(lm).train()
    out = model(batch(source(lm), 0, 1), StepContext(rng=torch_rng(0)))
    torch.stack([*out.losses.values()]).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in lm.model.state_dict().items())
    assert not any(name.startswith("model.") for name in model.state_dict())
    assert all(p.grad is not None for p in model.parameters())


def test_logits_with_the_model_s_own_embeddings_are_its_own() -> None:
    for kind in ("gpt2", "llama", "gemma", "xglm", "roberta"):
        lm = language_model(kind)
        ids = torch.randint(5, 60, (2, 9))
        mask = torch.ones_like(ids, dtype=torch.bool)
        with torch.no_grad():
            wanted = lm.model(input_ids=ids, attention_mask=mask.long()).logits
            found = model_of(lm).logits(lm.source, ids, mask)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_identity_is_learnt() -> None:
    """The loss falls from window to window; single tokens come out as they went in."""
    lm = language_model(seed=3)
    model = model_of(lm)
    model.objective = "identity"
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    losses = []
    for step in range(240):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, step / 20) * min(1.0, (240 - step) / 120)
        out = model({}, StepContext(step=step, rng=torch_rng(0, step)))
        optimizer.zero_grad()
        out.losses["identity"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(out.losses["identity"].item())
    windows = torch.tensor(losses).view(6, -1).mean(1)
    assert (windows.diff() < 0).all(), windows
    assert float(out.metrics["cosine"]) > 0.95


def recipe(tmp_path: Path, **change: Any) -> Path:
    """A recipe of a few steps over a saved model and texts."""
    lm = language_model()
    lm.model.save_pretrained(tmp_path / "lm")
    lm.frame.save_pretrained(tmp_path / "lm")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "en.txt").write_text(WORDS)
    path = tmp_path / "recipe.toml"
    path.write_text(f"""
preset = "zett-tiny"
stages = [{{ name = "identity", samples = 4 }}, {{ name = "transfer", samples = 4 }}]
[config]
language_model = {change.get("language_model", str(tmp_path / "lm"))!r}
[data]
train = "{change.get("train", tmp_path / "train")}"
val = "{tmp_path / "val"}"
num_val = 2
[sampling]
num_texts = 2
num_tokens = 16
[sampling.tokenizer]
size_mean = 450
size_min = 450
size_max = 450
queue = 2
[train]
batch_size = 2
save_every = 4
log_every = 2
num_workers = 0
precision = "fp32"
""")
    return path


def test_a_run_trains_saves_resumes_and_loads(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert api.train(path, whole).is_complete
    assert not api.train(path, parts, minutes=0).is_complete
    assert api.train(path, parts).is_complete
    assert api.train(path, tmp_path / "more", [f"init={whole}"]).is_complete
    one, two = (zett.load_hypernet(folder) for folder in (whole, parts))
    assert one.config.vocab_size == language_model().tokenizer.vocabulary.num_original
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key
    assert isinstance(api.load(whole), zett.Hypernet)
    assert '"lm"' in (whole / "metrics.jsonl").read_text().splitlines()[-1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_read_and_name_stages_and_presets(path: Path) -> None:
    found = Recipe.read(path)
    assert [stage.name for stage, _ in found.plan(STAGES)] == ["identity", "transfer"]
    override(zett.preset(found.preset), **found.config)
    sampling = from_dict(TransferSampling, found.sampling)
    assert sampling.tokenizer.size_max >= sampling.tokenizer.size_min
    assert path.stem != "gpt2" or sampling == TransferSampling()


def test_runs_that_cannot_start_say_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="language_model"):
        api.train(recipe(tmp_path, language_model=""), tmp_path / "run")


@pytest.mark.parametrize(("content", "says"), [(b"", "no text"), (b"\xff\xfe", "UTF-8")])
def test_texts_that_are_none_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_bytes(content)
    with pytest.raises(SignalError, match=says):
        source(language_model(), read_texts(str(tmp_path)))


def test_missing_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SignalError, match=r"no \.txt"):
        read_texts(str(tmp_path))
    with pytest.raises(PolytokError, match="no such file"):
        read_texts(str(tmp_path / "nowhere"))


def test_languages_are_counted_and_drawn() -> None:
    lm = language_model()
    texts = {"en": WORDS, "other": WORDS[:600]}
    told = source(lm, texts, num_languages=2)
    drawn = [int(told.sample(n)["language"]) for n in range(12)]
    assert set(drawn) == {0, 1}
    out = model_of(lm, num_languages=2)(batch(told, 0, 1), StepContext())
    assert bool(out.losses["lm"].isfinite())
    with pytest.raises(ConfigError, match="num_languages=3"):
        source(lm, texts, num_languages=3)
