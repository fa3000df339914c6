"""What data mixture inference promises, on real text: far better than guesses and first looks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

from polytok.systems.text.data_mixture_inference import (
    SolveConfig,
    count_pairs,
    mean_squared_error,
    read_tokenizer,
    solve,
    synthesize,
    target_of,
)
from polytok.systems.text.data_mixture_inference.baselines import (
    token_classification,
    uniform_shares,
)
from polytok.systems.text.data_mixture_inference.samples import find_categories, read

NAMES = ("en", "es", "ja", "pl", "python")
CONFIG = SolveConfig(relative_gap=0.02)

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def archive(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def unpack(name: str) -> Path:
        path = data_dir / "text" / name
        if not path.exists():
            pytest.skip(f"{path} is missing")
        out = tmp_path_factory.mktemp("data")
        with ZipFile(path) as file:
            file.extractall(out)
        return out

    return unpack


@pytest.fixture(scope="module")
def sources(archive: Callable[[str], Path]) -> list[str]:
    root = archive("text.zip")
    return [f"{name}={root / name}.txt" for name in NAMES]


@pytest.mark.parametrize("seed", range(5))
def test_known_mixtures_are_found(seed: int, sources: list[str]) -> None:
    """3,000 merges: log10 MSE of at most -3, and 1.2 decades below uniform and TC."""
    made = synthesize(sources, num_merges=3000, total_bytes=16_000_000, seed=seed)
    target = target_of(made.merges)
    counts = [
        count_pairs([list(read(p)) for p in c.parts], target, name=c.name) for c in made.samples
    ]
    found = solve(counts, target, config=CONFIG)
    error = math.log10(mean_squared_error(found.byte_share, made.truth))
    assert error <= -3.0
    for guess in (uniform_shares(NAMES), token_classification(counts, target)):
        assert math.log10(mean_squared_error(guess, made.truth)) - error >= 1.2


def test_claude_was_trained_on_more_code_than_gpt_2(
    archive: Callable[[str], Path], sources: list[str]
) -> None:
    root, code = archive("tokenizers.zip"), {}
    for name in ("gpt-2", "claude"):
        target = target_of(read_tokenizer(root / f"{name}.json"), num_merges=1000)
        counts = [
            count_pairs([list(read(p)) for p in c.parts], target, name=c.name)
            for c in find_categories(sources, num_parts=2, max_bytes=2_000_000)
        ]
        code[name] = solve(counts, target, config=CONFIG).byte_share["python"]
    assert code["claude"] > 2 * code["gpt-2"]
