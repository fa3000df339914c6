"""``polytok mixture``: in which shares categories of text were in a tokenizer's training text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polytok.cli import show
from polytok.core.errors import PolytokError, SignalError

if TYPE_CHECKING:
    from polytok.systems.text.data_mixture_inference import MixtureResult, PairTranscript, Target

app = typer.Typer(
    rich_markup_mode=None,
    help="What a BPE tokenizer tells of the text it was trained on.",
    pretty_exceptions_enable=False,
)

Output = Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Seed = Annotated[int, typer.Option(help="Of every random draw.", min=0)]
Samples = Annotated[
    list[str],
    typer.Argument(help="NAME=PATH each, or folders that hold a file or folder per category."),
]
Merges = Annotated[int, typer.Option(help="Only the first so many merges.", min=1)]
Parts = Annotated[int, typer.Option(help="That a sample is cut into, for intervals.", min=1)]


@app.command()
def synth(
    sources: Samples,
    output: Output,
    share: Annotated[
        list[str] | None, typer.Option(help="NAME=SHARE of each category; by default drawn.")
    ] = None,
    merges: Merges = 3000,
    total_bytes: Annotated[int, typer.Option("--bytes", help="Of training text.", min=1)] = 4 << 20,
    sample_bytes: Annotated[
        int | None, typer.Option(help="Of each sample, at most.", min=1)
    ] = None,
    rules: Annotated[str, typer.Option(help="How text is cut: gpt2, cl100k or o200k.")] = "gpt2",
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train a tokenizer on a known mixture, and keep other text of each category as samples.

    Writes tokenizer.json, meta.json (bytes of each category) and samples/NAME.txt.
    """
    from polytok.core.files import write_text
    from polytok.systems.text.data_mixture_inference import synthesize
    from polytok.systems.text.data_mixture_inference.samples import read

    names = ("tokenizer.json", "meta.json", "samples")
    taken = [output / n for n in names if (output / n).exists()]
    if taken and not force:
        raise PolytokError(f"{taken[0]} exists already; use --force to replace it")
    made = synthesize(
        sources,
        shares=_shares(share) if share else None,
        num_merges=merges,
        total_bytes=total_bytes,
        sample_bytes=sample_bytes,
        rules=rules,
        seed=seed,
    )
    for category in made.samples:
        text = "".join(piece for part in category.parts for piece in read(part))
        write_text(output / "samples" / f"{category.name}.txt", text)
    write_text(output / "tokenizer.json", json.dumps(made.tokenizer_json(), ensure_ascii=False))
    write_text(output / "meta.json", json.dumps({"byte_count": made.byte_count}) + "\n")
    facts: dict[str, Any] = {"output": str(output), "merges": len(made.merges)}
    facts |= {name: round(value, 6) for name, value in made.truth.items()}
    show.facts(facts, as_json=as_json)


def _shares(options: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for option in options:
        name, _, value = option.rpartition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not name or not share >= 0:
            raise PolytokError(f"--share {option!r} is not NAME=SHARE with a share of at least 0")
        if name in found:
            raise PolytokError(f"--share names {name!r} twice")
        found[name] = share
    return found


@app.command()
def count(
    tokenizer: Annotated[
        Path, typer.Argument(help="tokenizer.json, merges.txt, tiktoken, SentencePiece, or folder.")
    ],
    samples: Samples,
    output: Output,
    merges: Merges = 30_000,
    parts: Parts = 8,
    max_bytes: Annotated[
        int | None, typer.Option("--bytes", help="Read of each category.", min=1)
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(help="How training cut text: gpt2, cl100k, o200k, sentencepiece."),
    ] = None,
    pre_tokenizer: Annotated[
        Path | None, typer.Option(help="The same as JSON of the tokenizers library.")
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Training read files line by line.")
    ] = False,
    drop_runs: Annotated[
        bool, typer.Option("--drop-runs", help="Leave out merges of repeated blanks.")
    ] = False,
    processes: Annotated[int | None, typer.Option(help="Default: one per core.", min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Count the pairs of every category under a tokenizer's merges; goes on where it stopped."""
    from polytok.systems.text.data_mixture_inference import target_of
    from polytok.systems.text.data_mixture_inference.folder import CountSettings, count_folder
    from polytok.systems.text.data_mixture_inference.samples import find_categories

    given = None if pre_tokenizer is None else _read_json(pre_tokenizer)
    target = target_of(
        tokenizer, num_merges=merges, rules=rules, pre_tokenizer=given, drop_runs=drop_runs
    )
    categories = find_categories(samples, num_parts=parts, max_bytes=max_bytes)
    for category in categories:
        if category.skipped:
            first, count_ = category.skipped[0], len(category.skipped)
            show.note(f"{category.name}: {count_} files are no UTF-8 text, such as {first}")
    settings = CountSettings(parts, max_bytes, lines)
    with _status("counting") as tell:
        total, new = count_folder(
            categories,
            target,
            output,
            settings,
            processes=processes,
            done=lambda name, i, n: tell(f"{name} counted, {i} of {n}"),
        )
    facts = {
        "output": str(output),
        "categories": total,
        "counted_now": new,
        "merges": len(target.merges),
        "rules": target.rules.name,
    }
    show.facts(facts, as_json=as_json)


@app.command()
def solve(
    counts: Annotated[Path, typer.Argument(help="Folder of counts, also of the authors' program.")],
    output: Output,
    merges: Annotated[
        int | None, typer.Option(help="Only the first so many merges.", min=1)
    ] = None,
    resamples: Annotated[
        int, typer.Option(help="Of the bootstrap; 0 for no intervals.", min=0)
    ] = 20,
    gap: Annotated[
        float, typer.Option(help="Stop when the misfit is known to this share.", min=0)
    ] = 0.02,
    solver: Annotated[str, typer.Option(help="auto, highspy or scipy.")] = "auto",
    official: Annotated[
        Path | None, typer.Option(help="Write the fields of the authors' solutions, too.")
    ] = None,
    seed: Seed = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Find the shares from counts, with intervals and how well they fit."""
    from polytok.core.files import write_text
    from polytok.systems.text import data_mixture_inference as tool
    from polytok.systems.text.data_mixture_inference.official import solution

    for path in filter(None, (output, official)):
        if path.exists() and not force:
            raise PolytokError(f"{path} exists already; use --force to replace it")
    config = tool.SolveConfig(relative_gap=gap, solver=solver)  # type: ignore[arg-type]
    target, transcripts = _counts(counts)
    with _status("solving") as tell:
        result = tool.solve(
            transcripts,
            target,
            num_merges=merges,
            resamples=resamples,
            seed=seed,
            config=config,
            progress=tell,
        )
    write_text(output, json.dumps(result.as_dict(), ensure_ascii=False) + "\n")
    if official is not None:
        write_text(official, json.dumps(solution(result), ensure_ascii=False) + "\n")
    _show(result, None, as_json=as_json)


@app.command()
def report(
    result: Annotated[Path, typer.Argument(help="A result of polytok mixture solve.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Bar chart, .png.")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="meta.json with the bytes of each category.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Show a result, against the truth where it is known, and draw it."""
    from polytok.core.files import atomic_path
    from polytok.systems.text.data_mixture_inference import MixtureResult
    from polytok.systems.text.data_mixture_inference.chart import bar_chart

    if output is not None and output.suffix.lower() not in (".png", ".webp"):
        raise PolytokError(f"{output} has extension {output.suffix!r}; known: .png, .webp")
    found = MixtureResult.from_dict(_read_json(result))
    known = None if truth is None else _truth(truth)
    if output is not None:
        chart = bar_chart(found, title=f"Training mixture by {result.stem}", truth=known)
        with atomic_path(output, force=force) as aside:
            chart.save(aside)
    _show(found, known, as_json=as_json)


def _counts(folder: Path) -> tuple[Target, list[PairTranscript]]:
    from polytok.systems.text.data_mixture_inference.folder import load_folder
    from polytok.systems.text.data_mixture_inference.official import is_official, read_counts

    if not folder.is_dir():
        raise SignalError(f"{folder}: no such folder")
    return read_counts(folder) if is_official(folder) else load_folder(folder)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise SignalError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise SignalError(f"{path} holds no JSON object")
    return found


def _truth(path: Path) -> dict[str, float]:
    sizes = _read_json(path).get("byte_count")
    try:
        given = {str(k): float(v) for k, v in sizes.items()}  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError):
        raise SignalError(f"{path} has no byte_count of categories") from None
    total = sum(given.values())
    if not total > 0 or min(given.values()) < 0:
        raise SignalError(f"{path}: byte_count {given} is not of any text")
    return {name: size / total for name, size in given.items()}


def _show(result: MixtureResult, truth: dict[str, float] | None, *, as_json: bool) -> None:
    import math

    from polytok.systems.text.data_mixture_inference import mean_squared_error

    error = None if truth is None else mean_squared_error(result.byte_share, truth)
    if as_json:
        slacks = ("merge_slack", "pair_slack", "missing_merges")
        rows = {k: v for k, v in result.as_dict().items() if k not in slacks}
        print(json.dumps({**rows, "truth": truth, "mean_squared_error": error}))
        return
    width = max(map(len, result.byte_share))
    for name in sorted(result.byte_share, key=lambda n: -result.byte_share[n]):
        line = f"{name:<{width}}  {result.byte_share[name]:7.2%}"
        if result.byte_interval is not None:
            low, high = result.byte_interval[name]
            line += f"  [{low:.2%}, {high:.2%}]"
        if truth is not None:
            line += f"  truth {truth.get(name, 0.0):.2%}"
        print(line)
    if error is not None:
        print(f"log10 of the mean squared error: {math.log10(max(error, 1e-300)):.2f}")
    print(
        f"{result.num_merges:,} merges, misfit {result.fit.misfit:.5f} "
        f"(at most {result.fit.gap:.5f} more), {result.fit.slackless:.1%} of them without slack"
    )
    for number, shares in result.by_merges.items():
        told = ", ".join(f"{n} {shares[n]:.1%}" for n in sorted(shares, key=lambda n: -shares[n]))
        print(f"first {number:,} merges: {told}")
    for caveat in result.caveats:
        show.note(f"note: {caveat}")


@contextmanager
def _status(what: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what goes on, where that is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status(what) as status:
        yield lambda text: status.update(f"{what}: {text}")
