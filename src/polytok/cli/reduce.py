"""``polytok reduce``: what fewer tokens save on a vision transformer, and which patches survive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polytok.cli import show
from polytok.core.errors import ConfigError, PolytokError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polytok.reducers.bench import BenchReport

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

app = typer.Typer(
    rich_markup_mode=None,
    help="Fewer tokens in vision transformers of timm and transformers.",
    pretty_exceptions_enable=False,
)

ModelName = Annotated[
    str, typer.Argument(help="A name of timm's, a class of transformers', or a folder.")
]
Method = Annotated[str, typer.Option(help="Such as evit, tome, mctf, diffrate, uniform.")]
Keep = Annotated[str | None, typer.Option(help="Share of patches, or LAYER:SHARE,...")]
Removed = Annotated[str | None, typer.Option("--r", help="Patches to remove, or LAYER:N,...")]
ScheduleFile = Annotated[Path | None, typer.Option("--schedule", help="A schedule as JSON.")]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Download weights.")]
Device = Annotated[str, typer.Option(help="cpu, or an accelerator torch knows.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", min=1)]


@app.command()
def bench(
    model: ModelName,
    method: Method = "evit",
    keep: Keep = None,
    r: Removed = None,
    schedule: ScheduleFile = None,
    batch: Annotated[int, typer.Option(help="Images at once.", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="Interleaved pairs.", min=1)] = 30,
    images: Annotated[Path | None, typer.Option(help="Folder of images; else noise.")] = None,
    is_pretrained: Pretrained = False,
    device: Device = "cpu",
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Measure MACs, tokens per layer, speed against the plain model, and agreement."""
    import torch

    from polytok.reducers.bench import bench as measure

    target = show.ready(device, threads)
    made = _reduced(model, method, keep, r, schedule, is_pretrained).to(target)
    inputs = _batch(made, batch, images).to(target)
    report = measure(made, inputs, rounds=rounds)
    weights = "pretrained" if is_pretrained or Path(model).is_dir() else "random"
    facts = {
        "model": f"{model}, {weights} weights",
        "reduction": str(_reduction(made)),
        "inputs": f"{batch} x {'x'.join(map(str, inputs.shape[1:]))}, "
        + ("noise" if images is None else str(images)),
        "threads": torch.get_num_threads(),
        **_facts(report, is_plain=not as_json),
    }
    show.facts(facts, as_json=as_json)


@app.command()
def trace(
    model: ModelName,
    image: Annotated[Path, typer.Argument(help="A picture.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the picture goes.")],
    method: Method = "evit",
    keep: Keep = None,
    r: Removed = None,
    schedule: ScheduleFile = None,
    is_pretrained: Pretrained = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Picture which patches survive every reduction."""
    from polytok.core.files import atomic_path
    from polytok.reducers import trace as follow

    if output.suffix.lower() not in IMAGE_SUFFIXES:
        raise PolytokError(f"{output} is not a picture ({' '.join(IMAGE_SUFFIXES)})")
    made = _reduced(model, method, keep, r, schedule, is_pretrained)
    pixels = _pixels(made, [image])
    if not is_pretrained and not Path(model).is_dir():
        show.note("random weights: which patches survive means nothing; use --pretrained")
    found = follow(made, _scaled(made, pixels))
    picture = found.picture(pixels)
    with atomic_path(output, force=force) as aside:
        picture.save(aside)
    left = ", ".join(f"block {s.layer}: {int(s.survivors.sum())}" for s in found.stages)
    rows, columns = found.grid
    show.line(f"{output}: of {rows}x{columns} patches survive {left or 'all'}")


def _reduced(
    name: str,
    method: str,
    keep: str | None,
    r: str | None,
    schedule: Path | None,
    is_pretrained: bool,
) -> nn.Module:
    from polytok.reducers import reduce
    from polytok.reducers.saved import build

    model = build(name, is_pretrained=is_pretrained)
    given: dict[str, Any] = {"keep": _layers(keep, "keep"), "r": _layers(r, "r")}
    return reduce(model, method, **given, schedule=None if schedule is None else str(schedule))


def _layers(text: str | None, option: str) -> Any:
    """``0.7`` or ``3:0.7,6:0.5`` as numbers."""
    if text is None:
        return None
    try:
        if ":" not in text:
            return float(text)
        pairs = (part.split(":") for part in text.split(","))
        return {int(layer): float(value) for layer, value in pairs}
    except ValueError:
        raise ConfigError(
            f"--{option} {text!r} is neither a number nor of the form 3:0.7,6:0.5"
        ) from None


def _reduction(model: nn.Module) -> Any:
    from polytok.reducers import reduction_of

    return reduction_of(model)


def _batch(model: nn.Module, count: int, folder: Path | None) -> Tensor:
    """(count, 3, H, W) inputs of the model: images of a folder, over and over, or noise."""
    import torch

    from polytok.core.seeding import torch_rng

    if folder is None:
        height, width = _size(model)
        return torch.randn(count, 3, height, width, generator=torch_rng(0))
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise PolytokError(f"{folder}: no images ({' '.join(IMAGE_SUFFIXES)})")
    return _scaled(model, _pixels(model, [files[i % len(files)] for i in range(count)]))


def _pixels(model: nn.Module, files: list[Path]) -> Tensor:
    """(n, 3, H, W) in [0, 1]: pictures scaled to cover the model's input, middle parts."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    from polytok.signals.image import read

    height, width = _size(model)
    fitted = (
        ImageOps.fit(read(path).convert("RGB"), (width, height), Image.Resampling.BICUBIC)
        for path in files
    )
    stacked = np.stack([np.asarray(picture) for picture in fitted])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


def _scaled(model: nn.Module, pixels: Tensor) -> Tensor:
    """Pixels as the model was trained on them, where it says so."""
    import torch

    config = getattr(model, "pretrained_cfg", None) or {}
    mean, std = (
        torch.tensor(config.get(key, (0.5, 0.5, 0.5))).view(3, 1, 1) for key in ("mean", "std")
    )
    return (pixels - mean) / std


def _size(model: nn.Module) -> tuple[int, int]:
    from polytok.reducers.hosts import find_core

    core, host = find_core(model)
    return host.image_size(core)


def _facts(report: BenchReport, *, is_plain: bool) -> dict[str, Any]:
    """A report by names; rounded words for people, numbers for JSON."""
    time = report.timing
    if not is_plain:
        return {
            "plain_macs": report.plain_macs,
            "macs": report.macs,
            "counted_macs": report.counted,
            "tokens": list(report.tokens),
            "speedup": time.speedup,
            "speedup_range": [time.low, time.high],
            "noise_range": [time.noise_low, time.noise_high],
            "plain_seconds": time.plain_seconds,
            "reduced_seconds": time.reduced_seconds,
            "rounds": time.rounds,
            "agreement": report.agreement,
            "cosine": report.cosine,
        }
    ratio = report.plain_macs / report.macs
    return {
        "tokens": list(report.tokens),
        "GMAC": f"{report.plain_macs / 1e9:.3f} -> {report.macs / 1e9:.3f} ({ratio:.2f}x fewer), "
        f"counted {report.counted / 1e9:.3f}",
        "speed": f"{time.speedup:.2f}x ({time.low:.2f}..{time.high:.2f} in {time.rounds} rounds; "
        f"plain against itself {time.noise_low:.2f}..{time.noise_high:.2f})",
        "seconds": f"{time.plain_seconds:.3f} -> {time.reduced_seconds:.3f} a batch",
        "agreement": f"{100 * report.agreement:.0f}% of highest outputs, "
        f"cosine {report.cosine:.4f}",
    }
