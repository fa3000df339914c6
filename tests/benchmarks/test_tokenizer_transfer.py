"""The benchmark of tokenizer transfer: its gaps, its tables, and the texts it keeps apart."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROWS = [
    {"target": "t", "method": m, "seed": s, "steps": n, "bits_per_byte": b, "bytes_per_token": 3.0}
    for m, s, n, b in (
        ("original", 0, 0, 1.0),
        ("zett", 0, 0, 1.2),
        ("zett", 1, 0, 1.4),
        ("zett", 0, 100, 1.1),
        ("fvt", 0, 0, 1.6),
        ("mean", 0, 0, 3.0),
    )
]


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tokenizer_transfer"), importlib.import_module("_tables_zett")


def test_gaps_and_tables(modules: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    _, tables = modules
    assert tables.gap_closed(ROWS, "t", "fvt") == pytest.approx(0.5)
    assert tables.gap_closed(ROWS, "t", "mean") == pytest.approx(0.85)
    assert "not measured yet" in tables.transfer_table(tmp_path)
    assert "not measured yet" in tables.tuning_table(tmp_path)
    (tmp_path / "tokenizer_transfer.json").write_text(json.dumps({"rows": ROWS}))
    shown = tables.transfer_table(tmp_path)
    assert "| t | hypernetwork | 1.300 (1.200..1.400) | 50% | 85% | 3.00 |" in shown
    assert "| t | hypernetwork | 1.300 (1.200..1.400) | 1.100 |" in tables.tuning_table(tmp_path)


@pytest.mark.data
def test_held_out_text_is_not_trained_on(
    modules: tuple[ModuleType, ModuleType], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark, _ = modules
    if not (data_dir / "text" / "text.zip").is_file():
        pytest.skip(f"{data_dir / 'text' / 'text.zip'} is missing")
    monkeypatch.setattr(benchmark, "CATEGORIES", ("python",))
    train, val = (benchmark.texts(split)["python"] for split in ("train", "val"))
    assert len(val) == pytest.approx(len(train) / 19, rel=0.25)
    pieces = benchmark.pieces(val)
    assert all(len(piece) == benchmark.PIECE for piece in pieces)
    assert sum(piece in train for piece in pieces[::7]) < 0.1 * len(pieces[::7])


def test_tokenizers_are_of_the_size_that_is_asked_for(
    modules: tuple[ModuleType, ModuleType],
) -> None:
    benchmark, _ = modules
    corpus = [f"some words {i * 7919 % 1000} and numbers {i}" for i in range(200)]
    for kind in ("bpe", "unigram"):
        tokenizer = benchmark.train_tokenizer(kind, 300, corpus)
        assert 256 < tokenizer.get_vocab_size() <= 300
        assert tokenizer.token_to_id(benchmark.END) == 0
        assert tokenizer.decode(tokenizer.encode(corpus[3]).ids) == corpus[3]
