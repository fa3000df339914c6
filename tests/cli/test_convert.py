"""``polytok convert``: official files become folders; whatever else they hold is refused whole."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from cli.commands import run
from parity.official import shapes_of
from polytok.core import hub, registry
from polytok.core.errors import WeightsError
from polytok.systems import api
from polytok.systems.keymap import to_theirs

PRESET = "maskgit-vqgan-tiny"


def source_model(name: str = PRESET) -> nn.Module:
    """The model of a preset with random weights."""
    module = registry.system_of(name).load()
    torch.manual_seed(3)
    return module.OFFICIAL.build(module.preset(name)).eval()


def official_of(name: str) -> dict[str, Tensor]:
    """The weights of :func:`source_model` under the official names."""
    model = source_model(name)
    key_map = registry.system_of(name).load().OFFICIAL.key_map(model.config)
    return {k: t.contiguous() for k, t in to_theirs(key_map, model.state_dict()).items()}


@pytest.fixture
def official() -> dict[str, Tensor]:
    return official_of(PRESET)


def save_legacy(tensors: dict[str, Tensor], path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.safetensors", save_file), ("a.bin", torch.save), ("a.pt", save_legacy)],
)
def test_a_converted_folder_holds_the_official_model(
    name: str,
    write: Callable[[Any, Path], None],
    official: dict[str, Tensor],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write(official, tmp_path / name)
    folder = tmp_path / "out"
    assert run("convert", PRESET, tmp_path / name, "-o", folder) == 0
    lines = capfd.readouterr().out.splitlines()
    model = source_model()
    values = sum(t.numel() for t in model.state_dict().values())
    assert (
        len(lines) == 1 and f"{PRESET}: {values:,} values" in lines[0] and str(folder) in lines[0]
    )
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    found = api.load(folder).model.state_dict()
    assert found.keys() == model.state_dict().keys()
    # A codebook that comes in has learnt, and further training must not start it anew.
    assert int(found.pop("bottleneck.steps")) == 1
    assert all(torch.equal(t, model.state_dict()[k]) for k, t in found.items())


@pytest.mark.parametrize("name", ["titok-tiny", "one-d-piece-micro"])
def test_tokenizers_are_converted(name: str, tmp_path: Path) -> None:
    torch.save(official_of(name), tmp_path / "a.bin")
    assert run("convert", name, tmp_path / "a.bin", "-o", tmp_path / "out") == 0
    found, wanted = api.load(tmp_path / "out").model, source_model(name)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    codes = wanted.encode({"image": image})
    assert torch.equal(found.encode({"image": image}).indices[0], codes.indices[0])
    assert torch.equal(found.decode(codes)["image"], wanted.decode(codes)["image"])


def test_a_generator_is_joined_with_its_converted_tokenizer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, tokenizer = "maskgit-tiny", "one-d-piece-micro"
    torch.save(official_of(name), tmp_path / "generator.bin")
    torch.save(official_of(tokenizer), tmp_path / "tokenizer.bin")
    assert run("convert", tokenizer, tmp_path / "tokenizer.bin", "-o", tmp_path / "tokens") == 0
    begun = ("convert", name, tmp_path / "generator.bin", "-o", tmp_path / "out")
    assert run(*begun) == 2
    assert f"{name} draws codes of {tokenizer}" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(*begun, "--tokenizer", tmp_path / "tokens") == 0
    found = api.load(tmp_path / "out").model.state_dict()
    wanted = source_model(name).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], t) for k, t in wanted.items())
    assert hub.read_info(tmp_path / "out").config["tokenizer_weights"] == hub.fingerprint(
        tmp_path / "tokens"
    )
    hub.save_tensors(
        {k: t + 1 for k, t in source_model(tokenizer).state_dict().items()},
        source_model(tokenizer).config,
        tmp_path / "tokens",
        system="one-d-piece",
        preset=tokenizer,
    )
    with pytest.raises(WeightsError, match="weights"):
        api.load(tmp_path / "out")


def test_a_generator_of_another_tokenizer_is_refused(
    official: dict[str, Tensor], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(official, tmp_path / "a.bin")
    assert run("convert", PRESET, tmp_path / "a.bin", "-o", tmp_path / "tokens") == 0
    torch.save(official_of("maskgit-tiny"), tmp_path / "b.bin")
    begun = ("convert", "maskgit-tiny", tmp_path / "b.bin", "-o", tmp_path / "out")
    assert run(*begun, "--tokenizer", tmp_path / "tokens") == 2
    assert f"holds {PRESET}, but maskgit-tiny draws codes of" in capfd.readouterr().err
    again = ("convert", PRESET, tmp_path / "a.bin", "-o", tmp_path / "out")
    assert run(*again, "--tokenizer", tmp_path / "tokens") == 2
    assert "is no generator" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_json_names_the_fingerprint_and_force_replaces(
    official: dict[str, Tensor], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, folder = tmp_path / "a.bin", tmp_path / "out"
    torch.save(official, source)
    assert run("convert", PRESET, source, "-o", folder, "--json") == 0
    first = json.loads(capfd.readouterr().out)
    assert first["preset"] == PRESET and first["tensors"] == len(
        api.load(folder).model.state_dict()
    )
    before = (folder / "model.safetensors").read_bytes()
    assert run("convert", PRESET, source, "-o", folder) == 2
    assert "--force" in capfd.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == before
    official["decoder.conv_out.bias"] = official["decoder.conv_out.bias"] + 1
    torch.save(official, source)
    assert run("convert", PRESET, source, "-o", folder, "--force", "--json") == 0
    assert json.loads(capfd.readouterr().out)["weights"] != first["weights"]


def test_all_that_does_not_fit_is_named_in_one_line(
    official: dict[str, Tensor], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = [k for k in official if k.startswith("encoder.") and k.endswith("norm1.weight")]
    for key in gone:
        del official[key]
    official["decoder.conv_out.bias"] = torch.zeros(4)
    official["decoder.attention.weight"] = official["loss.weight"] = torch.zeros(1)
    torch.save(official, tmp_path / "a.bin")
    assert run("convert", PRESET, tmp_path / "a.bin", "-o", tmp_path / "out") == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"{len(gone)} missing (encoder.down.{{0-2}}.block.{{0-1}}.norm1.weight, " in lines[0]
    assert "encoder.mid.{0-1}.norm1.weight)" in lines[0]
    assert "2 unknown (decoder.attention.weight, loss.weight)" in lines[0]
    assert "1 of another shape (decoder.conv_out.bias (4,) instead of (3,))" in lines[0]
    assert not (tmp_path / "out").exists()


class Evil:
    """Unpickled, it would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-a-pickle",)


def torch_file(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


WEIGHT = {"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3)}
BAD = {
    "empty": (b"", "no checkpoint"),
    "text": (b"these are no weights\n" * 9, "no checkpoint"),
    "page": (b"\n <!DOCTYPE html><html><body>404</body></html>", "web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "cut safetensors": (save(WEIGHT)[:-5], "damaged"),
    "cut header": (save(WEIGHT)[:20], "damaged"),
    "cut bin": (torch_file(WEIGHT)[:-200], "damaged"),
    "object": (torch_file({**WEIGHT, "args": Evil()}), "objects besides tensors"),
    "bare pickle": (pickle.dumps(Evil(), 2), "objects besides tensors"),
    "newer pickle": (pickle.dumps(Evil(), 4), "no checkpoint"),
    "list": (torch_file(list(WEIGHT.values())), "no named tensors"),
    "nothing": (torch_file({}), "no named tensors"),
    "nested": (torch_file({"state_dict": WEIGHT}), "'state_dict' is a dict, not a tensor"),
    "other model": (torch_file({"pos_start": torch.zeros(1)}), "1 unknown (pos_start)"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data, reason = BAD[name]
    Path("file.bin").write_bytes(data)
    assert run("convert", PRESET, "file.bin", "-o", "out") == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: file.bin") and reason in lines[0], lines
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize(
    ("preset_name", "reason"),
    [
        ("maskgit-vqgan-tinny", "did you mean 'maskgit-vqgan-tiny'"),
        ("vat-512b-tiny", "no official weights"),
        ("maskgit-vqgan", "is that of maskgit-vqgan-tiny, not of maskgit-vqgan"),
    ],
)
def test_other_presets_are_refused(
    preset_name: str,
    reason: str,
    official: dict[str, Tensor],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    torch.save(official, tmp_path / "a.bin")
    assert run("convert", preset_name, tmp_path / "a.bin", "-o", tmp_path / "out") == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and reason in lines[0], lines
    assert not (tmp_path / "out").exists()


def test_the_page_names_every_released_model_and_no_other() -> None:
    page = Path(__file__).parents[2] / "docs" / "converting-weights.md"
    table = page.read_text().split("<!-- converting:presets -->")[1]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for cell in first for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(named) == sorted(shapes_of("titok_keys.json"))
    for name in named:
        assert registry.system_of(name).load().OFFICIAL.source


def test_a_missing_file_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("convert", PRESET, tmp_path / "no.bin", "-o", tmp_path / "out") == 2
    assert "no.bin: No such file" in capfd.readouterr().err
