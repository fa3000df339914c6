"""``polytok mixture``: a known mixture there and back, and one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cli.commands import run
from polytok.systems.text.data_mixture_inference.official import read_solution, write_counts
from systems.text.data_mixture_inference.corpora import corpus

SHARES = {"a": 0.55, "b": 0.35, "c": 0.1}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    for name in SHARES:
        lines = [corpus(name, words=200, seed=s) for s in range(250)]
        (root / f"{name}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def made(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of known mixture, its samples and its counts."""
    out = tmp_path_factory.mktemp("made") / "out"
    shares = [x for name, share in SHARES.items() for x in ("--share", f"{name}={share}")]
    assert (
        run("mixture", "synth", texts, "-o", out, *shares, "--merges", 150, "--bytes", 10**6) == 0
    )
    counts = ("mixture", "count", out / "tokenizer.json", out / "samples", "-o", out / "counts")
    assert run(*counts, "--processes", 2) == 0
    return out


def test_a_mixture_there_and_back(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, chart = tmp_path / "result.json", tmp_path / "chart.png"
    solve = ("mixture", "solve", made / "counts", "-o", result, "--resamples", 4)
    assert run(*solve, "--official", tmp_path / "solution.json") == 0
    shown = capsys.readouterr().out
    assert "misfit" in shown and "first 18 merges" in shown
    assert sum(read_solution(tmp_path / "solution.json").values()) == pytest.approx(1)
    report = ("mixture", "report", result, "--truth", made / "meta.json")
    assert run(*report, "-o", chart, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["mean_squared_error"] < 1e-3
    truth = json.loads((made / "meta.json").read_text())["byte_count"]
    assert values["truth"] == {n: s / sum(truth.values()) for n, s in truth.items()}
    for name, (low, high) in values["byte_interval"].items():
        assert low <= values["byte_share"][name] <= high
    with Image.open(chart) as picture:
        assert picture.size[0] == 960
    assert run(*report) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["a", "b", "c"]
    assert "log10 of the mean squared error: -" in lines[3]


def test_counting_goes_on_where_it_stopped(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = made / "counts"
    kept = (counts / "a.npz").stat().st_mtime_ns
    whole = (counts / "b.npz").read_bytes()
    (counts / "b.npz").unlink()
    again = ("mixture", "count", made / "tokenizer.json", made / "samples", "-o", counts)
    assert run(*again, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["categories"], facts["counted_now"]) == (3, 1)
    assert (counts / "a.npz").stat().st_mtime_ns == kept
    assert (counts / "b.npz").read_bytes() == whole
    for other in (("--merges", 100), ("--bytes", 9), ("--parts", 2), ("--lines",)):
        assert run(*again, *other) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_counts_of_the_authors_are_solved(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from polytok.systems.text.data_mixture_inference.folder import load_folder

    target, transcripts = load_folder(made / "counts")
    write_counts(tmp_path / "theirs", target, transcripts)
    found = []
    for folder in (made / "counts", tmp_path / "theirs"):
        result = tmp_path / f"{folder.name}.json"
        solve = ("mixture", "solve", folder, "-o", result, "--resamples", 0, "--json")
        assert run(*solve) == 0
        found.append(json.loads(capsys.readouterr().out)["byte_share"])
    assert found[0] == {n: pytest.approx(s, abs=1e-9) for n, s in found[1].items()}


def test_binary_files_are_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.txt").write_text("some text to count\n")
    (tmp_path / "x" / "b.jpg").write_bytes(b"\xff\xd8\xff\x00")
    out = tmp_path / "out"
    assert run("mixture", "count", made, f"x={tmp_path / 'x'}", "-o", out) == 0
    assert "b.jpg" in capsys.readouterr().err
    # A sample of one line is enough for a result, with its caveat.
    assert run("mixture", "solve", out, "-o", tmp_path / "r.json", "--resamples", 2) == 0
    shown = capsys.readouterr()
    assert "100.00%" in shown.out
    assert "only 14 pairs" in shown.err


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_bad_input_ends_with_one_line(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)))
    (tmp_path / "letter.txt").write_text("x\n")
    (tmp_path / "bad.json").write_text("[]")
    unigram = {"model": {"type": "Unigram", "vocab": [["a", -1.0]]}}
    (tmp_path / "unigram.json").write_text(json.dumps(unigram))
    tokenizer, sample, out = made / "tokenizer.json", made / "samples", tmp_path / "out"
    counted = tmp_path / "letters"
    assert run("mixture", "count", tokenizer, tmp_path / "letter.txt", "-o", counted) == 0
    capsys.readouterr()
    for arguments, words in (
        (("count", tmp_path / "unigram.json", sample, "-o", out), "Unigram"),
        (("count", tmp_path / "noise.bin", sample, "-o", out), "noise.bin"),
        (("count", tmp_path / "no.json", sample, "-o", out), "no.json"),
        (("count", tokenizer, tmp_path / "empty.txt", "-o", out), "no bytes"),
        (("count", tokenizer, tmp_path / "noise.bin", "-o", out), "no UTF-8"),
        (("count", tokenizer, sample, sample, "-o", out), "given twice"),
        (("count", tokenizer, sample, "-o", out, "--rules", "gpt5"), "gpt5"),
        (("count", tokenizer, sample, "-o", out, "--pre-tokenizer", tmp_path / "bad.json"), "JSON"),
        (("count", tokenizer, sample, "-o", out, "--merges", 0), "greater than"),
        (("count", tokenizer, sample, "-o", tokenizer), "tokenizer.json"),
        (("solve", tmp_path, "-o", out), "target.json"),
        (("solve", tmp_path / "no", "-o", out), "no such folder"),
        (("solve", counted, "-o", out), "letter"),
        (("solve", made / "counts", "-o", out, "--solver", "gurobi"), "gurobi"),
        (("solve", made / "counts", "-o", out, "--resamples", 1), "resamples=1"),
        (("solve", made / "counts", "-o", made / "meta.json"), "exists already"),
        (("report", tmp_path / "bad.json"), "no JSON object"),
        (("report", made / "meta.json"), "not a result"),
        (("report", tmp_path / "no.json"), "no.json"),
        (("report", made / "meta.json", "-o", tmp_path / "x.pdf"), ".pdf"),
        (("synth", tmp_path / "letter.txt", "-o", out), "less than"),
        (("synth", sample, "-o", made), "exists already"),
        (("synth", sample, "-o", out, "--share", "a"), "NAME=SHARE"),
        (("synth", sample, "-o", out, "--share", "a=1", "--share", "a=1"), "twice"),
    ):
        assert run("mixture", *arguments) == 2, arguments
        assert words in one_line(capsys), arguments
    assert not out.exists() or not list(out.glob("*.npz"))


def test_a_damaged_file_of_counts_is_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    for path in (made / "counts").iterdir():
        (counts / path.name).write_bytes(path.read_bytes())
    (counts / "b.npz").write_bytes(b"PK\x03\x04 cut")
    assert run("mixture", "solve", counts, "-o", tmp_path / "r.json") == 2
    assert "b.npz" in one_line(capsys)
    assert not (tmp_path / "r.json").exists()


def test_no_command_imports_torch(made: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from polytok.cli import run\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    assert run(line.split('|')) == 0, line\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = tmp_path / "r.json"
    lines = [
        ["synth", made / "samples", "-o", tmp_path / "s", "--merges", 20, "--bytes", 50_000],
        ["count", made, made / "samples", "-o", tmp_path / "c", "--processes", 1, "--merges", 20],
        ["solve", tmp_path / "c", "-o", result, "--resamples", 2],
        ["report", result, "-o", tmp_path / "x.png"],
    ]
    text = "\n".join("|".join(map(str, ["mixture", *line])) for line in lines)
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("HiGHS") == 0
