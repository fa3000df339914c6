"""A critic beside a model: who learns from what, the adaptive weight, resuming, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from polytok.core.errors import ConfigError, WeightsError
from polytok.training import TrainConfig, fit
from polytok.training.checkpoint import checkpoints, load_state
from training import _stub as stub

CONFIG = TrainConfig(
    batch_size=8,
    lr=1e-2,
    log_every=8,
    num_workers=0,
    precision="fp32",
    device="cpu",
    start_batches=1,
)
PLAN = [(stub.STAGE, 16), (stub.JUDGED, 48)]


def newest(folder: Path) -> dict[str, torch.Tensor]:
    return load_state(checkpoints(folder / "checkpoints")[-1])[0]


def test_the_judged_gets_the_gradient_and_the_critic_none() -> None:
    judge = stub.adversary()
    made = torch.randn(2, 5, 3, requires_grad=True)
    loss = judge.judge({"points": made}, {})
    loss.backward()
    assert made.grad is not None and bool(made.grad.any())
    assert all(p.grad is None and p.requires_grad for p in judge.critic.parameters())
    assert loss.item() == pytest.approx(-judge.critic(made).mean().item())


def test_the_adaptive_weight_makes_both_gradients_equally_long() -> None:
    layer = nn.Linear(3, 3)
    judge = stub.adversary(last_weight=lambda: layer.weight, reference="rec")
    made = layer(torch.randn(4, 3))
    losses = {"rec": 7 * made.square().mean()}
    loss = judge.judge({"points": made}, losses)
    lengths = [
        float(torch.autograd.grad(x, layer.weight, retain_graph=True)[0].norm())
        for x in (loss, losses["rec"])
    ]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-2)


def test_a_critic_learns_in_the_stages_that_listen_to_it(tmp_path: Path) -> None:
    judge = stub.adversary()
    before = [p.detach().clone() for p in judge.critic.parameters()]
    fit(stub.Stub(), [(stub.STAGE, 16)], stub.Source(), CONFIG, tmp_path / "a", adversary=judge)
    assert all(torch.equal(p, q) for p, q in zip(judge.critic.parameters(), before, strict=True))
    stages = [(replace(stub.JUDGED, lr={"*": 0.0}), 800)]  # the model stays as bad as it is
    fit(stub.Stub(), stages, stub.Source(), CONFIG, tmp_path / "b", adversary=judge)
    real = stub.Source().sample(3)["points"]
    model = stub.Stub()
    made = model.decoder(model.norm(model.encoder(real)).tanh())
    assert judge.critic(real).mean().item() > judge.critic(made).mean().item()


def test_resuming_changes_nothing(tmp_path: Path) -> None:
    # The rate must not see where a run will stop.
    config = replace(CONFIG, save_every=8, final_lr_factor=1.0)
    for samples in (24, 48):
        plan = [PLAN[0], (stub.JUDGED, samples)]
        fit(stub.Stub(), plan, stub.Source(), config, tmp_path / "b", adversary=stub.adversary())
    straight = stub.Stub()
    fit(straight, PLAN, stub.Source(), config, tmp_path / "a", adversary=stub.adversary())
    one, other = newest(tmp_path / "a"), newest(tmp_path / "b")
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert any(name.startswith("critic-optimizer/exp_avg_sq/") for name in one)
    assert not any("critic" in name for name in straight.state_dict())


def test_mistakes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'judged' weighs the word of a critic"):
        fit(stub.Stub(), PLAN, stub.Source(), CONFIG, tmp_path / "a")
    judge = stub.adversary()
    with pytest.raises(ConfigError, match="made \\['image'\\]"):
        judge.judge({"image": torch.zeros(1)}, {})
    fit(stub.Stub(), PLAN, stub.Source(), CONFIG, tmp_path / "b", adversary=judge)
    longer = [PLAN[0], (stub.JUDGED, 64)]
    with pytest.raises(WeightsError, match="another critic"):
        other = stub.adversary(width=9)
        fit(stub.Stub(), longer, stub.Source(), CONFIG, tmp_path / "b", adversary=other)
