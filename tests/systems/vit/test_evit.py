"""EViT: what is kept, what is fused, the ramp, and training with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import polytok
from polytok.core import hub
from polytok.core.contracts import StepContext
from polytok.core.errors import ConfigError
from polytok.reducers import Scores, TokenState, reduction_of, trace
from polytok.reducers.families import FAMILIES
from polytok.systems import api
from polytok.systems.vit.evit import EViT, EViTTuning, EViTTuningConfig, keep_ramp, load_model
from reducers.models import build, image, tiny_deit
from systems.vit.stripes import write_recipe

DEIT = next(f for f in FAMILIES if f.name == "DeiT")
B, H, T, D = 3, 2, 9, 4


def scores(**changes: object) -> Scores:
    rng = torch.Generator().manual_seed(0)
    q, k = (torch.randn(B, H, T, D, generator=rng) for _ in "qk")
    values = {"x": torch.randn(B, T, 5, generator=rng), "q": q, "k": k, "scale": D**-0.5}
    return Scores(**{**values, **changes})


def test_the_most_attended_stay_in_the_order_of_attention() -> None:
    found = scores()
    state = TokenState(num_patches=T - 1, prefix=1)
    chosen = EViT(fuse=False).choose(state, found, 3)
    attention = found.attention()[:, :, 0, 1:].mean(1)
    kept = attention.gather(1, chosen.anchor())
    gone = attention.masked_fill(chosen.group() >= 0, -1).amax(1)
    assert (kept.diff(dim=1) <= 0).all() and (kept[:, -1] >= gone).all()


def test_the_fused_token_is_the_rest_weighted_by_raw_attention() -> None:
    found = scores()
    state = TokenState(num_patches=T - 1, prefix=1)
    chosen = EViT().choose(state, found, 3)
    out = chosen.apply(found.features())
    attention = found.attention()[:, :, 0, 1:].mean(1)
    for b in range(B):
        rest = [i for i in range(T - 1) if i not in chosen.index[b].tolist()]
        fused = sum(attention[b, i] * found.features()[b, i] for i in rest)
        torch.testing.assert_close(out[b, -1], fused, rtol=1e-5, atol=1e-6)
    assert out.shape[1] == 4 and attention.sum(1).max() < 1


def test_registers_and_distillation_tokens_are_never_ranked() -> None:
    for prefix in (2, 5):
        found = scores(prefix=prefix)
        state = TokenState(num_patches=T - prefix, prefix=prefix)
        chosen = EViT().choose(state, found, 2).behind(prefix)
        assert chosen.group()[:, :prefix].tolist() == [list(range(prefix))] * B
        row = found.attention()[:, :, 0, prefix:].mean(1)
        torch.testing.assert_close(found.class_row(), row, rtol=1e-6, atol=1e-7)


@torch.no_grad()
def test_the_order_of_patches_does_not_matter() -> None:
    """Shuffling tokens that carry their positions changes logits by rounding alone."""
    model, x = tiny_deit(), image(DEIT)
    polytok.reduce(model, "evit", keep={1: 0.6, 2: 0.6})
    wanted = model(x)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(16)])
    plain = model.norm_pre
    model.norm_pre = type("Shuffle", (torch.nn.Identity,), {"forward": lambda _, y: y[:, order]})()
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    model.norm_pre = plain


def test_gradient_reaches_scores_through_the_fused_token_alone() -> None:
    for fuse in (True, False):
        found = scores(q=torch.randn(B, H, T, D, requires_grad=True))
        state = TokenState(num_patches=T - 1, prefix=1)
        out = EViT(fuse=fuse).choose(state, found, 3).apply(found.features())
        assert out.requires_grad == fuse


def test_distilled_models_keep_both_heads() -> None:
    family = next(f for f in FAMILIES if f.name == "DeiT distilled")
    model = build(family)
    polytok.reduce(model, "evit", keep={1: 0.5})
    assert trace(model, image(family)).tokens == (18, 18, 11, 11, 11)
    model.set_distilled_training()
    model.train()
    both = model(image(family))
    assert len(both) == 2 and all(y.shape == (2, 7) for y in both)


def test_the_ramp_is_a_cosine_between_its_ends() -> None:
    assert keep_ramp(0.0, 0.1, 0.5) == keep_ramp(0.0999, 0.1, 0.5) == 1
    assert keep_ramp(0.35, 0.1, 0.5) == pytest.approx(0.5)
    assert keep_ramp(0.6, 0.1, 0.5) == keep_ramp(1.0, 0.1, 0.5) == keep_ramp(0, 0, 0) == 0
    ramp = [keep_ramp(i / 100, 0.1, 0.5) for i in range(101)]
    assert ramp == sorted(ramp, reverse=True)
    # Published: r + (1 - r) (1 + cos(pi t)) / 2 at a quarter of the ramp.
    share = keep_ramp(0.225, 0.1, 0.5)
    assert 0.7 + 0.3 * share == pytest.approx(0.7 + 0.3 * (1 + 2**-0.5) / 2)
    with pytest.raises(ConfigError, match="at most 1"):
        EViTTuningConfig(ramp_start=0.7, ramp_length=0.5)


def test_tuning_follows_the_ramp_and_ends_at_the_ratio(classifier: Path) -> None:
    plain = api.registry.SYSTEMS["vit-classifier"].load()
    model = EViTTuning(
        plain.load_model(classifier, hub.read_info(classifier), name=""),
        EViTTuningConfig(keep=0.5, layers=(1,), ramp_length=0.5, ramp_steps=4),
    )
    assert not model.train().training  # published fine-tuning is in eval mode
    batch = {"image": torch.rand(2, 3, 16, 16), "label": torch.tensor([0, 1])}
    kept = []
    for progress in (0.0, 0.2, 0.3, 0.5, 0.9):
        model(batch, StepContext(progress=progress))
        kept.append(reduction_of(model).schedule.rules[0].value)
    assert kept[0] == 1 and kept == sorted(kept, reverse=True) and kept[-2:] == [0.5, 0.5]
    assert {k * 8 for k in kept} <= {4.0, 5.0, 6.0, 7.0, 8.0}
    model(batch, StepContext(progress=0.0))
    model.eval()
    assert reduction_of(model).schedule == model.schedule


def test_a_recipe_tunes_saves_and_loads(classifier: Path, stripes: Path, tmp_path: Path) -> None:
    values = {"preset": "evit", "stage": "tune", "samples": 120, "init": classifier}
    recipe = write_recipe(tmp_path, stripes, config="keep = 0.5\nlayers = [1]", **values)
    result = api.train(recipe, tmp_path / "run")
    assert result.is_complete
    info = hub.read_info(tmp_path / "run")
    assert (info.system, info.config["vit"]["num_layers"]) == ("evit", 3)
    model = load_model(tmp_path / "run", info, name="")
    seen = trace(model.classifier.vit, torch.zeros(1, 3, 16, 16))
    assert seen.tokens == (17, 17, 10, 10)
    assert model.logits(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    with pytest.raises(ConfigError, match="holds a evit, not a vit-classifier"):
        again = {**values, "init": tmp_path / "run"}
        api.train(write_recipe(tmp_path, stripes, **again), tmp_path / "other")
