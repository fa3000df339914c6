"""``polytok classify``: tables and JSON, agreement with labels, and one line for bad input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from polytok.cli import run
from polytok.core import hub
from polytok.core.config import override
from polytok.systems.theory.attention_vat import AttentionClassifier, preset
from polytok.systems.theory.attention_vat.text import Vocabulary

WORDS = ("<pad>", "<unk>", "warm", "cold", "sky")


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A folder whose model says bad where it reads cold."""
    torch.manual_seed(0)
    config = override(preset("attention-vat-tiny"), vocab_size=len(WORDS), encoder="projection")
    model = AttentionClassifier(config)
    with torch.no_grad():
        model.encoder.out.weight.zero_()
        model.encoder.out.weight[0, 0] = 1.0
        model.encoder.out.bias.zero_()
        model.embedding.weight.zero_()
        model.embedding.weight[2, 0], model.embedding.weight[3, 0] = 0.0, 9.0
        model.head.weight.zero_()
        model.head.weight[0, 0], model.head.bias[0] = -3.0, 1.0
    folder = tmp_path / "classifier"
    name = "attention-vat-tiny"
    hub.save_pretrained(model, config, folder, system="attention-vat", preset=name)
    Vocabulary(WORDS, ("bad", "good"), 8).save(folder)
    return folder


def test_sentences_are_classified_into_a_table(
    classifier: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "s.tsv", tmp_path / "out.tsv"
    source.write_text("text\tlabel\nwarm sky\tgood\nCold sky!\tgood\nwarm\t\n")
    command = ["classify", str(source), "--model", str(classifier), "-o", str(out)]
    assert run(command) == 0
    rows = list(csv.DictReader(out.read_text().splitlines(), delimiter="\t"))
    assert [row["label"] for row in rows] == ["good", "bad", "good"]
    assert [row["text"] for row in rows] == ["warm sky", "Cold sky!", "warm"]
    assert rows[2]["attention"] == "warm:1.00"
    assert capfd.readouterr().err.strip() == "1 of 2 labels agree (50.0%)"
    assert run(command) == 2
    assert "exists already" in capfd.readouterr().err


def test_lines_give_json(
    classifier: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.txt").write_text("warm\n\ncold night\n")
    command = ["classify", str(tmp_path / "s.txt"), "--model", str(classifier), "--json"]
    assert run(command) == 0
    said = capfd.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["label"] for row in rows] == ["good", "bad"] and said.err == ""
    assert [word for word, _ in rows[1]["attention"]] == ["cold", "night"]
    assert sum(weight for _, weight in rows[1]["attention"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("empty.txt", "", "has no sentences"),
        ("blank.tsv", "text\n ... \n-\n\n", None),
        ("headless.csv", "a,b\n", "no column 'text'"),
        ("strange.tsv", "text\tquery\nwarm\tcold\n", "not pairs"),
        ("missing.txt", None, "cannot read"),
    ],
)
def test_bad_input_ends_with_one_line(
    name: str,
    content: str | None,
    text: str | None,
    classifier: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / name
    if content is not None:
        source.write_text(content)
    status = run(["classify", str(source), "--model", str(classifier)])
    said = capfd.readouterr().err.strip().splitlines()
    if text is None:
        assert status == 0 and said == []
    else:
        assert status == 2 and len(said) == 1 and text in said[0], said


def test_a_model_of_another_kind_is_refused(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.txt").write_text("warm\n")
    assert run(["classify", str(tmp_path / "s.txt"), "--model", str(model)]) == 2
    assert "is no text classifier" in capfd.readouterr().err
