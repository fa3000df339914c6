"""Rendered scenes: questions are answered by what is drawn."""

from __future__ import annotations

import torch

from polytok.data.scenes import (
    COLOURS,
    ID,
    KINDS,
    QUESTION,
    SHAPES,
    SIZES,
    WORDS,
    draw_captions,
    draw_questions,
)
from polytok.data.scenes import draw_scenes as draw


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_objects_are_where_they_say_in_the_colour_they_say() -> None:
    scenes = draw(100, rng(), noise=0.0)
    assert scenes.image.shape == (100, 3, 64, 64)
    dominant = {"red": "100", "green": "010", "blue": "001", "yellow": "110"}
    dominant |= {"magenta": "101", "cyan": "011"}
    for i in range(100):
        for j in scenes.is_there[i].nonzero().flatten():
            x, y = scenes.place[i, j].long()
            bright = scenes.image[i, :, y, x] > 0.5
            name = COLOURS[scenes.colour[i, j]]
            assert "".join(str(int(b)) for b in bright) == dominant[name]
    # No ground is covered twice: the number of covered pixels adds up object by object.
    painted = (scenes.image - 0.35).abs().amax(1) > 0.1
    assert 0.02 < painted.float().mean() < 0.4


def test_colours_of_a_scene_differ_and_kinds_are_listed() -> None:
    scenes = draw(200, rng())
    assert all(len(set(row.tolist())) == 5 for row in scenes.colour)
    assert set(scenes.is_there.sum(1).tolist()) == {2, 3, 4, 5}
    assert torch.equal(scenes.present().sum(1), scenes.is_there.sum(1))


def answer(scenes: object, i: int, words: list[str]) -> str:
    """What a reader of the symbols says."""
    objects = {
        COLOURS[scenes.colour[i, j]]: j for j in scenes.is_there[i].nonzero().flatten().tolist()
    }
    kind, first, second = words[:3]
    if kind == "count":
        return str(sum(SHAPES[scenes.shape[i, j]] == first for j in objects.values()))
    at = objects[first]
    if kind == "shape":
        return SHAPES[scenes.shape[i, at]]
    if kind == "size":
        return ["small", "large"][scenes.size[i, at]]
    if kind == "exists":
        return ["no", "yes"][SHAPES[scenes.shape[i, at]] == second]
    other = objects[second]
    return ["no", "yes"][bool(scenes.place[i, at, 0] < scenes.place[i, other, 0])]


def test_answers_are_right_and_no_kind_is_rare() -> None:
    scenes = draw(300, rng())
    questions, kinds = draw_questions(scenes, 4, rng(1))
    assert questions.shape == (300, 4, QUESTION)
    for i in range(300):
        for question, kind in zip(questions[i], kinds[i], strict=True):
            words = [WORDS[int(w)] for w in question]
            assert words[0] == KINDS[kind] and words[3] == "?"
            assert words[-1] == answer(scenes, i, words)
    share = kinds.flatten().bincount() / kinds.numel()
    assert bool((share > 0.15).all())
    yes = questions[..., -1][kinds == KINDS.index("exists")] == ID["yes"]
    assert 0.5 < yes.float().mean() < 0.8


def test_captions_say_what_an_object_is_and_in_which_quarter() -> None:
    scenes = draw(100, rng())
    captions = draw_captions(scenes, 6, rng(1))
    assert captions.shape == (100, 6, QUESTION)
    told = set()
    for i in range(100):
        there = scenes.is_there[i].nonzero().flatten().tolist()
        by_colour = {COLOURS[scenes.colour[i, j]]: j for j in there}
        for caption in captions[i]:
            none, colour, quarter, shape, size = (WORDS[int(w)] for w in caption)
            at = by_colour[colour]
            assert none == "-" and shape == SHAPES[scenes.shape[i, at]]
            assert size == SIZES[scenes.size[i, at]]
            x = float(scenes.place[i, at, 0])
            assert 16 * int(quarter) <= x < 16 * (int(quarter) + 1)
            told.add((i, at))
    # Every object has its turn.
    assert len(told) > 0.7 * int(scenes.is_there.sum())


def test_draws_repeat() -> None:
    assert torch.equal(draw(3, rng(4)).image, draw(3, rng(4)).image)
    scenes = draw(3, rng(4))
    assert torch.equal(draw_questions(scenes, 2, rng())[0], draw_questions(scenes, 2, rng())[0])
