"""Model folders: what is written comes back, and nothing else is taken."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from polytok.core import hub
from polytok.core.config import from_dict
from polytok.core.errors import WeightsError


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """Configuration of the test's module."""

    slots: tuple[int, ...] = (1, 4)
    width: int = 3


class Net(nn.Module):
    """Parameters, a float buffer, an integer buffer, and one that is not saved."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 4)
        self.register_buffer("usage", torch.rand(5))
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("cache", torch.zeros(2), persistent=False)


def save(folder: Path, net: Net, **options: torch.dtype) -> str:
    return hub.save_pretrained(net, NetConfig(), folder, system="net", preset="net-tiny", **options)


def test_round_trip(tmp_path: Path) -> None:
    net, other = Net(), Net()
    fingerprint = save(tmp_path / "model", net)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [hub.CONFIG, hub.WEIGHTS]
    info = hub.read_info(tmp_path / "model")
    assert (info.format_version, info.system, info.preset) == (1, "net", "net-tiny")
    assert from_dict(NetConfig, info.config) == NetConfig()
    hub.load_weights(other, tmp_path / "model")
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())
    assert "cache" not in load_file(tmp_path / "model" / hub.WEIGHTS)
    # Equal weights have equal fingerprints, and saving again replaces the folder's files whole.
    assert save(tmp_path / "again", other) == fingerprint == save(tmp_path / "model", net)
    other.layer.weight.data[0, 0] += 1
    assert save(tmp_path / "again", other) != fingerprint


def test_fingerprint_is_the_start_of_sha256(tmp_path: Path) -> None:
    fingerprint = save(tmp_path, Net())
    data = (tmp_path / hub.WEIGHTS).read_bytes()
    assert fingerprint == hub.fingerprint(tmp_path) == hashlib.sha256(data).digest()[:4].hex()


def test_half_precision_is_for_parameters_alone(tmp_path: Path) -> None:
    net, other = Net(), Net()
    save(tmp_path, net, dtype=torch.bfloat16)
    stored = load_file(tmp_path / hub.WEIGHTS)
    assert {k: v.dtype for k, v in stored.items()} == {
        "layer.weight": torch.bfloat16,
        "layer.bias": torch.bfloat16,
        "usage": torch.float32,
        "steps": torch.int64,
    }
    hub.load_weights(other, tmp_path)
    assert other.layer.weight.dtype == torch.float32
    assert torch.equal(other.layer.weight, net.layer.weight.bfloat16().float())
    assert torch.equal(other.usage, net.usage)
    assert net.layer.weight.dtype == torch.float32


def test_names_and_shapes_must_fit(tmp_path: Path) -> None:
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = net.state_dict()
    path = tmp_path / hub.WEIGHTS
    others = {k: v for k, v in state.items() if k != "usage"}
    cases = {
        "1 missing (usage)": others,
        "1 unknown (more)": {**state, "more": torch.zeros(1)},
        "1 of another shape (layer.weight (4, 9) instead of (4, 3))": {
            **state,
            "layer.weight": torch.zeros(4, 9),
        },
        "1 of another kind (layer.weight int64 instead of float32)": {
            **state,
            "layer.weight": torch.zeros(4, 3, dtype=torch.int64),
        },
        "1 of another kind (steps float32 instead of int64)": {**state, "steps": torch.zeros(())},
        "1 missing (usage), 2 unknown (more.{0-1}), 1 of another shape "
        "(layer.bias (5,) instead of (4,)), 1 of another kind (layer.weight bool instead of "
        "float32)": {
            "layer.weight": torch.zeros(4, 3, dtype=torch.bool),
            "layer.bias": torch.zeros(5),
            "steps": state["steps"],
            "more.0": torch.zeros(1),
            "more.1": torch.zeros(1),
        },
    }
    for message, tensors in cases.items():
        save_file(tensors, path)
        with pytest.raises(WeightsError) as caught:
            hub.load_weights(net, tmp_path)
        assert str(caught.value) == f"{path}: tensors {message}"
    # A refused file changes nothing.
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    # What may be missing is said, and stays.
    save_file({k: v + 1 for k, v in others.items()}, path)
    assert hub.load_weights(net, tmp_path, lacking=["none", "us*"]) == ["usage"]
    assert torch.equal(net.usage, before["usage"])
    assert torch.equal(net.layer.weight, before["layer.weight"] + 1)
    with pytest.raises(WeightsError, match="tensors 1 missing"):
        hub.load_weights(net, tmp_path, lacking=["layer.*"])
    # What is passed over may be anything.
    save_file({**state, "layer.bias": torch.zeros(5), "more": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="1 unknown"):
        hub.load_weights(net, tmp_path, lacking=["layer.b*"], unused=["layer.b*"])
    found = hub.load_weights(net, tmp_path, lacking=["layer.b*"], unused=["layer.b*", "more"])
    assert found == ["layer.bias"]


class Trap:
    """Says so when a pickle of it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("kind", ["pickle", "torch", "empty", "text", "cut", "liar"])
def test_damaged_weights_and_pickles_are_refused(tmp_path: Path, kind: str) -> None:
    save(tmp_path, Net())
    path = tmp_path / hub.WEIGHTS
    whole = path.read_bytes()
    if kind == "torch":
        torch.save({"layer.weight": torch.zeros(4, 3)}, path)
    else:
        path.write_bytes(
            {
                "pickle": pickle.dumps(Trap()),
                "empty": b"",
                "text": b"version https://git-lfs.github.com/spec/v1\n",
                "cut": whole[:-3],
                "liar": (2**62).to_bytes(8, "little") + whole[8:],
            }[kind]
        )
    with pytest.raises(WeightsError, match="cannot read") as caught:
        hub.load_weights(Net(), tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read in (hub.read_info, hub.fingerprint, lambda f: hub.load_weights(Net(), f)):
        with pytest.raises(WeightsError, match="cannot read") as caught:
            read(tmp_path / "nowhere")
        assert str(tmp_path / "nowhere") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read"),
        ("{", "cannot read"),
        ("[1]", "takes a mapping"),
        ("\x00\ud800", "cannot read"),
        (json.dumps({"system": "net"}), "format_version"),
        (
            json.dumps({"format_version": 1, "sistem": "n", "preset": "p", "config": {}}),
            "did you mean 'system'",
        ),
        (
            json.dumps({"format_version": 2, "system": "n", "preset": "p", "config": {}}),
            "has format 2; this program reads 1",
        ),
    ],
)
def test_damaged_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / hub.CONFIG).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(WeightsError) as caught:
        hub.read_info(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_only_the_two_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}

    def snapshot_download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.download("someone/model", "main") == tmp_path
    assert asked == {
        "repository": "someone/model",
        "revision": "main",
        "allow_patterns": [hub.CONFIG, hub.WEIGHTS],
    }


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(*_: object, **__: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(WeightsError) as caught:
        hub.download("someone/model")
    assert str(caught.value) == "cannot fetch 'someone/model' from the hub: no route to host"


def test_importing_and_reading_a_config_imports_no_torch(tmp_path: Path) -> None:
    save(tmp_path, Net())
    program = (
        "import sys; from polytok.core import hub\n"
        f"hub.read_info({str(tmp_path)!r}); hub.fingerprint({str(tmp_path)!r})\n"
        "print({'torch', 'huggingface_hub', 'safetensors'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr
