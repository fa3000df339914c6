"""The benchmark of what first tokens tell, on pictures of two colours."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contracts import pictures
from contracts.pictures import SYSTEM
from polytok.core import registry

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_a_probe_reads_what_tokens_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red and blue pictures, whose first token is a colour, are told apart; shuffled ones not."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(registry.SYSTEMS, SYSTEM.name, SYSTEM)
    bench = importlib.import_module("image_probe")
    pictures.save(tmp_path / "colours", patches=8)
    rng = np.random.default_rng(0)
    for place in ("learnt", "test", "mixed"):
        for label in range(2):
            folder = tmp_path / place / "ab"[label]
            folder.mkdir(parents=True)
            for number in range(12):
                is_red = number % 2 if place == "mixed" else label
                values = rng.integers(-20, 20, (64, 64, 3)) + (
                    (255, 0, 0) if is_red else (0, 0, 255)
                )
                Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(
                    folder / f"{number:02d}.png"
                )
    for test, share in (("test", 1.0), ("mixed", 0.5)):
        out = tmp_path / f"out-{test}"
        options = ["--learnt", tmp_path / "learnt", "--test", tmp_path / test, "--side", 64]
        bench.main([str(o) for o in (*options, "--model", tmp_path / "colours", "--out", out)])
        rows = json.loads((out / "image_probe.json").read_text())["rows"]
        assert [row["tokens"] for row in rows] == list(bench.COUNTS)
        assert all(row["accuracy"] == share and row["chance"] == 0.5 for row in rows)
    table = importlib.import_module("_tables_images").TABLES["image-probe"](tmp_path / "out-test")
    assert "| colours | 100.0 |" in table and "| chance | 50.0 |" in table
