"""The benchmark on three made-up shapes and a made-up codec: rows, resuming, tables."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import trimesh

from polytok.core.errors import PolytokError, SignalError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark module, over a data folder with a ball, a box and a tube."""
    parts = {
        "ball": trimesh.creation.icosphere(subdivisions=3),
        "box": trimesh.creation.box([1, 2, 3]),
        "tube": trimesh.creation.annulus(0.5, 1, 2),
    }
    (tmp_path / "shapes").mkdir()
    for split in ("train", "val"):
        with ZipFile(tmp_path / "shapes" / f"{split}.zip", "w") as archive:
            lines = []
            for name, mesh in parts.items():
                archive.writestr(f"made/{name}.glb", mesh.export(file_type="glb"))
                lines.append(json.dumps({"file": f"made/{name}.glb", "pack": "made"}))
            archive.writestr("metadata.jsonl", "\n".join(lines))
    monkeypatch.setenv("POLYTOK_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("_results", "_report", "shape_rate_distortion"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("shape_rate_distortion")
    monkeypatch.setattr(module, "SIZES", (64, 256))
    module.bank.cache_clear()
    return module


@dataclass(frozen=True)
class FakeCodes:
    indices: tuple[int, ...] = (1, 2, 3)

    def prefix(self, *, levels: int) -> FakeCodes:
        return replace(self, indices=self.indices[:levels])


class FakeCodec:
    """Remembers the mesh: level 1 decodes to nothing, 2 to its box, 3 to itself.

    It refuses to encode tubes.
    """

    spec = SimpleNamespace(levels=(8, 8, 8))

    def encode(
        self, signal: trimesh.Trimesh, *, effort: int, levels: int | None, seed: int
    ) -> FakeCodes:
        self.mesh = signal
        self.levels = levels
        if signal.euler_number == 0:
            raise SignalError("a tube")
        return FakeCodes().prefix(levels=levels or 3)

    def decode(self, codes: FakeCodes, *, resolution: int, levels: int) -> list[trimesh.Trimesh]:
        if levels == 1:
            raise SignalError("empty")
        low, high = self.mesh.bounds
        box = trimesh.creation.box(high - low)
        box.apply_translation((low + high) / 2)
        return [box if levels == 2 else self.mesh]

    def pack(self, codes: FakeCodes) -> list[bytes]:
        return [bytes(100 * len(codes.indices))]


def test_draco_rows_hold_every_budget(bench: ModuleType) -> None:
    item = bench._results.shapes("val")[0]
    small, large = bench.draco_rows(item)
    assert (small["max_bytes"], small["bytes"], small["f_002"]) == (64, None, 0.0)
    assert large["bytes"] <= 256 and large["f_002"] > 0.1
    assert small["faces"] == 1280


def test_retrieval_finds_the_same_shape_whatever_its_place(bench: ModuleType) -> None:
    for item in bench._results.shapes("val"):
        (row,) = bench.retrieval_rows(item)
        assert row["found"] == item.name
        assert row["f_002"] == pytest.approx(1)


def test_ceiling_is_near_one_for_solids(bench: ModuleType) -> None:
    item = bench._results.shapes("val")[0]
    (row,) = bench.ceiling_rows(item, resolutions=(64,))
    assert row["f_002"] > 0.99 and row["outer_f_002"] > 0.99
    assert row["v_iou"] > 0.97


def test_polytok_rows_score_every_prefix_or_those_asked_for(bench: ModuleType) -> None:
    item = bench._results.shapes("val")[0]
    rows = bench.polytok_rows(item, "any", 9, 32, codec=FakeCodec())
    assert [(r["effort"], r["levels"], r["bytes"]) for r in rows] == [
        (9, k, 100 * k) for k in (1, 2, 3)
    ]
    some = bench.polytok_rows(item, "any", 9, 32, (1, 3), codec=FakeCodec())
    assert [r["levels"] for r in some] == [1, 3]
    assert some[1]["f_002"] == rows[2]["f_002"]
    nothing, box, itself = rows[:3]
    assert nothing["f_002"] == nothing["v_iou"] == 0
    assert box["v_iou"] == pytest.approx(np.pi / 6, abs=0.02)
    assert itself["f_002"] == pytest.approx(1)
    codec = FakeCodec()
    own = bench.polytok_rows(item, "any", 9, 32, (1, 2), own=True, codec=codec)
    assert codec.levels == 2
    assert [{**r, "encode_seconds": 0, "decode_seconds": 0} for r in own] == [
        {**r, "encode_seconds": 0, "decode_seconds": 0} for r in rows[:2]
    ]


def test_what_does_not_encode_scores_as_empty(bench: ModuleType) -> None:
    tube = bench._results.shapes("val")[2]
    rows = bench.polytok_rows(tube, "any", 0, 32, codec=FakeCodec())
    assert [(r["levels"], r["bytes"], r["error"], r["f_002"]) for r in rows] == [
        (k, None, "a tube", 0.0) for k in (1, 2, 3)
    ]


def test_run_resumes_and_refuses_another_protocol(bench: ModuleType, tmp_path: Path) -> None:
    results = bench._results
    calls = []

    def work(item: Any) -> list[dict[str, Any]]:
        calls.append(item.name)
        return [{**item.row, "value": 1 / 3}]

    items = results.shapes("val")
    first = results.Results("part", {"what": "test"}, folder=tmp_path)
    results.run(items[:1], work, first, processes=1)
    again = results.Results("part", {"what": "test"}, folder=tmp_path)
    results.run(items, work, again, processes=1)
    assert calls == [item.name for item in items]
    stored = json.loads((tmp_path / "part.json").read_text())
    assert [row["value"] for row in stored["rows"]] == [0.33333] * 3
    assert {"versions", "hardware", "commit", "command", "seed", "protocol"} <= set(stored)
    with pytest.raises(PolytokError, match="another protocol"):
        results.Results("part", {"what": "other"}, folder=tmp_path)


def test_missing_data_is_named(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTOK_DATA", "/nowhere")
    with pytest.raises(PolytokError, match=r"val\.zip is missing"):
        bench._results.shapes("val")


def test_report_holds_every_part_and_compares_with_draco(bench: ModuleType, tmp_path: Path) -> None:
    report = importlib.import_module("_report")
    results, items = bench._results, bench._results.shapes("val")
    folder = tmp_path / "results"
    codec = FakeCodec()
    for name, rows in {
        "draco": [r for i in items for r in bench.draco_rows(i)],
        "retrieval": [r for i in items for r in bench.retrieval_rows(i)],
        **{
            f"polytok_made_effort{e}": [
                r for i in items[:n] for r in bench.polytok_rows(i, "made", e, 32, codec=codec)
            ]
            for e, n in ((0, 3), (5, 2))
        },
    }.items():
        protocol = bench.protocol(name.split("_")[0])
        part = results.Results(f"shape_rd_{name}", protocol, folder=folder)
        part.rows = rows
        part.save()
    text = report.write_report(folder).read_text()
    assert (folder / "shape_rate_distortion.png").stat().st_size > 10_000
    assert "### draco: val (3 shapes)" in text
    assert "| 64 | 0.000 [0.000, 0.000] |" in text and "| 3 of 3 |" in text
    assert "### made: val (3 shapes)" in text
    assert "Not encoded: made/tube.glb (a tube)." in text
    last = next(line for line in text.splitlines() if line.startswith("| 0 / 3 |"))
    assert [cell.strip() for cell in last.split("|")[2:4]] == ["3", "300"]
    assert last.split("|")[-2].strip() == "–"  # no Draco budget of 300 bytes or more was measured
    same = next(line for line in text.splitlines() if line.startswith("| 5 / 3 |"))
    assert same.split("|")[2].strip() == "2"
    assert same.split("|")[-3].strip() == "0.000 [0.000, 0.000]"  # the codec knows no effort
    second = next(line for line in text.splitlines() if line.startswith("| 0 / 2 |"))
    assert "[" in second.split("|")[-2]


def test_report_without_results_says_so(bench: ModuleType, tmp_path: Path) -> None:
    report = importlib.import_module("_report")
    with pytest.raises(PolytokError, match="run another part"):
        report.write_report(tmp_path / "none")
