"""``polytok generate`` for images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from cli.commands import run
from contracts import pictures
from contracts.pictures import SYSTEM
from polytok import bitstream
from polytok.core import hub, registry
from polytok.core.config import override
from polytok.systems import api
from polytok.systems.classics.maskgit import MaskGIT, preset

PAGE = (Path(__file__).parents[2] / "docs" / "image-generation.md").read_text()


@pytest.fixture
def drawer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a generator of two classes over the mean colours of patches."""
    monkeypatch.setitem(registry.SYSTEMS, SYSTEM.name, SYSTEM)
    weights = pictures.save(tmp_path / "tokenizer")
    config = override(
        preset("maskgit-tiny"),
        tokenizer=str(tmp_path / "tokenizer"),
        tokenizer_weights=weights,
        vocab=125,
        length=16,
        num_classes=2,
        classes=("big cat", "dog"),
    )
    torch.manual_seed(2)
    model = MaskGIT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    folder = tmp_path / "generator"
    hub.save_pretrained(model, config, folder, system="maskgit", preset="maskgit-tiny")
    return folder


def test_generate_writes_pictures_codes_and_a_sheet(drawer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("generate", "big cat", "-n", 3, "-o", out, "--model", drawer, "--size", 40) == 0
    names = {f"big-cat-{i}.{s}" for i in range(3) for s in ("png", "ptk")}
    assert {p.name for p in out.iterdir()} == names | {"big-cat.png"}
    for i in range(3):
        with Image.open(out / f"big-cat-{i}.png") as picture:
            assert picture.size == (40, 40)


def test_files_hold_what_the_library_draws(drawer: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    given = ("--seed", 3, "--steps", 4, "--cfg", 1.5, "--temperature", 2)
    assert run("generate", "1", "-o", out, "--model", drawer, *given) == 0
    made = api.load_generator(drawer, modality="image")
    codes = made.generate("dog", seed=3, steps=4, cfg=1.5, temperature=2.0)
    found = made.codec.unpack(out.with_suffix(".ptk").read_bytes())
    assert torch.equal(found.indices[0], codes.indices[0])
    with Image.open(out) as picture:
        assert picture.tobytes() == made.images(codes)[0].tobytes()
    back = tmp_path / "back.png"
    model = made.model.config.tokenizer
    assert run("decode", out.with_suffix(".ptk"), "-o", back, "--model", model) == 0
    with Image.open(back) as one, Image.open(out) as other:
        assert one.tobytes() == other.tobytes()


def test_results_as_json(drawer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b.webp"
    assert run("generate", "-o", out, "--model", drawer, "--json") == 0
    [row] = json.loads(capsys.readouterr().out)["results"]
    assert row.keys() == {"output", "bytes", "width", "height", "seconds"}
    assert row["bytes"] == out.with_suffix(".ptk").stat().st_size
    assert (row["width"], row["height"]) == (16, 16)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("lion",), "unknown class 'lion'"),
        (("2",), "label=2 is not within 0..1"),
        (("dog", "--steps", 17), "steps=17"),
        (("dog", "--cfg", -1), "cfg=-1.0"),
        (("dog", "--top-k", 3), "--top-k is not for images"),
        (("dog", "--res", 32), "--res is not for images"),
        (("dog", "--image", "a.png"), "--image is not for images"),
        (("dog", "--format", "glb"), "glb"),
        (("dog", "-n", 0), "count=0"),
    ],
)
def test_wrong_requests_end_on_one_line(
    drawer: Path,
    tmp_path: Path,
    arguments: tuple[object, ...],
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run("generate", *arguments, "-o", out, "--model", drawer) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and text in line
    assert not out.exists() or not any(out.iterdir())


def test_options_of_images_are_not_for_shapes_nor_the_commands_of_shapes_for_images(
    drawer: Path, generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.glb"
    assert run("generate", "-o", out, "--model", generator, "--steps", 3) == 2
    assert "--steps is not for shapes" in capsys.readouterr().err
    path = tmp_path / "c.png"
    assert run("generate", "dog", "-o", path, "--model", drawer) == 0
    assert run("score", path.with_suffix(".ptk"), "--model", drawer) == 2
    assert "a generator of shapes is needed" in capsys.readouterr().err
    existing = run("generate", "dog", "-o", path, "--model", drawer)
    assert existing == 2 and "--force" in capsys.readouterr().err


def test_the_page_says_what_runs(
    drawer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^polytok (generate .*?)(?: +#.*)?$", PAGE, re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        parts = [{"ship": "dog", "8": "1", "RUN": str(drawer)}.get(p, p) for p in shlex.split(line)]
        if "-n" in parts:
            parts[parts.index("-n") + 1] = "2"
        assert run(*parts) == 0, line
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found: dict[str, object] = {}
    exec(code.replace('"RUN"', repr(str(drawer))).replace("ship", "dog"), found)
    codes, more = found["codes"].indices[0], found["more"].indices[0]  # type: ignore[attr-defined]
    assert codes.shape == (8, 16) and len(found["pictures"]) == 8  # type: ignore[arg-type]
    assert torch.equal(more[:, :4], codes[:1, :4].expand(4, -1))


def test_a_picture_is_coded_under_a_generator(drawer: Path, tmp_path: Path) -> None:
    tokenizer, photo = tmp_path / "tokenizer", tmp_path / "photo.png"
    Image.new("RGB", (40, 24), (200, 30, 60)).save(photo)
    given = ("--model", tokenizer, "--tiles", 2)
    assert run("encode", photo, "-o", tmp_path / "raw.ptk", *given, "--coder", "raw") == 0
    prior = ("--coder", "prior", "--prior", drawer)
    assert run("encode", photo, "-o", tmp_path / "prior.ptk", *given, *prior) == 0
    data = (tmp_path / "prior.ptk").read_bytes()
    known = api.load_codec(tokenizer, modality="image")
    symbols = api.prior_for(data, drawer)
    # A random net finds nothing likely, so its file is as long as a raw one, and kept raw.
    assert len(data) <= (tmp_path / "raw.ptk").stat().st_size
    raw = known.unpack((tmp_path / "raw.ptk").read_bytes())
    assert torch.equal(known.unpack(data, prior=symbols).indices[0], raw.indices[0])
    likely = api.load_generator(drawer, modality="image")
    with torch.no_grad():
        likely.model.head.proj.bias[raw.indices[0].unique()] += 9
    short = known.pack(raw, prior=likely.prior())[0]
    header = bitstream.read_header(short)
    assert header.is_prior_coded and len(short) < len(data)
    assert torch.equal(known.unpack(short, prior=likely.prior()).indices[0], raw.indices[0])
