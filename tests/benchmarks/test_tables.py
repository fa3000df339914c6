"""Tables of the documents: made from results alone, checked, never typed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from polytok.core import registry
from polytok.core.errors import PolytokError, UnknownNameError

ROOT = Path(__file__).resolve().parents[2]
MODEL = "vat-512b-small.shapes2"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("tables")


def write(folder: Path, name: str, rows: list[dict[str, Any]], **head: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps({**head, "rows": rows}))


def marked(name: str) -> str:
    return f"before\n\n<!-- table:{name} -->\nold\n<!-- /table -->\nafter\n"


def cells(text: str) -> list[list[str]]:
    """The body of the tables in a text."""
    lines = [x for x in text.splitlines() if x.startswith("|")]
    return [[c.strip() for c in x.strip("|").split("|")] for x in lines[2:]]


def test_the_documents_are_up_to_date(
    tables: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_check_tells_and_writing_mends(
    tables: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    for path in ("README.md", "docs/a.md", "docs/b.md"):
        (tmp_path / path).write_text(marked("systems"))
    (tmp_path / "docs" / "b.md").write_text("no table")
    assert tables.main(["--check"], root=tmp_path, folder=tmp_path) == 2
    said = capsys.readouterr().out
    assert "README.md is out of date" in said and "docs/a.md" in said
    assert (tmp_path / "README.md").read_text() == marked("systems")
    assert tables.main([], root=tmp_path, folder=tmp_path) == 0
    assert tables.main(["--check"], root=tmp_path, folder=tmp_path) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n\n<!-- table:systems -->\n| system |")
    assert text.endswith("|\n<!-- /table -->\nafter\n") and "old" not in text


@pytest.mark.parametrize(
    "name", ["rate", "ladder", "speed", "training", "prefixes", "ablations-30k"]
)
def test_nothing_measured_says_so(tables: ModuleType, tmp_path: Path, name: str) -> None:
    text = tables.filled(marked(name), tmp_path)
    assert tables.MISSING in text
    assert tables.filled(text, tmp_path) == text
    widths = {len(row) for row in cells(text)}
    assert len(widths) == 1


def test_every_system_has_a_row(tables: ModuleType, tmp_path: Path) -> None:
    rows = cells(tables.filled(marked("systems"), tmp_path))
    assert [row[0] for row in rows] == list(registry.SYSTEMS)
    assert all(p in rows[0][5] for p in registry.SYSTEMS["vat"].presets)


def test_rate_takes_the_longest_prefix_that_fits(tables: ModuleType, tmp_path: Path) -> None:
    def row(shape: str, levels: int, size: int | None, f: float) -> dict[str, Any]:
        head = {"split": "val", "shape": shape, "effort": 0, "levels": levels}
        return {**head, "bytes": size, "f_002": f, "f_001": f / 2}

    ours = [row("a", 1, 100, 0.2), row("a", 2, 250, 0.4), row("a", 3, 500, 0.6)]
    ours += [row("b", 1, 90, 0.4), row("b", 2, 120, 0.8), row("b", 3, 600, 1.0)]
    write(tmp_path, f"shape_rd_polytok_{MODEL}_effort0", ours)
    got = {(r[0], r[1]): r[2:] for r in cells(tables.filled(marked("rate"), tmp_path))}
    means = [float(got["polytok, effort 0", f"<= {n}"][0].split()[0]) for n in (128, 256, 512)]
    assert means == pytest.approx([0.5, 0.6, 0.7])
    assert got["polytok, effort 0", "<= 512"][1].startswith("0.350 ")
    assert got["polytok, effort 0", "<= 512"][2] == tables.MISSING  # no row of val-unseen
    assert got["decimation + Draco", "<= 512"] == [tables.MISSING] * 4
    # Codes of their own are other rows; sizes that nothing fits have none.
    write(tmp_path, f"shape_rd_polytok_{MODEL}_effort5_own", [{**ours[2], "effort": 5}])
    rows = cells(tables.filled(marked("rate"), tmp_path))
    assert [r[1:3] for r in rows if r[0] == "polytok searched at each size, effort 5"] == [
        ["<= 512", "0.600 [0.600, 0.600]"]
    ]


def test_a_ladder_keeps_the_order_of_its_rungs(tables: ModuleType, tmp_path: Path) -> None:
    scores = {"loss": 0.5, "query_iou": 0.25, "v_iou": 0.5, "f_002": 0.75, "f_001": 0.5}
    rows = [
        {"split": "val", "shape": shape, "rung": rung, **scores, "f_002": f}
        for shape, f in (("a", 0.5), ("b", 1.0))
        for rung in ("means", "code")
    ]
    write(tmp_path, f"shape_ladder_{MODEL}", rows)
    found = cells(tables.filled(marked("ladder"), tmp_path))
    assert [row[:2] for row in found] == [["means", "2"], ["code", "2"]]
    assert found[0][2:] == ["0.500", "0.250", "0.500", "0.750", "0.500"]


def test_a_curve_comes_from_the_run(tables: ModuleType, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    records = [
        {"samples": 8, "losses": {"rec": 1.0}},
        {"samples": 1600, "val": {"iou_latent": 0.25, "collapse": "None."}},
    ]
    metrics.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert tables.keep_curve("vat-4kb-small", metrics, tmp_path) == 1
    [row] = cells(tables.filled(marked("training-4kb"), tmp_path))
    assert row == ["1,600", "1.000", "0.250", "–", "–"]
    assert tables.MISSING in tables.filled(marked("training"), tmp_path)
    metrics.write_text(json.dumps(records[0]))
    with pytest.raises(PolytokError, match="no validation"):
        tables.keep_curve("vat-4kb-small", metrics, tmp_path)


def test_prefixes_are_ranked_shape_by_shape(tables: ModuleType, tmp_path: Path) -> None:
    curves = [[0.1, 0.2, 0.6], [0.3, 0.2, 0.1], [0.0, 0.0, 0.0], [0.2, 0.4, 0.5]]
    rows = [{"split": "val", "shape": str(n), "v_iou": curve} for n, curve in enumerate(curves)]
    write(tmp_path, "shape_prefixes", rows)
    val, unseen = cells(tables.filled(marked("prefixes"), tmp_path))
    assert val == ["val", "4", "0.150 0.200 0.300", "0.50", "50%"]
    assert unseen[2] == tables.MISSING


def test_arms_are_averaged_over_seeds(tables: ModuleType, tmp_path: Path) -> None:
    rows = [
        {
            "arm": "vvq",
            "seed": seed,
            "cs_iou": 0.1 * seed,
            "iou_full": 0.5,
            "iou_latent": 0.6,
            "iou_prefix": [0.1, 0.5],
            "removed": [0.25, 0.5],
        }
        for seed in (1, 3)
    ]
    write(tmp_path, "vat_ablations_10k", rows, protocol={"uniform": [0.1, 0.9]})
    [row] = cells(tables.filled(marked("ablations-10k"), tmp_path))
    assert row[:3] == ["vvq", "2", "0.200 (0.100..0.300)"]
    assert row[-2:] == ["0.10 0.50", "25 50"]


def test_quantizers_stand_with_their_settings(tables: ModuleType, tmp_path: Path) -> None:
    used = {"kind": "vq", "usage": 0.5, "perplexity": 99.0, "entropy_bits": 5.5, "psnr": 20.0}
    rows = [
        {**used, "part": "training", "size": size, "is_well": is_well, "seed": 0}
        for size, is_well in ((256, True), (1024, False))
    ]
    rows += [
        {**used, "part": "mixture", "size": 64, "is_well": True, "seed": s, "usage": 0.9 + s / 10}
        for s in range(2)
    ]
    write(tmp_path, "quantizers_usage", rows)
    [row] = cells(tables.filled(marked("quantizers-training"), tmp_path))
    assert row == ["vq", "50%", "99", "20.00", "–", "–", "–", "50%", "99", "20.00"]
    [row] = cells(tables.filled(marked("quantizers-mixture"), tmp_path))
    assert row == ["vq", "95% (90%..100%)", "5.50", "–"]
    memory = {"kind": "fsq", "ours_mib": 150, "ours_before_mib": 100}
    write(tmp_path, "quantizers_memory", [{**memory, "theirs_mib": 300, "theirs_before_mib": 200}])
    [row] = cells(tables.filled(marked("quantizers-memory"), tmp_path))
    assert row[1:] == ["150", "300", "0.50", "50", "100"]


@pytest.mark.parametrize(
    ("text", "error"),
    [(marked("rates"), UnknownNameError), ("<!-- table:rate -->\n| a |\n", PolytokError)],
)
def test_wrong_markers(
    tables: ModuleType, tmp_path: Path, text: str, error: type[PolytokError]
) -> None:
    with pytest.raises(error):
        tables.filled(text, tmp_path)
