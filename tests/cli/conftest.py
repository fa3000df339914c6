"""A tiny model and generator with random weights, and a mesh."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import trimesh

from cli.commands import run
from polytok.core import hub
from polytok.core.config import override
from polytok.systems import api
from polytok.systems.shape.vat import VAT, preset
from polytok.systems.shape.vat.generator import VATGenerator
from polytok.systems.shape.vat.generator import preset as generator_preset


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


@pytest.fixture(scope="session")
def generator(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a generator of text and image over the codes of ``model``."""
    torch.manual_seed(2)
    codec = api.load_codec(model)
    config = override(
        generator_preset("vat-512b-tiny-gen"), tokenizer=str(model), tokenizer_weights=codec.weights
    )
    made = VATGenerator(config, codec.model.bottleneck.quantizer)
    with torch.no_grad():
        made.head.proj.weight.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("generator")
    hub.save_pretrained(made, config, folder, system="vat-gen", preset="vat-512b-tiny-gen")
    return folder


@pytest.fixture
def code(model: Path, box: Path, tmp_path: Path) -> Path:
    """The code of ``box`` by ``model``."""
    path = tmp_path / "box.ptk"
    assert run("encode", box, "-o", path, "--model", model) == 0
    return path


@pytest.fixture
def box(tmp_path: Path) -> Path:
    path = tmp_path / "box.glb"
    trimesh.creation.box((1.0, 2.0, 3.0)).export(path)
    return path
