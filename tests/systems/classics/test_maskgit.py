"""The masked image generator: presets, draws, what is given, training on codes, files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from contracts import pictures
from contracts.pictures import SYSTEM
from polytok.core import hub, registry
from polytok.core.config import override
from polytok.core.contracts import Codes, StepContext
from polytok.core.errors import ConfigError, PolytokError, UnknownNameError, WeightsError
from polytok.data.codes import CodeFolder
from polytok.data.images import LabelledImages
from polytok.generators import Known, Query
from polytok.systems import api
from polytok.systems.classics.maskgit import PRESETS, STAGES, MaskGIT, MaskGITConfig, preset
from polytok.systems.classics.maskgit_training import (
    ImageCodeSampling,
    ImageCodeSource,
    MaskedValidation,
    encode_images,
    prepare_training,
)
from polytok.systems.drawing import MICRO_BATCH
from polytok.systems.image.generation import ImageGenerator
from polytok.training import Recipe, TrainConfig, fit
from polytok.training.recipe import DataRecipe, StageBudget

LENGTH, VOCAB = 16, 125  # of the patch colours
CLASSES = ("blue", "green", "red")
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.SYSTEMS, SYSTEM.name, SYSTEM)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tokenizer"
    pictures.save(folder)
    return folder


def small(tokenizer: Path, **changes: Any) -> MaskGITConfig:
    """The tiny generator over the patch colours."""
    return override(
        preset("maskgit-tiny"),
        **{
            "tokenizer": str(tokenizer),
            "tokenizer_weights": hub.fingerprint(tokenizer),
            "vocab": VOCAB,
            "length": LENGTH,
            "classes": CLASSES,
            **changes,
        },
    )


def save(config: MaskGITConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    model = MaskGIT(config)
    with torch.no_grad():
        model.head.get_submodule("proj").weight.normal_(std=0.3)
        model.conditioner.embedding.weight.normal_()
        for parameter in model.net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    hub.save_pretrained(model, config, folder, system="maskgit", preset="maskgit-tiny")
    return folder


@pytest.fixture
def generator(tokenizer: Path, tmp_path: Path) -> ImageGenerator:
    loaded = api.load(save(small(tokenizer), tmp_path / "generator"))
    assert isinstance(loaded, ImageGenerator)
    return loaded


def rows_of(codes: Codes) -> Tensor:
    return codes.indices[0]


def passes(generator: ImageGenerator) -> list[int]:
    """Rows of every pass of the net from now on."""
    rows: list[int] = []
    generator.model.net.register_forward_hook(lambda *args: rows.append(len(args[2])))
    return rows


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_the_generator_of_a_registered_tokenizer(name: str) -> None:
    config = preset(name)
    assert registry.system_of(name).name == "maskgit"
    other = registry.system_of(config.tokenizer)
    assert (other.kind, other.modality) == ("tokenizer", "image")
    spec = other.load().preset(config.tokenizer)
    assert (spec.num_latents, spec.codebook_size) == (config.length, config.vocab)
    with torch.device("meta"):
        model = MaskGIT(config)
    assert model.process.plan(None)[-1].total == config.steps
    assert len(model.conditioner.embedding.weight) == config.num_classes + 1


def test_sampling_of_the_published_models_is_that_of_the_cards() -> None:
    table = {
        "titok-l32-gen": (8, 9.5, 4.5, "linear"),
        "titok-b64-gen": (8, 11.0, 3.0, "linear"),
        "titok-s128-gen": (64, 2.8, 6.9 - 1, "power-cosine"),
        "one-d-piece-l-256-gen": (16, 3.0, 5.5 - 1, "power-cosine"),
    }
    for name, row in table.items():
        found = preset(name)
        assert (found.steps, found.temperature, found.cfg, found.guidance) == pytest.approx(row)


def test_parameters_of_the_published_models() -> None:
    def count(name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in MaskGIT(preset(name)).parameters())

    head = 4096 * 768 + 4096
    layers = 24 * (12 * 768**2 + 13 * 768)
    assert count("titok-l32-gen") == (4096 + 1002 + 33) * 768 + 2 * 768 + layers + head
    assert count("titok-b64-gen") - count("titok-l32-gen") == 32 * 768


def test_a_generator_draws_pictures_of_its_tokenizer(generator: ImageGenerator) -> None:
    codes = generator.generate("red", count=3, seed=1)
    assert rows_of(codes).shape == (3, LENGTH)
    assert 0 <= int(rows_of(codes).min()) <= int(rows_of(codes).max()) < VOCAB
    shown = generator.images(codes)
    assert [p.size for p in shown] == [(16, 16)] * 3
    again = generator.codec.unpack(generator.codec.pack(codes[1])[0])
    assert torch.equal(rows_of(again), rows_of(codes)[1:2])


@pytest.mark.parametrize("options", [{}, {"label": 2}, {"label": "green", "cfg": 0.0, "steps": 5}])
def test_an_item_is_the_same_whatever_the_number(
    generator: ImageGenerator, options: dict[str, Any]
) -> None:
    many = rows_of(generator.generate(count=2 * MICRO_BATCH, seed=4, **options))
    assert torch.equal(rows_of(generator.generate(seed=4, **options)), many[:1])
    part = rows_of(generator.generate(count=MICRO_BATCH + 1, seed=4, **options))
    assert torch.equal(part, many[: MICRO_BATCH + 1])
    assert len({tuple(row) for row in many.tolist()}) == len(many)
    assert not torch.equal(rows_of(generator.generate(seed=5, **options)), many[:1])


def test_labels_may_differ_and_are_numbers_or_names(generator: ImageGenerator) -> None:
    mixed = rows_of(generator.generate(["red", 0, "1"], count=3, seed=2))
    for item, label in enumerate((2, "blue", "green")):
        whole = rows_of(generator.generate(label, count=3, seed=2))
        assert torch.equal(whole[item], mixed[item])
    plain = rows_of(generator.generate(count=3, seed=2))
    assert not torch.equal(plain, mixed)


@pytest.mark.parametrize("steps", [1, 3, LENGTH])
def test_steps_are_passes(generator: ImageGenerator, steps: int) -> None:
    rows = passes(generator)
    generator.generate("red", steps=steps)
    # Linear guidance has no weight at the first step, so that one runs the class alone.
    assert rows == [MICRO_BATCH] + [2 * MICRO_BATCH] * (steps - 1)
    rows.clear()
    generator.generate("red", steps=steps, cfg=0.0)
    generator.generate(steps=steps, cfg=2.0)
    assert rows == [MICRO_BATCH] * (2 * steps)


def test_known_ids_stay_and_the_rest_is_drawn(generator: ImageGenerator) -> None:
    whole = generator.generate("red", count=2, seed=7)
    mask = torch.arange(LENGTH) % 3 == 0
    known = Known(ids=rows_of(whole)[:1], mask=mask[None])
    found = rows_of(generator.generate("blue", count=5, seed=8, known=known))
    assert bool((found[:, mask] == rows_of(whole)[0, mask]).all())
    assert len({tuple(row) for row in found.tolist()}) == 5
    each = Known(ids=rows_of(whole), mask=mask.expand(2, -1))
    found = rows_of(generator.generate("blue", count=2, seed=8, known=each))
    assert bool((found[:, mask] == rows_of(whole)[:, mask]).all())
    full = Known(ids=rows_of(whole), mask=torch.ones(2, LENGTH, dtype=torch.bool))
    assert torch.equal(rows_of(generator.generate(count=2, known=full)), rows_of(whole))


def test_first_tokens_of_a_picture_are_completed_to_its_own_size(
    generator: ImageGenerator,
) -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (8, 24, 3)).astype(np.uint8))
    codes = generator.codec.encode(picture)
    found = generator.generate("red", count=2, known=generator.codec.prefix(codes, 5))
    assert torch.equal(rows_of(found)[:, :5], rows_of(codes)[:, :5].expand(2, -1))
    assert [p.size for p in generator.images(found)] == [(24, 8)] * 2
    with pytest.raises(ConfigError, match="3 tiles"):
        generator.generate(known=generator.codec.encode(picture, tiles=3, tokens=4))


def test_wrong_requests_are_refused(generator: ImageGenerator, tokenizer: Path) -> None:
    ids = torch.zeros(1, LENGTH, dtype=torch.int64)
    short = Known(ids=ids[:, :3], mask=ids[:, :3] == 0)
    alien = Known(ids=ids + VOCAB, mask=ids == 0)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"count": 0}, "count=0"),
        ({"steps": LENGTH + 1}, "steps=17"),
        ({"steps": 0}, "steps=0"),
        ({"cfg": -1.0}, "cfg=-1.0"),
        ({"cfg": float("nan")}, "cfg=nan"),
        ({"temperature": -0.5}, "temperature=-0.5"),
        ({"label": 3}, "label=3 is not within 0..2"),
        ({"label": [0, 1], "count": 3}, "2 labels are given for 3 items"),
        ({"known": short}, r"\(1, 16\)"),
        ({"known": alien}, "0..124"),
    ]
    for options, text in wrong:
        with pytest.raises(ConfigError, match=text) as caught:
            generator.generate(**options)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="did you mean 'green'"):
        generator.generate("gren")


def test_a_generator_without_classes_refuses_labels(tokenizer: Path, tmp_path: Path) -> None:
    folder = save(small(tokenizer, num_classes=0, classes=()), tmp_path / "plain")
    generator = api.load_generator(folder, modality="image")
    rows = passes(generator)
    assert len(generator.generate(count=2, steps=2)) == 2
    assert rows == [MICRO_BATCH] * 2
    with pytest.raises(ConfigError, match="without classes"):
        generator.generate("red")


def test_other_weights_of_the_tokenizer_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    for weights, text in (("00c0ffee", "weights 00c0ffee"), ("", "weights unknown")):
        folder = save(small(tokenizer, tokenizer_weights=weights), tmp_path / "other")
        with pytest.raises(WeightsError, match=text) as caught:
            api.load(folder)
        assert hub.fingerprint(tokenizer) in str(caught.value)


def test_kinds_are_told_apart(tokenizer: Path, tmp_path: Path) -> None:
    folder = save(small(tokenizer), tmp_path / "generator")
    with pytest.raises(WeightsError, match="a generator of images"):
        api.load_generator(folder)
    with pytest.raises(WeightsError, match="is a generator"):
        api.load_codec(folder)
    with pytest.raises(WeightsError, match="is a tokenizer"):
        api.load_generator(tokenizer, modality="image")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dim": 33}, "dim=33"),
        ({"depth": 0}, "depth=0"),
        ({"smoothing": 1.0}, "smoothing=1.0"),
        ({"net": "uvit"}, "dropout=0.1"),
        ({"num_classes": -1, "classes": ()}, "num_classes=-1"),
        ({"num_classes": 2}, "3 classes"),
        ({"cfg": -1.0}, "cfg=-1.0"),
        ({"net": "gpt"}, "gpt"),
        ({"guidance": "cosine"}, "cosine"),
    ],
)
def test_wrong_configurations_are_refused(
    changes: dict[str, Any], text: str, tokenizer: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        small(tokenizer, **changes)


def test_wrong_sampling_of_a_configuration_is_refused(tokenizer: Path) -> None:
    for changes in ({"steps": LENGTH + 1}, {"visible": -1.0}, {"flatness": (0.0, 1.0)}):
        with pytest.raises(ConfigError):
            MaskGIT(small(tokenizer, **changes))


@pytest.mark.parametrize("net", ["bert", "uvit"])
def test_a_step_is_smoothed_and_weighs_what_is_shown(net: str, tokenizer: Path) -> None:
    """The loss by hand: every slot's smoothed cross-entropy, weighted 1 or 0.1."""
    torch.manual_seed(0)
    config = small(tokenizer, net=net, dropout=0.0, condition_dropout=0.0)
    model = MaskGIT(config).train()
    batch = {
        "ids": torch.randint(VOCAB, (4, LENGTH)),
        "label": torch.tensor([0, 1, 2, 0]),
        "seed": torch.arange(4),
    }
    seen: list[Tensor] = []
    model.net.register_forward_hook(lambda *args: seen.extend([args[1][0].inp, args[2]]))
    out = model(batch, StepContext())
    inp, features = seen
    log_probs = model.head.logits(features).log_softmax(-1)
    truth = log_probs.gather(-1, batch["ids"][..., None])[..., 0]
    losses = -(0.9 * truth + 0.1 * log_probs.mean(-1))
    weight = torch.where(inp == VOCAB, 1.0, 0.1)
    torch.testing.assert_close(out.losses["ce"], (losses * weight).sum() / weight.sum())
    out.losses["ce"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_labels_are_dropped_at_the_rate_asked_for(tokenizer: Path) -> None:
    torch.manual_seed(0)
    model = MaskGIT(small(tokenizer)).train()
    count = 2000
    vectors: list[Tensor] = []
    model.net.register_forward_hook(lambda *args: vectors.append(args[1][1].vector))
    batch = {
        "ids": torch.zeros(count, LENGTH, dtype=torch.int64),
        "label": torch.ones(count, dtype=torch.int64),
        "seed": torch.arange(count),
    }
    with torch.no_grad():
        model(batch, StepContext())
        null = (vectors[0] == model.conditioner.embedding.weight[-1]).all(1)
        assert 0.08 < float(null.float().mean()) < 0.12
        model.eval()(batch, StepContext())
    assert not bool((vectors[1] == model.conditioner.embedding.weight[-1]).all(1).any())


@pytest.fixture
def coloured(tmp_path: Path) -> Path:
    """Pictures of 16 pixels, plain but for two corners, of three classes: their colour."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.full((16, 16, 3), colour, np.uint8)
            pixels[:4, :4] = rng.integers(0, 5, 3) * 63.75
            pixels[12:, 12:] = rng.integers(0, 5, 3) * 63.75
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def recipe_of(tokenizer: Path, data: Path, tmp_path: Path, **config: Any) -> Recipe:
    sizes = {"tokenizer": str(tokenizer), "vocab": VOCAB, "length": LENGTH, "dropout": 0.0}
    return Recipe(
        preset="maskgit-tiny",
        data=DataRecipe(train=str(data), val=str(data), prepared=str(tmp_path / "prepared")),
        stages=(StageBudget(name="generate", samples=16),),
        config={**sizes, **config},
    )


def test_a_short_run_learns_colours_and_its_folder_draws_them(
    tokenizer: Path, coloured: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tokenizer, coloured, tmp_path)
    training = prepare_training(recipe)
    assert training.model.config.classes == CLASSES
    assert training.model.config.tokenizer_weights == hub.fingerprint(tokenizer)
    assert training.validate is not None
    with torch.no_grad():
        start = training.validate(training.model.eval())
    assert set(start) == {"ce", "ce_label"}
    config = TrainConfig(batch_size=16, lr=4e-3, num_workers=0, ema_decay=0.0, device="cpu")
    run = tmp_path / "run"
    fit(training.model, [(STAGES[0], 16 * 150)], training.source, config, run)
    with torch.no_grad():
        end = training.validate(training.model)
    assert end["ce_label"] < end["ce"] < start["ce"] - 1.0
    hub.write_info(run, training.model.config, system="maskgit", preset=recipe.preset)
    generator = api.load_generator(run, modality="image")
    labels = [name for name in CLASSES for _ in range(4)]
    drawn = generator.images(generator.generate(labels, count=12, cfg=1.0, temperature=1.0))
    for picture, label in zip(drawn, labels, strict=True):
        centre = np.asarray(picture)[4:12, 4:12].reshape(-1, 3)
        assert (centre == COLOURS[label]).all()


def test_a_run_by_the_front_door_goes_on(tokenizer: Path, coloured: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'preset = "maskgit-tiny"\nstages = [{{ name = "generate", samples = 8 }}]\n'
        f'[data]\ntrain = "{coloured}"\nprepared = "{tmp_path / "made"}"\n'
        f'[config]\ntokenizer = "{tokenizer}"\nvocab = {VOCAB}\nlength = {LENGTH}\n'
        f"[sampling]\npasses = 2\nshift = 1\n[train]\nbatch_size = 4\nnum_workers = 0\n"
        f'device = "cpu"\n'
    )
    assert api.train(path, tmp_path / "run").steps == 2
    assert api.train(path, tmp_path / "run").is_complete
    assert len(api.load(tmp_path / "run").generate("red")) == 1


def labelled(names: tuple[str, ...] = ("shapes/a", "icons/b")) -> LabelledImages:
    pixels = torch.randint(0, 255, (7, 3, 16, 16), dtype=torch.uint8)
    labels = torch.arange(7) % 2
    return LabelledImages(pixels, labels, names, tuple(f"{i}.png" for i in range(7)))


def test_codes_are_made_once_and_belong_to_their_settings(tokenizer: Path, tmp_path: Path) -> None:
    codec, images = api.load_codec(tokenizer, modality="image"), labelled()
    sampling = ImageCodeSampling(passes=3, shift=2)

    def made(**changes: Any) -> CodeFolder:
        given = replace(sampling, **changes)
        return encode_images(codec.model, images, tmp_path / "c", given, weights=codec.weights)

    codes = made()
    assert tuple(codes.ids.shape) == (3, 7, LENGTH)
    assert codes.index.aligned == ("same", "moved by 2", "moved by 2")
    plain = codec.model.encode({"image": images.images()}).indices[0]
    assert torch.equal(codes.ids[0].long(), plain)
    assert not torch.equal(codes.ids[1], codes.ids[0]) and not torch.equal(*codes.ids[1:])
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()}
    assert torch.equal(made().ids, codes.ids)
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "c").iterdir()}
    with pytest.raises(ConfigError, match="other codes"):
        made(shift=3)
    # Pictures that are neither moved nor of a kind that may be mirrored stay as they are.
    still = encode_images(
        codec.model,
        labelled(("icons/a", "icons/b")),
        tmp_path / "d",
        ImageCodeSampling(passes=2),
        weights="00c0ffee",
    )
    assert torch.equal(still.ids[0], still.ids[1])


def test_samples_repeat_and_every_picture_comes_once_in_an_epoch(
    tokenizer: Path, tmp_path: Path
) -> None:
    codec, images = api.load_codec(tokenizer, modality="image"), labelled()
    codes = encode_images(
        codec.model, images, tmp_path / "c", ImageCodeSampling(), weights=codec.weights
    )
    source = ImageCodeSource(codes, images.classes, seed=3)
    rows = {
        tuple(row): label
        for row, label in zip(codes.ids[0].tolist(), images.labels.tolist(), strict=True)
    }
    for epoch in range(2):
        samples = [source.sample(n) for n in range(7 * epoch, 7 * epoch + 7)]
        found = {tuple(s["ids"].tolist()): int(s["label"]) for s in samples}
        assert found == rows
    one, two = source.sample(5), source.sample(5)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert "label" not in ImageCodeSource(codes).sample(0)
    with pytest.raises(UnknownNameError, match="icons/b"):
        ImageCodeSource(codes, ("shapes/a", "icons/c"))


def test_validation_counts_masked_ids_alone(tokenizer: Path, tmp_path: Path) -> None:
    codec, images = api.load_codec(tokenizer, modality="image"), labelled()
    codes = encode_images(
        codec.model, images, tmp_path / "c", ImageCodeSampling(), weights=codec.weights
    )
    model = MaskGIT(small(tokenizer, num_classes=0, classes=())).eval()
    with torch.no_grad():
        model.head.get_submodule("proj").weight.zero_()
        found = MaskedValidation(ImageCodeSource(codes), 7)(model)
    assert found == {"ce": pytest.approx(np.log(VOCAB), rel=1e-5)}


def test_recipes_that_do_not_fit_are_refused(
    tokenizer: Path, coloured: Path, tmp_path: Path
) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"length": 15}, "length=15 and vocab=125"),
        ({"num_classes": 2}, "has 3 classes, not num_classes=2"),
        ({"tokenizer_weights": "00c0ffee"}, "tokenizer_weights=00c0ffee"),
    ]
    for config, text in wrong:
        with pytest.raises(ConfigError, match=text):
            prepare_training(recipe_of(tokenizer, coloured, tmp_path, **config))
    recipe = recipe_of(tokenizer, coloured, tmp_path)
    with pytest.raises(ConfigError, match="passes=0"):
        prepare_training(replace(recipe, sampling={"passes": 0}))
    with pytest.raises(PolytokError, match="did you mean 'shift'"):
        prepare_training(replace(recipe, sampling={"shft": 2}))


def test_recipes_of_the_package_name_what_there_is() -> None:
    root = Path(__file__).parents[3] / "recipes" / "maskgit"
    found = sorted(root.glob("*.toml"))
    assert found
    for path in found:
        recipe = Recipe.read(path)
        config = override(preset(recipe.preset), **recipe.config)
        assert recipe.plan(STAGES)
        assert ImageCodeSampling(**recipe.sampling).passes >= 1
        assert config.tokenizer


@pytest.mark.parametrize("tiles", [1, 6])
def test_a_generator_codes_files_of_its_tokenizer(generator: ImageGenerator, tiles: int) -> None:
    """Every prefix comes back, in about as many bits as the net finds the tokens surprising."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, VOCAB, tiles) for _ in range(LENGTH)]
    prior = generator.prior()
    for count in (1, 5, LENGTH):
        payload = prior.encode(ids[:count])
        found = prior.decode(payload, [tiles] * count)
        assert all(np.array_equal(a, b) for a, b in zip(found, ids, strict=False))
        assert len(found) == count
    rows, net = torch.from_numpy(np.stack(ids, 1)), generator.model
    nats = 0.0
    for place in range(LENGTH):
        hidden = rows.masked_fill(torch.arange(LENGTH) >= place, VOCAB)
        cond = net.conditioner.branch(net.conditioner.encode({}), "null", tiles)
        features = net.net(Query(inp=hidden, index=torch.arange(LENGTH)), cond)
        nats += float(net.head.loss(features, rows)[:, place].sum())
    assert 8 * len(payload) == pytest.approx(nats / math.log(2), abs=9)


def test_a_prior_of_pictures_knows_no_text(generator: ImageGenerator) -> None:
    with pytest.raises(ConfigError, match="knows no texts"):
        generator.prior("a cat")
