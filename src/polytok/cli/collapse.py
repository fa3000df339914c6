"""``polytok collapse``: which latents will carry nothing, and which ones do."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polytok.cli import show
from polytok.core.errors import ConfigError, PolytokError, SignalError, one_line

if TYPE_CHECKING:
    from polytok.metrics.collapse import LossScale
    from polytok.systems.theory.posterior_collapse import LinearOptimum
    from polytok.systems.theory.posterior_collapse.spectra import Array

SHOWN = 12  # values of a list, unless JSON is asked for

app = typer.Typer(
    rich_markup_mode=None,
    help="Posterior collapse of Gaussian latents, predicted and measured.",
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def predict(
    cov: Annotated[Path | None, typer.Option(help="Covariance, .npy or .csv.")] = None,
    data: Annotated[Path | None, typer.Option(help="Table, a row per item, .npy or .csv.")] = None,
    eigenvalues: Annotated[
        str | None, typer.Option(help="Comma-separated, such as 6,3,.5.")
    ] = None,
    condition: Annotated[
        Path | None, typer.Option(help="Table beside --data that encoder and decoder see too.")
    ] = None,
    eta_dec: Annotated[float | None, typer.Option(help="Decoder's standard deviation.")] = None,
    beta: Annotated[
        float | None, typer.Option(help="KL weight beside --eta-dec, by default 1.")
    ] = None,
    weight: Annotated[float | None, typer.Option(help="KL weight of a training loss.")] = None,
    reduction: Annotated[
        str, typer.Option(help="Of its error over elements: sum or mean.")
    ] = "mean",
    elements: Annotated[
        int | None, typer.Option(help="Elements of a target; by default those of the data.", min=1)
    ] = None,
    error: Annotated[str, typer.Option(help="squared, half_squared or cross_entropy.")] = "squared",
    latent_dim: Annotated[int | None, typer.Option(help="By default that of the data.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict the latent dimensions that a VAE will use, from the data's covariance."""
    from polytok.systems.theory.posterior_collapse import predict_collapse

    given: dict[str, Any] = {
        "cov": None if cov is None else read_table(cov),
        "data": None if data is None else read_table(data),
        "eigenvalues": None if eigenvalues is None else _numbers(eigenvalues),
        "condition": None if condition is None else read_table(condition),
    }
    width = next((v.shape[-1] for k, v in given.items() if v is not None and v.ndim), None)
    scale, weights = _weights(eta_dec, beta, weight, reduction, elements or width, error)
    found = predict_collapse(**given, eta_dec=scale, beta=weights, latent_dim=latent_dim)
    for caveat in found.caveats:
        show.note(f"note: {caveat}")
    show.facts(_prediction(found, is_whole=as_json), as_json=as_json)


@app.command()
def measure(
    model: Annotated[
        str, typer.Argument(help="Weights tag, preset, or a folder with config.json.")
    ],
    inputs: Annotated[list[Path], typer.Argument(help="Meshes: files, folders or zips.")],
    limit: Annotated[int | None, typer.Option(help="At most so many meshes.", min=1)] = None,
    eps: Annotated[float, typer.Option(help="Nats below which a unit is silent.")] = 0.01,
    delta: Annotated[
        float, typer.Option(help="Share of inputs that a silent unit may tell.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the surface samples.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, or an accelerator torch knows.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Measure which units of a tokenizer's Gaussian bottleneck tell inputs apart."""
    from polytok.metrics.collapse import measure_collapse
    from polytok.systems import api

    codec = api.load_codec(model, device=show.ready(device, threads), modality="shape")
    failures: list[str] = []

    def batches() -> Iterator[dict[str, Any]]:
        with ExitStack() as stack:
            files = _meshes(inputs, stack)[:limit]
            for path in show.progress(files, "measuring"):
                try:
                    yield codec.batch(path, seed=seed)
                except (SignalError, OSError) as reason:
                    failures.append(f"{path.name}: {one_line(reason)}")
        if len(failures) == len(files):
            raise SignalError(f"no mesh can be used; {failures[0]}")

    reports = measure_collapse(codec.model, batches(), eps=eps, delta=delta)
    for name, report in reports.items():
        facts = {"model": codec.name, "bottleneck": name, **report.summary()}
        if as_json:
            facts |= {"kl_nats": report.kl.tolist(), "spread": report.spread.tolist()}
        else:
            facts = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in facts.items()}
        show.facts(facts, as_json=as_json)
    for failure in failures:
        show.note(f"failed: {failure}")
    raise typer.Exit(2 if failures else 0)


def read_table(path: Path) -> Array:
    """A table of numbers (n, D) from .npy, or from .csv with or without a line of names.

    Raises:
        SignalError: the file holds no such table.
    """
    import numpy as np

    kind = path.suffix.lower()
    if kind not in (".npy", ".csv"):
        raise SignalError(f"{path} has extension {kind or 'none'!r}; known: .npy, .csv")
    try:
        if kind == ".npy":
            table = np.load(path, allow_pickle=False)
        else:
            lines = [x for x in path.read_text().splitlines() if x.strip()]
            rows = [[_number(x) for x in line.split(",")] for line in lines]
            is_named = len(rows) > 1 and None in rows[0] and None not in rows[1]
            table = np.asarray(rows[is_named:], np.float64)
    except (ValueError, TypeError, EOFError) as error:
        raise SignalError(f"{path} holds no table of numbers: {one_line(error)}") from error
    if not isinstance(table, np.ndarray) or table.dtype.kind not in "biuf" or table.ndim != 2:
        raise SignalError(f"{path} holds no table of numbers (rows by columns)")
    return table.astype(np.float64)


def _weights(
    eta_dec: float | None,
    beta: float | None,
    weight: float | None,
    reduction: str,
    elements: int | None,
    error: str,
) -> tuple[float, float]:
    """eta_dec and beta, as given or as a training loss implies them."""
    from polytok.metrics.collapse import LossScale

    if (eta_dec is None) == (weight is None):
        raise ConfigError("give either --eta-dec (and --beta), or --weight of a training loss")
    if eta_dec is not None:
        return eta_dec, 1.0 if beta is None else beta
    if beta is not None or weight is None:
        raise ConfigError("--beta belongs to --eta-dec; --weight is the KL weight of a loss")
    options: dict[str, Any] = {"error": error, "reduction": reduction, "elements": elements}
    scale: LossScale = LossScale(weight=weight, **options)
    return scale.eta_dec2**0.5, scale.beta


def _prediction(found: LinearOptimum, *, is_whole: bool) -> dict[str, Any]:
    count = None if is_whole else SHOWN

    def listed(values: Array) -> list[Any]:
        some = values[:count].tolist()
        return some if is_whole else [f"{v:.4g}" for v in some] + ["..."] * (len(values) > SHOWN)

    return {
        "threshold": float(f"{found.threshold[0]:.6g}"),
        "latent_dim": len(found.active),
        "active": found.num_active,
        "collapsed": int(found.collapsed.sum()),
        "rate_nats": round(float(found.kl.sum()), 4),
        "loss_nats": round(found.loss, 4),
        "eigenvalues": listed(found.eigenvalues),
        "kl_nats": listed(found.kl),
        "variances": listed(found.variances),
        **({"caveats": list(found.caveats)} if is_whole else {}),
    }


def _meshes(inputs: list[Path], stack: ExitStack) -> list[Path]:
    """Mesh files, also of folders and zips; these stay unpacked while ``stack`` lives."""
    from polytok.core.files import opened_folder
    from polytok.signals.mesh import EXTENSIONS

    found: list[Path] = []
    for path in inputs:
        if path.is_dir() or zipfile.is_zipfile(path) or not path.exists():
            root = stack.enter_context(opened_folder(path))
            inside = sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
            if not inside:
                raise PolytokError(f"{path} has no meshes")
            found += inside
        else:
            found.append(path)
    return found


def _numbers(text: str) -> Array:
    import numpy as np

    values = [_number(part) for part in text.split(",")]
    if None in values:
        raise SignalError(f"--eigenvalues {text!r} is not a list of numbers, such as 6,3,.5")
    return np.asarray(values, np.float64)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
