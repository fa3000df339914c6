"""``polytok transfer``: folders that work, reports that tell all, one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from cli.commands import run
from polytok.core import hub
from polytok.systems.text import zett
from systems.text.zett_models import TEXTS, bpe, language_model, unigram


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model, tokenizers, a text, and a hypernetwork that fits."""
    folder = tmp_path_factory.mktemp("zett")
    lm = language_model()
    lm.model.save_pretrained(folder / "lm")
    lm.frame.save_pretrained(folder / "lm")
    unigram().save(str(folder / "unigram.json"))
    bpe(330).save(str(folder / "bpe.json"))
    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(
        str(folder / "words.json")
    )
    (folder / "text.txt").write_text(TEXTS[0])
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "broken.json").write_text("{")
    vocabulary = lm.tokenizer.vocabulary
    for name, dim in (("hypernet", 16), ("other", 8)):
        config = zett.HypernetConfig(
            vocab_size=vocabulary.num_original,
            num_extra=lm.tokenizer.num_extra,
            pad_id=lm.pad_id,
            embed_dim=dim,
            dim=16,
            inner_dim=16,
            num_heads=2,
        )
        zett.save_hypernet(zett.Hypernet(config), folder / name, preset="zett-tiny")
    return folder


def transfer(base: Path, out: Path, *arguments: object, tokenizer: str = "bpe.json") -> int:
    return run("transfer", base / "lm", "--tokenizer", base / tokenizer, "-o", out, *arguments)


@pytest.mark.parametrize("way", [(), ("--method", "focus"), ("--hypernet", "hypernet")])
def test_a_folder_is_written_and_told_about(
    way: tuple[str, ...], base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [base / w if w == "hypernet" else w for w in way]
    out = tmp_path / "out"
    assert transfer(base, out, *given, "--score", base / "text.txt", "--json") == 0
    shown = capfd.readouterr()
    facts: dict[str, Any] = json.loads(shown.out)
    assert shown.err == ""
    assert facts["method"] == (way[1] if "--method" in way else "zett" if way else "fvt")
    lm = zett.load_language_model(str(out))
    assert len(lm.tokenizer) == facts["tokens_after"] == 330
    found = zett.bits_per_byte(lm, lm.tokenizer, [TEXTS[0]])
    assert facts["bits_per_byte_after"] == pytest.approx(found.bits_per_byte, abs=1e-3)
    assert facts["bytes_per_token_after"] < facts["bytes_per_token_before"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_notes_stand_on_stderr(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert transfer(base, tmp_path / "out", tokenizer="unigram.json") == 0
    shown = capfd.readouterr()
    assert shown.err.startswith("note: its normaliser (NFKC) is dropped")
    assert shown.err.count("\n") == 1 and "tokens_truncated" in shown.out
    arguments = ("--keep-normalizer", "--resplit", "--whitespace", "--force")
    assert transfer(base, tmp_path / "out", *arguments, tokenizer="unigram.json") == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "tokenizer", "says"),
    [
        ((), "words.json", "WordLevel"),
        ((), "broken.json", "cannot read tokenizer"),
        (("--method", "fvtt"), "bpe.json", "did you mean 'fvt'"),
        (("--method", "fvt", "--hypernet", "hypernet"), "bpe.json", "two ways"),
        (("--hypernet", "other"), "bpe.json", "embed_dim=8"),
        (("--hypernet", "lm"), "bpe.json", "cannot read"),
        (("--hypernet", "nowhere"), "bpe.json", "cannot read"),
        (("--language", 1), "bpe.json", "--language belongs"),
        (("--hypernet", "hypernet", "--language", 1), "bpe.json", "knows 0 languages"),
        (("--score", "empty.txt"), "bpe.json", "empty"),
        (("--score", "binary.txt"), "bpe.json", "UTF-8"),
        (("--score", "nowhere.txt"), "bpe.json", "nowhere.txt"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: tuple[object, ...],
    tokenizer: str,
    says: str,
    base: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    files = {"hypernet", "other", "lm", "nowhere", "empty.txt", "binary.txt", "nowhere.txt"}
    given = [base / a if a in files else a for a in arguments]
    assert transfer(base, tmp_path / "out", *given, tokenizer=tokenizer) == 2
    error = capfd.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["of-nobody/model", "nowhere"])
def test_a_model_that_cannot_be_had_is_one_line(
    name: str,
    base: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    out = tmp_path / "out"
    assert run("transfer", name, "--tokenizer", base / "bpe.json", "-o", out) == 2
    assert run("transfer", base / "lm", "--tokenizer", name, "-o", out) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: cannot") for line in lines), lines
    assert not out.exists()


def test_models_that_are_none_or_unknown_are_one_line(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for name, config in (("t5", {"model_type": "t5"}), ("none", {}), ("bad", None)):
        folder = tmp_path / name
        folder.mkdir()
        text = "{" if config is None else json.dumps(config)
        (folder / hub.CONFIG).write_text(text)
        assert run("transfer", folder, "--tokenizer", base / "bpe.json", "-o", out) == 2
        error = capfd.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
    assert not out.exists()


def test_a_folder_that_is_there_is_kept(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert transfer(base, out) == 2
    assert "--force" in capfd.readouterr().err
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    assert transfer(base, out, "--force") == 0
    assert not (out / "mine.txt").exists()
    file = tmp_path / "file"
    file.write_text("mine")
    assert transfer(base, file, "--force") == 2
    assert file.read_text() == "mine"
