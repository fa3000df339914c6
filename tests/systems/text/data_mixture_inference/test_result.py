"""Results as JSON and as a picture."""

from __future__ import annotations

import json

import pytest

from polytok.core.errors import SignalError
from polytok.systems.text.data_mixture_inference import (
    Fit,
    MixtureResult,
    infer_mixture,
    mean_squared_error,
)
from polytok.systems.text.data_mixture_inference.chart import bar_chart
from systems.text.data_mixture_inference.corpora import corpus, trained


@pytest.fixture(scope="module", params=[0, 3])
def result(request: pytest.FixtureRequest) -> MixtureResult:
    texts = {n: corpus(n, words=800, seed=1) for n in "abc"}
    return infer_mixture(
        trained([corpus("a"), corpus("b")], 30).merges,
        texts,
        pre_tokenizer={"type": "WhitespaceSplit"},
        resamples=request.param,
    )


def test_results_come_back_from_json(result: MixtureResult) -> None:
    assert MixtureResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result


@pytest.mark.parametrize("name", ["fit", "byte_share", "by_merges", "merge_slack", "caveats"])
def test_other_json_is_refused(name: str, result: MixtureResult) -> None:
    values = result.as_dict()
    for bad in ({}, {**values, "more": 1}, {**values, name: 5}):
        with pytest.raises(SignalError, match="not a result"):
            MixtureResult.from_dict(bad)


def test_errors_are_of_all_categories() -> None:
    assert mean_squared_error({"a": 1.0}, {"a": 0.5, "b": 0.5}) == pytest.approx(0.25)
    assert mean_squared_error({"a": 0.4, "b": 0.6}, {"b": 0.6, "a": 0.4}) == 0


def columns(picture: object, row: int, color: tuple[int, int, int]) -> list[int]:
    image = picture.convert("RGB")  # type: ignore[attr-defined]
    return [x for x in range(image.width) if image.getpixel((x, row)) == color]


def test_bars_are_as_long_as_shares() -> None:
    made = MixtureResult(
        byte_share={"small": 0.2, "large": 0.8},
        pair_share={"small": 0.2, "large": 0.8},
        byte_interval={"small": (0.15, 0.25), "large": (0.7, 0.9)},
        by_merges={},
        fit=Fit(0.1, 0.0, 0.5),
        merge_slack=(0.0,),
        pair_slack={},
        missing_merges=(),
        rounds=1,
        seconds=0.0,
        caveats=(),
    )
    picture = bar_chart(made, title="Shares", truth={"small": 0.4, "large": 0.6})
    # The largest comes first; rows are 44 pixels below a head of 76.
    large, small = (columns(picture, 76 + 44 * i + 22 - 8, (0x4C, 0x78, 0xA8)) for i in (0, 1))
    assert max(large) - large[0] == pytest.approx(4 * (max(small) - small[0]), rel=0.02)
    red = columns(picture, 76 + 22 - 16, (0xE4, 0x57, 0x56))
    assert (red[1] - large[0]) / (max(large) - large[0]) == pytest.approx(0.75, abs=0.01)


def test_pictures_of_any_result(result: MixtureResult) -> None:
    assert bar_chart(result, title="日本").size == (960, 76 + 3 * 44 + 84)
