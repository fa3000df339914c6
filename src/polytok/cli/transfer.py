"""``polytok transfer``: another tokenizer for a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polytok.cli import show
from polytok.core.errors import PolytokError

if TYPE_CHECKING:
    from polytok.systems.text.zett import ByteLevel, LanguageModel

PIECE = 1024  # characters of a text that are scored together

Model = Annotated[str, typer.Argument(help="Language model: a folder, or a hub id.")]
New = Annotated[str, typer.Option(help="The new one: a tokenizer.json, a folder, or a hub id.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder that is written.")]
Network = Annotated[
    Path | None, typer.Option(help="Folder of a hypernetwork trained for the model.")
]
Method = Annotated[
    str | None,
    typer.Option(help="Without a hypernetwork: fvt (default), focus, lexical, mean, random, unk."),
]
Language = Annotated[
    int | None, typer.Option(help="Number of the language, if the hypernetwork knows several.")
]
Text = Annotated[Path | None, typer.Option(help="UTF-8 text: bits per byte before and after.")]
Resplit = Annotated[
    bool, typer.Option("--resplit", help="Split texts as GPT-2 does, not as the tokenizer.")
]
Keep = Annotated[
    bool, typer.Option("--keep-normalizer", help="Go on lower-casing, composing and so on.")
]
Whitespace = Annotated[
    bool, typer.Option("--whitespace", help="Take the runs of whitespace of training.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a folder that exists.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def transfer(
    model: Model,
    tokenizer: New,
    output: Output,
    hypernet: Network = None,
    method: Method = None,
    language: Language = None,
    score: Text = None,
    resplit: Resplit = False,
    keep_normalizer: Keep = False,
    whitespace: Whitespace = False,
    revision: Annotated[str | None, typer.Option(help="Of the model on the hub.")] = None,
    seed: Annotated[int, typer.Option(help="Of random rows.", min=0)] = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Give a language model another tokenizer; writes a plain Hugging Face folder."""
    from polytok.systems.text import zett

    if hypernet is not None and method is not None:
        raise PolytokError("--hypernet and --method are two ways; give one of them")
    if language is not None and hypernet is None:
        raise PolytokError("--language belongs to --hypernet")
    if output.exists() and not force:
        raise PolytokError(f"{output} exists already; use --force to replace it")
    texts = [] if score is None else _pieces(score)
    zett.quieten()
    new = zett.load_tokenizer(tokenizer)
    network = None if hypernet is None else zett.load_hypernet(hypernet)
    lm = zett.load_language_model(model, revision)
    before = _scored(lm, lm.tokenizer, texts)
    made = zett.transfer_tokenizer(
        lm,
        new,
        method=method or "fvt",
        hypernet=network,
        language=language,
        resplit=resplit,
        keep_normalizer=keep_normalizer,
        whitespace=whitespace,
        seed=seed,
    )
    after = _scored(lm, made.tokenizer, texts)
    zett.save_transfer(made, output, force=force)
    for text in made.notes:
        show.note(f"note: {text}")
    facts = {"output": str(output), **made.report}
    for when, found in (("before", before), ("after", after)):
        facts |= {f"{name}_{when}": value for name, value in found.items()}
    show.facts(facts, as_json=as_json)


def _pieces(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PolytokError(f"{path} is no UTF-8 text: {error.reason}") from error
    if not text:
        raise PolytokError(f"{path} is empty; there is nothing to score")
    return [text[i : i + PIECE] for i in range(0, len(text), PIECE)]


def _scored(lm: LanguageModel, tokenizer: ByteLevel, texts: list[str]) -> dict[str, Any]:
    from polytok.systems.text import zett

    if not texts:
        return {}
    found = zett.bits_per_byte(lm, tokenizer, texts)
    return {
        "bits_per_byte": round(found.bits_per_byte, 4),
        "bytes_per_token": round(found.bytes_per_token, 3),
    }
