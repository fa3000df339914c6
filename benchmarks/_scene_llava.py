"""A small LLaVA that answers questions about rendered scenes: the trained subject of reductions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional as F

from polytok.core.seeding import torch_rng
from polytok.data.scenes import (
    COLOURS,
    ID,
    KINDS,
    QUESTION,
    SHAPES,
    WORDS,
    draw_captions,
    draw_questions,
)
from polytok.data.scenes import draw_scenes as draw
from polytok.layers.positions import grid_places, sine_embedding
from polytok.networks.pretrained.optional import import_hf
from polytok.systems.vlm.dyvte import DyVTEGates, train_gates
from polytok.training.muon import Muon

PATCHES, QUESTIONS, CAPTIONS = 64, 5, 3
POSITION_SCALE = 0.3


def build(seed: int) -> Any:
    """Tower of 4 layers, width 64, 64 patches; gated language model of 4 layers, width 128."""
    hf = import_hf("transformers")
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
        ),
        text_config=hf.LlamaConfig(
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=4,
            vocab_size=len(WORDS),
            pad_token_id=ID["<pad>"],
            bos_token_id=ID["<bos>"],
            eos_token_id=None,
        ),
        image_token_id=ID["<image>"],
    )
    torch.manual_seed(seed)
    model = hf.LlavaForConditionalGeneration(config)
    _place(model.model.vision_tower.embeddings)
    model.generation_config.pad_token_id = ID["<pad>"]
    return model


def _place(embeddings: Any) -> None:
    """Begin the tower's positions, class token's apart, as sines of row and column.

    As they are drawn they are a tenth of what a patch holds.
    """
    weight = embeddings.position_embedding.weight
    side = round((len(weight) - 1) ** 0.5)
    with torch.no_grad():
        weight[1:] = POSITION_SCALE * sine_embedding(grid_places(side), weight.shape[1])


def inputs_of(image: Tensor, rows: Tensor, is_caption: Tensor | None = None) -> dict[str, Tensor]:
    """Begin, picture, and rows of questions or captions (B, n, QUESTION) one after another.

    Labels are the answers, and what captions say of a colour.

    Args:
        is_caption: (n,) bool; None: all are questions.
    """
    batch = len(rows)
    head = torch.full((batch, 1 + PATCHES), ID["<image>"])
    head[:, 0] = ID["<bos>"]
    is_told = torch.arange(QUESTION) == QUESTION - 1
    if is_caption is not None:
        is_told = is_told | is_caption[:, None] & (torch.arange(QUESTION) > 1)
    ids = torch.cat([head, rows.flatten(1)], 1)
    labels = torch.full_like(ids, -100)
    told = rows.masked_fill(~is_told, -100)
    labels[:, 1 + PATCHES :] = told.flatten(1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": (image - 0.35) / 0.25,
        "labels": labels,
    }


def train(seed: int, steps: int, *, batch: int = 32, lr: float = 1.5e-3, every: int = 250) -> Any:
    """Train on answers and captions, and the class token on which objects are there, as in CLIP.

    Captions bind places to a colour's word; from answers alone, of which only one kind asks for
    places, who is further left stays a guess.
    """
    model = build(seed)
    # The backward of a CPU's fused attention is slow at this size.
    model.set_attn_implementation("eager")
    head = nn.Linear(64, len(COLOURS) * len(SHAPES))
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = _optimizer(model, head, lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    rng = torch_rng(seed, "scenes", "train")
    start = time.perf_counter()
    for step in range(steps):
        scenes = draw(batch, rng)
        questions, _ = draw_questions(scenes, QUESTIONS, rng)
        rows = torch.cat([questions, draw_captions(scenes, CAPTIONS, rng)], 1)
        order = torch.randperm(QUESTIONS + CAPTIONS, generator=rng)
        inputs = inputs_of(scenes.image, rows[:, order], order >= QUESTIONS)
        out = model(**inputs)
        pooled = out.image_outputs.last_hidden_state[:, 0]
        present = F.binary_cross_entropy_with_logits(head(pooled), scenes.present().float())
        loss = out.loss + present
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % every == every - 1:
            seconds = time.perf_counter() - start
            found = accuracy(model, seed=1, scenes=200)
            print(step + 1, f"{seconds:.0f} s", round(present.item(), 4), found, flush=True)
    model.set_attn_implementation("sdpa")
    return model.eval()


def _optimizer(model: nn.Module, head: nn.Module, lr: float) -> Muon:
    """Muon for the matrices of the layers, which learn in fewer steps by it."""
    named = list(model.named_parameters())
    inner = [p for name, p in named if ".layers." in name and p.ndim == 2]
    outer = [p for name, p in named if ".layers." not in name or p.ndim != 2]
    groups = [
        {"params": inner, "orthogonal": True},
        {"params": [*outer, *head.parameters()], "orthogonal": False},
    ]
    return Muon(groups, scale=1.0, lr=lr, weight_decay=0.01, betas=(0.9, 0.98))


@torch.no_grad()
def accuracy(
    model: Any, *, seed: int, scenes: int = 1000, is_blind: bool = False
) -> dict[str, float]:
    """Share of right answers, one question per prompt as a user would ask, by kind and in all.

    Args:
        is_blind: show each prompt the picture of the next one.
    """
    model.eval()
    rng = torch_rng(seed, "scenes", "test")
    drawn = draw(scenes, rng)
    questions, kinds = draw_questions(drawn, 1, rng)
    hits = []
    for part in range(0, scenes, 100):
        some = slice(part, part + 100)
        image = drawn.image.roll(1, 0) if is_blind else drawn.image
        inputs: dict[str, Any] = inputs_of(image[some], questions[some])
        del inputs["labels"]
        for name in ("input_ids", "attention_mask"):
            inputs[name] = inputs[name][:, :-1]
        answer = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
        hits.append(answer == questions[some, 0, -1])
    hit = torch.cat(hits).float()
    model.train()
    by_kind = {k: float(hit[kinds[:, 0] == i].mean()) for i, k in enumerate(KINDS)}
    return {"all": float(hit.mean()), **by_kind}


def saved(path: Path, seed: int, steps: int) -> Any:
    """The trained model, from ``path`` where it is there, else trained and kept there."""
    if path.exists():
        model = build(seed)
        load_model(model, path)
        return model.eval()
    model = train(seed, steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, str(path))
    return model


def trained_gates(model: Any, *, seed: int, steps: int = 300, batch: int = 32) -> DyVTEGates:
    """Gates for the trained model, from prompts of one question each."""
    torch.manual_seed(seed)
    gates = DyVTEGates.like(model, inner=64)
    rng = torch_rng(seed, "scenes", "gates")

    def batches() -> Iterator[dict[str, Tensor]]:
        for _ in range(steps):
            scenes = draw(batch, rng)
            yield inputs_of(scenes.image, draw_questions(scenes, 1, rng)[0])

    train_gates(model, gates, batches(), rng=rng, lr=1e-3)
    return gates
