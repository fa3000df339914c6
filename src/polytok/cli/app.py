"""The commands of ``polytok``; each calls the library and shows what it returns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polytok.cli import collapse, kinds, mixture, reduce, show
from polytok.cli.classify import classify
from polytok.cli.convert import convert
from polytok.cli.generation import CFG
from polytok.cli.transfer import transfer
from polytok.core.errors import PolytokError

if TYPE_CHECKING:
    from polytok.core.contracts import Codes

DEFAULT_GENERATOR = "vat-512b-small-gen"

app = typer.Typer(
    rich_markup_mode=None,  # Rich would take a third of the time that --help needs
    help="Any signal in a few tokens, and back.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(collapse.app, name="collapse")
app.add_typer(mixture.app, name="mixture")
app.add_typer(reduce.app, name="reduce")
app.command()(transfer)
app.command()(classify)
app.command()(convert)


def _masses(text: str) -> tuple[float, ...]:
    """The values of top-p by step."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise PolytokError(f"{text!r} is no number and no list of numbers, as 1,0.9") from None


def _tiles(text: str) -> int | str:
    """A number of tiles, or that one is to be chosen."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise PolytokError(f"--tiles {text!r} is no whole number, nor auto") from None


def _named(inputs: list[str]) -> list[str]:
    """Refuse an empty name, which an unset variable gives: as a path it is the current folder."""
    if "" in inputs:
        raise PolytokError("an input is ''; known: names of files, globs and folders")
    return inputs


Output = Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Model = Annotated[str, typer.Option(help="Weights tag, preset, or a folder with config.json.")]
AnyModel = Annotated[
    str | None,
    typer.Option("--model", help="Weights tag, preset, or a folder; by default as the inputs are."),
]
Generator = Annotated[
    str, typer.Option("--model", help="Weights tag, preset, or a folder of a generator.")
]
Seed = Annotated[int, typer.Option(help="Of every random draw.", min=0)]
Effort = Annotated[int, typer.Option(help="0 feed-forward .. 9 longest search.", min=0, max=9)]
AnyEffort = Annotated[
    int | None,
    typer.Option("--effort", help="0 feed-forward (default) .. 9 longest search.", min=0, max=9),
]
ShapeStretch = Annotated[
    bool | None,
    typer.Option(
        "--stretch/--no-stretch",
        help="Shapes: stretch the box towards a cube (default), or keep its proportions.",
    ),
]
Tokens = Annotated[int | None, typer.Option(help="Images: only the first of every tile.", min=1)]
Tiles = Annotated[
    Any,
    typer.Option(
        help="Images: tiles along the longest side, 1 (default) to 16, or auto for the number "
        "that shows most in --bytes.",
        parser=_tiles,
        metavar="INTEGER|auto",
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", min=1)]
Prior = Annotated[str | None, typer.Option(help="Generator of --coder prior, if not the usual.")]
PriorText = Annotated[
    str | None, typer.Option("--text", help="Text of a prior-coded file; the file holds none.")
]
Image = Annotated[Path | None, typer.Option(help="A picture of what is wanted.")]
Strength = Annotated[float, typer.Option(help="Guidance by the conditions; 0 for none.")]
Draft = Annotated[
    float | None,
    typer.Option(
        help="Shapes: how near to stay to what the conditions lead to expect on the whole; "
        "0 for any shape that fits them; default 30 with an image, else 0."
    ),
]
Blend = Annotated[float, typer.Option(help="Share of the image beside a text.")]
Temperature = Annotated[float, typer.Option(help="Below 1 plays safe.")]
TopK = Annotated[int, typer.Option(help="Draw from the k likeliest ids; 0 from all.")]
TopP = Annotated[
    Any,
    typer.Option(
        help="Shapes: draw from this mass, or from one per scale (1,0.9,0.8); 0 from all.",
        parser=_masses,
        metavar="FLOAT,...",
    ),
]
Count = Annotated[int, typer.Option("-n", "--count", help="How many.")]
MeshFormat = Annotated[
    str, typer.Option("--format", help="Extension, when the output is a folder.")
]
Resolution = Annotated[int, typer.Option("--res", help="Grid cells a side.")]
ShapeResolution = Annotated[
    int | None, typer.Option("--res", help="Shapes: grid cells a side; default 128.")
]
Device = Annotated[str, typer.Option(help="cpu, or an accelerator torch knows.")]


@app.command()
def encode(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Meshes or pictures: files, globs or folders.", callback=_named),
    ],
    output: Output,
    model: AnyModel = None,
    max_bytes: Annotated[
        int | None, typer.Option("--bytes", help="Keep the most scales or tokens that fit.", min=1)
    ] = None,
    effort: AnyEffort = None,
    stretch: ShapeStretch = None,
    tokens: Tokens = None,
    tiles: Tiles = None,
    background: Annotated[
        str | None, typer.Option(help="Images: colour behind transparency; default white.")
    ] = None,
    coder: Annotated[
        str, typer.Option(help="auto, raw (no range coding), or prior (smallest, slower).")
    ] = "auto",
    prior: Prior = None,
    text: PriorText = None,
    device: Device = "cpu",
    threads: Threads = None,
    force: Force = False,
    as_json: AsJson = False,
    seed: Seed = 0,
) -> None:
    """Turn meshes or pictures into .ptk files of a few hundred bytes or less."""
    from polytok.cli.batch import Batch
    from polytok.core.files import write_bytes
    from polytok.systems import api

    kind, name = kinds.of_inputs(model, inputs)
    image = {"tokens": tokens, "tiles": tiles, "background": background}
    given = kinds.options(
        kind, kind.encode, seed=seed or None, effort=effort, stretch=stretch, **image
    )
    batch = Batch.of(inputs, output, ".ptk", force=force, known=kind.EXTENSIONS)
    batch.check_targets(lambda _: (".ptk",))
    if coder not in ("auto", "raw", "prior"):
        raise PolytokError(f"--coder {coder!r} is not one of auto, raw, prior")
    codec = api.load_codec(name, device=show.ready(device, threads))
    if coder != "prior" and (prior, text) != (None, None):
        raise PolytokError("--prior and --text belong to --coder prior")
    symbols = api.prior_of(codec, prior, text) if coder == "prior" else None
    static = "auto" if symbols else coder

    def pack(codes: Codes) -> bytes:
        return codec.pack(codes, max_bytes=max_bytes, coder=static, prior=symbols)[0]

    if max_bytes is not None:
        given["fit"] = codec.fitting(max_bytes, coder=static, prior=symbols)

    def work(source: Path, target: Path) -> dict[str, Any]:
        data = pack(kind.encode(codec, source, **given))
        write_bytes(target, data, force=force)
        return {"bytes": len(data), "source_bytes": source.stat().st_size}

    status = batch.run(work, as_json=as_json, verb="encoding")
    show.notice(codec)
    raise typer.Exit(status)


@app.command()
def decode(
    inputs: Annotated[
        list[str], typer.Argument(help=".ptk files, globs or folders.", callback=_named)
    ],
    output: Output,
    resolution: ShapeResolution = None,
    levels: Annotated[
        int | None, typer.Option(help="Shapes: decode only the first scales.", min=1)
    ] = None,
    faces: Annotated[
        int | None, typer.Option(help="Shapes: decimate to at most so many.", min=4)
    ] = None,
    tokens: Tokens = None,
    size: Annotated[
        int | None,
        typer.Option(help="Images: longest side; default the original, at most 4096.", min=1),
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Images: a sheet of prefixes, such as 4,8,16 tokens.")
    ] = None,
    partial: Annotated[bool, typer.Option(help="Accept a file that was cut.")] = False,
    format_: Annotated[
        str | None, typer.Option("--format", help="Extension, when the output is a folder.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Weights that no registry knows.")] = None,
    prior: Prior = None,
    text: PriorText = None,
    threads: Threads = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Turn .ptk files back into meshes (glb, obj, ply, stl) or pictures (png, jpg, webp)."""
    from polytok.cli.batch import Batch

    def suffix(source: Path) -> str:
        return f".{format_.lstrip('.')}" if format_ else kinds.of_code(source).SUFFIX

    batch = Batch.of(inputs, output, suffix, force=force, known=(".ptk",))
    batch.check_targets(lambda source: kinds.of_code(source).WRITABLE)
    show.ready("cpu", threads)
    opened = kinds.Opened(model, prior, text)
    shape = {"res": resolution, "levels": levels, "faces": faces}
    image = {"tokens": tokens, "size": size, "lengths": lengths}

    def work(source: Path, target: Path) -> dict[str, Any]:
        kind, codec, codes = opened.read(source, partial=partial)
        given = kinds.options(kind, kind.decode, **shape, **image)
        return kind.decode(codec, codes, target, force=force, **given)

    raise typer.Exit(batch.run(work, as_json=as_json, verb="decoding"))


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A .ptk file.")],
    model: Annotated[str | None, typer.Option(help="Weights that no registry knows.")] = None,
    prior: Prior = None,
    text: PriorText = None,
    as_json: AsJson = False,
) -> None:
    """Say what a .ptk file holds: bytes, bits, model, and the box or sides of its signal."""
    from polytok import bitstream
    from polytok.systems import api

    data = api.read_code(path)
    header = bitstream.read_header(data)
    kind, codec = kinds.of_modality(header.modality), api.codec_for(data, model)
    if not header.is_intact:
        show.note(f"{path}: cut or damaged; this is what its whole {kind.UNIT} say")
    symbols = api.prior_for(data, prior, text)
    codes = codec.unpack(data, partial=not header.is_intact, prior=symbols)
    facts = {
        "file": str(path),
        "bytes": len(data),
        "model": codec.name,
        "weights": header.weights,
        "coder": (
            "prior" if header.is_prior_coded else "range" if header.is_range_coded else "raw"
        ),
        **kind.facts(codec, header, codes, len(data)),
    }
    show.facts(facts, as_json=as_json)


@app.command()
def truncate(
    path: Annotated[Path, typer.Argument(help="A .ptk file.")],
    output: Output,
    max_bytes: Annotated[
        int | None, typer.Option("--bytes", help="Largest size of the result.", min=1)
    ] = None,
    tokens: Tokens = None,
    model: Annotated[str | None, typer.Option(help="Weights that no registry knows.")] = None,
    prior: Prior = None,
    text: PriorText = None,
    force: Force = False,
) -> None:
    """Write the largest valid prefix of a .ptk file that fits into so many bytes or tokens."""
    from polytok.cli.batch import check_target
    from polytok.core.files import write_bytes
    from polytok.systems import api

    check_target(output, (".ptk",))
    if (max_bytes is None) == (tokens is None):
        raise PolytokError("truncate takes either --bytes or --tokens")
    data = api.read_code(path)
    symbols = api.prior_for(data, prior, text)
    codec = api.codec_for(data, model)
    if max_bytes is not None:
        shorter = codec.truncate(data, max_bytes, prior=symbols)
    else:
        kind = kinds.of_modality(codec.spec.modality)
        given = kinds.options(kind, kind.prefix, tokens=tokens)
        shorter = codec.pack(kind.prefix(codec, codec.unpack(data, prior=symbols), **given))[0]
    write_bytes(output, shorter, force=force)
    show.line(f"{output}: {len(shorter)} bytes of {len(data)}")


@app.command()
def generate(
    output: Output,
    text: Annotated[
        str | None, typer.Argument(help="What is wanted, in words; images: a class.")
    ] = None,
    image: Image = None,
    count: Count = 1,
    seed: Seed = 0,
    model: Generator = DEFAULT_GENERATOR,
    cfg: Annotated[
        float | None,
        typer.Option(help="Guidance by the conditions; 0 for none; shapes: default 2."),
    ] = None,
    draft: Draft = None,
    blend: Annotated[
        float | None,
        typer.Option(help="Shapes: share of the image beside a text; default 0.5."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Images: passes of the net.", min=1)] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Shapes: below 1 plays safe. Images: of the noise; 0 plays safe."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Shapes: draw from the k likeliest ids.")
    ] = None,
    top_p: TopP = None,
    resolution: ShapeResolution = None,
    size: Annotated[
        int | None, typer.Option(help="Images: pixels a side; default the tokenizer's.", min=1)
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="Extension, when the output is a folder.")
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make new shapes from a text, a picture, both or nothing, or images of a class or none."""
    kind = kinds.of_generator(model)
    shape = {
        "image": image,
        "draft": draft,
        "blend": blend,
        "top_k": top_k,
        "top_p": top_p,
        "res": resolution,
    }
    given = kinds.options(
        kind,
        kind.generate,
        text=text,
        cfg=cfg,
        steps=steps,
        temperature=temperature,
        size=size,
        format=format_,
        **shape,
    )
    common = {"count": count, "seed": seed, "force": force, "as_json": as_json}
    kind.generate(model, output, device=show.ready(device, threads), **common, **given)


@app.command()
def complete(
    path: Annotated[Path, typer.Argument(help="A .ptk file.")],
    output: Output,
    from_scale: Annotated[int, typer.Option(help="The first scale to draw anew.", min=1)],
    text: Annotated[str | None, typer.Option(help="What is wanted, in words.")] = None,
    image: Image = None,
    count: Count = 1,
    seed: Seed = 0,
    model: Generator = DEFAULT_GENERATOR,
    cfg: Strength = CFG,
    draft: Draft = None,
    blend: Blend = 0.5,
    temperature: Temperature = 1.0,
    top_k: TopK = 0,
    top_p: TopP = "0",
    resolution: Resolution = 128,
    format_: MeshFormat = "glb",
    device: Device = "cpu",
    threads: Threads = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Keep the coarse scales of a code and draw the finer ones anew."""
    from polytok.cli import generation
    from polytok.generators import Sampling
    from polytok.systems import api

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    data, stem = api.read_code(path), f"{path.stem}-from-{from_scale}"
    to = generation.shape_destination(output, stem, count, format_.lstrip("."), force=force)
    generator = api.load_generator(model, device=show.ready(device, threads))
    generation.note_cut(generator, text)
    codes = generator.codec.unpack(data, prior=api.prior_for(data))
    generation.note_stretch(codes)
    parts = generator.stream(
        text,
        image,
        count=count,
        seed=seed,
        cfg=cfg,
        draft=draft,
        blend=blend,
        sampling=sampling,
        kept=generator.coarse(codes, from_scale),
    )
    generation.write_shapes(
        generator.codec, parts, to, resolution=resolution, force=force, as_json=as_json
    )


@app.command()
def score(
    path: Annotated[Path, typer.Argument(help="A .ptk file.")],
    text: Annotated[str | None, typer.Option(help="Score under this text.")] = None,
    image: Image = None,
    model: Generator = DEFAULT_GENERATOR,
    as_json: AsJson = False,
) -> None:
    """Say what a code costs under a generator: nats and bits per token, per scale."""
    import math

    from polytok.cli import generation
    from polytok.systems import api

    data = api.read_code(path)
    generator = api.load_generator(model)
    codes = generator.codec.unpack(data, prior=api.prior_for(data))
    generation.note_stretch(codes)
    found = generator.score(codes, text=text, image=image)[0]
    bits = [n / math.log(2) for n in found.nats]
    facts = {
        "file": str(path),
        "model": generator.name,
        "tokens": list(found.tokens),
        "nats_per_token": round(found.nats_per_token, 4),
        "bits_per_token": round(found.nats_per_token / math.log(2), 4),
        "nats_per_scale": [round(n, 3) for n in found.nats],
        "bits_per_scale": [round(b, 3) for b in bits],
        "bytes": round(sum(b * t for b, t in zip(bits, found.tokens, strict=True)) / 8, 1),
    }
    show.facts(facts, as_json=as_json)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="The mesh or picture to judge.")],
    second: Annotated[Path, typer.Argument(help="The truth.")],
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Score a mesh or picture against another: distances of surfaces, or PSNR and SSIM."""
    kind = kinds.of_files(first, second)
    given = kinds.options(kind, kind.compare, seed=seed or None)
    show.facts(kind.compare(first, second, **given), as_json=as_json)


@app.command()
def evaluate(
    source: Annotated[Path, typer.Argument(help="Folder or zip of meshes or pictures.")],
    model: AnyModel = None,
    every: Annotated[int, typer.Option(help="Only every n-th file.", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="At most so many files.", min=1)] = None,
    effort: AnyEffort = None,
    stretch: ShapeStretch = None,
    resolution: ShapeResolution = None,
    tokens: Tokens = None,
    tiles: Tiles = None,
    max_bytes: Annotated[
        int | None, typer.Option("--bytes", help="Images: the most tokens that fit.", min=1)
    ] = None,
    prefixes: Annotated[bool, typer.Option(help="Score prefixes of the codes too.")] = False,
    seed: Seed = 0,
    threads: Threads = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Score a tokenizer on a folder or zip of meshes or pictures, with bootstrap intervals."""
    from polytok.cli.evaluate import evaluate as run
    from polytok.core.files import write_text
    from polytok.systems import api

    if output is not None and output.exists() and not force:
        raise PolytokError(f"{output} exists already; use --force to replace it")
    kind, name = kinds.of_inputs(model, [str(source)])
    shape = {"stretch": stretch, "res": resolution}
    image = {"tokens": tokens, "tiles": tiles, "bytes": max_bytes}
    given = kinds.options(
        kind, kind.score, prefixes=prefixes or None, effort=effort, **shape, **image
    )
    show.ready("cpu", threads)
    codec = api.load_codec(name)
    report = run(source, codec, kind, every=every, limit=limit, seed=seed, options=given)
    if output is not None:
        write_text(output, json.dumps(report, indent=1) + "\n", force=force)
    show.evaluation(report, kind.NOUN, kind.settings(**given), as_json=as_json)
    raise typer.Exit(2 if report["failures"] else 0)


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Folder or zip of meshes or pictures.")],
    out: Annotated[Path, typer.Argument(help="Folder for what is prepared.")],
    pictures: Annotated[
        str | None,
        typer.Option(help="Make pictures: of emoji, icons, shapes, photos or labelled ones."),
    ] = None,
    size: Annotated[int, typer.Option(help="Pictures: pixels a side.")] = 64,
    variants: Annotated[
        int | None, typer.Option(help="Pictures: of every source; by default as the kind has.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Meshes: default one per core.", min=1)
    ] = None,
    stretch: Annotated[
        bool,
        typer.Option("--stretch", help="Meshes: stretch boxes towards a cube, as encode does."),
    ] = False,
    seed: Seed = 0,
) -> None:
    """Make meshes or pictures ready for training; goes on where it was interrupted."""
    if pictures is not None:
        from polytok.data.pictures import prepare_pictures

        index = prepare_pictures(pictures, source, out, size=size, variants=variants, seed=seed)
        print(f"{len(index.names) * index.variants} pictures of {len(index.names)} {pictures}")
        return
    from polytok.data.prepared import prepare_folder

    done = prepare_folder(source, out, processes=processes, stretch=stretch, seed=seed)
    routes = ", ".join(f"{k} {v}" for k, v in sorted(done.routes.items()))
    print(f"{done.ready} shapes ready ({routes}), {done.made} made now in {done.seconds:.0f} s")
    if done.dropped:
        print(f"{done.dropped} dropped; {out / 'dropped.jsonl'} says why")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, see recipes/.")],
    run: Annotated[Path, typer.Option("--run", help="Folder of the run; resumes if it exists.")],
    override: Annotated[
        list[str] | None, typer.Option("--set", help="a.b=value replaces a value of the recipe.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Save and stop after so long.")] = None,
) -> None:
    """Train a recipe, or go on with a run."""
    from polytok.systems import api

    result = api.train(recipe, run, override or (), minutes)
    state = "complete" if result.is_complete else "to be continued"
    print(f"{run}: {result.samples:,} samples in {result.steps:,} steps, {state}")


@app.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """List systems, presets and weights."""
    from polytok.core.registry import SYSTEMS, WEIGHTS

    rows = [
        {
            "system": s.name,
            "kind": s.kind,
            "modality": s.modality,
            "presets": list(s.presets),
            "weights": [t for t, w in WEIGHTS.items() if w.preset in s.presets],
            "paper": s.paper,
        }
        for s in SYSTEMS.values()
    ]
    show.systems(rows, as_json=as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices and weights, for bug reports."""
    from polytok.cli.doctor import report

    show.facts(report(), as_json=as_json)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("polytok-demo"),
    model: Model = kinds.DEFAULT_MODELS["shape"],
    effort: Effort = 5,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Encode and decode bundled CC0 shapes; writes meshes and one picture."""
    from polytok.cli.demo import run_demo

    rows = run_demo(output, model=model, effort=effort, seed=seed, force=force)
    show.demo(rows, output)
