"""A CLIP tower that has learned the glyph canvas, inside a LLaVA that has learned nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytok.data.glyphs import CELLS, GlyphCanvas
from polytok.networks.pretrained.optional import import_hf
from polytok.systems.vlm.api import vlm

IMAGE_ID = 7
STEPS, BATCH, LR = 550, 96, 2e-3
SCORES: dict[str, tuple[str, dict[str, Any]]] = {
    "class row, sum over layers": ("vtc-cls", {"layers": (0, 1, 2, 3)}),
    "class row, layer of the features": ("fastervlm", {}),
    "class row, last layer": ("fastervlm", {"layer": 3}),
    "class row, first layer": ("fastervlm", {"layer": 0}),
    "attention received": ("fastervlm", {"row": "received"}),
    "norm of the feature": ("norm", {}),
    "uniform": ("uniform", {}),
    "random": ("random", {}),
}


def build(canvas: GlyphCanvas, seed: int) -> Any:
    """4 layers of 4 heads, width 64, a patch per cell; features are the output of the third."""
    hf = import_hf("transformers")
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=CELLS * canvas.side,
            patch_size=canvas.side,
            num_channels=1,
        ),
        text_config=hf.LlamaConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            vocab_size=8,
        ),
        image_token_id=IMAGE_ID,
    )
    torch.manual_seed(seed)
    return hf.LlavaForConditionalGeneration(config)


def train(
    canvas: GlyphCanvas, *, seed: int, steps: int = STEPS, held_out: int = 1000
) -> tuple[Any, float]:
    """Train tower and a head on which glyphs are there; the model, and how often sets are exact."""
    model = build(canvas, seed)
    tower = model.model.vision_tower
    head = nn.Linear(64, canvas.classes)
    rng = torch.Generator().manual_seed(seed)
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(steps):
        batch = canvas.draw(BATCH, rng)
        logits = head(tower(batch.image).pooler_output)
        loss = F.binary_cross_entropy_with_logits(logits, batch.label.float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    batch = canvas.draw(held_out, torch.Generator().manual_seed(10_000 + seed))
    with torch.no_grad():
        found = head(tower(batch.image).pooler_output) > 0
    return model.eval(), float((found == batch.label).all(1).float().mean())


def recall(
    model: Any, canvas: GlyphCanvas, *, keep: int, seed: int, count: int = 500
) -> dict[str, float]:
    """Share of the informative cells that are among ``keep`` kept ones, for every score."""
    batch = canvas.draw(count, torch.Generator().manual_seed(20_000 + seed))
    ids = torch.full((len(batch.image), CELLS**2), IMAGE_ID)
    inputs = {"input_ids": ids, "pixel_values": batch.image}
    found = {}
    for name, (method, options) in SCORES.items():
        _, report = vlm(method, keep=keep, **options).prepare(model, inputs)
        kept = torch.stack([report.kept(i) for i in range(len(ids))])
        found[name] = _share(batch.informative, kept)
    return found


def _share(informative: Tensor, kept: Tensor) -> float:
    return float(informative.gather(1, kept).sum() / informative.sum())


def probe(model: Any, canvas: GlyphCanvas, *, keep: int, seed: int) -> dict[str, float]:
    """Exact sets from a linear probe on the mean of kept features: class row, all, random."""
    plans = {
        "class row": vlm("vtc-cls", keep=keep, layers=(0, 1, 2, 3)),
        "all": vlm("fastervlm", keep=CELLS**2),
        "random": vlm("random", keep=keep),
    }
    rng = torch.Generator().manual_seed(30_000 + seed)
    parts = [canvas.draw(count, rng) for count in (2000, 500)]
    found = {}
    for name, plan in plans.items():
        train_x, test_x = (_means(model, plan, part.image) for part in parts)
        head = nn.Linear(train_x.shape[1], canvas.classes)
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100)
        target = parts[0].label.float()

        def loss() -> Tensor:
            optimizer.zero_grad()  # noqa: B023
            value = F.binary_cross_entropy_with_logits(head(train_x), target)  # noqa: B023
            value.backward()
            return value

        optimizer.step(loss)
        exact = ((head(test_x) > 0) == parts[1].label).all(1)
        found[name] = float(exact.float().mean())
    return found


@torch.no_grad()
def _means(model: Any, plan: Any, images: Tensor) -> Tensor:
    """(B, 64) mean of the kept features of the tower, before the projector."""
    hidden = model.model.vision_tower(images, output_hidden_states=True).hidden_states[-2][:, 1:]
    ids = torch.full((len(images), CELLS**2), IMAGE_ID)
    _, report = plan.prepare(model, {"input_ids": ids, "pixel_values": images})
    means = [hidden[i, report.kept(i)].mean(0) for i in range(len(images))]
    x = torch.stack(means)
    return (x - x.mean(0)) / x.std(0)
