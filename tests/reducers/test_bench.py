"""The benchmark says what was run, and times what it says."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import polytok
from polytok.core.errors import PolytokError
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers.bench import bench, compare
from polytok.reducers.cost import cost
from polytok.reducers.families import FAMILIES
from reducers.models import image, tiny_deit

DEIT = next(f for f in FAMILIES if f.name == "DeiT")


class Sleeper(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.calls = seconds, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        time.sleep(self.seconds)
        return x


def test_ratios_are_of_the_same_rounds() -> None:
    plain, fast = Sleeper(0.02), Sleeper(0.01)
    timing = compare(plain, fast, torch.zeros(1), rounds=8)
    assert timing.speedup == pytest.approx(2, rel=0.2)
    assert timing.low <= timing.speedup <= timing.high
    assert timing.noise_low <= 1.1 and timing.noise_high >= 0.9
    # A quarter warms up; a round runs the plain model twice.
    assert (fast.calls, plain.calls, timing.rounds) == (10, 20, 8)


def test_a_report_of_a_model() -> None:
    model, x = tiny_deit(), image(DEIT)
    plain_macs = cost(model, x).plain()
    polytok.reduce(model, "evit", keep={1: 0.5})
    report = bench(model, x, rounds=2)
    assert report.plain_macs == plain_macs > report.macs
    assert report.macs == pytest.approx(report.counted, rel=0.01)
    assert report.tokens == (17, 17, 10, 10, 10)
    assert 0 <= report.agreement <= 1 and -1 <= report.cosine < 1
    assert "reduced by evit" in repr(model)


def test_keeping_everything_agrees_fully() -> None:
    model = tiny_deit()
    polytok.reduce(model, "evit", keep=1.0)
    report = bench(model, image(DEIT), rounds=1)
    assert (report.agreement, report.macs) == (1.0, report.plain_macs)
    assert report.cosine == pytest.approx(1.0)


def test_bad_benchmarks_are_refused() -> None:
    with pytest.raises(PolytokError, match="not reduced"):
        bench(tiny_deit(), image(DEIT))
    with pytest.raises(PolytokError, match="rounds=0"):
        compare(Sleeper(0), Sleeper(0), torch.zeros(1), rounds=0)


def test_models_that_return_maps_are_measured_and_keep_their_mode() -> None:
    options = {"features_only": True, "out_indices": (1, 3), "img_size": 64}
    small = {"embed_dim": 48, "depth": 4, "num_heads": 3}
    model = import_hf("timm").create_model("deit_small_patch16_224", **options, **small).train()
    model.model.blocks[2].eval()
    polytok.reduce(model, "evit", keep={1: 0.5}, restore="grid")
    report = bench(model, image(DEIT), rounds=1)
    assert report.macs < report.plain_macs and -1 <= report.cosine < 1
    assert model.training and not model.model.blocks[2].training and model.model.blocks[1].training


def test_outputs_that_say_nothing_are_refused_and_the_mode_is_kept() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_deit()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": self.model(x)}

    model = Wrapper().train()
    polytok.reduce(model, "evit", keep={1: 0.5})
    with pytest.raises(PolytokError, match="outputs of dict are unknown to bench"):
        bench(model, image(DEIT), rounds=1)
    assert all(m.training for m in model.modules())
