"""Random prefixes: which lengths, how often, off in eval."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from polytok.core.errors import ConfigError
from polytok.core.seeding import torch_rng
from polytok.layers import PrefixDropout, length_odds

KINDS = ("uniform", "powers", "geometric")


def test_odds_are_what_their_names_say() -> None:
    assert length_odds("uniform", 5, min_keep=2) == pytest.approx(
        {2: 0.25, 3: 0.25, 4: 0.25, 5: 0.25}
    )
    assert length_odds("powers", 20, min_keep=2) == pytest.approx(
        dict.fromkeys((2, 4, 8, 16, 20), 0.2)
    )
    odds = list(length_odds("geometric", 9).values())
    ratios = [b / a for a, b in itertools.pairwise(odds)]
    assert ratios == pytest.approx([0.01 ** (1 / 8)] * 8)
    assert odds[0] / odds[-1] == pytest.approx(100)
    assert [length_odds(kind, 4, min_keep=4) for kind in KINDS] == [{4: 1.0}] * 3
    for low in (0, 6):
        with pytest.raises(ConfigError, match=f"min_keep={low} is not within 1..5"):
            length_odds("uniform", 5, min_keep=low)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_drawn_with_their_odds(kind: str) -> None:
    drop, rng, draws = PrefixDropout(8, distribution=kind), torch_rng(4), 8000
    counts = Counter(drop.draw(rng) for _ in range(draws))
    odds = length_odds(kind, 8)
    assert set(counts) == set(odds)
    # Chi-square with at most 7 degrees of freedom is below 24.3 in all but one of 1000 seeds.
    assert sum((counts[n] - draws * p) ** 2 / (draws * p) for n, p in odds.items()) < 24.3


def test_one_generator_cuts_a_batch_and_one_each_gives_lengths() -> None:
    drop, x = PrefixDropout(16), torch.randn(5, 16, 3)
    cut, lengths = drop(x, torch_rng(1))
    assert lengths is None
    assert torch.equal(cut, x[:, : drop.draw(torch_rng(1))])
    cut, lengths = drop(x, [torch_rng(n) for n in range(5)])
    assert lengths.tolist() == [drop.draw(torch_rng(n)) for n in range(5)]
    assert torch.equal(cut, x[:, : int(lengths.max())])
    assert len(set(lengths.tolist())) > 1


def test_nothing_is_dropped_in_eval_or_without_a_generator() -> None:
    drop, x = PrefixDropout(16), torch.randn(2, 16, 3)
    assert drop(x, None) == (x, None)
    assert drop.eval()(x, torch_rng(0)) == (x, None)
    assert not list(drop.state_dict())
