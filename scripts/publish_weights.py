"""Turn a finished run into weights that ship: in bf16, with a card; a tokenizer is calibrated.

    python scripts/publish_weights.py RUN TAG --train PREPARED_FOLDER

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
from polytok.core import hub
from polytok.core.config import from_dict
from polytok.core.files import write_text
from polytok.data.prepared import PreparedFolder
from polytok.data.shapes import ShapeSampling, ShapeSource
from polytok.systems import api
from polytok.systems.shape.vat import VAT, VATConfig
from polytok.systems.shape.vat.generator import VATGenerator, VATGeneratorConfig
from polytok.systems.shape.vat.training import calibrate_level

CARD = """# {tag}

Weights of `{preset}`: {parameters:,} parameters, {size:,} bytes in bf16,
fingerprint `{fingerprint}`.

- **Trained** for {samples:,} samples of {shapes:,} shapes; the recipe as run is `recipe.json`
  (seed {seed}). Device: {device}. {notes}
- {about}
- **Validation** as it went ({curve}): `curve.json`.
- **Data**: {licences}. CC-BY-3.0 shapes come from the Gazebo model collection of the Open Source
  Robotics Foundation and its contributors.
- **Licence** of the weights: Apache-2.0.
"""


@dataclass
class Ready:
    """A model to publish, and what its card says of it."""

    model: nn.Module
    config: Any
    about: str
    curve: str


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
    parser.add_argument("--train", type=Path, required=True, help="prepared training shapes")
    parser.add_argument("--device", default="2 CPU cores")
    parser.add_argument("--notes", default="")
    args = parser.parse_args()
    info = hub.read_info(args.run)
    recipe = json.loads((args.run / "recipe.json").read_text())
    store = PreparedFolder(args.train)
    if info.system == "vat-gen":
        ready = generator(args.run, info)
    else:
        ready = tokenizer(args.run, info, store, recipe["sampling"])
    out = api.SHIPPED / args.tag
    fingerprint = hub.save_pretrained(
        ready.model, ready.config, out, system=info.system, preset=info.preset, dtype=torch.bfloat16
    )
    records = [json.loads(x) for x in (args.run / "metrics.jsonl").read_text().splitlines()]
    curve = [{"samples": r["samples"], **r["val"]} for r in records if "val" in r]
    write_text(out / "curve.json", json.dumps(curve, indent=1) + "\n")
    for key in ("train", "val"):
        # Where the data lay on the machine that trained is nobody's business.
        recipe["data"][key] = Path(recipe["data"][key]).name
    write_text(out / "recipe.json", json.dumps(recipe, indent=1) + "\n")
    licences = Counter(str(r["license"]) for r in store.records)
    card = CARD.format(
        tag=args.tag,
        preset=info.preset,
        parameters=sum(p.numel() for p in ready.model.parameters()),
        size=(out / hub.WEIGHTS).stat().st_size,
        fingerprint=fingerprint,
        samples=max(r["samples"] for r in records),
        shapes=len(store),
        seed=recipe["train"]["seed"],
        device=f"{args.device}, polytok {polytok.__version__}, torch {torch.__version__}",
        notes=args.notes,
        about=ready.about,
        curve=ready.curve,
        licences=", ".join(f"{n} {c}" for n, c in licences.most_common()),
    )
    write_text(out / "README.md", card)
    row = f'Weights(preset="{info.preset}", path="{args.tag}", fingerprint="{fingerprint}")'
    print(f'"{args.tag}": {row}')


if __name__ == "__main__":
    main()
