"""Fewer tokens in vision transformers: exactness, MACs, measured time, and accuracy.

    python benchmarks/reduction.py --parts identity macs speed overhead
    python benchmarks/reduction.py --parts accuracy --classifier runs/cifar10 \\
        --tuned runs/evit runs/mctf runs/diffrate --data images/cifar10-test.zip
    python benchmarks/reduction.py --parts plot

``accuracy`` takes folders of trained classifiers, one per seed, and of reductions tuned or
searched on them; every tuned row is measured beside the classifier it was given with.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _results import RESULTS, Results, Row, data_folder
from polytok.core import hub
from polytok.core.files import atomic_path
from polytok.core.registry import SYSTEMS
from polytok.core.seeding import torch_rng
from polytok.data.images import LabelledImages, read_labelled
from polytok.reducers import Schedule, applied, method_names, reduction_of
from polytok.reducers.bench import compare
from polytok.reducers.cost import ModelCost, cost, counted_macs, unfused
from polytok.reducers.families import FAMILIES
from polytok.reducers.methods import method
from polytok.reducers.saved import build
from polytok.systems.vit.diffrate import DiffRate

DEIT = "deit_small_patch16_224"
KEEPS = (0.9, 0.7, 0.5)
# GMAC of DeiT-S, of EViT arXiv 2202.07800 and MCTF arXiv 2403.10030.
PUBLISHED = {"evit 0.9": 4.02, "evit 0.7": 3.03, "evit 0.5": 2.31, "mctf": 2.60}
REMOVED = (2, 4, 0.2)
VARIANTS = ("even", "constant", "dropped", "one-way")


def identity(args: argparse.Namespace) -> None:
    """Outputs of every family when everything is kept, against the plain model, bit for bit."""
    protocol = {
        "weights": "random",
        "images": "one of noise",
        "methods": "all that work",
    } | _libraries()
    results = Results("reduction_identity", protocol, fresh=args.fresh, keys=("family", "kernel"))
    for family in (f for f in FAMILIES if not f.refused):
        name = f"{family.library} {family.name}"
        model = build(family.example)
        found = cost(model, _noise(model, 1))
        for kernel in ("sdpa", "eager"):
            if any((r["family"], r["kernel"]) == (name, kernel) for r in results.rows):
                continue
            methods = [m for m in method_names() if not family.cell(m) and "deit" not in m]
            same = [_is_same(model, m, kernel) for m in methods]
            row = {"family": name, "kernel": kernel, "model": family.example}
            counts = {"methods": len(same), "identical": sum(same), "tokens": found.patches}
            results.rows.append(row | counts)
            results.save()
            print(results.rows[-1], flush=True)


@torch.inference_mode()
def _is_same(model: nn.Module, name: str, kernel: str) -> bool:
    x = _noise(model, 1)

    def run() -> bool:
        plain = _tensor(model(x))
        with applied(model, name, keep=1.0):
            return torch.equal(_tensor(model(x)), plain)

    if kernel == "sdpa":
        return run()
    with unfused(model):
        return run()


def macs(args: argparse.Namespace) -> None:
    """MACs of DeiT-S by formula and counted, beside published numbers."""
    results = Results(
        "reduction_macs", {"model": DEIT, **_libraries()}, fresh=args.fresh, keys=("method",)
    )
    model = build(DEIT)
    x = _noise(model, 1)
    plain = cost(model, x)
    cases: dict[str, dict[str, Any]] = {f"evit {k}": {"keep": k} for k in KEEPS}
    cases |= {"mctf": {}, "tome": {}, "diffrate": {}}
    for label, options in cases.items():
        with applied(model, label.split()[0], **options):
            found = reduction_of(model)
            row = {
                "method": label,
                "gmac": plain.reduced(found.reducer, found.schedule) / 1e9,
                "counted": counted_macs(model, x) / 1e9,
                "published": PUBLISHED.get(label),
                "plain": plain.plain() / 1e9,
            }
        results.rows = [r for r in results.rows if r["method"] != label] + [row]
    results.save()


def speed(args: argparse.Namespace) -> None:
    """Wall time of DeiT-S against itself with fused attention, interleaved."""
    torch.set_num_threads(args.threads)
    protocol = {
        "model": DEIT,
        "batch": args.batch,
        "threads": args.threads,
        "rounds": args.rounds,
        "order": "plain, reduced, plain; turning",
        "dtype": "float32",
        **_libraries(),
    }
    results = Results("reduction_speed", protocol, fresh=args.fresh, keys=("method",))
    model = build(DEIT)
    found = cost(model, _noise(model, 1))
    cases: dict[str, dict[str, Any]] = {f"evit {k}": {"keep": k} for k in KEEPS}
    # Every other method at the MACs of EViT's 0.7, or as near as its schedule comes.
    evit = method("evit")[1]
    target = found.reduced(evit, Schedule.ratios(0.7, evit.layers(len(found.blocks))))
    for name in ("tome", "mctf", "diffrate", "uniform"):
        cases[name] = {"schedule": found.schedule(method(name)[1], target)}
    for label, options in cases.items():
        if label not in results.done():
            results.rows.append(
                {"method": label, **_timed(model, label.split()[0], found, options, args)}
            )
            results.save()
            print(results.rows[-1], flush=True)


def overhead(args: argparse.Namespace) -> None:
    """Wall time of DeiT-S with a plug-in applied that keeps everything."""
    torch.set_num_threads(args.threads)
    rounds = max(args.rounds, 30)
    protocol = {"model": DEIT, "batch": args.batch, "threads": args.threads, "rounds": rounds}
    protocol |= _libraries()
    results = Results("reduction_overhead", protocol, fresh=args.fresh, keys=("method",))
    model = build(DEIT)
    found = cost(model, _noise(model, 1))
    args = argparse.Namespace(**{**vars(args), "rounds": rounds})
    for name in ("evit", "tome", "mctf", "diffrate"):
        if name not in results.done():
            row = _timed(model, name, found, {"keep": 1.0}, args)
            results.rows.append({"method": name, **row})
            results.save()
            print(results.rows[-1], flush=True)


def _timed(
    model: nn.Module, name: str, found: ModelCost, options: dict[str, Any], args: argparse.Namespace
) -> Row:
    plain = copy.deepcopy(model)
    with applied(model, name, **options):
        reduction = reduction_of(model)
        spent = found.reduced(reduction.reducer, reduction.schedule)
        timing = compare(plain, model, _noise(model, args.batch), rounds=args.rounds)
    return {
        "gmac": spent / 1e9,
        "macs_ratio": found.plain() / spent,
        "speedup": timing.speedup,
        "low": timing.low,
        "high": timing.high,
        "noise_low": timing.noise_low,
        "noise_high": timing.noise_high,
        "plain_seconds": timing.plain_seconds,
        "reduced_seconds": timing.reduced_seconds,
    }


def accuracy(args: argparse.Namespace) -> None:
    """Accuracy of trained classifiers: training-free, and tuned or searched."""
    path = Path(args.data) if args.data else data_folder() / "images" / "cifar10-test.zip"
    protocol = {"data": path.name, "limit": args.limit} | _libraries()
    keys = ("classifier", "method", "setting", "seed")
    results = Results("reduction_accuracy", protocol, fresh=args.fresh, keys=keys)
    data: LabelledImages | None = None
    for number, folder in enumerate(args.classifier):
        plain = _loaded(folder)
        data = _first(read_labelled(path, plain.config.size), args.limit) if data is None else data
        rows = [*_untuned(plain), *_tuned(args.tuned, folder, plain)]
        for setting, model, found in rows:
            key = (number, *setting)
            if any(tuple(r[k] for k in keys) == key for r in results.rows):
                continue
            row = dict(zip(keys, key, strict=True)) | {"source": folder.name} | found
            results.rows.append(row | {"accuracy": model(data)})
            results.save()
            print(results.rows[-1], flush=True)


# Method, setting and seed of what was tuned on the classifier, how it is scored, and its row.
Measured = tuple[tuple[str, str, int | None], Callable[[LabelledImages], float], Row]


def _untuned(plain: Any) -> Iterator[Measured]:
    """Every method on plain weights, and equal budgets side by side."""
    vit, side = plain.vit, plain.config.size
    found = cost(vit, torch.zeros(1, 3, side, side))
    depth = len(found.blocks)
    yield ("plain", "", None), lambda data: _accuracy(plain, data), {"macs_share": 1.0}
    cases: list[tuple[str, str, dict[str, Any]]] = []
    for keep in KEEPS:
        layers = method("evit")[1].layers(depth)
        even = Schedule.ratios(keep, layers)
        cases.append(("evit", f"keep {keep}", {"schedule": even}))
        cases.append(("evit", f"keep {keep}, dropped", {"schedule": even, "fuse": False}))
        cases += [(n, f"keep {keep}", {"schedule": even}) for n in ("random", "uniform", "inverse")]
    for r in REMOVED:
        # The same tokens for both: all blocks but the first.
        schedule = Schedule.removals(r, range(1, depth))
        cases += [(n, f"r {r}", {"schedule": schedule}) for n in ("tome", "mctf")]
        cases.append(("mctf", f"r {r}, one-way", {"schedule": schedule, "is_two_way": False}))
    for name, label, options in cases:
        yield _case(plain, found, name, label, options)


def _case(
    plain: Any,
    found: ModelCost,
    name: str,
    label: str,
    options: dict[str, Any],
    seed: int | None = None,
) -> Measured:
    reducer = method(name, **{k: v for k, v in options.items() if k != "schedule"})[1]
    share = found.reduced(reducer, options["schedule"]) / found.plain()

    def measure(data: LabelledImages) -> float:
        with applied(plain.vit, name, **options):
            return _accuracy(plain, data)

    return (name, label, seed), measure, {"macs_share": share}


def _tuned(folders: list[Path], classifier: Path, plain: Any) -> Iterator[Measured]:
    """Runs that began with this classifier; a search brings its rivals of equal MACs along."""
    side = plain.config.size
    found = cost(plain.vit, torch.zeros(1, 3, side, side))
    for folder in folders:
        recipe = json.loads((folder / "recipe.json").read_text())
        if Path(recipe["init"]).name != classifier.name:
            continue
        seed = recipe["train"]["seed"]
        info = hub.read_info(folder)
        model = SYSTEMS[info.system].load().load_model(folder, info, name="")
        if info.system == "diffrate":
            label = f"searched for {model.config.share:.0%}"
            yield from _searched(plain, found, model.found(), label, seed)
            continue
        reduction = reduction_of(model)
        share = found.reduced(reduction.reducer, reduction.schedule) / found.plain()
        label = f"tuned, {reduction.schedule}"
        row = {"macs_share": share, "source": folder.name}
        yield (reduction.method, label, seed), lambda data, m=model: _accuracy(m, data), row


def _searched(
    plain: Any, found: ModelCost, reducer: DiffRate, label: str, seed: int
) -> Iterator[Measured]:
    """Counts that were found; equal ratios, EViT and a constant r at as many MACs or just fewer."""
    depth = len(found.blocks)
    spent = found.reduced(reducer, reducer.schedule(depth))
    lists = {"prune": reducer.prune, "merge": reducer.merge, "schedule": reducer.schedule(depth)}
    yield _case(plain, found, "diffrate", label, lists, seed)
    for name in ("diffrate", "evit"):
        even = found.schedule(method(name)[1], spent)
        yield _case(plain, found, name, f"even, as {label}", {"schedule": even}, seed)
    unlisted = method("diffrate")[1]
    layers = unlisted.layers(depth)
    constants = (Schedule.removals(r, layers) for r in range(1, found.patches))
    constant = next(s for s in constants if found.reduced(unlisted, s) <= spent)
    yield _case(plain, found, "diffrate", f"constant r, as {label}", {"schedule": constant}, seed)


def _loaded(folder: Path) -> Any:
    info = hub.read_info(folder)
    return SYSTEMS[info.system].load().load_model(folder, info, name="")


def _accuracy(model: Any, data: LabelledImages) -> float:
    return float(SYSTEMS["vit-classifier"].load().accuracy(model.logits, data))


def _first(data: LabelledImages, limit: int | None) -> LabelledImages:
    """Every n-th image, so that all classes take part."""
    if limit is None or limit >= len(data):
        return data
    step = len(data) // limit
    return LabelledImages(data.pixels[::step][:limit], data.labels[::step][:limit], data.classes)


def plot(args: argparse.Namespace) -> None:
    """Accuracy over the share of MACs, by method, from the stored rows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    stored = json.loads((RESULTS / "reduction_accuracy.json").read_text())["rows"]
    lines: dict[str, dict[float, list[float]]] = {}
    for row in stored:
        # Variants stand in the table; in a line they would zigzag.
        if row["method"] == "plain" or any(w in row["setting"] for w in VARIANTS):
            continue
        kind = row["setting"].split()[0].strip(",")
        name = f"{row['method']} {kind}" if kind in ("tuned", "searched") else row["method"]
        lines.setdefault(name, {}).setdefault(row["macs_share"], []).append(row["accuracy"])
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    colours: dict[str, str] = {}
    for name, points in sorted(lines.items()):
        x = sorted(points)
        y = [100 * sum(points[v]) / len(points[v]) for v in x]
        known = name.split()[0]
        look = "o-" if known == name else "*"  # a method's tuned and searched points are its stars
        colour = colours.setdefault(known, f"C{len(colours)}")
        axes.plot(x, y, look, label=name, color=colour, markersize=6 if look == "o-" else 11)
    whole = [row["accuracy"] for row in stored if row["method"] == "plain"]
    axes.axhline(100 * sum(whole) / len(whole), color="grey", lw=1, label="plain")
    axes.set(xlabel="share of MACs", ylabel="accuracy, %")
    axes.legend(fontsize=8)
    with atomic_path(RESULTS / "reduction_accuracy.png") as aside:
        figure.savefig(aside, dpi=120)


def _libraries() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("timm", "transformers")}


def _noise(model: nn.Module, count: int) -> Tensor:
    from polytok.reducers.hosts import find_core

    core, host = find_core(model)
    return torch.randn(count, 3, *host.image_size(core), generator=torch_rng(0))


def _tensor(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


PARTS = {f.__name__: f for f in (identity, macs, speed, overhead, accuracy, plot)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["macs"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--classifier", nargs="+", type=Path, default=[], help="one per seed")
    parser.add_argument("--tuned", nargs="+", type=Path, default=[])
    parser.add_argument("--data", help="zip or folder of test images; else cifar10-test.zip")
    parser.add_argument("--limit", type=int, help="at most so many test images")
    parser.add_argument("--fresh", action="store_true", help="drop the stored rows")
    args = parser.parse_args()
    for part in args.parts:
        PARTS[part](args)


if __name__ == "__main__":
    main()
