"""What cannot work is refused in one sentence, before anything is changed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import polytok
from polytok.core.errors import PolytokError
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers import paused, trace, versions
from polytok.reducers.families import FAMILIES
from polytok.reducers.hosts import find_core
from reducers.models import IS_NEWER, build, image, tiny_deit, tiny_hf

DEIT = next(f for f in FAMILIES if f.name == "DeiT")
SIGLIP = next(f for f in FAMILIES if f.name == "SigLIP")
timm = import_hf("timm.models.vision_transformer")


class OwnBlock(timm.Block):
    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return super().forward(x)


class OwnFeatures(timm.VisionTransformer):
    def forward_features(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return super().forward_features(x)


def small(kind: type[nn.Module] = timm.VisionTransformer, **options: Any) -> nn.Module:
    return kind(img_size=64, embed_dim=48, depth=2, num_heads=3, num_classes=7, **options)


def two_towers() -> nn.Module:
    return nn.ModuleList([tiny_deit(), tiny_deit()])


def positions_in_the_pool() -> nn.Module:
    model = build(SIGLIP)
    model.attn_pool.pos_embed = nn.Parameter(torch.zeros(16, 48))
    return model


def compiled() -> nn.Module:
    with warnings.catch_warnings():
        # Of torch's own.
        warnings.simplefilter("ignore")
        return torch.compile(tiny_deit())


def hooked() -> nn.Module:
    model = tiny_deit()
    plain = model.blocks[2].forward
    model.blocks[2].forward = lambda *args, **kwargs: plain(*args, **kwargs)
    return model


def older_layout() -> nn.Module:
    model = tiny_hf().vit
    for name in ("layers", "encoder"):
        if hasattr(model, name):
            setattr(model, f"other_{name}", getattr(model, name))
            delattr(model, name)
    return model


REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    ("unknown model", lambda: nn.Linear(3, 3), {}, "has no vision transformer"),
    ("no model", lambda: "deit", {}, "a model is wanted, got str"),
    ("several models", two_towers, {}, "has 2 vision transformers"),
    ("post-norm blocks", lambda: small(block_fn=timm.ResPostBlock), {}, "ResPostBlock"),
    ("parallel", lambda: small(block_fn=timm.ParallelScalingBlock), {}, "ParallelScalingBlock"),
    ("own block", lambda: small(block_fn=OwnBlock), {}, "OwnBlock has its own forward"),
    ("own loop", lambda: small(OwnFeatures), {}, "OwnFeatures has its own forward_features"),
    ("other attention", lambda: small(attn_layer="diff"), {}, "DiffAttention"),
    ("no class token", lambda: build(SIGLIP), {}, "ranks patches by the class token"),
    ("pool", positions_in_the_pool, {"method": "tome"}, "needs every patch in its place"),
    ("compiled", compiled, {}, "then compile it"),
    ("keep 0", tiny_deit, {"keep": 0.0}, r"not within \(0, 1\]"),
    ("keep above 1", tiny_deit, {"keep": {1: 1.5}}, r"not within \(0, 1\]"),
    ("keep of no number", tiny_deit, {"keep": {1: "half"}}, "is not a number"),
    ("too long", tiny_deit, {"keep": [1.0] * 5}, "rule for layer 4"),
    ("negative layer", tiny_deit, {"keep": {-1: 0.5}}, "blocks count from 0"),
    ("too few", tiny_deit, {"method": "tome", "keep": 0.3}, "keeps at least 8"),
    ("two schedules", tiny_deit, {"keep": 0.5, "r": 3}, "give one of keep, r"),
    ("unknown method", tiny_deit, {"method": "evti"}, "did you mean 'evit'"),
    ("unknown option", tiny_deit, {"fues": True}, "did you mean 'fuse'"),
    ("wrong option", tiny_deit, {"fuse": 3}, "not of type bool"),
    ("restore", tiny_deit, {"restore": "all"}, "neither 'none' nor 'grid'"),
    ("lists", tiny_deit, {"method": "diffrate", "prune": (9,)}, "they go together"),
    (
        "lists too short",
        tiny_deit,
        {"method": "diffrate", "prune": (9, 9), "merge": (9, 9), "keep": 0.7},
        "prune and merge have 2 counts and the model 4 blocks",
    ),
    ("lists too long", tiny_deit, {"method": "diffrate-deit-tiny-0.8"}, "12 counts and the model"),
    ("NaN count", tiny_deit, {"counts": {1: float("nan")}}, "nan in a schedule is not a number"),
    ("half a count", tiny_deit, {"counts": {1: 5.5}}, "count 5.5 of layer 1 is not an integer"),
    ("one count", tiny_deit, {"counts": 5}, r"counts=5 must be \{block: count\}"),
    ("steep", tiny_deit, {"method": "tome", "r": (0.6, 0.8)}, r"r=\(0.6, 0.8\) would remove 1.08"),
    ("NaN tau", tiny_deit, {"method": "mctf", "tau": (1.0, float("nan"), 1.0)}, "three numbers"),
    ("schedule file", tiny_deit, {"schedule": "nowhere.json"}, "nowhere.json"),
    ("hooks", hooked, {}, "has a forward on its instance"),
    ("older layout", older_layout, {}, "elsewhere than in transformers 5 and 4.50"),
    ("kernel", lambda: flash(tiny_hf()), {"method": "tome"}, "takes no bias"),
]


def flash(model: nn.Module) -> nn.Module:
    model.vit.config._attn_implementation = "flash_attention_2"
    return model


@pytest.mark.parametrize(
    ("build_model", "options", "reason"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused_before_anything_changes(build_model: Any, options: Any, reason: str) -> None:
    model = build_model()
    before = repr(model)
    with pytest.raises(PolytokError, match=reason) as refused:
        polytok.reduce(model, **options)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300
    assert repr(model) == before
    if isinstance(model, nn.Module):
        assert all(type(m).__mro__[0] is type(m) for m in model.modules())
        assert not any("reduction" in m.__dict__ for m in model.modules())


def test_twice_is_refused_and_what_is_applied_stays() -> None:
    model = tiny_deit()
    polytok.reduce(model, "evit", keep=0.5)
    with pytest.raises(PolytokError, match=r"reduced by evit.* already.*unreduce"):
        polytok.reduce(model, "tome")
    assert "reduced by evit" in repr(model)


def test_nothing_applied_is_refused() -> None:
    model = tiny_deit()
    for call in (polytok.unreduce, lambda m: trace(m, image(DEIT))):
        with pytest.raises(PolytokError, match=r"not reduced.*polytok\.reduce"):
            call(model)
    with pytest.raises(PolytokError, match="not reduced"), paused(model):
        pass


def test_masks_are_refused() -> None:
    model = tiny_deit()
    polytok.reduce(model, "evit", keep=0.5)
    mask = torch.ones(17, 17, dtype=torch.bool)
    for options in ({"attn_mask": mask}, {"is_causal": True}):
        with pytest.raises(PolytokError, match="no attention mask"):
            model(image(DEIT), **options)
        with paused(model):
            assert model(image(DEIT), **options).shape == (2, 7)
    model = tiny_hf()
    polytok.reduce(model, "evit", keep=0.5)
    keys = torch.ones(2, 17)
    calls = [lambda: model(image(DEIT), head_mask=keys)]
    if IS_NEWER:
        calls = [
            lambda: model(image(DEIT), attention_mask=keys),
            lambda: model.vit(image(DEIT), None, None, keys),
        ]
    for call in calls:
        with pytest.raises(PolytokError, match="no attention mask"):
            call()


def test_heads_that_need_every_patch_are_refused_without_a_grid() -> None:
    transformers = import_hf("transformers")
    config = tiny_hf().config
    config.encoder_stride = 16
    model = transformers.ViTForMaskedImageModeling(config).eval()
    with pytest.raises(PolytokError, match="restore='grid' works"):
        polytok.reduce(model, "evit", keep=0.5)
    polytok.reduce(model, "evit", keep=0.5, restore="grid")
    assert model(image(DEIT)).reconstruction.shape == (2, 3, 64, 64)


def test_other_versions_warn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(versions.TESTED, "timm", ("0.0.1",))
    versions.warn_untested.cache_clear()
    with pytest.warns(UserWarning, match=r"tested with timm 0\.0\.1, this is"):
        polytok.reduce(tiny_deit(), "evit", keep=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        polytok.reduce(tiny_deit(), "evit", keep=0.5)
    versions.warn_untested.cache_clear()


@pytest.mark.parametrize("make", [tiny_deit, tiny_hf], ids=["timm", "transformers"])
def test_a_swap_that_fails_is_undone(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    before = [(type(m), set(vars(m))) for m in model.modules()]
    host = type(find_core(model)[1])
    install = host.install

    def failing(self: Any, core: nn.Module, root: nn.Module) -> None:
        install(self, core, root)
        raise KeyboardInterrupt

    monkeypatch.setattr(host, "install", failing)
    with pytest.raises(KeyboardInterrupt):
        polytok.reduce(model, "evit", keep=0.5)
    assert [(type(m), set(vars(m))) for m in model.modules()] == before
