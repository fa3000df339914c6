"""A tiny model with random weights, and a mesh."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trimesh

from polytok.core import hub
from polytok.systems.shape.vat import VAT, preset


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that ``polytok.load`` takes; its fields cross zero, so codes decode to surfaces."""
    torch.manual_seed(1)
    tokenizer = VAT(preset("vat-512b-tiny"))
    with torch.no_grad():
        for layer in tokenizer.decoder.head:
            if isinstance(layer, torch.nn.Linear):
                layer.bias.zero_()
    folder = tmp_path_factory.mktemp("model")
    hub.save_pretrained(tokenizer, tokenizer.config, folder, system="vat", preset="vat-512b-tiny")
    return folder


@pytest.fixture
def box(tmp_path: Path) -> Path:
    path = tmp_path / "box.glb"
    trimesh.creation.box((1.0, 2.0, 3.0)).export(path)
    return path
