"""``polytok classify``: what a trained text classifier says of sentences, and where it looked."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polytok.cli import show
from polytok.core.errors import WeightsError

if TYPE_CHECKING:
    from polytok.systems.theory.attention_vat import Prediction
    from polytok.systems.theory.attention_vat.text import Example

NUM_WORDS = 3


def classify(
    source: Annotated[Path, typer.Argument(help="Table with a column text, or plain lines.")],
    model: Annotated[str, typer.Option(help="Folder of a training run, or a repository id.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write here, not on stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object per line.")] = False,
) -> None:
    """Classify sentences; says which words got most attention."""
    from polytok.core.files import write_text
    from polytok.systems import api
    from polytok.systems.theory.attention_vat import TextClassifier
    from polytok.systems.theory.attention_vat.text import read_examples

    examples = read_examples(source)
    classifier: Any = api.load(model)
    if not isinstance(classifier, TextClassifier):
        raise WeightsError(f"{model!r} is no text classifier")
    found = classifier.predict(examples)
    text = _lines(examples, found) if as_json else _table(examples, found)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text, force=force)
    known = [e.label == p.label for e, p in zip(examples, found, strict=True) if e.label]
    if known:
        show.note(f"{sum(known)} of {len(known)} labels agree ({sum(known) / len(known):.1%})")


def _table(examples: list[Example], found: list[Prediction]) -> str:
    out = io.StringIO()
    rows = csv.writer(out, delimiter="\t", lineterminator="\n")
    rows.writerow(["label", "probability", "attention", "text"])
    for example, said in zip(examples, found, strict=True):
        most = sorted(said.attention, key=lambda pair: -pair[1])[:NUM_WORDS]
        words = " ".join(f"{word}:{weight:.2f}" for word, weight in most)
        rows.writerow([said.label, f"{said.probability:.3f}", words, example.text])
    return out.getvalue()


def _lines(examples: list[Example], found: list[Prediction]) -> str:
    rows = [
        {"text": e.text, "label": p.label, "probability": p.probability, "attention": p.attention}
        for e, p in zip(examples, found, strict=True)
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
