"""A small network that judges pictures of 64 pixels: labels, and distances of features.

It is trained here, on pictures that no tokenizer and no loss of one learns from, and is built
unlike the networks of losses: plain convolutions with average pooling, and group norms.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from polytok.core.errors import PolytokError
from polytok.core.files import atomic_path
from polytok.core.seeding import torch_rng
from polytok.data.images import LabelledImages

WIDTHS = (16, 32, 64, 128)
SIZE = 64
GROUPS = 8
SHIFT = 6
BATCH = 64
LR, DECAY = 3e-3, 0.05
WARM_STEPS = 50
WHOLE_SHARE = 0.06  # of the steps
SEED = 7001  # no training of the repository uses it

AnyJudge = TypeVar("AnyJudge", bound=nn.Module)


class Judge(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> class scores (B, n); H and W are multiples of 16.

    ``maps`` are what each of four stages ends with, before it is pooled: (B, C, H / 2^i, W / 2^i).
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        wide = (3, *WIDTHS)
        self.stages = nn.ModuleList(
            # The first stage is as costly as all others together, so it has one convolution.
            nn.Sequential(*_convolution(a, b), *(_convolution(b, b) if i else ()))
            for i, (a, b) in enumerate(zip(wide, WIDTHS, strict=False))
        )
        self.head = nn.Linear(WIDTHS[-1], num_classes)

    def maps(self, image: Tensor) -> list[Tensor]:
        """What each stage ends with."""
        x, found = image * 2 - 1, []
        for stage in self.stages:
            x = stage(F.avg_pool2d(x, 2) if found else x)
            found.append(x)
        return found

    def scores(self, maps: Sequence[Tensor]) -> Tensor:
        """Class scores by the maps of images."""
        return self.head(maps[-1].mean((2, 3)))

    def forward(self, image: Tensor) -> Tensor:
        """Class scores."""
        return self.scores(self.maps(image))


def _convolution(width: int, wider: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width, wider, 3, padding=1), nn.GroupNorm(GROUPS, wider), nn.ReLU()


def at_size(images: LabelledImages) -> LabelledImages:
    """Images of :data:`SIZE` pixels a side, bicubic."""
    if images.pixels.shape[-1] == SIZE:
        return images
    parts = [
        F.interpolate(part.float(), (SIZE, SIZE), mode="bicubic").round().clamp(0, 255).byte()
        for part in images.pixels.split(BATCH)
    ]
    return LabelledImages(torch.cat(parts), images.labels, images.classes, images.names)


@dataclass(frozen=True)
class Lesson:
    """Pictures with labels, and whether they mean the same in a mirror."""

    images: LabelledImages
    is_mirrored: bool


def train_judge(lessons: Sequence[Lesson], steps: int) -> Judge:
    """A judge of the classes of all lessons, one after the other; batches hold as much of each.

    Most steps see pictures of half the size, which cost a quarter; the last ones whole pictures.
    """
    torch.manual_seed(SEED)
    judge = Judge(sum(len(lesson.images.classes) for lesson in lessons))
    optimizer = torch.optim.AdamW(judge.parameters(), LR, weight_decay=DECAY)
    rng = torch_rng(SEED, "judge")
    whole = max(1, round(WHOLE_SHARE * steps))
    for step in range(steps):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / WARM_STEPS)
            group["lr"] = LR * warm * (0.01 + 0.495 * (1 + math.cos(math.pi * step / steps)))
        images, labels = _batch(lessons, rng)
        if step < steps - whole:
            images = F.avg_pool2d(images, 2)
        loss = F.cross_entropy(judge(images), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"judge: step {step + 1} of {steps}, loss {loss.item():.3f}", flush=True)
    return judge.eval().requires_grad_(False)


def _batch(lessons: Sequence[Lesson], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    images, labels, first = list[Tensor](), list[Tensor](), 0
    for lesson in lessons:
        some = lesson.images
        picks = torch.randint(len(some), (BATCH // len(lessons),), generator=rng)
        images.append(_changed(some.images(picks), rng, is_mirrored=lesson.is_mirrored))
        labels.append(some.labels[picks] + first)
        first += len(some.classes)
    return torch.cat(images), torch.cat(labels)


def _changed(images: Tensor, rng: torch.Generator, *, is_mirrored: bool) -> Tensor:
    """Each shifted by up to :data:`SHIFT` pixels; half of them mirrored, or in other colours.

    Drawn pictures have random colours: without others, grounds and not figures would tell apart
    what there is little of.
    """
    padded = F.pad(images, [SHIFT] * 4, mode="replicate")
    out = torch.empty_like(images)
    moves = torch.randint(0, 2 * SHIFT + 1, (len(images), 2), generator=rng).tolist()
    for i, (top, left) in enumerate(moves):
        image = padded[i, :, top : top + SIZE, left : left + SIZE]
        if torch.rand((), generator=rng) < 0.5:
            image = image.flip(-1) if is_mirrored else image[torch.randperm(3, generator=rng)]
        out[i] = image
    return out


@torch.inference_mode()
def accuracy(judge: nn.Module, images: LabelledImages, first: int = 0) -> float:
    """Share of images that get their label; ``first`` is the number of their first class."""
    parts = range(0, len(images), 4 * BATCH)
    found = [judge(images.images(slice(i, i + 4 * BATCH))).argmax(-1) for i in parts]
    return float((torch.cat(found) == images.labels + first).float().mean())


def keep(judge: nn.Module, told: dict[str, Any], path: Path) -> None:
    """Write a judge, and what is to be told of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in judge.state_dict().items()}
    with atomic_path(path) as aside:
        save_file(state, aside, {"told": json.dumps(told)})


def load_judge(
    path: Path, kind: Callable[[int], AnyJudge], maker: str
) -> tuple[AnyJudge, dict[str, Any]]:
    """A kept judge, and what is told of it.

    Args:
        kind: builds it, of a number of classes. maker: what makes it, if it is missing.

    Raises:
        PolytokError: there is none.
    """
    if not path.is_file():
        raise PolytokError(f"{path} is missing; run {maker} first")
    with safe_open(path, "pt") as file:
        told: dict[str, Any] = json.loads(file.metadata()["told"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    judge = kind(len(told["classes"]))
    judge.load_state_dict(state)
    return judge.eval().requires_grad_(False), told
