"""The average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polytok.training import WeightAverage
from polytok.training.ema import own_parameters


def test_it_follows_the_formula_with_its_warm_up() -> None:
    weight = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    average = WeightAverage({"w": weight}, 0.9)
    expected = torch.zeros(3)
    for n in range(1, 200):
        weight.data.fill_(float(n % 7))
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * float(n % 7)
        average.update()
    assert average.average["w"].dtype == torch.float32
    torch.testing.assert_close(average.average["w"], expected)


def test_swapping_gives_the_weights_back_even_after_an_error() -> None:
    net = nn.Linear(2, 2)
    before = net.weight.detach().clone()
    average = WeightAverage(dict(net.named_parameters()), 0.5)
    average.average["weight"].fill_(3.0)
    with pytest.raises(RuntimeError, match="inside"), average.swapped():
        assert bool((net.weight == 3).all())
        raise RuntimeError("inside")
    assert torch.equal(net.weight, before)


def test_what_is_absent_from_the_state_is_not_followed() -> None:
    class Foreign(nn.Linear):
        """Keeps its tensors out of the owner's state."""

        def _save_to_state_dict(self, *args: object, **kwargs: object) -> None:
            return

    net = nn.Sequential(nn.Linear(2, 2), Foreign(2, 2), nn.Linear(2, 2))
    net[2].weight = net[0].weight
    assert list(own_parameters(net)) == ["0.weight", "0.bias", "2.bias"]
