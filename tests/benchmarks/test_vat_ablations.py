"""The ablations: which arms there are, and one that runs on two shapes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import trimesh

from polytok.bottlenecks.resamplers import RESAMPLERS
from polytok.core.errors import UnknownNameError
from polytok.data.prepared import prepare_folder

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("vat_ablations")


def test_arms_differ_from_each_other_in_what_they_name(ablations: ModuleType) -> None:
    configs = {name: ablations.config_of(name) for name in ablations.ARMS}
    weights = {name: [s.weights["kl"] for s in ablations.stages_of(name)] for name in configs}
    learns = {
        name: (ablations.train_config(name, 0, 30_000), ablations.sampling_of(name))
        for name in configs
    }
    assert len({f"{configs[n]} {weights[n]} {learns[n]}" for n in configs}) == len(configs)
    # Arms that train or sample otherwise are the same model.
    for name in {*ablations.TRAIN, *ablations.SAMPLING}:
        assert configs[name] == ablations.BASE, name
    assert configs["vvq"] == ablations.BASE
    # A heavier KL weighs wherever noise is drawn, and nowhere else.
    assert weights["vvq_kl3e-1"] == [0.0, 0.3, 0.3, 0.3]
    assert weights["no_vvq"] == weights["vvq"] == [s.weights["kl"] for s in ablations.STAGES]
    without = {n for n, c in configs.items() if not c.is_compressed}
    assert without == {"no_compression", "cross_no_compression", "rich_no_compression"}
    for name, config in configs.items():
        quiet = name == "no_vvq" or "_quiet" in name
        assert config.is_variational is not quiet, name
        assert bool(config.prefix_dropout) is ("_drop" in name), name
        base = name.split("_")[0] if name.split("_")[0] in RESAMPLERS else "grid2d"
        assert config.resampler == base, name
    with pytest.raises(UnknownNameError, match="did you mean 'no_vvq'"):
        ablations.config_of("no_vq")


def test_every_arm_is_about_a_million_parameters(ablations: ModuleType) -> None:
    counts = []
    for name in ("vvq", "attn", "cross_no_compression"):
        model = ablations.VAT(ablations.config_of(name))
        counts.append(sum(p.numel() for p in model.parameters()))
    assert all(0.7e6 < n < 1.6e6 for n in counts), counts
    assert abs(sum(ablations.SHARES.values()) - 1) < 1e-9
    assert list(ablations.SHARES) == [s.name for s in ablations.STAGES]


def test_arms_run_once_and_are_kept(
    ablations: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "meshes").mkdir()
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "meshes" / "box.glb")
    trimesh.creation.icosphere(subdivisions=2).export(tmp_path / "meshes" / "ball.glb")
    prepare_folder(tmp_path / "meshes", tmp_path / "data", processes=1, progress=False)
    small = {"dim": 32, "num_heads": 1, "num_points": 128, "codebook_size": 16}
    small |= {"latent_layers": 0, "decoder_layers": 1, "encoder_layers": 1}
    monkeypatch.setattr(ablations, "BASE", ablations.override(ablations.BASE, **small))
    arguments = ["--data", str(tmp_path / "data"), "--val", str(tmp_path / "data")]
    arguments += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--samples", "160"]

    def rows() -> list[dict[str, Any]]:
        stored = json.loads((tmp_path / "vat_ablations_0k.json").read_text())["rows"]
        return sorted(stored, key=lambda r: str(r["name"]))

    ablations.main([*arguments, "--arms", "no_vvq"])
    first = rows()
    ablations.main([*arguments, "--arms", "no_vvq,nested_drop"])
    assert [r["name"] for r in rows()] == ["nested_drop-0", "no_vvq-0"]
    assert rows()[1] == first[0]  # kept, not trained again
    assert capsys.readouterr().out.count("no_vvq-0: CS-IoU") == 2
    for row in rows():
        assert len(row["removed"]) == len(row["iou_prefix"]) == len(ablations.BASE.slots)
        assert row["iou_prefix"][-1] == pytest.approx(row["iou_full"], abs=1e-4)
        assert sum(row["iou_prefix"][:-1]) / (len(row["iou_prefix"]) - 1) == pytest.approx(
            row["cs_iou"], abs=1e-3
        )
        assert sum(row["removed"]) <= 1


def test_energy_that_is_left_belongs_to_the_latents(ablations: ModuleType) -> None:
    model = ablations.VAT(ablations.BASE).eval()
    batch = {"points": torch.rand(3, 128, 3), "normals": torch.rand(3, 128, 3)}
    halves = [{k: v[:2] for k, v in batch.items()}, {k: v[2:] for k, v in batch.items()}]
    validation = type("Fixed", (), {"batches": halves})()
    got = ablations.energies(model, validation)
    with torch.no_grad():
        z = model.bottleneck.gaussian(model.encoder(*batch.values())).latents
        per_shape = []
        for item in z:
            prefixes = model.bottleneck.quantizer(item[None]).stats["prefixes"]
            left = torch.stack([(item - p[0]).square().mean() for p in prefixes])
            per_shape.append(left / item.square().mean())
    # Means over a batch weigh shapes by their energy, so only nearly the same.
    assert got == pytest.approx(torch.stack(per_shape).mean(0).tolist(), rel=0.2)
