"""Tables of the page on posterior collapse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from _report import load, markdown
from _results import Row

MISSING = "not measured yet"
FAMILIES = {"vae h": "VAE", "vae, fixed": "VAE, fixed variances", "cvae": "CVAE", "mhvae": "MHVAE"}


def optima_table(folder: Path) -> str:
    """The largest gap between closed form and optimisation, by family of model."""
    rows = _rows("collapse_optima", folder)
    out = []
    for prefix, words in FAMILIES.items():
        some = [r for r in rows if r["regime"].startswith(prefix)]
        if some:
            gaps = [r["singular_gap"] for r in some if "singular_gap" in r]
            loss = max(r["loss_gap"] for r in some)
            out.append([words, str(len(some)), f"{loss:.0e}", f"{max(gaps):.0e}"])
    head = ["model", "regimes", "loss gap, nats", "singular values, largest gap"]
    return markdown(head, out or [[MISSING, "–", "–", "–"]])


def sampled_table(folder: Path) -> str:
    """What training on draws reaches."""
    out = [
        [r["model"], f"{100 * r['loss_error']:.3f}%", f"{100 * r['singular_error']:.2f}%"]
        for r in _rows("collapse_sampled", folder)
    ]
    return markdown(["model", "loss above", "singular values off"], out or [[MISSING, "–", "–"]])


def units_table(folder: Path) -> str:
    """Active units and directions of trained linear VAEs, by weight of the KL."""
    rows = _rows("collapse_units", folder)
    out = []
    for data, training in dict.fromkeys((r["data"], r["training"]) for r in rows):
        for beta in sorted({r["beta"] for r in rows}):
            some = [
                r for r in rows if (r["data"], r["training"], r["beta"]) == (data, training, beta)
            ]
            if some:
                counts = [_listed(some, k) for k in ("active_directions", "active_units")]
                predicted = str(some[0]["predicted"])
                out.append([data, training, f"{beta:g}", predicted, *counts])
    head = ["images", "training", "beta", "predicted", "directions, by seed", "units, by seed"]
    return markdown(head, out or [[MISSING, *["–"] * 5]])


def conditional_table(folder: Path) -> str:
    """Directions and nats with and without a condition."""
    rows = _rows("collapse_conditional", folder)
    out = []
    for network, beta in dict.fromkeys((r["network"], r["beta"]) for r in rows):
        some = [r for r in rows if (r["network"], r["beta"]) == (network, beta)]
        cells = [
            cell
            for name in ("unconditional", "conditional")
            for cell in (
                str(some[0][f"{name}_predicted"]),
                _listed(some, f"{name}_directions"),
                f"{mean(r[f'{name}_rate'] for r in some):.2f}",
            )
        ]
        out.append([network, f"{beta:g}", *cells])
    head = ["network", "beta", "predicted", "directions", "nats"]
    head += ["given a quadrant: predicted", "directions", "nats"]
    return markdown(head, out or [[MISSING, *["–"] * 7]])


def hierarchical_table(folder: Path) -> str:
    """Nats of the upper level by ratio of the weights."""
    rows = _rows("collapse_hierarchical", folder)
    out = []
    for ratio in sorted({r["ratio"] for r in rows}):
        cells = [
            ", ".join(
                f"{r['kl2']:.3g}" for r in rows if (r["network"], r["ratio"]) == (network, ratio)
            )
            for network in ("linear", "mlp")
        ]
        wanted = next(r["predicted_kl2"] for r in rows if r["ratio"] == ratio)
        out.append([f"{ratio:g}", f"{wanted:.3g}", *cells])
    head = ["beta2 / beta1", "predicted, linear", "linear, by seed", "ReLU networks, by seed"]
    return markdown(head, out or [[MISSING, *["–"] * 3]])


def flagship_table(folder: Path) -> str:
    """What the shipped shape tokenizer's bottleneck carries."""
    rows = _rows("collapse_flagship", folder)
    if not rows:
        return markdown(["what", "measured"], [[MISSING, "–"]])
    row = rows[0]
    units = row["units"]
    by_weight = ", ".join(f"{n} at {w}" for w, n in row["directions_by_kl_weight"].items())
    return markdown(
        ["what", "measured"],
        [
            ["shapes of val", str(row["items"])],
            ["active units", f"{row['active_units']} of {units}"],
            ["collapsed units", f"{row['collapsed_units']} of {units}"],
            [
                "directions of posterior means in use, predicted at most",
                f"{row['active_directions']}, {row['predicted_directions']}",
            ],
            ["nats a unit, mean and least", f"{row['kl_nats_per_unit']:.2f}, {row['kl_min']:.2f}"],
            [
                "nats a shape; bound of the information",
                f"{row['rate_nats']:.0f}; {row['information_nats']:.0f}",
            ],
            ["directions of the data above the threshold, by KL weight", by_weight],
        ],
    )


def _rows(name: str, folder: Path) -> list[Row]:
    data = load(name, folder)
    rows: list[Row] = data["rows"] if data else []
    return rows


def _listed(rows: Sequence[Row], name: str) -> str:
    return ", ".join(str(r[name]) for r in rows)


TABLES = {
    "collapse-optima": optima_table,
    "collapse-sampled": sampled_table,
    "collapse-units": units_table,
    "collapse-conditional": conditional_table,
    "collapse-hierarchical": hierarchical_table,
    "collapse-flagship": flagship_table,
}
