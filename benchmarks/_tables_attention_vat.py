"""Tables of virtual adversarial training on attention: functions of the results folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from _report import load, markdown
from _results import Row
from polytok.metrics import bootstrap_difference

MISSING = "not measured yet"
ATTACK = 4.0


def scores(folder: Path) -> str:
    """Every kind at its chosen eps: accuracy, and its paired difference to vanilla, in points."""
    arms, attacks = _finals(folder)
    out = []
    for name, rows in arms.items():
        base = arms[_vanilla(name)]
        out.append(
            [
                name,
                f"{rows[0]['eps']:g}" if name != _vanilla(name) else "–",
                str(len(rows)),
                *_against(rows, base, lambda row: 100 * row["accuracy"], "{:.2f}"),
                *_against(
                    rows, base, lambda row: 100 * row["robust"][attacks.index(ATTACK)], "{:.1f}"
                ),
            ]
        )
    attacked = f"accuracy under attack at {ATTACK:g}, %"
    head = ["kind", "eps", "seeds", "accuracy, %", "against vanilla", attacked, "against vanilla"]
    return markdown(head, out or [[MISSING, *["–"] * 6]])


def faithfulness(folder: Path) -> str:
    """Kendall's tau of attention with gradients, four ways to take them, and entropy."""
    arms, _ = _finals(folder)
    names = ("tau_gradient", "tau_gradient_fixed", "tau_onehot", "tau_onehot_fixed")
    out = []
    for name, rows in arms.items():
        base = arms[_vanilla(name)]
        cells = [" ".join(_against(rows, base, lambda r, n=n: r[n], "{:.3f}")) for n in names]
        out.append([name, *cells, f"{mean(row['entropy'] for row in rows):.2f}"])
    head = [
        "kind",
        "gradient",
        "gradient, attention fixed",
        "one-hot gradient",
        "one-hot gradient, attention fixed",
        "entropy, nats",
    ]
    return markdown(head, out or [[MISSING, *["–"] * 5]])


def robustness(folder: Path) -> str:
    """Accuracy while the scores are attacked with the true labels, by the norm of the attack."""
    arms, attacks = _finals(folder)
    out = [
        [
            name,
            f"{100 * mean(row['accuracy'] for row in rows):.1f}",
            *(
                f"{100 * mean(column):.1f}"
                for column in zip(*(r["robust"] for r in rows), strict=True)
            ),
        ]
        for name, rows in arms.items()
    ]
    head = ["kind", "0", *(f"{eps:g}" for eps in attacks)]
    return markdown(head, out or [[MISSING, *["–"] * (len(head) - 1)]])


def above_random(folder: Path) -> str:
    """Share of test examples that the adversarial direction moves more than a random one."""
    arms, _ = _finals(folder)
    probes = [key for rows in arms.values() for key in rows[0] if key.startswith("above_random_")]
    probes = list(dict.fromkeys(probes))
    out = [
        [
            name,
            *(
                f"{100 * mean(r[p] for r in rows):.1f}% "
                f"({mean(r[p.replace('above_random', 'ratio')] for r in rows):.1f}x)"
                for p in probes
            ),
        ]
        for name, rows in arms.items()
    ]
    head = ["model trained as", *(f"eps {p.removeprefix('above_random_')}" for p in probes)]
    return markdown(head, out or [[MISSING, *["–"] * (len(head) - 1)]])


def grid(folder: Path) -> str:
    """Mean validation accuracy by kind and eps."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in _rows(folder, "grid"):
        found.setdefault(row["arm"], {}).setdefault(row["eps"], []).append(row["val_accuracy"])
    all_eps = sorted({eps for by_eps in found.values() for eps in by_eps})
    out = [
        [name, *(f"{100 * mean(by[eps]):.2f}" if eps in by else "–" for eps in all_eps)]
        for name, by in found.items()
    ]
    return markdown(["kind", *(f"{eps:g}" for eps in all_eps)], out or [[MISSING]])


def _rows(folder: Path, stage: str) -> list[Row]:
    data = load("attention_vat", folder)
    return [row for row in data["rows"] if row["stage"] == stage] if data else []


def _finals(folder: Path) -> tuple[dict[str, list[Row]], list[float]]:
    """Rows by arm with seeds in order, vanilla first in each encoder; and the attacks."""
    data = load("attention_vat", folder)
    arms: dict[str, list[Row]] = {}
    for row in sorted(_rows(folder, "final"), key=lambda row: _order(row["arm"])):
        arms.setdefault(row["arm"], []).append(row)
    ordered = {name: sorted(rows, key=lambda row: row["seed"]) for name, rows in arms.items()}
    return ordered, data["protocol"]["attacks"] if data else []


def _order(arm: str) -> tuple[bool, bool, bool, str]:
    return ("lstm" in arm, not arm.startswith("vanilla"), arm.startswith("word"), arm)


def _vanilla(arm: str) -> str:
    return "vanilla, lstm" if arm.endswith(", lstm") else "vanilla"


def _against(
    rows: Sequence[Row], base: Sequence[Row], value: Callable[[Row], float], form: str
) -> list[str]:
    """The mean of a value, and its paired difference to the base with an interval."""
    shown = form.format(mean(value(row) for row in rows))
    if rows is base:
        return [shown, "–"]
    theirs: Mapping[int, float] = {row["seed"]: value(row) for row in base}
    mine = [row for row in rows if row["seed"] in theirs]
    if not mine:
        return [shown, "–"]
    gap = bootstrap_difference([value(r) for r in mine], [theirs[r["seed"]] for r in mine])
    sign = form.replace("{:", "{:+")
    return [shown, f"{sign.format(gap.mean)} [{sign.format(gap.low)}, {sign.format(gap.high)}]"]


TABLES: dict[str, Callable[[Path], str]] = {
    "attention-vat-scores": scores,
    "attention-vat-faithfulness": faithfulness,
    "attention-vat-robustness": robustness,
    "attention-vat-above-random": above_random,
    "attention-vat-grid": grid,
}
