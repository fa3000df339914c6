"""The benchmark of reductions for VLMs runs on little, and its tables show what it wrote."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from polytok.data.glyphs import GlyphCanvas

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("vlm_reduction", "_glyph_tower", "_scene_llava", "_tables_vlm")
    return {name: importlib.import_module(name) for name in names}


def test_a_tower_that_knows_nothing_finds_no_glyphs(parts: dict[str, ModuleType]) -> None:
    tower, canvas = parts["_glyph_tower"], GlyphCanvas()
    model, exact = tower.train(canvas, seed=0, steps=2, held_out=100)
    assert exact < 0.2
    found = tower.recall(model, canvas, keep=8, seed=0, count=100)
    assert found.keys() == tower.SCORES.keys()
    for name in ("random", "uniform"):
        assert found[name] == pytest.approx(8 / 64, abs=0.06)
    everything = tower.recall(model, canvas, keep=64, seed=0, count=10)
    assert set(everything.values()) == {1.0}


def test_the_scenes_model_trains_is_kept_and_asked(
    parts: dict[str, ModuleType], tmp_path: Path
) -> None:
    scenes = parts["_scene_llava"]
    model = scenes.saved(tmp_path / "model.safetensors", 0, 2)
    again = scenes.saved(tmp_path / "model.safetensors", 0, 2)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    gates = scenes.trained_gates(again, seed=0, steps=1, batch=4)
    with parts["vlm_reduction"].vlm("dyvte", gates=gates).applied(again) as run:
        scenes.accuracy(again, seed=0, scenes=10)
    assert len(run.exit_layers) == 10
    found = scenes.accuracy(again, seed=0, scenes=100)
    assert set(found) == {"all", *scenes.KINDS} and 0 <= found["all"] <= 1


def test_the_subject_is_the_one_that_the_protocol_names(
    parts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = parts["vlm_reduction"]
    inputs = bench.prompt(torch.float32)
    assert inputs["input_ids"].shape == (1, bench.TEXT + bench.TOKENS)
    with torch.device("meta"):
        monkeypatch.setattr(torch, "manual_seed", lambda _: None)
        model = bench.subject(torch.bfloat16)
    tower, text = model.config.vision_config, model.config.text_config
    assert (tower.num_hidden_layers, tower.hidden_size) == (12, 768)
    assert (text.num_hidden_layers, text.hidden_size, text.vocab_size) == (24, 1024, 32_000)
    counts = bench.vlm("fastervlm", **bench.METHODS["fastervlm"]).visual.count(model, inputs)
    assert counts == [bench.KEEP]


def test_tables_show_what_is_there(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    tables = parts["_tables_vlm"]
    makers = (tables.ttft_table, tables.glyphs_table, tables.scenes_table, tables.exits_table)
    assert all("not measured yet" in make(tmp_path) for make in makers)

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))

    timing = dict.fromkeys(("plain_seconds", "speedup", "speedup_min", "speedup_max"), 2.0)
    costs = ("prefill_gflops_before", "prefill_gflops_after", "kv_mb_before", "kv_mb_after")
    row = {"dtype": "fp32", "method": "fastervlm", "reduced_seconds": 1.0, "flop_ratio": 2.5}
    write("vlm_ttft", [{**row, **timing, **dict.fromkeys(costs, 3.0)}])
    write("vlm_glyphs", [{"seed": s, "keep": 8, "exact": 1.0, "random": s / 8} for s in (0, 2)])
    row = {"seed": 0, "keep": 8, "method": "random", "all": 0.5}
    write("vlm_scenes", [row, {**row, "method": "gates", "mean_exit_layer": 1.5}])
    assert "| fp32 | fastervlm | 2.00 → 1.00 s | 2.00x (2.00..2.00) | 2.50x |" in (
        tables.ttft_table(tmp_path)
    )
    assert "| random | 0.125 (0.000..0.250) |" in tables.glyphs_table(tmp_path)
    assert "| random | 0.500 |" in tables.scenes_table(tmp_path)
    assert "gates" not in tables.scenes_table(tmp_path)
    assert "| gates | 1.500 | 0.500 |" in tables.exits_table(tmp_path)


def test_pairs_are_timed_in_turn(parts: dict[str, ModuleType]) -> None:
    import polytok
    from polytok.reducers.vlm.bench import time_generation
    from reducers.vlm.models import build, single

    model, inputs = build("llava"), single("llava", 0)
    timing = time_generation(model, inputs, polytok.vlm("random", keep=3), pairs=2)
    assert len(timing.plain) == len(timing.reduced) == 2 and timing.report.after == (3,)
    low, high = timing.spread
    assert 0 < low <= timing.speedup <= high
