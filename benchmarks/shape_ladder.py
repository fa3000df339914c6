"""Where VAT loses quality: F and IoU with more and more of the model replaced by a search.

    python benchmarks/shape_ladder.py --every 6

Rungs, from what ships to what any field could do: the feed-forward code, with the surface where its
field is zero and where the file says, as in all rungs behind it; its latents before
quantization; the code that an effort finds; latents that a search is free to choose; planes that a
search is free to choose, read by the model's own head; planes and head both. Every search minimises
the model's own reconstruction loss on the shape's own queries with Adam, in full precision;
``loss`` is of the field itself.
``benchmarks/results/shape_rd_ceiling.json`` holds the rung above: the solid itself.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import trimesh
from torch import Tensor

import _results
from _results import SHAPE_MODEL, Item, Results, Row, load_codec
from polytok.core.errors import SignalError
from polytok.core.seeding import derive, torch_rng
from polytok.metrics import CONVENTIONS, ShapeReference
from polytok.networks.decoders import PlaneField
from polytok.signals import mesh as meshes
from polytok.systems.shape.vat import VAT

SEED = 0
QUERIES = 2048  # of every step
RATES = {"latents": 0.1, "planes": 0.05, "planes+head": 0.01}
GRID = 128


def search(
    model: VAT,
    parameters: Sequence[Tensor],
    field: Callable[[], PlaneField],
    task: tuple[Tensor, Tensor],
    *,
    steps: int,
    rate: float,
) -> None:
    """Move parameters down the gradient of the model's loss of ``field()``, in place.

    Args:
        task: queries (1, Q, 3) and their signed distances (1, Q).
    """
    queries, sdf = task
    rng, optimiser = torch_rng(SEED, "ladder"), torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        pick = torch.randint(queries.shape[1], (QUERIES,), generator=rng)
        loss = model.reconstruction_loss(field()(queries[:, pick]), sdf[:, pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _mesh(codec: Any, field: PlaneField, solid: meshes.Solid) -> trimesh.Trimesh | None:
    """The mesh of a field as :meth:`ShapeCodec.decode` makes it, None when it is empty."""
    try:
        mesh = meshes.clean(codec._extract(field, GRID))
    except SignalError:
        return None
    mesh.vertices = solid.frame.undo(mesh.vertices)
    return mesh


def ladder_rows(item: Item, model: str, effort: int, steps: int, codec: Any = None) -> list[Row]:
    """Scores of every rung for one shape."""
    torch.set_num_threads(1)
    codec = codec or load_codec(model)
    net, mesh = codec.model, item.mesh()
    reference = ShapeReference(mesh, sdf=meshes.solidify(mesh).sdf, seed=SEED, secondary=False)
    found = codec.encode(mesh, effort=effort, seed=SEED)
    solid = meshes.solidify(mesh, stretch=codec.frame(found).stretch)
    prepared = meshes.prepare(solid, seed=derive(SEED, "ladder"))
    queries, sdf = torch.from_numpy(prepared.queries)[None], torch.from_numpy(prepared.sdf)[None]
    rows: list[Row] = []

    def score(rung: str, field: PlaneField, *, is_fitted: bool = True) -> None:
        field = PlaneField(field.planes, field.head, field.extent)
        with torch.inference_mode():
            logits = torch.cat([field(part) for part in queries.split(1 << 14, dim=1)], dim=1)
            loss = float(net.reconstruction_loss(logits, sdf))
            iso = codec.fit_iso(field, prepared) if is_fitted else 0.0
            field.iso = torch.tensor([iso])
            surface = _mesh(codec, field, solid)
        scores = reference.score(surface)
        guess, truth = logits > iso, sdf < 0
        iou = (guess & truth).sum() / (guess | truth).sum().clamp(min=1)
        rows.append(
            {
                **item.row,
                "faces": len(mesh.faces),
                "rung": rung,
                "loss": loss,
                "query_iou": float(iou),
                **scores.as_dict(),
            }
        )

    batch = codec.batch(solid, seed=SEED)
    with torch.inference_mode():
        means = net.bottleneck.gaussian(net.encoder(batch["points"], batch["normals"])).latents
        code = net.field(net.bottleneck.quantizer(means).latents)
    score("code, surface at zero", code, is_fitted=False)
    score("code", code)
    score("means", net.field(means))
    score("searched code", codec.field(found))

    latents = means.clone().requires_grad_()
    go = partial(search, net, task=(queries, sdf), steps=steps)
    go([latents], lambda: net.field(latents), rate=RATES["latents"])
    with torch.no_grad():
        field = net.field(latents)
    score("searched latents", field)

    planes, head = field.planes.float().clone().requires_grad_(), copy.deepcopy(field.head)
    free = PlaneField(planes, head, field.extent)
    go([planes], lambda: free, rate=RATES["planes"])
    score("searched planes", free)
    head.requires_grad_(True)
    go([planes, *head.parameters()], lambda: free, rate=RATES["planes+head"])
    score("searched planes and head", free)
    return rows


def main(argv: Iterable[str] | None = None) -> None:
    """Run the ladder on every N-th shape of the splits."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=SHAPE_MODEL)
    parser.add_argument("--splits", default="val")
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--effort", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args(None if argv is None else list(argv))
    options = {"model": args.model, "effort": args.effort, "steps": args.steps}
    protocol = {
        "method": (__doc__ or "").split("\n\n")[2].replace("\n", " "),
        **options,
        "rates": RATES,
        "queries": QUERIES,
        "resolution": GRID,
        "conventions": dict(CONVENTIONS),
    }
    results = Results(f"shape_ladder_{args.model}", protocol, seed=SEED, fresh=args.fresh)
    items = [
        item
        for split in args.splits.split(",")
        for item in _results.shapes(split, args.limit)[:: args.every]
    ]
    _results.run(items, partial(ladder_rows, **options), results, processes=args.processes)


if __name__ == "__main__":
    main()
