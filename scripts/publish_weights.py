"""Turn a finished run into weights that ship: in bf16, with a card; a tokenizer is calibrated.

    python scripts/publish_weights.py RUN TAG --train PREPARED_FOLDER_OR_FOLDER_OF_PICTURES

Prints the row that belongs into the registry.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import polytok
from polytok.core import hub, registry
from polytok.core.config import from_dict
from polytok.core.errors import PolytokError
from polytok.core.files import write_text
from polytok.data.pictures import INDEX, read_pictures
from polytok.data.prepared import PreparedFolder
from polytok.data.shapes import ShapeSampling, ShapeSource
from polytok.systems import api
from polytok.systems.classics.maskgit import MaskGIT, MaskGITConfig
from polytok.systems.image.titok import TiTok, TiTokConfig
from polytok.systems.shape.vat import VAT, VATConfig
from polytok.systems.shape.vat.generator import VATGenerator, VATGeneratorConfig
from polytok.systems.shape.vat.training import calibrate_level

CARD = """# {tag}

Weights of `{preset}`: {parameters:,} parameters, {size:,} bytes in bf16,
fingerprint `{fingerprint}`.

- **Trained** for {samples:,} samples of {data}; the recipe as run is `recipe.json`
  (seed {seed}). Device: {device}. {notes}
- {about}
- **Validation** as it went ({curve}): `curve.json`.
- **Data**: {licences}
- **Licence** of the weights: Apache-2.0.
"""
BATCH = 64
GAZEBO = (
    "CC-BY-3.0 shapes come from the Gazebo model collection of the Open Source\n"
    "  Robotics Foundation and its contributors."
)
FREE = {
    "emoji": "Emoji: Twemoji, graphics by Twitter, Inc. and other contributors, CC-BY 4.0.",
    "icons": "Icons: Material Design Icons by Pictogrammers, Apache-2.0, without brands.",
    "shapes": "Renders of CC0 shapes.",
}


@dataclass
class Ready:
    """A model to publish, and what its card says of it."""

    model: nn.Module
    config: Any
    about: str
    curve: str


@dataclass
class Data:
    """What a model learnt from, in words: how much, and under which licences."""

    amount: str
    licences: str


def shapes_of(folder: Path) -> Data:
    """Prepared shapes."""
    store = PreparedFolder(folder)
    found = Counter(str(r["license"]) for r in store.records)
    licences = ", ".join(f"{n} {c}" for n, c in found.most_common())
    return Data(f"{len(store):,} shapes", f"{licences}. {GAZEBO}")


def pictures_of(folder: Path) -> Data:
    """Pictures made of emoji, icons and shapes.

    Raises:
        PolytokError: some are of another kind, whose licence does not allow to ship.
    """
    kinds = sorted(path.parent.name for path in folder.glob(f"*/{INDEX}"))
    if not kinds or not FREE.keys() >= set(kinds):
        raise PolytokError(f"{folder} has pictures of {kinds}; what ships learns from {list(FREE)}")
    count = len(read_pictures(folder, "train"))
    return Data(f"{count:,} pictures", " ".join(FREE[kind] for kind in kinds))


def image_model(run: Path, info: hub.Info, pictures: Path) -> Ready:
    """A tokenizer of images with the counts of its tokens, or a generator as its run left it."""
    if info.system == "maskgit":
        drawn = from_dict(MaskGITConfig, info.config)
        about = f"**Draws** codes of `{drawn.tokenizer}`, weights `{drawn.tokenizer_weights}`."
        ready = Ready(MaskGIT(drawn), drawn, about, "scores on codes of unseen pictures")
    else:
        config = from_dict(TiTokConfig, info.config)
        about = f"**Tokens**: {config.num_latents} of {config.codebook_size} codes a tile."
        ready = Ready(TiTok(config), config, about, "PSNR in dB of unseen pictures")
    hub.load_weights(ready.model, run)
    if isinstance(ready.model, TiTok):
        images = read_pictures(pictures, "train")
        parts = torch.arange(len(images)).split(BATCH)
        model = ready.model.eval().counted({"image": images.images(part)} for part in parts)
        ready.model, ready.config = model, model.config
    return ready


def tokenizer(run: Path, info: hub.Info, store: PreparedFolder, sampling: dict[str, Any]) -> Ready:
    """A tokenizer whose level is chosen on training shapes."""
    config = from_dict(VATConfig, info.config)
    model = VAT(config)
    hub.load_weights(model, run)
    shared = {"num_points": config.num_points, "sharp_fraction": config.sharp_fraction}
    varied = from_dict(ShapeSampling, {**sampling, **shared})
    shift = calibrate_level(model, ShapeSource(store, varied))
    about = (
        f"**Level**: the field was shifted by {shift:+.3f} after training, chosen on training "
        "shapes."
    )
    return Ready(model, config, about, "IoU on queries of unseen shapes")


def generator(run: Path, info: hub.Info) -> Ready:
    """A generator as its run left it."""
    config = from_dict(VATGeneratorConfig, info.config)
    codec = api.load_codec(config.tokenizer)
    model = VATGenerator(config, codec.model.bottleneck.quantizer)
    hub.load_weights(model, run)
    about = f"**Draws** codes of `{config.tokenizer}`, weights `{config.tokenizer_weights}`."
    return Ready(model, config, about, "cross-entropy in nats per token on codes of unseen shapes")


def main() -> None:
    """Publish one run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("tag")
    parser.add_argument("--train", type=Path, required=True, help="what it has learnt from")
    parser.add_argument("--device", default="2 CPU cores")
    parser.add_argument("--notes", default="")
    args = parser.parse_args()
    info = hub.read_info(args.run)
    recipe = json.loads((args.run / "recipe.json").read_text())
    is_shape = registry.SYSTEMS[info.system].modality == "shape"
    data = shapes_of(args.train) if is_shape else pictures_of(args.train)
    if not is_shape:
        ready = image_model(args.run, info, args.train)
    elif info.system == "vat-gen":
        ready = generator(args.run, info)
    else:
        ready = tokenizer(args.run, info, PreparedFolder(args.train), recipe["sampling"])
    out = api.SHIPPED / args.tag
    fingerprint = hub.save_pretrained(
        ready.model, ready.config, out, system=info.system, preset=info.preset, dtype=torch.bfloat16
    )
    records = [json.loads(x) for x in (args.run / "metrics.jsonl").read_text().splitlines()]
    curve = [{"samples": r["samples"], **r["val"]} for r in records if "val" in r]
    write_text(out / "curve.json", json.dumps(curve, indent=1) + "\n")
    for key in ("train", "val", "prepared"):
        # Where the data lay on the machine that trained is nobody's business.
        recipe["data"][key] = Path(recipe["data"][key]).name
    recipe["init"] = Path(recipe.get("init") or "").name
    write_text(out / "recipe.json", json.dumps(recipe, indent=1) + "\n")
    card = CARD.format(
        tag=args.tag,
        preset=info.preset,
        parameters=sum(p.numel() for p in ready.model.parameters()),
        size=(out / hub.WEIGHTS).stat().st_size,
        fingerprint=fingerprint,
        samples=max(r["samples"] for r in records),
        data=data.amount,
        seed=recipe["train"]["seed"],
        device=f"{args.device}, polytok {polytok.__version__}, torch {torch.__version__}",
        notes=args.notes,
        about=ready.about,
        curve=ready.curve,
        licences=data.licences,
    )
    write_text(out / "README.md", card)
    row = f'Weights(preset="{info.preset}", path="{args.tag}", fingerprint="{fingerprint}")'
    print(f'"{args.tag}": {row}')


if __name__ == "__main__":
    main()
