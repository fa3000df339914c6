"""What ZeTT promises, on real text: a small model trained here, and a tokenizer it never saw."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from polytok.systems.text import zett

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.timeout(3600)]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
STAGES = [{"name": "identity", "samples": 150}, {"name": "transfer", "samples": 300}]


@pytest.fixture(scope="module")
def benchmark(data_dir: Path) -> Iterator[ModuleType]:
    """The benchmark with a fraction of its budget."""
    if not (data_dir / "text" / "text.zip").is_file():
        pytest.skip(f"{data_dir / 'text' / 'text.zip'} is missing")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        module = importlib.import_module("tokenizer_transfer")
        patch.setattr(module, "LM_STEPS", 600)
        patch.setattr(module, "NUM_PIECES", 400)
        yield module


@pytest.fixture(scope="module")
def bits(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Bits per byte right after the transfer to a BPE of 4,096 tokens, by method."""
    work = tmp_path_factory.mktemp("zett")
    benchmark.source(work)
    benchmark.hypernet(work, 0, [f"stages={json.dumps(STAGES)}", "train.validate_every=0"])
    return {
        method: benchmark.rows_of(work, "bpe-4k", method, 0, (0,))[0]["bits_per_byte"]
        for method in ("original", *sorted(set(benchmark.METHODS) - {"original"}))
    }


def test_the_hypernetwork_comes_nearest_to_the_original(bits: dict[str, float]) -> None:
    """It closes half of the gap from the mean embedding; only the means of pieces come near it."""
    closed = (bits["mean"] - bits["zett"]) / (bits["mean"] - bits["original"])
    assert closed >= 0.5, bits
    assert bits["original"] < bits["zett"] < min(bits["lexical"], bits["focus"]), bits
    assert max(bits["lexical"], bits["focus"]) < bits["random"], bits


def test_a_tokenizer_of_their_language_shortens_texts(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spanish sequences get a tenth shorter or more, which is what a transfer is for."""
    monkeypatch.setattr(benchmark, "CATEGORIES", ("en", "es"))
    train, text = benchmark.texts("train"), benchmark.texts("val")["es"][:200_000]
    lengths = {}
    for language in ("en", "es"):
        corpus = benchmark.lines(train[language][:2_000_000])
        found = zett.byte_level(benchmark.train_tokenizer("bpe", 2048, corpus))
        lengths[language] = len(found.tokenizer.encode(text).ids)
    assert lengths["es"] < 0.9 * lengths["en"], lengths
