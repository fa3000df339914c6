"""generate, complete, score, and files that a prior coded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import trimesh
from PIL import Image

from cli.commands import run
from polytok.core.errors import PolytokError
from polytok.systems import api
from polytok.systems.shape.generation import DRAFT

FAST = ("--res", 32)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "chair.png"
    Image.new("RGBA", (40, 30), (200, 20, 20, 255)).save(path)
    return path


def test_generate_writes_meshes_codes_and_a_sheet(generator: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("generate", "Wooden Barrel!", "-n", 3, "-o", out, "--model", generator, *FAST) == 0
    names = {f"wooden-barrel-{i}.{s}" for i in range(3) for s in ("glb", "ptk")}
    assert {p.name for p in out.iterdir()} == names | {"wooden-barrel.png"}
    assert len(trimesh.load(out / "wooden-barrel-1.glb", force="mesh").faces) > 0
    with Image.open(out / "wooden-barrel.png") as sheet:
        assert sheet.size[0] > 600


def test_an_item_is_the_same_whatever_the_number(generator: Path, tmp_path: Path) -> None:
    made = api.load_generator(generator)
    many, one = made.generate("barrel", count=6, seed=4), made.generate("barrel", seed=4)
    assert all(torch.equal(a[:1], b) for a, b in zip(many.indices, one.indices, strict=True))
    assert len({tuple(torch.cat(many[i].indices, dim=1)[0].tolist()) for i in range(6)}) == 6
    assert made.generate("barrel", seed=5).indices[-1].tolist() != one.indices[-1].tolist()


def test_text_image_both_and_neither(generator: Path, picture: Path) -> None:
    made = api.load_generator(generator)
    for options in ({}, {"text": "a"}, {"image": picture}, {"text": "a", "image": picture}):
        assert len(made.generate(**options, sampling=None)) == 1


def test_complete_keeps_the_coarse_scales_and_the_size(
    code: Path, model: Path, generator: Path, tmp_path: Path
) -> None:
    out = tmp_path / "done"
    arguments = ("--from-scale", 3, "-n", 2, "-o", out, "--model", generator, *FAST)
    assert run("complete", code, *arguments) == 0
    codec = api.load_codec(model)
    first = codec.unpack(code.read_bytes())
    for i in range(2):
        found = codec.unpack((out / f"box-from-3-{i}.ptk").read_bytes())
        same = [torch.equal(a, b) for a, b in zip(first.indices, found.indices, strict=True)]
        assert same == [True, True, False, False]
        assert torch.equal(found.meta["scale"], first.meta["scale"])
    assert [p.name for p in out.glob("*.png")] == ["box-from-3.png"]


def test_a_stretched_code_is_said_to_be_strange_to_a_generator(
    code: Path,
    model: Path,
    box: Path,
    generator: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = tmp_path / "plain.ptk"
    assert run("encode", box, "-o", plain, "--no-stretch", "--model", model) == 0
    for path, is_strange in ((code, True), (plain, False)):
        capsys.readouterr()
        assert run("score", path, "--model", generator) == 0
        assert ("is stretched by" in capsys.readouterr().err) == is_strange
    out = tmp_path / "done"
    assert run("complete", code, "--from-scale", 3, "-o", out, "--model", generator, *FAST) == 0
    assert "--no-stretch" in capsys.readouterr().err
    first, found = (
        api.load_codec(model).unpack(p.read_bytes()) for p in (code, *out.glob("*.ptk"))
    )
    assert torch.equal(found.meta["stretch"], first.meta["stretch"])


def test_score_adds_up(code: Path, generator: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("score", code, "--model", generator, "--text", "box", "--json") == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    total = sum(n * t for n, t in zip(facts["nats_per_scale"], facts["tokens"], strict=True))
    assert facts["nats_per_token"] == pytest.approx(total / sum(facts["tokens"]), abs=1e-2)
    assert facts["bits_per_token"] == pytest.approx(facts["nats_per_token"] * 1.442695, abs=1e-3)


@pytest.mark.parametrize("text", [None, "a box"])
def test_a_prior_coded_file_comes_back(
    text: str | None, model: Path, generator: Path, tmp_path: Path
) -> None:
    made = api.load_generator(generator)
    prior = made.prior(text)
    # A code that the generator itself is sure of is one that it codes well.
    sure = made.model.generate(
        prior.prompt,
        count=1,
        rng=torch.Generator().manual_seed(1),
        guide=prior.guide,
    )
    codes = made.generate(text)
    codes = type(codes)(indices=sure.indices, meta=codes.meta)
    path = tmp_path / "a.ptk"
    data = made.codec.pack(codes, prior=prior)[0]
    path.write_bytes(data)
    assert len(data) <= len(made.codec.pack(codes)[0])
    found = made.codec.unpack(data, prior=made.prior(text))
    assert all(torch.equal(a, b) for a, b in zip(found.indices, codes.indices, strict=True))
    given = ("--model", model, "--prior", generator, *(("--text", text) if text else ()))
    assert run("decode", path, "-o", tmp_path / "a.glb", *given, *FAST) == 0
    assert run("info", path, *given) == 0


def test_encode_with_a_prior(model: Path, generator: Path, box: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.ptk"
    given = ("--model", model, "--coder", "prior", "--prior", generator)
    assert run("encode", box, "-o", out, *given) == 0
    plain = tmp_path / "q.ptk"
    assert run("encode", box, "-o", plain, "--model", model) == 0
    assert out.stat().st_size <= plain.stat().st_size


@pytest.mark.parametrize(
    ("prompt", "is_cut"),
    [("", False), ("x " * 5000, True), ("🪑", False), ("стул 椅子", True), ("qzxv", False)],
)
def test_any_text_gives_a_shape(
    prompt: str, is_cut: bool, generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.glb"
    assert run("generate", prompt, "-o", out, "--model", generator, *FAST) == 0
    assert ("its end is left out" in capsys.readouterr().err) is is_cut


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-n", 0), "1..10000"),
        (("-n", -3), "1..10000"),
        (("-n", 10_001), "1..10000"),
        (("--temperature", 0), "temperature"),
        (("--top-p", 1.5), "top_p=1.5"),
        (("--top-p", "1,0.9,nan"), "top_p=1.0,0.9,nan"),
        (("--top-p", "1,,2"), "1,,2"),
        (("--image", "missing.png"), "missing.png"),
        (("--format", "fbx"), "fbx"),
        (("--model", "vat-512b-small"), "is a tokenizer"),
        (("--model", "vat-512b-gen-8m"), "no trained weights"),
        (("--cfg", "nan"), "cfg=nan"),
        (("--cfg", -1), "cfg=-1"),
        (("--blend", 2), "blend=2"),
        (("--draft", -1), "draft=-1"),
        (("--draft", "nan"), "draft=nan"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: tuple[object, ...],
    says: str,
    generator: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run("generate", "chair", "-o", out, "--model", generator, *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_top_p_may_differ_by_scale(generator: Path, code: Path, tmp_path: Path) -> None:
    arguments = ("-o", tmp_path / "a.glb", "--model", generator, "--force", *FAST)
    assert run("complete", code, "--from-scale", 2, "--top-p", "0,0.5", *arguments) == 0
    files = []
    for given in ((), ("--top-p", "0"), ("--top-p", "1,1"), ("--top-p", "1,0.1")):
        assert run("generate", "box", *given, *arguments) == 0
        files.append((tmp_path / "a.ptk").read_bytes())
    assert files[0] == files[1] == files[2] != files[3]


def test_a_picture_is_drafted_from_unless_that_is_off(
    generator: Path, picture: Path, code: Path, tmp_path: Path
) -> None:
    made = api.load_generator(generator)
    shown, strong, free = (made.generate(image=picture, draft=d) for d in (None, DRAFT, 0.0))
    assert all(torch.equal(a, b) for a, b in zip(shown.indices, strong.indices, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(shown.indices, free.indices, strict=True))
    plain, none = (made.generate("box", draft=d) for d in (None, 0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain.indices, none.indices, strict=True))
    for name, given in (("a", ()), ("b", ("--draft", DRAFT)), ("c", ("--draft", 0))):
        path = tmp_path / f"{name}.glb"
        arguments = ("--image", picture, "-o", path, "--model", generator, *given, *FAST)
        assert run("generate", *arguments) == 0
        assert run("complete", code, "--from-scale", 2, *arguments, "--force") == 0
    with pytest.raises(PolytokError, match="needs a text or an image"):
        made.generate(draft=1.0)


def test_a_corrupt_picture_is_one_line(generator: Path, picture: Path, tmp_path: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:40])
    arguments = ("--image", picture, "-o", tmp_path / "a.glb", "--model", generator)
    assert run("generate", *arguments) == 2
    assert not (tmp_path / "a.glb").exists()


@pytest.mark.parametrize("scale", [0, 5, 99])
def test_a_scale_out_of_range_is_refused(
    scale: int, code: Path, generator: Path, tmp_path: Path
) -> None:
    arguments = ("--from-scale", scale, "-o", tmp_path / "a.glb", "--model", generator)
    assert run("complete", code, *arguments) == 2


def test_codes_and_priors_of_other_weights_are_refused(
    generator: Path, box: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.ptk"
    assert run("encode", box, "-o", other) == 0
    assert run("score", other, "--model", generator) == 2
    assert run("complete", other, "--from-scale", 2, "-o", tmp_path, "--model", generator) == 2
    given = ("--coder", "prior", "--prior", generator)
    assert run("encode", box, "-o", tmp_path / "x.ptk", *given) == 2
    assert capsys.readouterr().err.count("error:") == 3


def test_a_changed_tokenizer_is_refused(generator: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((generator / name).read_bytes())
    text = (folder / "config.json").read_text()
    weights = json.loads(text)["config"]["tokenizer_weights"]
    (folder / "config.json").write_text(text.replace(weights, "00c0ffee"))
    assert run("generate", "a", "-o", tmp_path / "a.glb", "--model", folder) == 2
