"""The benchmark of attention: its task, its choice of eps, its tables."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

from polytok.core.errors import PolytokError
from polytok.systems.theory.attention_vat.text import Vocabulary, read_examples, read_vectors

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark_(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("attention_vat")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("_tables_attention_vat")


@pytest.fixture
def texts(benchmark_: ModuleType, tmp_path: Path) -> dict[str, list[str]]:
    """Windows of two made-up languages that share some words."""
    (tmp_path / "text").mkdir()
    with ZipFile(tmp_path / "text" / "text.zip", "w") as archive:
        for name, prefix in (("en", "e"), ("es", "s")):
            rng = np.random.default_rng(len(name) + ord(prefix))
            lines = []
            for _ in range(7000):
                own = [f"{prefix}{letters(rng.integers(3000))}" for _ in range(8)]
                lines.append(" ".join([*own, "shared", "the", f":func:`~os.{own[0]}`"]))
            archive.writestr(f"{name}.txt", "\n".join(lines))
    return benchmark_.corpus(tmp_path)


def letters(number: int) -> str:
    return "".join(chr(97 + int(d)) for d in str(number))


def test_windows_have_no_function_words_and_no_markup(
    benchmark_: ModuleType, texts: dict[str, list[str]]
) -> None:
    assert set(texts) == {"english", "spanish"}
    for windows in texts.values():
        assert windows == sorted(set(windows))
        for window in windows:
            words = window.split()
            assert len(words) == benchmark_.WINDOW and not {"shared", "the", "func"} & set(words)
    assert not set(texts["english"]) & set(texts["spanish"])


def test_parts_are_disjoint_and_only_training_differs_by_seed(
    benchmark_: ModuleType, texts: dict[str, list[str]], tmp_path: Path
) -> None:
    first, second = (benchmark_.Task.draw(texts, seed) for seed in (0, 1))
    assert (first.val, first.test) == (second.val, second.test)
    assert first.labelled != second.labelled
    for task in (first, second):
        parts = [[e.text for e in p] for p in (task.val, task.test, task.labelled, task.unlabelled)]
        assert [len(p) for p in parts] == [800, 2000, 200, 5000]
        assert len({text for part in parts for text in part}) == 8000
        assert all(e.label is None for e in task.unlabelled)
        assert sum(e.label == "english" for e in task.labelled) == 100
    benchmark_.write(texts, tmp_path)
    assert read_examples(tmp_path / "labelled.tsv") == first.labelled
    assert read_examples(tmp_path / "unlabelled.txt") == first.unlabelled
    vocabulary = benchmark_.words_of(first)
    found = read_vectors(tmp_path / "vectors.vec", vocabulary.words, benchmark_.BASE.embedding_dim)
    wanted = benchmark_.vectors(vocabulary, [*first.labelled, *first.unlabelled])
    assert found.keys() == wanted.keys()
    assert max(float((found[i] - wanted[i]).abs().max()) for i in found) < 1e-5


def test_vectors_tell_languages_apart(benchmark_: ModuleType, texts: dict[str, list[str]]) -> None:
    task = benchmark_.Task.draw(texts, 0)
    vocabulary = Vocabulary.build(task.unlabelled, size=8000, min_count=2, max_length=8)
    found = benchmark_.vectors(vocabulary, task.unlabelled)
    assert set(found) <= set(range(2, len(vocabulary.words)))
    table = np.stack([v.numpy() for v in found.values()])
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), benchmark_.LENGTH, rtol=1e-4)
    is_english = np.array([vocabulary.words[i].startswith("e") for i in found])
    same = table[is_english] @ table[is_english].T
    other = table[is_english] @ table[~is_english].T
    assert same.mean() > 5 * abs(other.mean())


def test_eps_is_chosen_by_validation(benchmark_: ModuleType) -> None:
    def rows(best: float) -> list[dict[str, Any]]:
        return [
            {"run": benchmark_.run_name("grid", arm, seed), "val_accuracy": -abs(arm.eps - best)}
            for arm, seed in benchmark_.grid()
        ]

    arms = {arm.name: arm.eps for arm in benchmark_.chosen(rows(3.0))}
    assert {name: eps for name, eps in arms.items() if eps} == {
        **dict.fromkeys(("random", "at", "vat", "ivat", "word at", "word vat"), 3.0),
        **dict.fromkeys(("at, lstm", "vat, lstm", "ivat, lstm"), 3.0),
    }
    assert {name for name, eps in arms.items() if not eps} == {"vanilla", "vanilla, lstm"}
    with pytest.raises(PolytokError, match=r"lacks 1 runs, among them grid/random/0\.3/0"):
        benchmark_.chosen(rows(3.0)[1:])


def test_a_missing_archive_is_named(benchmark_: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(PolytokError, match=r"text\.zip is missing"):
        benchmark_.corpus(tmp_path)


def row(arm: str, seed: int, accuracy: float) -> dict[str, Any]:
    names = ("tau_gradient", "tau_gradient_fixed", "tau_onehot", "tau_onehot_fixed", "entropy")
    return {
        "run": f"final/{arm}/{seed}", "stage": "final", "arm": arm, "eps": 3.0, "seed": seed,
        "accuracy": accuracy, "robust": [accuracy - 0.1, accuracy - 0.2],
        **dict.fromkeys(names, accuracy), "above_random_1": 0.99, "ratio_1": 7.5,
    }  # fmt: skip


def test_tables_pair_by_seed(tables: ModuleType, tmp_path: Path) -> None:
    assert "not measured yet" in tables.scores(tmp_path)
    rows = [row("ivat", 1, 0.90), row("ivat", 0, 0.80), row("vanilla", 0, 0.78)]
    rows += [row("vanilla", 1, 0.88), row("vanilla, lstm", 0, 0.5)]
    grid = [{"stage": "grid", "arm": "vat", "eps": e, "val_accuracy": e / 10} for e in (1.0, 3.0)]
    data = {"protocol": {"attacks": [1.0, 4.0]}, "rows": [*rows, *grid]}
    (tmp_path / "attention_vat.json").write_text(json.dumps(data))
    scores = tables.scores(tmp_path).splitlines()
    assert [line.split("|")[1].strip() for line in scores[2:]] == [
        "vanilla", "ivat", "vanilla, lstm",
    ]  # fmt: skip
    assert "| 85.00 | +2.00 [+2.00, +2.00] | 65.0 | +2.0 [+2.0, +2.0] |" in scores[3]
    assert "0.850 +0.020 [+0.020, +0.020]" in tables.faithfulness(tmp_path)
    assert "| ivat | 85.0 | 75.0 | 65.0 |" in tables.robustness(tmp_path)
    assert "| ivat | 99.0% (7.5x) |" in tables.above_random(tmp_path)
    assert "| vat | 10.00 | 30.00 |" in tables.grid(tmp_path)
