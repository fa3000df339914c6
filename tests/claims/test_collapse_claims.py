"""What the theory of posterior collapse promises, on digits and on the shipped shape tokenizer."""

from __future__ import annotations

import json
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import trimesh

from polytok.metrics import collapse_report, measure_collapse
from polytok.systems import api
from polytok.systems.theory.posterior_collapse import predict_collapse
from polytok.systems.theory.posterior_collapse.models import (
    LinearCVAE,
    LinearMHVAE,
    LinearVAE,
    train,
)

ETA_DEC = 0.05**0.5
TAG = "vat-512b-small.shapes1"
EVERY = 16

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """8x8 digits in [0, 1], centred."""
    images = pytest.importorskip("sklearn.datasets").load_digits().data / 16
    return np.asarray(images - images.mean(0))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 4.0])
def test_trained_vaes_use_as_many_directions_as_predicted(digits: np.ndarray, beta: float) -> None:
    wanted = predict_collapse(data=digits, eta_dec=ETA_DEC, beta=beta, latent_dim=48)
    model, x = LinearVAE(64, 48, eta_dec=ETA_DEC, beta=beta), torch.from_numpy(digits).float()
    train(model, x, num_steps=4000, batch_size=512)
    with torch.no_grad():
        report = collapse_report(*(m.numpy() for m in model.moments(x)))
    assert abs(report.num_directions - wanted.num_active) <= 2


def test_conditions_collapse_more(digits: np.ndarray) -> None:
    """The upper left quadrant as condition of the rest, in matrices and in ReLU networks."""
    is_seen = np.zeros((8, 8), bool)
    is_seen[:4, :4] = True
    x, y = digits[:, is_seen.ravel()], digits[:, ~is_seen.ravel()]
    given, target = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    alone = predict_collapse(data=y, eta_dec=ETA_DEC, latent_dim=32)
    beside = predict_collapse(data=y, condition=x, eta_dec=ETA_DEC, latent_dim=32)
    assert beside.num_active < alone.num_active
    for is_deep in (False, True):
        vae = LinearVAE(48, 32, eta_dec=ETA_DEC)
        cvae = LinearCVAE(16, 48, 32, eta_dec=ETA_DEC)
        if is_deep:
            vae.encoder, vae.decoder = mlp(48, 32), mlp(32, 48)
            cvae.encoder, cvae.decoder = mlp(64, 32), mlp(48, 48)
        counts = []
        for model, tables in ((vae, (target,)), (cvae, (given, target))):
            train(model, *tables, num_steps=1500, lr=2e-3 if is_deep else 1e-2)
            with torch.no_grad():
                report = collapse_report(*(m.numpy() for m in model.moments(*tables)))
            counts.append((report.num_directions, report.rate))
        assert counts[1][0] < counts[0][0] and counts[1][1] < counts[0][1]


def test_upper_levels_empty_as_their_weight_rises(digits: np.ndarray) -> None:
    x, nats = torch.from_numpy(digits).float(), []
    for ratio in (0.25, 0.5, 1.0, 2.0, 4.0):
        torch.manual_seed(0)
        model = LinearMHVAE(64, (16, 8), eta_dec=ETA_DEC, beta2=ratio, variance1=0.5)
        model.encoder1, model.decoder1 = mlp(64, 16), mlp(16, 64)
        model.encoder2, model.decoder2 = mlp(16, 8), mlp(8, 16)
        train(model, x, num_steps=1000, lr=2e-3)
        with torch.no_grad():
            nats.append(float(model.kl2(x, rng=torch.Generator().manual_seed(0)).sum()))
    assert all(after < before for before, after in pairwise(nats))
    assert nats[-1] < 0.05


@pytest.mark.data
def test_the_shipped_shape_tokenizer_has_no_silent_units(data_dir: Path) -> None:
    path = data_dir / "shapes" / "val.zip"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    codec = api.load_codec(TAG)
    with ZipFile(path) as archive:
        lines = archive.read("metadata.jsonl").decode().splitlines()
        names = [json.loads(line)["file"] for line in lines if line.strip()][::EVERY]
        meshes = [trimesh.load_mesh(BytesIO(archive.read(n)), file_type="glb") for n in names]
    [report] = measure_collapse(codec.model, map(codec.batch, meshes)).values()
    assert report.num_items == len(names) and report.unit_shape == (100, 16)
    assert report.active.mean() > 0.99 and not report.collapsed.any()
    assert report.num_directions == len(names) - 1
    assert report.cause.startswith("No collapse")


def mlp(inputs: int, outputs: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, 128), torch.nn.ReLU(), torch.nn.Linear(128, outputs)
    )
