"""Showing results: tables and JSON on stdout, notes on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from polytok.core.errors import PolytokError, escaped

if TYPE_CHECKING:
    from polytok.systems.codec import Codec

Item = TypeVar("Item")
MAX_THREADS = 256  # on machines of fewer cores


def note(text: str) -> None:
    """Print one line on stderr."""
    print(escaped(text), file=sys.stderr)


def line(text: str) -> None:
    """Print one line on stdout at once, so that it shows which results are finished."""
    print(escaped(text), flush=True)


def progress(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Go through items, with a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=what, console=Console(stderr=True), transient=True)


def ready(device: str, threads: int | None) -> str:
    """Set the number of CPU threads and return the device.

    Raises:
        PolytokError: it is neither cpu nor an accelerator that is here, or there are too many
            threads.
    """
    import torch

    if threads is not None:
        # Torch starts as many as it is told to, and a machine with no room for them hangs.
        if threads > (most := max(MAX_THREADS, os.cpu_count() or 1)):
            raise PolytokError(f"threads={threads} is more than {most}")
        torch.set_num_threads(threads)
    found = torch.accelerator.current_accelerator(check_available=True)
    known = ["cpu", *([found.type] if found else [])]
    refusal = PolytokError(f"device {device!r} is not to be had here; known: {', '.join(known)}")
    # Torch has tensors on more devices, such as meta, where they hold no values.
    if device.partition(":")[0] not in known:
        raise refusal
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:
        raise refusal from error
    return device


def dropped(source: Path) -> None:
    """Say on one line what of a mesh file is left out, if anything is."""
    from polytok.signals import mesh as meshes

    names = meshes.dropped(source)
    if names:
        note(f"{source}: {', '.join(names)} dropped; only the geometry is encoded")


def notice(codec: Codec) -> None:
    """Say what whoever encodes with these weights should know, if anything."""
    from polytok.systems import api

    if text := api.notice(codec):
        note(f"{codec.name}: {text}")


def facts(values: dict[str, Any], *, as_json: bool) -> None:
    """Print names and values, one a line."""
    if as_json:
        print(json.dumps(values))
        return
    width = max(len(k) for k in values)
    for key, value in values.items():
        text = " ".join(map(str, value)) if isinstance(value, list) else value
        line(f"{key:<{width}}  {text}")


def systems(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print the registry."""
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['system']}  ({row['kind']}, {row['modality']}; {row['paper']})")
        print(f"  presets  {' '.join(row['presets'])}")
        print(f"  weights  {' '.join(row['weights']) or 'none'}")


def evaluation(
    report: dict[str, Any], noun: str, settings: dict[str, Any], *, as_json: bool
) -> None:
    """Print the summary of an evaluation of ``noun``s under some settings."""
    if as_json:
        print(json.dumps(report))
        return
    head = ", ".join([report["model"], *(f"{k} {v}" for k, v in settings.items())])
    print(f"{head}: {report['encoded']} of {report[noun + 's']} {noun}s")
    for name, value in report["summary"].items():
        interval = f"{value['mean']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]"
        print(f"  {name:<20} {interval}")
    for failure in report["failures"]:
        note(f"failed: {failure[noun]}: {failure['reason']}")


def demo(rows: list[dict[str, Any]], output: Path) -> None:
    """Print the demo's table."""
    print(f"{'shape':<18}{'what':<12}{'bytes':>8}{'F@0.02':>9}{'encode s':>10}{'decode s':>10}")
    for row in rows:
        seconds = [f"{row[k]:.2f}" if row.get(k) is not None else "" for k in ("encode", "decode")]
        score = f"{row['f_002']:.3f}" if row.get("f_002") is not None else ""
        size = f"{row['bytes']:,}" if row.get("bytes") is not None else "-"
        print(
            f"{row['shape']:<18}{row['what']:<12}{size:>8}{score:>9}{seconds[0]:>10}{seconds[1]:>10}"
        )
    line(f"picture: {output / 'demo.png'}")
