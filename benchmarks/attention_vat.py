"""Virtual adversarial training on attention: accuracy, faithfulness and robustness, paired by seed.

    python benchmarks/attention_vat.py final                     the grid too, where it is missing
    python benchmarks/attention_vat.py write --out sentences     the task as files for a recipe

``grid`` trains every kind at every eps on 2 seeds and scores it by validation; ``final`` trains
every kind at its best eps on 5 seeds and scores it by test. The projection encoder's states are of
one word each; with the LSTM, whose states at either end hold the whole window, some kinds are
repeated.

The task: is a window of 8 words from Python's documentation English or Spanish? The 200 most
frequent words of each language are left out, so that no function word gives it away, and
identifiers are common to both. Per seed another 200 windows have a label (100 per class) and 5,000
have none; 800 for validation and 2,000 for test are the same for all. Word vectors start from the
co-occurrences in the seed's own training windows, since published ones are not at hand. Of ten
validations of a run the model of the best accuracy is kept. Every kind sees the same batches.

A run that is in ``benchmarks/results/attention_vat.json`` is skipped.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds
from torch import Tensor

from _results import Results, Row, data_folder
from polytok.core.config import override, to_dict
from polytok.core.contracts import Batch
from polytok.core.errors import PolytokError
from polytok.core.files import write_text
from polytok.core.seeding import numpy_rng, torch_rng
from polytok.losses.virtual_adversarial import VirtualAdversarialLoss
from polytok.metrics.rationale import attention_entropy
from polytok.systems.theory.attention_vat import STAGES, AttentionClassifier, preset
from polytok.systems.theory.attention_vat import evaluation as ev
from polytok.systems.theory.attention_vat.text import Example, Vocabulary
from polytok.systems.theory.attention_vat.training import (
    TextSource,
    Validation,
    fitted,
    start_from,
)
from polytok.training import TrainConfig, fit

ROLE = re.compile(r":[\w:+-]+:`[~!]?([^`<]+?)(?:\s*<[^`>]*>)?`")
WORD = re.compile(r"[^\W\d_]+")
LANGUAGES = {"english": "en", "spanish": "es"}
NUM_FUNCTION_WORDS, WINDOW = 200, 8
NEAR, LENGTH = 4, 1.6
KINDS, WORD_KINDS = ("random", "at", "vat", "ivat"), ("at", "vat")
LSTM_KINDS = ("at", "vat", "ivat")
EPS = {
    "attention": (0.3, 1.0, 3.0, 10.0, 30.0),
    "words": (0.3, 1.0, 3.0, 10.0),
    "lstm": (0.1, 0.3, 1.0, 3.0),
}
ATTACKS = (1.0, 2.0, 4.0, 8.0, 16.0)
# eps, xi and power iterations. At 10 a softmax is saturated, and a longer probe sees more of it.
PROBES = {
    "0.3": (0.3, 0.1, 1),
    "1": (1.0, 0.1, 1),
    "3": (3.0, 0.1, 1),
    "10": (10.0, 0.1, 1),
    "10, probe 10, 4 iterations": (10.0, 10.0, 4),
}
IMPORTANCES: tuple[ev.Importance, ...] = ("gradient", "gradient_fixed", "onehot", "onehot_fixed")
SAMPLES, LABELLED_SHARE = 20_000, 0.25
BASE = override(preset("attention-vat-small"), vocab_size=8_000, dropout=0.3)
TRAIN = TrainConfig(
    batch_size=64,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-5,
    precision="fp32",
    ema_decay=0.99,
    save_every=1 << 40,
    log_every=1 << 40,
    validate_every=SAMPLES // 10,
    device="cpu",
    num_workers=0,
)
PER_CLASS = {"val": 400, "test": 1000, "labelled": 100, "unlabelled": 2500}


def content(lines: Sequence[list[str]], function_words: set[str], language: str) -> list[str]:
    """Distinct windows of words that are no function words, one per line, sorted."""
    rng, found = numpy_rng(0, "window", language), set()
    for line in lines:
        words = [word for word in line if word not in function_words]
        if len(words) >= WINDOW:
            start = int(rng.integers(len(words) - WINDOW + 1))
            found.add(" ".join(words[start : start + WINDOW]))
    return sorted(found)


def corpus(folder: Path) -> dict[str, list[str]]:
    """Windows by language; those in both are left out.

    Raises:
        PolytokError: the archive is missing.
    """
    path = folder / "text" / "text.zip"
    if not path.is_file():
        raise PolytokError(f"{path} is missing; set POLYTOK_DATA to the folder that has text/")
    lines = {}
    with ZipFile(path) as archive:
        for language, name in LANGUAGES.items():
            text = ROLE.sub(r"\1", archive.read(f"{name}.txt").decode())
            lines[language] = [WORD.findall(line.lower()) for line in sorted(set(text.split("\n")))]
    function_words = set()
    for rows in lines.values():
        counts = Counter(word for row in rows for word in row)
        function_words |= {word for word, _ in counts.most_common(NUM_FUNCTION_WORDS)}
    found = {name: content(rows, function_words, name) for name, rows in lines.items()}
    both = set.intersection(*map(set, found.values()))
    return {name: [w for w in windows if w not in both] for name, windows in found.items()}


@dataclass(frozen=True)
class Task:
    """Examples by part; those without a label keep none."""

    val: list[Example]
    test: list[Example]
    labelled: list[Example]
    unlabelled: list[Example]

    @staticmethod
    def draw(texts: dict[str, list[str]], seed: int) -> Task:
        """Draw the parts: val and test by one seed, the others by ``seed``."""
        parts: dict[str, list[Example]] = {name: [] for name in PER_CLASS}
        held = PER_CLASS["val"] + PER_CLASS["test"]
        for label, rows in texts.items():
            order = numpy_rng(0, "held", label).permutation(len(rows))
            rest = order[held:][numpy_rng(seed, "train", label).permutation(len(rows) - held)]
            picked = [*order[:held], *rest]
            start = 0
            for name, count in PER_CLASS.items():
                chosen = [rows[i] for i in picked[start : start + count]]
                known = None if name == "unlabelled" else label
                parts[name] += [Example(text=text, label=known) for text in chosen]
                start += count
        return Task(**parts)


def vectors(vocabulary: Vocabulary, examples: Sequence[Example]) -> dict[int, Tensor]:
    """Vectors by word number: left singular vectors of positive PMI within 4 words, one length.

    Source: Levy & Goldberg 2014, with contexts smoothed by 0.75 (Levy et al. 2015).
    """
    rows = [vocabulary.ids(e.text) for e in examples]
    pairs = [
        (row[i], row[j])
        for row in rows
        for i in range(len(row))
        for j in range(max(0, i - NEAR), min(len(row), i + NEAR + 1))
        if i != j
    ]
    size = len(vocabulary.words)
    left, right = np.array(pairs).T
    counts = sparse.coo_matrix((np.ones(len(left)), (left, right)), (size, size)).tocsr().tocoo()
    seen = np.bincount(left, minlength=size)
    context = seen**0.75 / (seen**0.75).sum()
    gain = np.log(counts.data / (seen[counts.row] * context[counts.col])).clip(min=0)
    table, scale, _ = svds(
        sparse.coo_matrix((gain, (counts.row, counts.col)), (size, size)).tocsr(),
        k=BASE.embedding_dim,
        random_state=0,
    )
    table = torch.from_numpy(table * np.sqrt(scale)).float()
    table = LENGTH * torch.nn.functional.normalize(table, dim=-1)
    return {i: table[i] for i in range(2, size) if seen[i]}


class Best:
    """Keeps the weights of the best validation accuracy."""

    def __init__(self, examples: Sequence[Example], vocabulary: Vocabulary) -> None:
        self.batches = Validation(examples, vocabulary).batches
        self.accuracy, self.state = -1.0, dict[str, Tensor]()

    def __call__(self, model: AttentionClassifier) -> dict[str, float]:
        accuracy = ev.accuracy(model, self.batches)
        if accuracy > self.accuracy:
            self.accuracy = accuracy
            self.state = {k: v.clone() for k, v in model.state_dict().items()}
        return {"accuracy": accuracy}


PROTOCOL = {
    "task": "English or Spanish: windows of 8 words of Python's documentation, function words out",
    "per_class": PER_CLASS,
    "function_words": NUM_FUNCTION_WORDS,
    "model": to_dict(BASE),
    "train": to_dict(TRAIN),
    "samples": SAMPLES,
    "labelled_share": LABELLED_SHARE,
    "vectors": f"positive PMI within {NEAR} words, {BASE.embedding_dim} singular vectors",
    "eps": EPS,
    "attacks": ATTACKS,
    "probes": PROBES,
    "importances": IMPORTANCES,
}


@dataclass(frozen=True)
class Arm:
    """What differs between runs."""

    kind: str
    target: str = "attention"
    eps: float = 0.0
    encoder: str = "projection"

    @property
    def name(self) -> str:
        name = f"word {self.kind}" if self.target == "words" else self.kind
        return name if self.encoder == "projection" else f"{name}, {self.encoder}"


def trained(
    arm: Arm, texts: dict[str, list[str]], seed: int
) -> tuple[AttentionClassifier, Best, list[Batch]]:
    """Train an arm; returns it with its best weights, its validation, and the test batches."""
    task = Task.draw(texts, seed)
    vocabulary = words_of(task)
    config = override(BASE, **asdict(arm))
    config = fitted(config, vocabulary, task.labelled)
    torch.manual_seed(seed)
    model = AttentionClassifier(config)
    start_from(model, vectors(vocabulary, [*task.labelled, *task.unlabelled]))
    source = TextSource(
        task.labelled, task.unlabelled, vocabulary, labelled_share=LABELLED_SHARE, seed=seed
    )
    best = Best(task.val, vocabulary)
    train = override(TRAIN, seed=seed)
    with TemporaryDirectory() as folder:
        fit(model, [(STAGES[0], SAMPLES)], source, train, folder, validate=best)
    model.load_state_dict(best.state)
    return model, best, Validation(task.test, vocabulary).batches


def shifts(model: AttentionClassifier, test: list[Batch], loss: VirtualAdversarialLoss) -> Tensor:
    """KL by test example under a kind of perturbation."""
    rng = torch_rng(0, loss.kind)
    return torch.cat([ev.shift(model, batch, loss, rng=rng) for batch in test])


def measured(model: AttentionClassifier, test: list[Batch]) -> Row:
    """Everything that is reported about a trained model."""
    row: Row = {"accuracy": ev.accuracy(model, test)}
    row["robust"] = [ev.accuracy(model, test, eps=eps) for eps in ATTACKS]
    for kind in IMPORTANCES:
        row[f"tau_{kind}"] = float(
            torch.cat([ev.faithfulness(model, b, kind) for b in test]).nanmean()
        )
    with torch.no_grad():
        attention = [ev.classified(model, b).attention for b in test]
    pairs = zip(attention, test, strict=True)
    row["entropy"] = float(torch.cat([attention_entropy(a, b["mask"]) for a, b in pairs]).mean())
    for name, (eps, xi, num_power) in PROBES.items():
        worst, chance = (
            shifts(
                model, test, VirtualAdversarialLoss(kind=kind, eps=eps, xi=xi, num_power=num_power)
            )
            for kind in ("vat", "random")
        )
        row[f"above_random_{name}"] = float((worst > chance).float().mean())
        row[f"ratio_{name}"] = float(worst.mean() / chance.mean())
    return row


def work(stage: str, arm: Arm, texts: dict[str, list[str]], seed: int) -> Row:
    """One run: a validation score for the grid, test scores for the final part."""
    start = time.process_time()
    model, best, test = trained(arm, texts, seed)
    row: Row = {
        "run": run_name(stage, arm, seed),
        "stage": stage,
        "arm": arm.name,
        "eps": arm.eps,
        "seed": seed,
        "val_accuracy": best.accuracy,
    }
    row["cpu_seconds"] = time.process_time() - start
    return row | measured(model, test) if stage == "final" else row


def run_name(stage: str, arm: Arm, seed: int) -> str:
    """What names a run in the results."""
    return f"{stage}/{arm.name}/{arm.eps:g}/{seed}"


def grid() -> list[tuple[Arm, int]]:
    """Every kind at every eps of its grid."""
    arms = [Arm(kind, "attention", eps) for kind in KINDS for eps in EPS["attention"]]
    arms += [Arm(kind, "words", eps) for kind in WORD_KINDS for eps in EPS["words"]]
    arms += [Arm(kind, "attention", eps, "lstm") for kind in LSTM_KINDS for eps in EPS["lstm"]]
    return [(arm, seed) for seed in range(2) for arm in arms]


def chosen(rows: Sequence[Row]) -> list[Arm]:
    """Vanilla, and every kind at the eps of the best mean validation accuracy.

    Raises:
        PolytokError: the grid is not complete.
    """
    done = {row["run"] for row in rows}
    if missing := [run_name("grid", a, s) for a, s in grid() if run_name("grid", a, s) not in done]:
        raise PolytokError(f"the grid lacks {len(missing)} runs, among them {missing[0]}")
    best: dict[str, tuple[float, Arm]] = {}
    for arm in {arm: None for arm, _ in grid()}:
        name = run_name("grid", arm, 0)[:-1]
        score = mean(r["val_accuracy"] for r in rows if r["run"][:-1] == name)
        if arm.name not in best or score > best[arm.name][0]:
            best[arm.name] = (score, arm)
    tuned = [arm for _, arm in best.values()]
    return [Arm("vanilla"), Arm("vanilla", encoder="lstm"), *tuned]


def write(texts: dict[str, list[str]], folder: Path) -> None:
    """Write the task of seed 0 as files that ``recipes/attention_vat`` names, and its vectors."""
    task = Task.draw(texts, 0)
    for name in ("labelled", "val", "test"):
        lines = [f"{e.label}\t{e.text}\n" for e in getattr(task, name)]
        write_text(folder / f"{name}.tsv", "label\ttext\n" + "".join(lines))
    write_text(folder / "unlabelled.txt", "".join(e.text + "\n" for e in task.unlabelled))
    vocabulary = words_of(task)
    table = vectors(vocabulary, [*task.labelled, *task.unlabelled])
    lines = [
        " ".join([vocabulary.words[i], *(f"{x:.5f}" for x in vector.tolist())]) + "\n"
        for i, vector in table.items()
    ]
    write_text(folder / "vectors.vec", f"{len(table)} {BASE.embedding_dim}\n" + "".join(lines))


def words_of(task: Task) -> Vocabulary:
    """The words that occur twice in the training windows."""
    known = [*task.labelled, *task.unlabelled]
    return Vocabulary.build(known, size=BASE.vocab_size, min_count=2, max_length=WINDOW)


def main(argv: list[str] | None = None) -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=("grid", "final", "write"))
    parser.add_argument("--out", type=Path, default=Path("sentences"))
    parser.add_argument("--seeds", type=int, default=5, help="of the final part")
    parser.add_argument("--fresh", action="store_true", help="drop what was measured before")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    texts = corpus(data_folder())
    if args.part == "write":
        write(texts, args.out)
        return
    results = Results("attention_vat", PROTOCOL, keys=("stage", "run"), fresh=args.fresh)
    perform("grid", grid(), texts, results)
    if args.part == "final":
        arms = chosen(results.rows)
        # Runs at an eps that a finer grid has unseated say nothing of the kind.
        kept = {(arm.name, arm.eps) for arm in arms}
        results.rows = [
            r for r in results.rows if r["stage"] == "grid" or (r["arm"], r["eps"]) in kept
        ]
        jobs = [(arm, seed) for seed in range(args.seeds) for arm in arms]
        perform("final", jobs, texts, results)
        results.save()


def perform(
    stage: str, jobs: Sequence[tuple[Arm, int]], texts: dict[str, list[str]], results: Results
) -> None:
    """Do the runs that have no row yet, saving after each."""
    for arm, seed in jobs:
        name = run_name(stage, arm, seed)
        if name in results.done():
            continue
        row = work(stage, arm, texts, seed)
        results.rows.append(row)
        results.save()
        score = row.get("accuracy", row["val_accuracy"])
        print(f"{name}: {score:.4f}, {row['cpu_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
