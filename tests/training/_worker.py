"""Train two stages: python _worker.py FOLDER STEPS (stub | critic | PRESET) [SAVE_EVERY]."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))

from polytok.core.contracts import Stage, Tokenizer
from polytok.core.seeding import derive, torch_rng
from polytok.systems.shape.vat import VAT, preset
from polytok.training import SampleSource, TrainConfig, fit
from training._stub import JUDGED, STAGE, Source, Stub, adversary

WEIGHTS = {"rec": 1.0, "kl": 1e-4, "vq": 1.0}


class Balls:
    """Noisy balls of many sizes for VAT."""

    def __init__(self, num_points: int) -> None:
        self.num_points = num_points

    def __len__(self) -> int:
        return 10

    def sample(self, n: int) -> dict[str, Tensor]:
        rng = torch_rng(n)
        radius = 0.3 + 0.6 * torch.rand((), generator=rng)
        normals = torch.nn.functional.normalize(
            torch.randn(self.num_points, 3, generator=rng), dim=-1
        )
        queries = torch.rand(128, 3, generator=rng) * 2.1 - 1.05
        return {
            "points": normals * radius,
            "normals": normals,
            "queries": queries,
            "sdf": queries.norm(dim=-1) - radius,
            "seed": torch.tensor(derive(1, n)),
        }


def make(name: str) -> tuple[Tokenizer, Sequence[Stage], SampleSource]:
    """A model with two stages and its samples."""
    if name == "critic":
        return Stub(), (STAGE, JUDGED), Source()
    if name == "stub":
        options = {"is_noisy": False}
        late = replace(STAGE, name="late", train=("decoder.*", "norm.*"), options=options)
        return Stub(), (STAGE, late), Source()
    torch.manual_seed(0)
    model = VAT(preset(name))
    stages = [
        Stage(name=str(on), weights=WEIGHTS, options={"bottleneck.is_quantized": on})
        for on in (False, True)
    ]
    return model, stages, Balls(model.config.num_points)


if __name__ == "__main__":
    folder, steps, name, *save_every = sys.argv[1:]
    config = TrainConfig(
        batch_size=8,
        lr=1e-2 if name in ("stub", "critic") else 1e-3,
        log_every=8,
        save_every=int(save_every[0]) if save_every else 10**9,
        num_workers=1,
        precision="fp32",
        device="cpu",
    )
    model, stages, source = make(name)
    judge = adversary() if name == "critic" else None
    plan = [(stage, 8 * int(steps)) for stage in stages]
    fit(model, plan, source, config, folder, adversary=judge)
