"""Zero-shot tokenizer transfer at small scale: does the hypernetwork beat the heuristics?

    python benchmarks/tokenizer_transfer.py --work RUNS --part source
    python benchmarks/tokenizer_transfer.py --work RUNS

A two-layer language model is trained on English documentation and Python source, then given other
tokenizers. Rows go to ``benchmarks/results/tokenizer_transfer.json``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from _results import ROOT, Results, Row, data_folder
from polytok.core.errors import PolytokError
from polytok.core.files import write_text
from polytok.core.seeding import torch_rng
from polytok.networks.pretrained.optional import import_hf
from polytok.systems import api
from polytok.systems.text import zett

CATEGORIES = ("en", "python")
CHUNK, EVERY = 1 << 16, 20
PIECE = 128
END = "<|endoftext|>"
CONTEXT, BATCH, LM_STEPS, LM_RATE = 64, 32, 3000, 3e-3
SOURCE_SIZE = 2048
TUNED_TARGET, TUNED, TUNING_RATE = "bpe-4k", (0, 100, 200), 1e-3
NUM_PIECES = 1600
METHODS = ("original", "zett", "fvt", "focus", "lexical", "mean", "random")
SEEDED = ("zett", "lexical", "random")
RECIPE = ROOT / "recipes" / "zett" / "small.toml"
LM = {"n_layer": 2, "n_embd": 128, "n_head": 2}
PROTOCOL = {
    "about": "bits per byte of unseen text after a small language model got another tokenizer",
    "source": f"GPT-2 of {LM}, context {CONTEXT}, {LM_STEPS} steps of {BATCH} windows; byte-level "
    f"BPE of {SOURCE_SIZE} tokens; English documentation and Python source, every {EVERY}th chunk "
    f"of {CHUNK} bytes held out",
    "pieces": f"about {NUM_PIECES} pieces of {PIECE} characters, each scored alone",
    "tuning": f"all weights, AdamW at {TUNING_RATE}, {BATCH} windows of {CONTEXT} tokens a step",
    "recipe": "recipes/zett/small.toml",
}


def texts(split: str) -> dict[str, str]:
    """The text of each category: every 20th chunk of 64 KiB is held out, the rest is for training.

    Raises:
        PolytokError: the archive is missing.
    """
    path = data_folder() / "text" / "text.zip"
    if not path.is_file():
        raise PolytokError(f"{path} is missing; set POLYTOK_DATA to the folder that has text/")
    out = {}
    with ZipFile(path) as archive:
        for name in CATEGORIES:
            data = archive.read(f"{name}.txt")
            chunks = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
            kept = [c for i, c in enumerate(chunks) if (i % EVERY == EVERY - 1) == (split == "val")]
            out[name] = b"\n".join(kept).decode(errors="ignore")
    return out


def pieces(text: str) -> list[str]:
    """Pieces of equal length in characters: the same context whatever the tokenizer."""
    return [text[i : i + PIECE] for i in range(0, len(text) - PIECE, PIECE)]


def train_tokenizer(kind: str, size: int, corpus: list[str]) -> Tokenizer:
    """A byte-level BPE or Unigram of ``size`` tokens with GPT-2's way of splitting."""
    tokenizer = Tokenizer(models.BPE() if kind == "bpe" else models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options: dict[str, Any] = {
        "vocab_size": size,
        "special_tokens": [END],
        "initial_alphabet": alphabet,
        "show_progress": False,
    }
    trainer = trainers.BpeTrainer if kind == "bpe" else trainers.UnigramTrainer
    tokenizer.train_from_iterator(corpus, trainer(**options))
    return tokenizer


def lines(text: str, count: int = 4000) -> list[str]:
    """Cut a text into ``count`` parts, as trainers of tokenizers like them."""
    size = -(-len(text) // count)
    return [text[i : i + size] for i in range(0, len(text), size)]


def windows(ids: torch.Tensor, seed: int, steps: int, start: int) -> Iterator[torch.Tensor]:
    """Random windows (BATCH, CONTEXT), each after the start token."""
    offsets = torch.arange(CONTEXT - 1)
    for step in range(steps):
        rng = torch_rng(seed, "windows", step)
        first = torch.randint(len(ids) - CONTEXT, (BATCH, 1), generator=rng)
        rows = ids[first + offsets]
        yield torch.cat([torch.full((BATCH, 1), start), rows], dim=1)


def train_lm(model: Any, tokenizer: Tokenizer, corpus: str, *, steps: int, rate: float, seed: int):
    """Train all weights with AdamW, a cosine, and bf16 matrix products; prints as it goes."""
    encoded = tokenizer.encode_batch_fast(lines(corpus))
    ids = torch.tensor([i for e in encoded for i in e.ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    begun = time.monotonic()
    batches = windows(ids, seed, steps, tokenizer.token_to_id(END))
    model.train()
    for step, batch in enumerate(batches):
        share = min(1.0, step / 100) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch[:, :-1]).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(
                f"step {step} loss {loss.item():.3f} {time.monotonic() - begun:.0f} s", flush=True
            )
    return model.eval()


def source(work: Path) -> Path:
    """Train the source tokenizer and language model, unless the folder holds them."""
    transformers = import_hf("transformers")

    folder = work / "source"
    if (folder / "model.safetensors").is_file():
        return folder
    corpus = "\n".join(texts("train").values())
    tokenizer = train_tokenizer("bpe", SOURCE_SIZE, lines(corpus))
    end = tokenizer.token_to_id(END)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=SOURCE_SIZE,
        n_positions=CONTEXT,
        **LM,
        bos_token_id=end,
        eos_token_id=end,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = transformers.GPT2LMHeadModel(config)
    train_lm(model, tokenizer, corpus, steps=LM_STEPS, rate=LM_RATE, seed=0)
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END
    ).save_pretrained(folder)
    return folder


def hypernet(work: Path, seed: int, overrides: Sequence[str] = ()) -> Path:
    """Train the hypernetwork of the source model, or go on with its run."""
    for split in ("train", "val"):
        for name, text in texts(split).items():
            write_text(work / "texts" / split / f"{name}.txt", text)
    folder = work / f"hypernet-{seed}"
    api.train(
        RECIPE,
        folder,
        [
            f"config.language_model={work / 'source'}",
            f"data.train={work / 'texts' / 'train'}",
            f"data.val={work / 'texts' / 'val'}",
            f"train.seed={seed}",
            *overrides,
        ],
    )
    return folder


@dataclass(frozen=True)
class Target:
    """A new tokenizer: its kind and size, what it is trained on, and what it is scored on."""

    kind: str
    size: int
    categories: tuple[str, ...]


TARGETS = {
    "bpe-4k": Target("bpe", 4096, CATEGORIES),
    "unigram-1k": Target("unigram", 1024, CATEGORIES),
    "python-bpe-2k": Target("bpe", 2048, ("python",)),
}


def made(work: Path, name: str) -> Tokenizer:
    """The tokenizer of a target, trained once."""
    path = work / f"{name}.json"
    if not path.is_file():
        target, train = TARGETS[name], texts("train")
        corpus = "\n".join(train[c] for c in target.categories)
        train_tokenizer(target.kind, target.size, lines(corpus)).save(str(path))
    return Tokenizer.from_file(str(path))


def held_out(name: str) -> list[str]:
    """Evenly spaced pieces of unseen text of a target's categories."""
    val, wanted = texts("val"), TARGETS[name].categories
    found = [pieces(val[c]) for c in wanted]
    return [p for some in found for p in some[:: max(len(some) * len(wanted) // NUM_PIECES, 1)]]


def rows_of(work: Path, name: str, method: str, seed: int, steps: Sequence[int]) -> list[Row]:
    """Bits per byte of one way of transfer, at once and after so many steps of all weights."""
    lm = zett.load_language_model(str(work / "source"))
    unseen = held_out(name)
    if method == "original":
        tokenizer = lm.tokenizer
    else:
        network = zett.load_hypernet(work / f"hypernet-{seed}") if method == "zett" else None
        how = {"method": method} if network is None else {"hypernet": network}
        tokenizer = zett.transfer_tokenizer(lm, made(work, name), seed=seed, **how).tokenizer
    # More text than the steps below read.
    corpus = "".join(p for c in TARGETS[name].categories for p in lines(texts("train")[c])[::8])
    out, done = [], 0
    for count in steps:
        if count > done:
            budget = {"steps": count - done, "rate": TUNING_RATE, "seed": seed}
            train_lm(lm.model, tokenizer.tokenizer, corpus, **budget)
            done = count
        score = zett.bits_per_byte(lm, tokenizer, unseen)
        row = {"target": name, "method": method, "seed": seed, "steps": count}
        row |= {"bits_per_byte": score.bits_per_byte, "bytes_per_token": score.bytes_per_token}
        print(row, flush=True)
        out.append(row)
    return out


def main(argv: list[str] | None = None) -> None:
    """Train what is missing and score what has no row yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--work", type=Path, required=True, help="folder that keeps what is trained"
    )
    parser.add_argument("--part", choices=("source", "hypernet", "score", "all"), default="all")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--set", action="append", default=[], help="a.b=value of the recipe")
    parser.add_argument("--fresh", action="store_true", help="drop the rows that are there")
    args = parser.parse_args(argv)
    source(args.work)
    if args.part == "source":
        return
    seeds = [int(seed) for seed in args.seeds.split(",")]
    for seed in seeds:
        hypernet(args.work, seed, args.set)
    if args.part == "hypernet":
        return
    results = Results(
        "tokenizer_transfer", PROTOCOL, fresh=args.fresh, keys=("target", "method", "seed", "steps")
    )
    for name in TARGETS:
        steps = TUNED if name == TUNED_TARGET and args.part != "score" else (0,)
        for method in args.methods.split(","):
            for seed in seeds if method in SEEDED else (0,):
                key = {"target": name, "method": method, "seed": seed}
                done = {r["steps"] for r in results.rows if key.items() <= r.items()}
                if not done >= set(steps):
                    found = rows_of(args.work, name, method, seed, steps)
                    results.rows += [row for row in found if row["steps"] not in done]
                    results.save()


if __name__ == "__main__":
    main()
