"""Every registered preset, however large: built and run on fake tensors, which have only shapes."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from contracts.cases import BUILDERS, PRESETS, build_preset, image_batch, shape_batch
from polytok.core import registry


def test_every_tokenizer_is_built_by_the_contract_tests() -> None:
    tokenizers = {s.name for s in registry.SYSTEMS.values() if s.kind == "tokenizer"}
    assert tokenizers == set(BUILDERS)
    assert any(name.endswith("-tiny") for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_a_preset_builds_and_its_codes_follow_its_spec(name: str) -> None:
    with FakeTensorMode() as fake:
        model = build_preset(name).eval()
        is_image = model.spec.modality == "image"
        batch = image_batch(2, size=model.config.size) if is_image else shape_batch(2)
        batch = {k: fake.from_tensor(v) for k, v in batch.items()}
        codes = model.encode(batch)
        if is_image:
            assert model.decode(codes)["image"].shape == batch["image"].shape
        else:
            field = model.decode(codes)["field"]
            assert field(batch["queries"]).shape == batch["sdf"].shape
    assert model.spec.modality == registry.system_of(name).modality
    assert [ids.shape for ids in codes.indices] == [(2, s.count) for s in model.spec.levels]
    assert model.bottleneck.vocab_sizes == tuple(s.vocab for s in model.spec.levels)
