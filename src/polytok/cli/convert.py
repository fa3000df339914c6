"""``polytok convert``: official weights become a model folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polytok.cli import show

Preset = Annotated[str, typer.Argument(help="The official model, such as titok-l32.")]
Source = Annotated[Path, typer.Argument(help="Its .safetensors, .bin or .pt file.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder that is written.")]
Tokenizer = Annotated[
    str | None, typer.Option(help="Of a generator: the folder of its converted tokenizer.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a model that is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def convert(
    preset: Preset,
    source: Source,
    output: Output,
    tokenizer: Tokenizer = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Turn a checkpoint of the official code into a folder that every command takes."""
    from polytok.systems.convert import convert as run

    found = run(preset, source, output, tokenizer=tokenizer, force=force)
    if as_json:
        show.facts(asdict(found), as_json=True)
        return
    print(
        f"{found.preset}: {found.parameters:,} values in {found.tensors} tensors, "
        f"weights {found.weights}, in {found.folder}"
    )
