"""Rendered scenes: a few coloured shapes on a noisy ground, and questions with one-word answers.

A picture says little per patch: most of it is ground. All questions have five words, the last of
which is the answer, so that many fit behind one picture without padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
SHAPES = ("circle", "square", "triangle")
SIZES = ("small", "large")
KINDS = ("shape", "size", "count", "exists", "left")
NUMBERS = ("0", "1", "2", "3", "4", "5")
WORDS = (
    *("<pad>", "<bos>", "<image>", "-", "?", "no", "yes"),
    *(*KINDS, *COLOURS, *SHAPES, *SIZES, *NUMBERS),
)
"""The vocabulary; an id is a place in it."""

ID = {word: i for i, word in enumerate(WORDS)}
QUESTION = 5
"""Words of a question with its answer, and of a caption."""

_RGB = torch.tensor(
    [[1, 0.1, 0.1], [0.1, 0.9, 0.1], [0.2, 0.3, 1], [1, 0.9, 0.1], [1, 0.2, 1], [0.1, 0.9, 0.9]]
)


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes.

    Args:
        image: (B, 3, pixels, pixels) in [0, 1].
        is_there: (B, most) bool; the first objects of a scene are those that are there.
        colour, shape, size: (B, most) int64, of each object; all colours of a scene differ.
        place: (B, most, 2) column and row of the centre, in pixels.
    """

    image: Tensor
    is_there: Tensor
    colour: Tensor
    shape: Tensor
    size: Tensor
    place: Tensor

    def present(self) -> Tensor:
        """(B, colours * shapes) bool, which kinds of objects are there."""
        kind = self.colour * len(SHAPES) + self.shape
        found = torch.zeros(len(kind), len(COLOURS) * len(SHAPES), dtype=torch.bool)
        return found.scatter(1, kind, self.is_there)


def draw_scenes(
    count: int, rng: torch.Generator, *, pixels: int = 64, most: int = 5, noise: float = 0.05
) -> Scenes:
    """So many scenes of 2 to ``most`` objects that do not overlap."""
    slots = 4  # a side; objects lie about the middles of different slots
    order = torch.rand(count, slots**2, generator=rng).argsort(-1)[:, :most]
    slot = torch.stack([order % slots, order // slots], -1).float()
    shift = torch.rand(count, most, 2, generator=rng) - 0.5
    side = pixels / slots
    size = torch.randint(2, (count, most), generator=rng)
    radius = side * torch.tensor([0.22, 0.4])[size]
    place = (slot + 0.5) * side + shift * (side - 2 * radius)[..., None]
    colour = torch.rand(count, len(COLOURS), generator=rng).argsort(-1)[:, :most]
    shape = torch.randint(len(SHAPES), (count, most), generator=rng)
    how_many = torch.randint(2, most + 1, (count, 1), generator=rng)
    is_there = torch.arange(most) < how_many
    cover = _cover(shape, place, radius, pixels) * is_there[..., None, None]
    ground = 0.35 + noise * torch.randn(count, 3, pixels, pixels, generator=rng)
    paint = torch.einsum("bmhw,bmc->bchw", cover, _RGB[colour])
    image = (ground * (1 - cover.sum(1, keepdim=True)) + paint).clamp(0, 1)
    return Scenes(image, is_there, colour, shape, size, place)


def _cover(shape: Tensor, place: Tensor, radius: Tensor, pixels: int) -> Tensor:
    """(B, most, pixels, pixels) in [0, 1], how much of a pixel each object covers."""
    grid = torch.arange(pixels) + 0.5
    x = (grid - place[..., :1])[..., None, :]
    y = (grid - place[..., 1:])[..., :, None]
    r = radius[..., None, None]
    circle = (x**2 + y**2).sqrt() - r
    square = torch.maximum(x.abs(), y.abs()) - 0.85 * r
    triangle = torch.maximum(0.87 * x.abs() - 0.5 * y, y) - 0.5 * r
    which = shape[..., None, None]
    distance = torch.where(which == 0, circle, torch.where(which == 1, square, triangle))
    return (0.5 - distance).clamp(0, 1)


def draw_questions(scenes: Scenes, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` questions per scene: ids (B, count, QUESTION), and which of KINDS each is.

    The last id of a question is its answer.
    """
    batch = len(scenes.image)
    kind = torch.randint(len(KINDS), (batch, count), generator=rng)
    # Two different objects of the scene for each question.
    weights = torch.rand(batch, count, scenes.colour.shape[1], generator=rng)
    a, b = weights.masked_fill(~scenes.is_there[:, None], -1).topk(2).indices.unbind(-1)
    colour, shape, size = (x.gather(1, a) for x in (scenes.colour, scenes.shape, scenes.size))
    other_shape = torch.randint(len(SHAPES), (batch, count), generator=rng)
    is_asked = torch.rand(batch, count, generator=rng) < 0.5
    asked_shape = torch.where(is_asked, shape, other_shape)
    same = (scenes.shape[:, None] == other_shape[..., None]) & scenes.is_there[:, None]
    column = scenes.place[..., 0]
    is_left = column.gather(1, a) < column.gather(1, b)

    first, nothing = ID["red"] + colour, torch.full_like(colour, ID["-"])
    shapes, yes = ID["circle"], ID["no"]
    rows = {
        "shape": (first, nothing, shapes + shape),
        "size": (first, nothing, ID["small"] + size),
        "count": (shapes + other_shape, nothing, ID["0"] + same.sum(-1)),
        "exists": (first, shapes + asked_shape, yes + (asked_shape == shape).long()),
        "left": (first, ID["red"] + scenes.colour.gather(1, b), yes + is_left.long()),
    }
    found = torch.empty(batch, count, QUESTION, dtype=torch.int64)
    for i, name in enumerate(KINDS):
        x, y, answer = rows[name]
        row = torch.stack(
            [torch.full_like(x, ID[name]), x, y, torch.full_like(x, ID["?"]), answer], -1
        )
        found = torch.where((kind == i)[..., None], row, found)
    return found, kind


def draw_captions(scenes: Scenes, count: int, rng: torch.Generator) -> Tensor:
    """``count`` captions per scene, each of one object: ids (B, count, QUESTION).

    No kind, then colour, how many quarters of the picture lie left of its middle, shape, size.
    """
    odds = scenes.is_there.float()
    which = torch.multinomial(odds, count, replacement=True, generator=rng)
    colour, shape, size = (x.gather(1, which) for x in (scenes.colour, scenes.shape, scenes.size))
    column = scenes.place[..., 0].gather(1, which) * 4 / scenes.image.shape[-1]
    words = (
        torch.full_like(which, ID["-"]),
        ID["red"] + colour,
        ID["0"] + column.long(),
        ID["circle"] + shape,
        ID["small"] + size,
    )
    return torch.stack(words, -1)
