"""Posterior collapse: closed forms against optimisation, predictions against trained models.

    python benchmarks/collapse.py --parts optima,sampled,units,conditional,hierarchical,flagship
    python benchmarks/collapse.py --parts "" --picture docs/posterior-collapse.png

Needs scikit-learn (extra ``dev``) for its digits and, for ``units`` and ``flagship``, the data
folder.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from torch import nn

import _results
from _collapse_regimes import Array, cvae, mhvae, regimes, vae
from _report import load
from _results import RESULTS, Results, Row
from polytok.core.errors import PolytokError
from polytok.core.files import atomic_path
from polytok.core.seeding import derive, numpy_rng
from polytok.losses.shape import soft_occupancy
from polytok.metrics import collapse_report
from polytok.metrics.collapse import record_moments, reports_of
from polytok.signals import mesh as meshes
from polytok.systems import api
from polytok.systems.shape.vat.training import KL_WEIGHT, loss_scale
from polytok.systems.theory.posterior_collapse import (
    mhvae_optimum,
    predict_collapse,
    spectra,
)
from polytok.systems.theory.posterior_collapse.models import (
    LinearCVAE,
    LinearMHVAE,
    LinearVAE,
    minimise,
    train,
)

BETAS = (0.5, 1.0, 2.0, 4.0)
ETA_DEC2 = {"digits": 0.05, "cifar10-grey": 0.25}  # chosen before any training
LATENT_DIM = {"digits": 48, "cifar10-grey": 64}
TRAINING = {"num_steps": 2000, "batch_size": 256, "lr": 1e-2}
LONG_TRAINING = {"num_steps": 6000, "batch_size": 512, "lr": 1e-2}
NUM_STARTS = 3
SEEDS = (0, 1)
RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
HIDDEN = 128
LEVELS, VARIANCE1 = (16, 8), 0.5
TAG = "vat-512b-small.shapes1"
NUM_SHAPES = 64
GRID = 16
WEIGHTS = (1e-4, KL_WEIGHT, 1e-3, 1e-2, 1e-1, 3e-1, 1.0, 10.0)


def optima(folder: Path, fresh: bool) -> None:
    """L-BFGS on the matrix losses against the closed forms."""
    protocol = {
        "about": "loss and largest difference of a singular value, best of some random starts of "
        "L-BFGS in float64 on the exact loss, against the closed form",
        "starts": NUM_STARTS,
    }
    results = Results("collapse_optima", protocol, fresh=fresh, folder=folder, keys=("regime",))
    done = results.done()
    for regime in regimes():
        if regime.name in done:
            continue
        loss = minimise(regime.model, regime.loss, num_starts=NUM_STARTS)
        kind = getattr(regime.optimum, "kind", "unique")
        row: Row = {
            "regime": regime.name,
            "kind": kind,
            "loss": regime.optimum.loss,
            "loss_gap": abs(loss - regime.optimum.loss),
        }
        if kind == "unique":
            pairs = zip(regime.singular_values(), regime.wanted, strict=True)
            row["singular_gap"] = max(
                float(np.abs(got.numpy() - np.sort(want)[::-1]).max(initial=0))
                for got, want in pairs
            )
        results.rows.append(row)
        results.save()
        print(row, flush=True)


def sampled(folder: Path, fresh: bool) -> None:
    """Training on samples, as any VAE is trained, against the closed forms."""
    protocol = {
        "about": "Adam on the sampled loss of 4,000 Gaussian items; exact loss and singular values "
        "of what was learned, relative to the closed form for the items' covariance",
        "training": LONG_TRAINING,
    }
    results = Results("collapse_sampled", protocol, fresh=fresh, folder=folder, keys=("model",))
    rng = numpy_rng(0, "items")
    x = rng.normal(size=(4000, 5)) @ np.sqrt(np.diag([6, 3, 1.2, 0.5, 0.2]))
    y = x[:, :3] @ rng.normal(size=(3, 4)) * 0.4 + rng.normal(size=(4000, 4))
    x, y = x - x.mean(0), y - y.mean(0)
    a, b, c = spectra.data_covariances(x, y)
    cases = (
        (vae("vae", a, 4, 0.8, 1.3, 1.0), (x,)),
        (vae("vae, weight 2", a, 4, 1.0, 0.7, 2.0), (x,)),
        (cvae("cvae", a, b, c, 4, 0.7, 1.0, 1.0), (x, y)),
        (mhvae(a, (4, 4), 0.5, 1.0, 1.0, 1.5, 0.25, None), (x,)),
        (mhvae(a, (4, 4), 0.5, 1.0, 2.0, 1.0, 1.0, 0.5), (x,)),
    )
    for regime, tables in cases:
        if regime.name in results.done():
            continue
        torch.manual_seed(0)
        train(regime.model, *map(torch.from_numpy, tables), **LONG_TRAINING)
        with torch.no_grad():
            loss = float(regime.loss())
        got = np.concatenate([g.numpy() for g in regime.singular_values()])
        want = np.concatenate([np.sort(w)[::-1] for w in regime.wanted])
        results.rows.append(
            {
                "model": regime.name,
                "loss": loss,
                "loss_error": loss / regime.optimum.loss - 1,
                "singular_error": float(np.linalg.norm(got - want) / np.linalg.norm(want)),
            }
        )
        results.save()
        print(results.rows[-1], flush=True)


def units(folder: Path, fresh: bool) -> None:
    """Active units of linear VAEs trained on images, against the prediction."""
    protocol = {
        "about": "linear VAE on centred pixels in [0, 1], of cifar10-grey on the 256 leading "
        "principal components; predicted: eigenvalues above beta eta_dec2; measured over all "
        "images: active units, and directions of posterior means of variance above 0.01; training: "
        "sampled (Adam on draws) or exact (L-BFGS on the loss without noise)",
        "eta_dec2": ETA_DEC2,
        "latent_dim": LATENT_DIM,
        "training": LONG_TRAINING,
    }
    keys = ("data", "training", "beta", "seed", "key")
    results = Results("collapse_units", protocol, fresh=fresh, folder=folder, keys=keys)
    runs = [
        *(("digits", "exact", beta, 0) for beta in BETAS),
        *(("cifar10-grey", "sampled", beta, 0) for beta in BETAS),
        *(("digits", "sampled", beta, seed) for seed in SEEDS for beta in BETAS),
    ]
    images = {"digits": digits(), "cifar10-grey": leading(cifar10(), 256)}
    for run in runs:
        key = "/".join(map(str, run))
        if key not in results.done():
            results.rows.append({**_units_row(images[run[0]], *run), "key": key})
            results.save()
            print(results.rows[-1], flush=True)


def _units_row(images: Array, data: str, training: str, beta: float, seed: int) -> Row:
    options: dict[str, Any] = {"eta_dec": ETA_DEC2[data] ** 0.5, "beta": beta}
    wanted = predict_collapse(data=images, latent_dim=LATENT_DIM[data], **options)
    torch.manual_seed(derive(seed, "units"))
    model = LinearVAE(images.shape[1], LATENT_DIM[data], **options)
    x = torch.from_numpy(images)
    cov = x.T @ x / len(x)
    if training == "exact":
        model = model.double()
        minimise(model, lambda: model.exact_loss(cov), num_starts=1, num_steps=5000, seed=seed)
    else:
        train(model, x.float(), **LONG_TRAINING, seed=seed)
        model = model.double()
    with torch.no_grad():
        report = collapse_report(
            *(m.numpy() for m in model.moments(x)),
            eigenvalues=wanted.eigenvalues,
            threshold=float(wanted.threshold[0]),
        )
        loss = float(model.exact_loss(cov))
    return {
        "data": data,
        "training": training,
        "beta": beta,
        "seed": seed,
        "predicted": wanted.num_active,
        "active_units": int(report.active.sum()),
        "active_directions": report.num_directions,
        "predicted_kl": _rounded(wanted.kl),
        "kl": _rounded(np.sort(report.kl)[::-1]),
        "loss_error": loss / wanted.loss - 1,
        "cause": report.cause,
    }


def conditional(folder: Path, fresh: bool) -> None:
    """Digits' upper left quadrant as the condition of the rest, against the rest alone."""
    protocol = {
        "about": "digits; target: all pixels but the upper left quadrant, which the conditional "
        "models see; directions of posterior means of variance above 0.01",
        "eta_dec2": ETA_DEC2["digits"],
        "latent_dim": 32,
        "hidden": HIDDEN,
        "training": TRAINING,
    }
    keys = ("network", "beta", "seed", "key")
    results = Results("collapse_conditional", protocol, fresh=fresh, folder=folder, keys=keys)
    images = digits().reshape(-1, 8, 8)
    is_seen = np.zeros((8, 8), bool)
    is_seen[:4, :4] = True
    x, y = images[:, is_seen], images[:, ~is_seen]
    for seed, network, beta in product(SEEDS, ("linear", "mlp"), BETAS):
        key = f"{network}/{beta}/{seed}"
        if key not in results.done():
            results.rows.append({**_conditional_row(x, y, network, beta, seed), "key": key})
            results.save()
            print(results.rows[-1], flush=True)


def _conditional_row(x: Array, y: Array, network: str, beta: float, seed: int) -> Row:
    options: dict[str, Any] = {"eta_dec": ETA_DEC2["digits"] ** 0.5, "beta": beta}
    row: Row = {"network": network, "beta": beta, "seed": seed}
    tensors = tuple(torch.from_numpy(t).float() for t in (x, y))
    for name, given, tables in (("unconditional", None, tensors[1:]), ("conditional", x, tensors)):
        wanted = predict_collapse(data=y, condition=given, latent_dim=32, **options)
        torch.manual_seed(derive(seed, name))
        width = 0 if given is None else x.shape[1]
        model = (
            LinearCVAE(width, y.shape[1], 32, **options)
            if width
            else LinearVAE(y.shape[1], 32, **options)
        )
        if network == "mlp":
            # The same sampled loss, with networks in the place of matrices.
            model.encoder = mlp(width + y.shape[1], 32)
            model.decoder = mlp(32 + width, y.shape[1])
        train(model, *tables, **_training(network), seed=seed)
        with torch.no_grad():
            report = collapse_report(*(m.numpy() for m in model.moments(*tables)))
        row |= {
            f"{name}_predicted": wanted.num_active,
            f"{name}_directions": report.num_directions,
            f"{name}_units": int(report.active.sum()),
            f"{name}_rate": report.rate,
        }
    return row


def hierarchical(folder: Path, fresh: bool) -> None:
    """KL of the upper level of two-level VAEs on digits as its weight rises."""
    protocol = {
        "about": "digits; nats of the upper level, beta1 = 1, beta2 by ratio; the variance of the "
        "lower level is fixed, that of the upper learns",
        "eta_dec2": ETA_DEC2["digits"],
        "latent_dims": LEVELS,
        "variance1": VARIANCE1,
        "hidden": HIDDEN,
        "training": TRAINING,
    }
    keys = ("network", "ratio", "seed", "key")
    results = Results("collapse_hierarchical", protocol, fresh=fresh, folder=folder, keys=keys)
    images = digits()
    for seed, network, ratio in product(SEEDS, ("linear", "mlp"), RATIOS):
        key = f"{network}/{ratio}/{seed}"
        if key not in results.done():
            results.rows.append({**_hierarchical_row(images, network, ratio, seed), "key": key})
            results.save()
            print(results.rows[-1], flush=True)


def _hierarchical_row(images: Array, network: str, ratio: float, seed: int) -> Row:
    options = {"eta_dec": ETA_DEC2["digits"] ** 0.5, "beta2": ratio, "variance1": VARIANCE1}
    wanted = mhvae_optimum(images.T @ images / len(images), latent_dims=LEVELS, **options)
    torch.manual_seed(derive(seed, "hierarchical"))
    width = images.shape[1]
    model = LinearMHVAE(width, LEVELS, **options)
    if network == "mlp":
        model.encoder1, model.decoder1 = mlp(width, LEVELS[0]), mlp(LEVELS[0], width)
        model.encoder2, model.decoder2 = mlp(*LEVELS), mlp(*LEVELS[::-1])
    x = torch.from_numpy(images).float()
    train(model, x, **_training(network), seed=seed)
    with torch.no_grad():
        kl2 = float(model.kl2(x, rng=torch.Generator().manual_seed(0)).sum())
    predicted = float(wanted.kl2.sum())
    return {
        "network": network,
        "ratio": ratio,
        "seed": seed,
        "predicted_kl2": predicted,
        "kl2": kl2,
    }


def flagship(folder: Path, fresh: bool) -> None:
    """What the Gaussian bottleneck of the shipped shape tokenizer carries."""
    codec = api.load_codec(TAG)
    items = _results.shapes("val")[::2][:NUM_SHAPES]
    axis = np.linspace(-1.05, 1.05, GRID)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    targets = []
    with record_moments(codec.model) as taken, torch.no_grad():
        for item in items:
            mesh = item.mesh()
            sdf = torch.from_numpy(meshes.solidify(mesh).nearest(grid).sdf)
            targets.append(soft_occupancy(sdf, codec.model.config.band).numpy())
            codec.model.encode(codec.batch(mesh))
    eigenvalues = _cross_entropy_spectrum(np.stack(targets))
    thresholds = {w: loss_scale(codec.model, len(grid), w).threshold for w in WEIGHTS}
    judged = reports_of(taken, eigenvalues=eigenvalues, threshold=thresholds[KL_WEIGHT])
    protocol = {
        "about": "posteriors of every second shape of val; threshold of the training loss (mean "
        "cross-entropy, mean KL) on the covariance of soft occupancies of a grid over their "
        "Bernoulli deviations; the overlap term is left out",
        "model": codec.name,
        "shapes": len(items),
        "grid": GRID,
        "kl_weight": KL_WEIGHT,
    }
    keys = ("bottleneck",)
    results = Results("collapse_flagship", protocol, fresh=True, folder=folder, keys=keys)
    for name, report in judged.items():
        kl, spread = (v.reshape(report.unit_shape) for v in (report.kl, report.spread))
        results.rows.append(
            {
                "bottleneck": name,
                **report.summary(),
                "kl_min": float(kl.min()),
                "spread_min": float(spread.min()),
                "kl_per_channel": _rounded(kl.mean(0)),
                "spread_per_channel": _rounded(spread.mean(0)),
                "data_eigenvalues": _rounded(eigenvalues[: len(items) - 1]),
                "directions_by_kl_weight": {
                    f"{w:g}": int((eigenvalues > t).sum()) for w, t in thresholds.items()
                },
            }
        )
    results.save()


def _cross_entropy_spectrum(targets: Array) -> Array:
    """Eigenvalues of targets (n, Q) in [0, 1] over the deviations of coins of their means."""
    p = targets.mean(axis=0)
    deviation = np.sqrt(p * (1 - p))
    return spectra.data_spectrum(targets[:, deviation > 0] / deviation[deviation > 0])


def picture(path: Path, folder: Path) -> None:
    """Predicted against measured directions, and nats per mode of digits."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    rows = _rows("collapse_units", folder)
    marks = {"digits": "o", "cifar10-grey": "s"}
    for data, mark in marks.items():
        some = [r for r in rows if r["data"] == data and r["training"] == "sampled"]
        points = [(r["predicted"], r["active_directions"]) for r in some]
        left.plot(*zip(*points, strict=True), mark, label=f"linear VAE, {data}", alpha=0.7)
    for name, mark in (("unconditional", "^"), ("conditional", "v")):
        some = [r for r in _rows("collapse_conditional", folder) if r["network"] == "linear"]
        points = [(r[f"{name}_predicted"], r[f"{name}_directions"]) for r in some]
        left.plot(*zip(*points, strict=True), mark, label=f"digits' rest, {name}", alpha=0.7)
    top = max(r["predicted"] for r in rows) + 2
    left.plot([0, top], [0, top], color="0.6", linewidth=1, zorder=0)
    left.set(xlabel="predicted active directions", ylabel="measured")
    left.legend(fontsize=7)
    for row in (r for r in rows if r["data"] == "digits" and r["training"] == "exact"):
        [line] = right.plot(row["predicted_kl"][:32], linewidth=1)
        label = f"beta {row['beta']:g}"
        right.plot(row["kl"][:32], "o", color=line.get_color(), markersize=3, label=label)
    right.set(xlabel="latent dimension, sorted", ylabel="KL, nats (line: predicted)")
    right.legend(fontsize=7)
    with atomic_path(path) as aside:
        figure.savefig(aside, dpi=90)


def _rows(name: str, folder: Path) -> list[Row]:
    data = load(name, folder)
    if data is None:
        raise PolytokError(f"{name} is not measured yet; run its part first")
    rows: list[Row] = data["rows"]
    return rows


def digits() -> Array:
    """scikit-learn's digits (1797, 64) in [0, 1], centred."""
    from sklearn.datasets import load_digits

    images: Array = load_digits().data / 16
    return images - images.mean(axis=0)


def cifar10() -> Array:
    """CIFAR-10's test images in grey (10000, 1024), in [0, 1], centred.

    Raises:
        PolytokError: the archive is missing.
    """
    from PIL import Image

    path = _results.data_folder() / "images" / "cifar10-test.zip"
    if not path.exists():
        raise PolytokError(f"{path} is missing; set POLYTOK_DATA to the folder that has images/")
    with ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        pictures = [Image.open(io.BytesIO(archive.read(n))).convert("L") for n in names]
    images = np.stack([np.asarray(p, np.float64).ravel() / 255 for p in pictures])
    return images - images.mean(axis=0)


def leading(images: Array, count: int) -> Array:
    """Centred images (n, D) in the basis of their leading principal components, (n, count)."""
    vectors = np.linalg.eigh(images.T @ images)[1][:, ::-1]
    return images @ vectors[:, :count]


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two layers with ReLU."""
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))


def _training(network: str) -> dict[str, Any]:
    # A rate that matrices stand makes networks lose what they have learned.
    return TRAINING if network == "linear" else {**TRAINING, "lr": 2e-3}


def _rounded(values: Array) -> list[float]:
    return [float(f"{v:.4g}") for v in values]


PARTS: dict[str, Callable[[Path, bool], None]] = {
    "optima": optima,
    "sampled": sampled,
    "units": units,
    "conditional": conditional,
    "hierarchical": hierarchical,
    "flagship": flagship,
}


def main(argv: list[str] | None = None) -> None:
    """Measure the parts that are asked for; rows that are there already are kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, or empty")
    parser.add_argument("--picture", type=Path, help="draw what is measured into this file")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for part in filter(None, args.parts.split(",")):
        if part not in PARTS:
            parser.error(f"--parts {part} is not among {', '.join(PARTS)}")
        PARTS[part](args.out, args.fresh)
    if args.picture:
        picture(args.picture, args.out)


if __name__ == "__main__":
    main()
