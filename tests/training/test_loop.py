"""The loop: resume, order, skipping, stopping and refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from polytok.core.contracts import Stage
from polytok.core.errors import ConfigError, PolytokError, UnknownNameError, WeightsError
from polytok.training import FitResult, TrainConfig, fit, loop
from training import _stub as stub

HERE = Path(__file__).parent


CONFIG = TrainConfig(
    batch_size=8,
    lr=1e-2,
    log_every=8,
    num_workers=0,
    start_batches=1,
    precision="fp32",
    device="cpu",
)


@pytest.fixture(autouse=True)
def _no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard takes a second to import; one test has it on."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "tensorboard" else find(n, *a)
    )


def run(
    folder: Path, samples: int, config: TrainConfig = CONFIG, **kwargs: Any
) -> tuple[Any, FitResult]:
    model = kwargs.pop("model", None) or stub.Stub()
    stages = kwargs.pop("stages", None) or [(stub.STAGE, samples)]
    source = kwargs.pop("source", None) or stub.Source()
    return model, fit(model, stages, source, config, folder, **kwargs)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def newest(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(sorted((folder / "checkpoints").iterdir())[-1])


def stop_after(source: Any, sample: int) -> None:
    """Make a source press Ctrl-C once, when it first draws ``sample``."""
    draw: Callable[[int], Any] = source.sample

    def sample_and_stop(n: int) -> Any:
        if n == sample and n not in source.seen:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(n)

    source.sample = sample_and_stop


def test_the_loss_falls_and_everything_is_written(tmp_path: Path) -> None:
    scores: list[bool] = []

    def validate(model: Any) -> dict[str, float]:
        scores.append(model.training)
        return {"x": 1.0}

    config = replace(CONFIG, validate_every=80, save_every=80)
    model, result = run(tmp_path, 400, config, validate=validate)
    lines = [r for r in records(tmp_path) if "loss" in r]
    assert result == FitResult(steps=50, samples=400, skipped=0, is_complete=True)
    assert lines[-1]["losses"]["rec"] < 0.3 * lines[0]["losses"]["rec"]
    assert [r["samples"] for r in lines] == list(range(8, 401, 8))
    assert set(lines[0]) == {
        "step", "samples", "stage", "precision", "skipped", "loss", "losses", "metrics",
        "grad_norm", "lr", "samples_per_second", "seconds",
    }  # fmt: skip
    assert scores == [False] * 5
    assert [r["val"] for r in records(tmp_path) if "val" in r] == [{"x": 1.0}] * 5
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000040.safetensors", "step-000000050.safetensors"]
    assert int(model.bottleneck.updates) == 50
    assert not model.training


@pytest.mark.parametrize("muon", [(), ("encoder.*",)])
def test_interrupting_and_resuming_changes_nothing(tmp_path: Path, muon: tuple[str, ...]) -> None:
    """6 steps straight end bit-identically to 3 steps, a stop, and 3 more."""
    config = replace(CONFIG, muon=muon)
    stages = [(replace(stub.STAGE, name="one"), 16), (replace(stub.STAGE, name="two"), 32)]
    straight, _ = run(tmp_path / "a", 0, config, stages=stages)
    source = stub.Source()
    stop_after(source, 2 * 8 + 3)
    _, first = run(tmp_path / "b", 0, config, stages=stages, source=source)
    resumed, second = run(tmp_path / "b", 0, config, stages=stages)
    assert (first.steps, first.is_complete) == (3, False)
    assert (second.steps, second.is_complete) == (6, True)
    a, b = newest(tmp_path / "a"), newest(tmp_path / "b")
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in a)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    drop = ("seconds", "samples_per_second")
    kept = [
        [{k: v for k, v in r.items() if k not in drop} for r in records(tmp_path / run)]
        for run in "ab"
    ]
    assert kept[0] == kept[1]
    assert resumed.starts == 0, "stage two began before the stop"


def test_a_stop_at_a_stage_boundary_starts_the_next_stage_once(tmp_path: Path) -> None:
    stages = [(replace(stub.STAGE, name="one"), 16), (replace(stub.STAGE, name="two"), 16)]
    run(tmp_path / "a", 0, stages=stages)
    source = stub.Source()
    stop_after(source, 8)
    before, first = run(tmp_path / "b", 0, stages=stages, source=source)
    after, _ = run(tmp_path / "b", 0, stages=stages)
    assert (first.steps, before.starts, after.starts) == (2, 1, 1)
    a, b = newest(tmp_path / "a"), newest(tmp_path / "b")
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    model, _ = run(tmp_path, 24)
    source = stub.Source()
    again, result = run(tmp_path, 24, source=source)
    assert result.is_complete and source.seen == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_longer_budget_extends_a_run(tmp_path: Path) -> None:
    run(tmp_path, 24)
    source = stub.Source()
    _, result = run(tmp_path, 40, source=source)
    assert result.steps == 5 and source.seen == list(range(24, 40))
    with pytest.raises(ConfigError, match="5 steps already"):
        run(tmp_path, 24)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_samples_come_in_order(tmp_path: Path, num_workers: int) -> None:
    """Workers change nothing: the weights after five steps are the same bits."""
    source = stub.Source()
    model, _ = run(tmp_path / "plain", 40, source=source)
    assert source.seen == [*range(8), *range(8), *range(8, 40)], "the first batch starts the stage"
    other, _ = run(tmp_path / "workers", 40, replace(CONFIG, num_workers=num_workers))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    model = stub.Stub()
    model.bad_steps = (1,)
    model, result = run(tmp_path, 32, model=model)
    assert (result.steps, result.skipped, int(model.bottleneck.updates)) == (4, 1, 3)
    assert all(p.isfinite().all() for p in model.parameters())
    assert records(tmp_path)[-1]["skipped"] == 1


def test_a_run_that_stays_not_finite_is_given_up(tmp_path: Path) -> None:
    model = stub.Stub()
    model.bad_steps = range(2, 100)
    with pytest.raises(PolytokError, match="20 steps in a row, up to step 21") as error:
        run(tmp_path, 800, model=model)
    assert "\n" not in str(error.value)


def test_the_time_limit_stops_cleanly(tmp_path: Path) -> None:
    _, result = run(tmp_path, 800, replace(CONFIG, time_limit_minutes=0.0))
    assert (result.steps, result.is_complete) == (1, False)
    assert newest(tmp_path)


def test_stages_switch_what_learns(tmp_path: Path) -> None:
    stage = replace(
        stub.STAGE,
        train=("decoder.*", "norm.*"),
        lr={"norm.*": 0.0, "*": 1.0},
        options={"is_noisy": False},
    )
    before, model = stub.Stub().state_dict(), stub.Stub()
    model.start_stage = None
    run(tmp_path, 40, replace(CONFIG, ema_decay=0.0), model=model, stages=[(stage, 40)])
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"decoder.weight", "decoder.bias", "bottleneck.updates"}
    assert model.is_noisy is False


@pytest.mark.parametrize(
    ("stage", "error", "text"),
    [
        (replace(stub.STAGE, weights={"rec": 1.0, "idle": 0.0}), UnknownNameError, "'size'"),
        (replace(stub.STAGE, train=("deckoder.*",)), ConfigError, "deckoder"),
        (replace(stub.STAGE, lr={"encoder.*": 0.1}), ConfigError, "without a learning-rate factor"),
        (replace(stub.STAGE, options={"is_loud": 1}), ConfigError, "is_loud"),
        (
            replace(stub.STAGE, weights={"rec": 0.0, "size": 0.0, "idle": 0.0}),
            ConfigError,
            "weight 0",
        ),
    ],
)
def test_stages_that_do_not_fit_are_refused(
    tmp_path: Path, stage: Stage, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        run(tmp_path, 0, stages=[(stage, 16)])


@pytest.mark.parametrize("change", [{"batch_size": 4}, {"seed": 1}])
def test_another_run_in_the_same_folder_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    run(tmp_path, 16)
    with pytest.raises(ConfigError, match=f"{next(iter(change))}={next(iter(change.values()))}"):
        run(tmp_path, 32, replace(CONFIG, **change))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 16)
    with pytest.raises(WeightsError, match="another model"):
        run(tmp_path, 32, model=stub.Stub(dim=8))


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 16)
    path = next((tmp_path / "checkpoints").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="cannot read checkpoint"):
        run(tmp_path, 32)


def test_averaged_weights_are_shipped_and_scored(tmp_path: Path) -> None:
    """The file, the validated model and the returned model hold one and the same average."""
    seen: list[dict[str, torch.Tensor]] = []

    def validate(model: Any) -> dict[str, float]:
        seen.append({n: v.clone() for n, v in model.state_dict().items()})
        return {}

    model, _ = run(tmp_path, 80, validate=validate)
    shipped, state = load_file(tmp_path / "model.safetensors"), newest(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, shipped[name]), name
        assert torch.equal(value, seen[-1][name]), name
    moved = [n for n, _ in model.named_parameters() if "unused" not in n]
    assert all(not torch.equal(shipped[n], state[f"model/{n}"]) for n in moved)


def test_bf16_trains_fp32_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "computes_in_bf16", lambda device: True)
    model, _ = run(tmp_path, 80, replace(CONFIG, precision="bf16"))
    lines = records(tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_bf16_is_refused_where_it_is_imitated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "computes_in_bf16", lambda device: False)
    with pytest.raises(ConfigError, match="only imitates bf16"):
        run(tmp_path, 16, replace(CONFIG, precision="bf16"))
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_what_the_machine_computes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bf16: bool, precision: str
) -> None:
    monkeypatch.setattr(loop, "computes_in_bf16", lambda device: has_bf16)
    run(tmp_path, 16, replace(CONFIG, precision="auto"))
    assert {line["precision"] for line in records(tmp_path) if "loss" in line} == {precision}


def test_tensorboard_gets_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.undo()
    run(tmp_path, 16)
    written = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert b"losses/rec" in written and b"metrics/rms" in written


def _worker(
    folder: Path, steps: str, name: str, *more: str, processes: int = 1
) -> subprocess.Popen[str]:
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone"]
    count = [] if processes == 1 else [f"--nproc_per_node={processes}"]
    command = [
        sys.executable,
        *launch,
        *count,
        str(HERE / "_worker.py"),
        str(folder),
        steps,
        name,
        *more,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["stub", "critic", "vat-512b-tiny"])
def test_two_processes_train_like_one(
    tmp_path: Path, processes: list[subprocess.Popen[str]], name: str
) -> None:
    """Two stages, noise per sample, a start from data, workers: equal losses and weights."""
    pair = _worker(tmp_path / "two", "5", name, processes=2)
    processes.append(pair)
    one = _worker(tmp_path / "one", "5", name)
    processes.append(one)
    for process in (pair, one):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    a, b = records(tmp_path / "one"), records(tmp_path / "two")
    assert len(a) == len(b) == 10
    for single, double in zip(a, b, strict=True):
        assert single["loss"] == pytest.approx(double["loss"], abs=1e-4)
        assert single["grad_norm"] == pytest.approx(double["grad_norm"], abs=1e-4)
    left, right = newest(tmp_path / "one"), newest(tmp_path / "two")
    for key, value in left.items():
        if not key.startswith(("optimizer/", "critic-optimizer/")):
            torch.testing.assert_close(right[key], value, atol=1e-4, rtol=1e-3, msg=key)


def test_a_signal_saves_and_ends_the_process_well(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    process = _worker(tmp_path, "100000", "stub")
    processes.append(process)
    end = time.monotonic() + 60
    while not (tmp_path / "metrics.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "interrupted by SIGTERM" in errors and "Traceback" not in errors
    steps = records(tmp_path)[-1]["step"]
    names = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert names == [f"step-{steps:09d}.safetensors"]


def test_a_killed_run_continues_as_if_nothing_had_happened(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """SIGKILL at any moment loses the steps since the last checkpoint, which come out the same."""
    folder = tmp_path / "killed"
    killed, straight = (_worker(f, "40", "stub", "8") for f in (folder, tmp_path / "straight"))
    processes += [killed, straight]
    end = time.monotonic() + 60
    while not list(folder.glob("checkpoints/step-*")) and time.monotonic() < end:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    left = folder / "checkpoints" / ".step-000000009.abc.part.safetensors"
    left.write_bytes(b"half")
    reached = sorted(folder.glob("checkpoints/step-*"))[-1].name
    assert "step-000000000" < reached < "step-000000080"
    again = _worker(folder, "40", "stub", "8")
    processes.append(again)
    for process in (again, straight):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    a, b = newest(folder), newest(tmp_path / "straight")
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert [r["step"] for r in records(folder)] == list(range(1, 81))
    assert not left.exists()
