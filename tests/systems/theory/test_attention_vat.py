"""The attention classifier: its parts against oracles, its training, and what it refuses."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from polytok.cli import run
from polytok.core.config import override
from polytok.core.contracts import Batch, StepContext
from polytok.core.errors import ConfigError, PolytokError, SignalError, UnknownNameError
from polytok.losses.virtual_adversarial import VirtualAdversarialLoss
from polytok.systems import api
from polytok.systems.theory.attention_vat import (
    STAGES,
    AttentionClassifier,
    TextClassifier,
    TextSampling,
    prepare_training,
    preset,
)
from polytok.systems.theory.attention_vat import evaluation as ev
from polytok.systems.theory.attention_vat.model import AdditiveScorer, BiLSTM, DotScorer
from polytok.systems.theory.attention_vat.text import (
    Example,
    Vocabulary,
    read_examples,
    read_vectors,
    words_of,
)
from polytok.systems.theory.attention_vat.training import TextSource, start_from
from polytok.training import Recipe
from polytok.training.config import computes_in_bf16

RECIPES = Path(__file__).parents[3] / "recipes" / "attention_vat"
TINY = preset("attention-vat-tiny")
KINDS = ("vanilla", "at", "iat", "vat", "ivat", "random")
B, T = 6, 7


def model_of(**changes: object) -> AttentionClassifier:
    torch.manual_seed(0)
    return AttentionClassifier(override(TINY, **changes))


def batch_of(*, is_pair: bool = False, seed: int = 3) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(T) < torch.tensor([7, 3, 5, 1, 6, 4])[:, None]
    tokens = torch.randint(1, 60, (B, T), generator=rng) * mask
    batch = {"tokens": tokens, "mask": mask, "label": torch.tensor([0, 1, -1, 1, -1, 0])}
    if is_pair:
        batch |= {"query": tokens.flip(0), "query_mask": mask.flip(0)}
    return batch


def step(model: AttentionClassifier, batch: Batch) -> dict[str, Tensor]:
    return model(batch, StepContext(rng=torch.Generator().manual_seed(1))).losses


# The network


def test_the_encoder_is_torchs_packed_bidirectional_lstm() -> None:
    ours, theirs = BiLSTM(5, 4), nn.LSTM(5, 4, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            part = ours.back if name.endswith("_reverse") else ours.ahead
            parameter.copy_(getattr(part, name.removesuffix("_reverse")))
    words, mask = torch.randn(B, T, 5), batch_of()["mask"]
    packed = pack_padded_sequence(words, mask.sum(1), batch_first=True, enforce_sorted=False)
    states, (last, _) = theirs(packed)
    wanted = pad_packed_sequence(states, batch_first=True, total_length=T)[0]
    torch.testing.assert_close(ours(words, mask), wanted)
    torch.testing.assert_close(ours.summary(words, mask), torch.cat(list(last), dim=-1))


@pytest.mark.parametrize("is_pair", [False, True])
def test_scores_are_those_of_the_formulas(is_pair: bool) -> None:
    states, query = torch.randn(2, 3, 8), torch.randn(2, 8) if is_pair else None
    additive, dot = AdditiveScorer(8, 5, is_pair=is_pair), DotScorer(8, is_pair=is_pair)
    for b, t in itertools.product(range(2), range(3)):
        hidden = additive.states.weight @ states[b, t] + additive.states.bias
        weight = dot.out.weight[0]
        if query is not None and additive.query is not None:
            hidden = hidden + additive.query.weight @ query[b]
            weight = dot.out.weight @ query[b]
        wanted = additive.out.weight[0] @ hidden.tanh()
        torch.testing.assert_close(additive(states, query)[b, t], wanted)
        torch.testing.assert_close(dot(states, query)[b, t], weight @ states[b, t] / 8**0.5)


def test_an_additive_scorer_is_the_companion_codes_sequential() -> None:
    """Linear with bias, tanh, linear without: the keys attn.0 and attn.2 of the public code."""
    public = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1, bias=False))
    ours = AdditiveScorer(8, 4, is_pair=False)
    ours.states.load_state_dict(public[0].state_dict())
    ours.out.load_state_dict(public[2].state_dict())
    states = torch.randn(2, 3, 8)
    torch.testing.assert_close(ours(states, None), public(states)[..., 0])


@pytest.mark.parametrize("encoder", ["lstm", "projection"])
@pytest.mark.parametrize("scorer", ["additive", "dot"])
@pytest.mark.parametrize("is_pair", [False, True])
def test_attention_is_a_distribution_over_words_and_padding_changes_nothing(
    encoder: str, scorer: str, is_pair: bool
) -> None:
    model, batch = (
        model_of(encoder=encoder, scorer=scorer, is_pair=is_pair, num_classes=3).eval(),
        batch_of(is_pair=is_pair),
    )
    inputs = {k: v for k, v in batch.items() if k != "label"}
    out = model.classify(**inputs)
    torch.testing.assert_close(out.attention.sum(1), torch.ones(B))
    assert not out.attention[~batch["mask"]].any()
    assert out.logits.shape == (B, 3)
    longer = {
        k: F.pad(v, (0, 3), value=0 if v.dtype == torch.bool else 9) for k, v in inputs.items()
    }
    torch.testing.assert_close(model.classify(**longer).logits, out.logits)
    alone = model.classify(**{k: v[1:2] for k, v in inputs.items()})
    torch.testing.assert_close(alone.logits[0], out.logits[1])


def test_a_projected_state_is_that_of_its_word_alone() -> None:
    model, batch = model_of(encoder="projection").eval(), batch_of()
    states = model.encode(model.embed(batch), batch).states
    tokens = batch["tokens"].clone()
    tokens[0, 3] = 1 + (tokens[0, 3] + 4) % 59
    changed = model.encode(model.embed(batch | {"tokens": tokens}), batch).states
    moved = (states != changed).any(-1)
    assert moved.nonzero().tolist() == [[0, 3]]
    mean = model.encoder.summary(model.embed(batch), batch["mask"])
    torch.testing.assert_close(mean[1], states[1, :3].mean(0))


def test_a_score_perturbation_is_added_to_the_scores() -> None:
    model, batch = model_of().eval(), batch_of()
    r = torch.zeros(B, T)
    r[0, 2] = 50.0
    out = model.classify(batch["tokens"], batch["mask"], score_perturbation=r)
    assert float(out.attention[0, 2].detach()) > 0.999
    states = model.encode(model.embed(batch), batch).states
    torch.testing.assert_close(out.logits[0], model.head(states[0, 2]), rtol=1e-4, atol=1e-5)


# Its losses


def test_the_cross_entropy_is_that_of_labelled_sentences_alone() -> None:
    batch = batch_of()
    model = model_of(kind="vanilla")
    logits = model.classify(batch["tokens"], batch["mask"]).logits[:, 0]
    known = batch["label"] >= 0
    wanted = F.binary_cross_entropy_with_logits(logits[known], batch["label"][known].float())
    losses = step(model, batch)
    assert set(losses) == {"classify"}
    torch.testing.assert_close(losses["classify"], wanted)


def test_class_weights_weigh_the_classes() -> None:
    batch = batch_of()
    plain, weighted = (model_of(kind="vanilla", class_weights=w) for w in ((), (0.5, 2.0)))
    known = batch["label"] >= 0
    logits = plain.classify(batch["tokens"], batch["mask"]).logits[:, 0]
    each = F.binary_cross_entropy_with_logits(
        logits[known], batch["label"][known].float(), reduction="none"
    )
    factor = torch.tensor([0.5, 2.0])[batch["label"][known]]
    torch.testing.assert_close(step(weighted, batch)["classify"], (each * factor).mean())


@pytest.mark.parametrize("target", ["attention", "words"])
@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("is_pair", [False, True])
def test_every_kind_trains_on_both_targets(kind: str, target: str, is_pair: bool) -> None:
    model = model_of(kind=kind, target=target, num_neighbours=4, is_pair=is_pair, dropout=0.2)
    losses = step(model.train(), batch_of(is_pair=is_pair))
    assert set(losses) == {"classify", "perturbed"} <= set(STAGES[0].weights)
    assert float(losses["perturbed"].detach()) > 0
    losses["perturbed"].backward()
    assert float(model.embedding.weight.grad.abs().sum()) > 0


def test_a_batch_without_labels_regularises_and_classifies_nothing() -> None:
    batch = batch_of() | {"label": torch.full((B,), -1)}
    for kind, is_used in (("vat", True), ("ivat", True), ("at", False), ("iat", False)):
        losses = step(model_of(kind=kind), batch)
        assert float(losses["classify"].detach()) == 0
        assert (float(losses["perturbed"].detach()) > 0) == is_used, kind


def test_padding_that_all_share_is_cut_and_changes_no_loss() -> None:
    model, batch = model_of(kind="ivat"), batch_of()
    longer = {k: F.pad(v, (0, 5)) if k in ("tokens", "mask") else v for k, v in batch.items()}
    for name, loss in step(model, batch).items():
        torch.testing.assert_close(step(model, longer)[name], loss)


def test_supervised_kinds_use_labelled_sentences_alone() -> None:
    model, batch = model_of(kind="at"), batch_of()
    known = batch["label"] >= 0
    part = {k: v[known] for k, v in batch.items()}
    torch.testing.assert_close(step(model, batch)["perturbed"], step(model, part)["perturbed"])


def test_the_weight_scales_the_regulariser() -> None:
    one, two = (step(model_of(kind="vat", weight=w), batch_of()) for w in (1.0, 2.0))
    torch.testing.assert_close(two["perturbed"], 2 * one["perturbed"])
    torch.testing.assert_close(two["classify"], one["classify"])


@pytest.mark.parametrize("kind", KINDS)
def test_in_eval_no_kind_changes_the_output(kind: str) -> None:
    plain, other = model_of(kind="vanilla").eval(), model_of(kind=kind).eval()
    batch = batch_of()
    before = plain.classify(batch["tokens"], batch["mask"])
    step(other, batch)
    after = other.classify(batch["tokens"], batch["mask"])
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.attention, after.attention)


@pytest.mark.parametrize("target", ["attention", "words"])
def test_dropout_is_the_same_with_and_without_a_perturbation(target: str) -> None:
    """At eps 0 the two passes are one, so nothing diverges however much is dropped."""
    model = model_of(kind="vat", target=target, eps=0.0, dropout=0.5).train()
    assert float(step(model, batch_of())["perturbed"].detach()) < 1e-6


@pytest.mark.parametrize("picks_sign", [True, False])
def test_a_small_attack_beats_chance(picks_sign: bool) -> None:
    """The axis of the gradient moves the output further than a random one of the same length."""
    model, batch = model_of().eval(), batch_of()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    worst = VirtualAdversarialLoss(kind="vat", eps=0.1, picks_sign=picks_sign)
    rng = torch.Generator().manual_seed(0)
    found = ev.shift(model, batch, worst, rng=rng)
    chance = [
        ev.shift(model, batch, VirtualAdversarialLoss(kind="random", eps=0.1), rng=rng)
        for _ in range(20)
    ]
    several = batch["mask"].sum(1) > 2
    assert float((found > torch.stack(chance))[:, several].float().mean()) >= 0.95


def test_the_worse_end_is_never_the_better_one() -> None:
    model, batch = model_of(num_classes=3).eval(), batch_of()
    shifts = [
        ev.shift(model, batch, VirtualAdversarialLoss(eps=8.0, picks_sign=picks))
        for picks in (True, False)
    ]
    assert bool((shifts[0] >= shifts[1]).all())


# What is measured


def test_importance_is_the_gradient_of_the_chosen_log_probability() -> None:
    model, batch = model_of(num_classes=3).eval().double(), batch_of()
    words = model.embed(batch).detach()
    chosen = ev.classified(model, batch).logits.argmax(-1)

    def output(item: int, vectors: Tensor) -> Tensor:
        part = {k: v[item : item + 1] for k, v in batch.items()}
        encoded = model.encode(vectors, part)
        return model.attend(encoded).logits.double().log_softmax(-1)[0, chosen[item]]

    found = {kind: ev.word_importance(model, batch, kind) for kind in ("gradient", "onehot")}
    for item, word in ((0, 0), (0, 6), (2, 3)):
        slopes = []
        for d in range(words.shape[-1]):
            nudge = torch.zeros_like(words[item : item + 1])
            nudge[0, word, d] = 1e-4
            ends = [output(item, words[item : item + 1] + way * nudge) for way in (1, -1)]
            slopes.append((ends[0] - ends[1]) / 2e-4)
        slope = torch.stack(slopes)
        torch.testing.assert_close(
            found["gradient"][item, word], slope.norm().detach(), rtol=1e-2, atol=1e-6
        )
        torch.testing.assert_close(
            found["onehot"][item, word],
            (slope @ words[item, word]).abs().detach(),
            rtol=1e-2,
            atol=1e-6,
        )
    assert not found["gradient"][~batch["mask"]].any()


def test_fixed_attention_lets_no_gradient_through_the_scores() -> None:
    model, batch = model_of().eval(), batch_of()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[0, 0] = 1.0
    through, fixed = (ev.word_importance(model, batch, k) for k in ("gradient", "gradient_fixed"))
    assert not torch.allclose(through, fixed)
    with torch.no_grad():
        model.scorer.out.weight.zero_()
    through, fixed = (ev.word_importance(model, batch, k) for k in ("gradient", "gradient_fixed"))
    torch.testing.assert_close(through, fixed)


def test_the_area_under_the_curve_is_scikit_learns() -> None:
    score, positive = torch.randint(5, (50,)).float(), torch.rand(50) > 0.6
    wanted = roc_auc_score(positive.numpy(), score.numpy())
    assert ev.area_under_roc(score, positive) == pytest.approx(wanted)
    assert ev.area_under_roc(score, torch.ones(50, dtype=torch.bool)) != wanted


def test_accuracy_falls_as_an_attack_grows() -> None:
    torch.manual_seed(1)
    model, batch = model_of(), batch_of()
    with torch.no_grad():
        model.head.weight.mul_(20)
    batch["label"] = (ev.classified(model.eval(), batch).logits[:, 0] > 0).long()
    shares = [ev.accuracy(model, [batch], eps=eps) for eps in (0.0, 1.0, 1000.0)]
    assert shares[0] == 1.0 and shares == sorted(shares, reverse=True)


# Texts


def test_words_are_lower_case_and_punctuation_stands_alone() -> None:
    assert words_of("Don't open_file(x)!  Été…") == [
        "don", "'", "t", "open_file", "(", "x", ")", "!", "été", "…",
    ]  # fmt: skip


def test_a_vocabulary_keeps_frequent_words_and_comes_back_from_disk(tmp_path: Path) -> None:
    examples = [Example(text="b b a a c", label="y"), Example(text="b d d", label="x")]
    vocabulary = Vocabulary.build(examples, size=5, min_count=2, max_length=3)
    assert vocabulary.words == ("<pad>", "<unk>", "b", "a", "d")
    assert vocabulary.labels == ("x", "y")
    assert vocabulary.ids("a zebra B d") == [3, 1, 2]
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path) == vocabulary


def test_a_batch_is_as_long_as_its_longest_text() -> None:
    vocabulary = Vocabulary(("<pad>", "<unk>", "a", "b"), ("x", "y"), 4)
    batch = vocabulary.batch([Example(text="a b a", label="y"), Example(text="b")])
    assert batch["tokens"].tolist() == [[2, 3, 2], [3, 0, 0]]
    assert batch["mask"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["label"].tolist() == [1, -1]


def test_tables_and_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('label\ttext\nx\t"say ""hi"", you"\n\n\tno label\n')
    (tmp_path / "b.csv").write_text("Text,Query,Label\nyes,no?,y\n")
    (tmp_path / "c.txt").write_text("one\n\n   \ntwo words\n")
    assert read_examples(tmp_path / "a.tsv") == [
        Example(text='say "hi", you', label="x"),
        Example(text="no label"),
    ]
    assert read_examples(tmp_path / "b.csv") == [Example(text="yes", label="y", query="no?")]
    assert read_examples(tmp_path / "c.txt") == [Example(text="one"), Example(text="two words")]


BAD_FILES = {
    "empty.tsv": (b"", "no column 'text'"),
    "headless.tsv": (b"1\tgood text\n", "no column 'text'"),
    "bare.csv": (b"text,label\n", "no sentences"),
    "short.csv": (b"text,label\na\n", "line 2: 1 columns, not 2"),
    "blank.csv": (b"text,label\n  ,x\n", "line 2: a text without words"),
    "quote.csv": (b'text,label\n"a,x\n', "line"),
    "latin.txt": (b"caf\xe9\n", "cannot read"),
    "binary.txt": (b"a\0b\n", "no text"),
    "blank.txt": (b"\n \n", "no sentences"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    content, text = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SignalError, match=text) as error:
        read_examples(tmp_path / name)
    assert "\n" not in str(error.value)


def test_given_vectors_are_put_in_place_and_others_take_their_spread(tmp_path: Path) -> None:
    path = tmp_path / "some.vec"
    path.write_text("3 8\nb " + "2 -2 " * 4 + "\nzebra " + "9 " * 8 + "\n")
    model, words = model_of(), ("<pad>", "<unk>", "a", "b", *map(str, range(56)))
    start_from(model, read_vectors(path, words, 8))
    weight = model.embedding.weight.detach()
    assert weight[3].tolist() == [2.0, -2.0] * 4
    assert float(weight[4:].std()) == pytest.approx(float(weight[3].std()), rel=0.1)
    assert not weight[0].any()
    for content, text in (
        ("b 1 2\n", "not 8 finite"),
        ("b" + " nan" * 8, "not 8 finite"),
        ("zebra 1\n", "none of the"),
        ("b" + " x" * 8, "cannot read"),
    ):
        path.write_text(content)
        with pytest.raises(SignalError, match=text):
            read_vectors(path, words, 8)


# Training


def source_of(num_labelled: int, num_unlabelled: int, share: float) -> TextSource:
    labelled = [Example(text=f"w{i}", label="xy"[i % 2]) for i in range(num_labelled)]
    unlabelled = [Example(text=f"u{i}") for i in range(num_unlabelled)]
    vocabulary = Vocabulary.build([*labelled, *unlabelled], size=999, min_count=1, max_length=3)
    return TextSource(labelled, unlabelled, vocabulary, labelled_share=share, seed=4)


@pytest.mark.parametrize("share", [0.25, 0.3, 1.0])
def test_labelled_and_unlabelled_sentences_are_mixed_evenly(share: float) -> None:
    source = source_of(5, 20, share)
    labels = torch.tensor([int(source.sample(n)["label"]) for n in range(200)]) >= 0
    for start in range(0, 200, 20):
        assert int(labels[start : start + 20].sum()) == round(20 * share)
    words = [int(source.sample(n)["tokens"][0]) for n in range(200)]
    known = [w for w, is_known in zip(words, labels, strict=True) if is_known]
    assert all(len(set(known[i : i + 5])) == 5 for i in range(0, len(known) - 4, 5))


def test_a_sample_depends_on_its_number_alone() -> None:
    source = source_of(5, 20, 0.25)
    other = pickle.loads(pickle.dumps(source_of(5, 20, 0.25)))  # noqa: S301 - as workers get it
    for n in (70, 3, 41):
        assert all(torch.equal(v, other.sample(n)[k]) for k, v in source.sample(n).items())
    assert {k: v.shape for k, v in source.sample(0).items()} == {
        k: v.shape for k, v in source.sample(1).items()
    }


def test_without_unlabelled_sentences_every_sample_has_a_label() -> None:
    source = source_of(5, 0, 0.25)
    assert all(int(source.sample(n)["label"]) >= 0 for n in range(20))


SUNNY = ["sunny bright warm", "warm sunny sky", "bright sky", "sunny warm bright sky"]
RAINY = ["rainy dark cold", "cold rainy night", "dark night", "rainy cold dark night"]


@pytest.fixture
def sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sentences"
    folder.mkdir()
    rows = [f"good\t{s}\nbad\t{r}\n" for s, r in zip(SUNNY, RAINY, strict=True)]
    for name in ("labelled", "val", "train"):
        (folder / f"{name}.tsv").write_text("label\ttext\n" + "".join(rows))
    (folder / "unlabelled.txt").write_text("\n".join([*SUNNY, *RAINY]) + "\n")
    monkeypatch.chdir(tmp_path)
    return folder


CHANGES = ("train.batch_size=8", "sampling.min_count=1", "sampling.max_length=6")
FAST = [part for change in CHANGES for part in ("--set", change)]


@pytest.mark.parametrize("kind", ["vanilla", "ivat"])
def test_a_recipe_trains_and_its_folder_classifies(kind: str, sentences: Path) -> None:
    command = ["train", str(RECIPES / "tiny.toml"), "--run", "run", *FAST]
    command += ["--set", f"config.kind={kind}", "--set", "train.lr=0.01"]
    assert run(command) == 0
    records = [json.loads(x) for x in Path("run/metrics.jsonl").read_text().splitlines()]
    scores = next(r["val"] for r in records if "val" in r)
    assert scores["accuracy"] == scores["auc"] == 1.0
    classifier = api.load("run")
    assert isinstance(classifier, TextClassifier)
    good, bad = classifier.classify(["Warm and sunny!", "a dark, cold night"])
    assert (good.label, bad.label) == ("good", "bad")
    assert [word for word, _ in good.attention] == ["warm", "and", "sunny", "!"]
    assert sum(weight for _, weight in good.attention) == pytest.approx(1, abs=1e-5)
    assert 0.5 < good.probability <= 1
    weights = Path("run/model.safetensors").read_bytes()
    assert run(command) == 0
    assert Path("run/model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_build_what_they_name(path: Path, sentences: Path) -> None:
    recipe = Recipe.read(path)
    assert recipe.plan(STAGES)
    training = prepare_training(recipe)
    assert training.model.config.kind == recipe.config["kind"]
    assert training.source.sample(0)["tokens"].shape == (recipe.sampling["max_length"],)


def test_pairs_train_and_classify(sentences: Path) -> None:
    rows = [
        f"{s}\t{q}\t{'yes' if (s in SUNNY) == (q == 'good?') else 'no'}\n"
        for s in [*SUNNY, *RAINY]
        for q in ("good?", "bad?")
    ]
    Path("pairs.tsv").write_text("text\tquery\tlabel\n" + "".join(rows))
    changes = [
        "preset=attention-vat-pair-small",
        "data.train=pairs.tsv",
        "data.val=",
        "sampling.unlabelled=",
        "train.save_every=100",
        'stages=[{"name":"train","samples":64}]',
    ]
    sets = [part for change in changes for part in ("--set", change)]
    assert run(["train", str(RECIPES / "tiny.toml"), "--run", "run", *FAST, *sets]) == 0
    classifier = api.load("run")
    assert isinstance(classifier, TextClassifier)
    assert classifier.classify(["sunny sky"], ["good?"])[0].label in ("yes", "no")
    with pytest.raises(SignalError, match="1 queries for 2 texts"):
        classifier.classify(["a", "b"], ["q"])
    with pytest.raises(PolytokError, match="needs query"):
        classifier.classify(["sunny"])


def test_mixed_precision_trains_or_is_refused(
    sentences: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["train.precision=bf16", 'stages=[{"name":"train","samples":16}]', "data.val="]
    sets = [part for change in changes for part in ("--set", change)]
    status = run(["train", str(RECIPES / "tiny.toml"), "--run", "run", *FAST, *sets])
    if not computes_in_bf16("cpu"):
        assert status == 2 and "only imitates bf16" in capsys.readouterr().err
        return
    assert status == 0
    losses = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["losses"]
    assert all(0 <= value < 10 for value in losses.values())


# What is refused


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("data.train=nowhere.tsv", "cannot read nowhere.tsv"),
        ("data.train=sentences/unlabelled.txt", "has no label"),
        ("data.train=one.tsv", "one class only, 'good'"),
        ("data.val=strange.tsv", "label 'ugly' is not one of bad, good"),
        ("sampling.unlabelled=empty.txt", "has no sentences"),
        ("sampling.labelled_share=0", "labelled_share=0"),
        ("sampling.labeled_share=0.5", "did you mean 'labelled_share'"),
        ("sampling.vectors=nowhere.vec", "cannot read nowhere.vec"),
        ("config.kind=vta", "'vta' is not one of"),
        ("config.eps=-1", "eps=-1"),
        ("config.eps=NaN", "eps=nan"),
        ("preset=attention-vat-pair-small", "a query with every text"),
        ("config.class_weights=[1, 2, 3]", "3 class_weights for 2 classes"),
    ],
)
def test_bad_recipes_end_with_one_line(
    change: str, text: str, sentences: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("one.tsv").write_text("label\ttext\ngood\ta b\ngood\tc d\n")
    Path("strange.tsv").write_text("label\ttext\ngood\ta b\nugly\tc d\n")
    Path("empty.txt").write_text("\n")
    command = ["train", str(RECIPES / "tiny.toml"), "--run", "run", "--set", change]
    assert run(command) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and text in lines[0], lines
    assert not Path("run").exists()


def test_bad_batches_are_refused() -> None:
    model, good = model_of(kind="vat"), batch_of()
    hole = good["mask"].clone()
    hole[0, 2] = False
    for change, text in (
        ({"mask": torch.zeros(B, T, dtype=torch.bool)}, "has no words"),
        ({"mask": good["mask"][:, 1:]}, r"tokens \(6, 7\) and its mask \(6, 6\) differ"),
        ({"mask": hole}, "padding comes before words"),
        ({"tokens": good["tokens"] + 60}, "not within 0..59"),
        ({"tokens": good["tokens"][:0], "mask": good["mask"][:0]}, "has no words"),
        ({"label": torch.tensor([0, 1, 2, 0, 0, 0])}, "not within -1..1"),
        ({"label": torch.tensor([0, 1])}, r"labels \(2,\) for 6"),
        ({"query": good["tokens"], "query_mask": good["mask"]}, "not pairs"),
    ):
        with pytest.raises(PolytokError, match=text) as error:
            step(model, good | change)
        assert "\n" not in str(error.value)
    with pytest.raises(PolytokError, match="a perturbation"):
        model.classify(good["tokens"], good["mask"], score_perturbation=torch.zeros(B, 2))
    with pytest.raises(PolytokError, match="needs query"):
        step(model_of(is_pair=True), good)


def test_texts_without_words_are_refused(sentences: Path) -> None:
    vocabulary = Vocabulary(("<pad>", "<unk>", "a"), ("x", "y"), 4)
    classifier = TextClassifier(model_of(vocab_size=3), vocabulary, name="it")
    assert classifier.classify([]) == []
    for empty in ("", "   ", "\n"):
        with pytest.raises(SignalError, match="has no words"):
            classifier.classify(["a", empty])
    with pytest.raises(PolytokError, match="vocabulary has 3 words"):
        TextClassifier(model_of(), vocabulary, name="it")


def test_unknown_presets_and_options_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'attention-vat-tiny'"):
        preset("attention-vat-tinny")
    for change, text in (
        ({"hidden_dim": 0}, "hidden_dim=0"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"xi": 0.0}, "xi=0.0"),
    ):
        with pytest.raises(ConfigError, match=text):
            override(TINY, **change)
    with pytest.raises(ConfigError, match="max_length=0"):
        TextSampling(max_length=0)
