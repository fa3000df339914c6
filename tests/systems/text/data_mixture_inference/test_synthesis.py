"""Known mixtures: what trains and what samples, and how well shares come back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from polytok.core.errors import PolytokError
from polytok.core.seeding import numpy_rng
from polytok.systems.text.data_mixture_inference import (
    Synthesis,
    count_pairs,
    mean_squared_error,
    solve,
    synthesize,
    target_of,
)
from polytok.systems.text.data_mixture_inference.baselines import (
    efficiency_shares,
    encoding_efficiency,
    fitted_slope,
    random_shares,
    token_classification,
    uniform_shares,
)
from polytok.systems.text.data_mixture_inference.counting import count_words
from polytok.systems.text.data_mixture_inference.samples import read
from systems.text.data_mixture_inference.corpora import corpus

SHARES = {"a": 0.6, "b": 0.3, "c": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    for name in SHARES:
        lines = [corpus(name, words=200, seed=s) for s in range(300)]
        (root / f"{name}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def made(folder: Path) -> Synthesis:
    return synthesize([str(folder)], shares=SHARES, num_merges=200, total_bytes=400_000, seed=1)


def test_training_text_has_the_wanted_shares(made: Synthesis) -> None:
    assert made.truth == {n: pytest.approx(s, abs=0.06) for n, s in SHARES.items()}
    assert 400_000 <= sum(made.byte_count.values()) < 520_000
    assert len(made.merges) == 200


def test_samples_are_other_text(folder: Path, made: Synthesis) -> None:
    for category in made.samples:
        assert len(category.parts) > 1
        size = sum(len(t) for p in category.parts for t in read(p))
        whole = (folder / f"{category.name}.txt").stat().st_size
        # Half of the blocks; which halves is the same for a seed.
        assert 0.3 * whole < size < 0.7 * whole
    again = synthesize([str(folder)], shares=SHARES, num_merges=200, total_bytes=400_000, seed=1)
    other = synthesize([str(folder)], shares=SHARES, num_merges=200, total_bytes=400_000, seed=2)
    assert again == made
    assert other.samples != made.samples


def test_the_tokenizer_is_one_of_hugging_face(made: Synthesis) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(made.tokenizer_json()))
    text = "abc ade\n  (1234) żółw"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert target_of(tokenizer).merges == made.merges


def test_shares_come_back_better_than_from_the_baselines(made: Synthesis) -> None:
    target = target_of(made.merges)
    words = [[count_words(read(p), target.rules) for p in c.parts] for c in made.samples]
    counts = [
        count_pairs([list(read(p)) for p in c.parts], target, name=c.name) for c in made.samples
    ]
    found = mean_squared_error(solve(counts, target).byte_share, made.truth)
    joined = [(sum((w for w, _ in p), start=type(p[0][0])()), sum(b for _, b in p)) for p in words]
    efficiency = encoding_efficiency(counts, joined, 200)
    assert all(0.3 < e <= 1.01 for e in efficiency.values())
    slope = fitted_slope([efficiency], [made.truth])
    for shares in (
        uniform_shares(list(SHARES)),
        token_classification(counts, target),
        efficiency_shares(efficiency, 1.0),
    ):
        assert sum(shares.values()) == pytest.approx(1)
        assert found < mean_squared_error(shares, made.truth) / 30
    # A fit to the mixture itself is no worse than no fit.
    fitted = mean_squared_error(efficiency_shares(efficiency, slope), made.truth)
    assert fitted <= mean_squared_error(efficiency_shares(efficiency, 0.0), made.truth)


def test_shares_are_drawn_by_the_seed(folder: Path) -> None:
    def truth(seed: int) -> dict[str, float]:
        return synthesize([str(folder)], num_merges=5, total_bytes=10**6, seed=seed).truth

    assert truth(3) == truth(3) != truth(4)


def test_random_shares_are_points_of_the_simplex() -> None:
    drawn = [random_shares(["x", "y"], numpy_rng(0, i)) for i in range(400)]
    assert all(sum(d.values()) == pytest.approx(1) for d in drawn)
    assert np.mean([d["x"] for d in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.std([d["x"] for d in drawn]) == pytest.approx(12**-0.5, abs=0.03)


def test_what_cannot_be_synthesized_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("only this\n")
    source = [str(folder)]
    for sources, options, words in (
        (source, {"shares": {"a": 1.0}}, "the categories are"),
        (source, {"shares": {"a": 1.0, "b": -1.0, "c": 1.0}}, "not all >= 0"),
        (source, {"shares": dict.fromkeys("abc", 0.0)}, "not all >= 0"),
        (source, {"shares": dict.fromkeys("abc", float("nan"))}, "not all >= 0"),
        (source, {"num_merges": 0}, "num_merges=0"),
        (source, {"rules": "sentencepiece"}, "not of bytes"),
        ([str(tmp_path)], {}, "'short' has less than"),
    ):
        with pytest.raises(PolytokError, match=words):
            synthesize(sources, **options)
