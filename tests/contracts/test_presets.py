"""Every registered preset, however large: built and run on the meta device, shapes only."""

from __future__ import annotations

import pytest
import torch
from contracts.cases import BUILDERS, PRESETS, build_preset, shape_batch

from polytok.core import registry


def test_every_tokenizer_is_built_by_the_contract_tests() -> None:
    tokenizers = {s.name for s in registry.SYSTEMS.values() if s.kind == "tokenizer"}
    assert tokenizers == set(BUILDERS)
    assert any(name.endswith("-tiny") for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_a_preset_builds_and_its_codes_follow_its_spec(name: str) -> None:
    with torch.device("meta"):
        model = build_preset(name).eval()
    assert model.spec.modality == registry.system_of(name).modality
    batch = {k: v.to("meta") for k, v in shape_batch(2).items()}
    codes = model.encode(batch)
    assert [(i.shape, l.vocab) for i, l in zip(codes.indices, model.spec.levels, strict=True)] == [
        ((2, level.count), level.vocab) for level in model.spec.levels
    ]
    decoded = model.decode(codes)
    assert decoded["field"](batch["queries"]).shape == batch["sdf"].shape
