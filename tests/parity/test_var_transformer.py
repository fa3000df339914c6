"""Our next-scale generator against VAR's own code, on random weights.

``data/var_transformer.npz`` holds arrays alone, recorded from FoundationVision/VAR (MIT, commit
78b9539) in fp32 on one CPU thread: weights, teacher-forced logits and sampled ids. Depth 2, width
32, 2 heads, 5 classes, sides 1, 2, 3, V = 32, C = 8; variant A has unit queries and keys and
modulation per block (weights of seed 101), B neither (seed 102). Samples: seed 7, cfg 1.5, top-k
12, top-p 0.9; seed 11, cfg 4, no filter. ``data/var_d16_keys.json``: names and shapes of d16.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polytok.core.contracts import StepContext
from polytok.core.errors import WeightsError
from polytok.generators import Guide, Sampling
from polytok.systems.classics.var import (
    VAR,
    VARConfig,
    convert,
    key_map,
    quantizer_of,
)
from polytok.systems.keymap import check, to_ours

pytestmark = pytest.mark.parity
DATA = Path(__file__).parent / "data"
TINY = {"sides": (1, 2, 3), "codebook_size": 32, "code_dim": 8, "depth": 2, "dim": 32}
CONFIGS = {
    "A": VARConfig(**TINY, num_heads=2, num_classes=5),
    "B": VARConfig(**TINY, num_heads=2, num_classes=5, attention="quarter", modulation="shared"),
}


@pytest.fixture(params=CONFIGS)
def case(request: pytest.FixtureRequest) -> tuple[VAR, dict[str, Tensor]]:
    config, start = CONFIGS[request.param], f"{request.param}/"
    with np.load(DATA / "var_transformer.npz") as arrays:
        found = {
            k.removeprefix(start): torch.from_numpy(arrays[k])
            for k in arrays.files
            if k.startswith(start)
        }
    quantizer = quantizer_of(config)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(found["quant/embedding.weight"])
        for i, layer in enumerate(quantizer.phi.layers):
            for name in ("weight", "bias"):
                getattr(layer, name).copy_(found[f"quant/quant_resi.qresi_ls.{i}.{name}"])
    model = VAR(config, quantizer).eval()
    state = {k.removeprefix("state/"): v for k, v in found.items() if k.startswith("state/")}
    model.load_state_dict(convert(state, config))
    return model, found


def test_logits_are_those_of_the_official_code(case: tuple[VAR, dict[str, Tensor]]) -> None:
    model, found = case
    ids = torch.cat([found[f"indices_{k}"] for k in range(3)], dim=1)
    example = model.process.corrupt({"ids": ids})
    assert example.query.inp is not None
    torch.testing.assert_close(example.query.inp, found["x_BLCv_wo_first_l"], atol=1e-5, rtol=0)
    features = model.conditioner.encode({"label": found["labels"]})
    with torch.no_grad():
        cond = model.conditioner.branch(features, "label", 3)
        logits = model.head.logits(model.net(example.query, cond))
    torch.testing.assert_close(logits, found["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "seed", "cfg", "sampling"),
    [("sample_0", 7, 1.5, Sampling(top_k=12, top_p=0.9)), ("sample_1", 11, 4.0, Sampling())],
)
def test_sampled_ids_are_those_of_the_official_code(
    case: tuple[VAR, dict[str, Tensor]], name: str, seed: int, cfg: float, sampling: Sampling
) -> None:
    model, found = case
    codes = model.generate(
        {"label": found["labels"]},
        count=3,
        rng=torch.Generator().manual_seed(seed),
        guide=Guide(shares={"label": 1.0}, strength=cfg),
        sampling=sampling,
    )
    for k, ids in enumerate(codes.indices):
        assert torch.equal(ids, found[f"{name}/indices_{k}"])


def test_the_key_map_covers_d16() -> None:
    official = json.loads((DATA / "var_d16_keys.json").read_text())
    config = VARConfig()
    with torch.device("meta"):
        ours = VAR(config, quantizer_of(config)).state_dict()
        theirs = {name: torch.empty(shape) for name, shape in official.items()}
    check(key_map(config), ours, theirs, "d16")
    found = to_ours(key_map(config), theirs)
    assert {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in ours.items()}


def test_tensors_of_another_model_are_refused() -> None:
    with pytest.raises(WeightsError, match="missing"):
        convert({"weight": torch.zeros(1)}, CONFIGS["A"])


def test_its_loss_reaches_every_weight(case: tuple[VAR, dict[str, Tensor]]) -> None:
    model, found = case
    ids = torch.cat([found[f"indices_{k}"] for k in range(3)], dim=1)
    batch = {"ids": ids, "seed": torch.arange(3), "label": found["labels"]}
    model.train()(batch, StepContext()).losses["ce"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
