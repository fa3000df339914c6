"""What a linear classifier reads from the first tokens of labelled pictures.

    python benchmarks/image_probe.py --learnt cifar10-train.zip --test cifar10-test.zip \\
        --model NAME ...

Rows of ``benchmarks/results/image_probe.json`` are kept; a model that is there is not read again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from _results import RESULTS, Results, Row, load_codec
from polytok.data.images import LabelledImages, read_labelled

COUNTS = (1, 2, 4, 8, 16)  # of tokens
BATCH = 250
METHOD = (
    "multinomial logistic regression on one-hot ids of the first tokens, each token with its own; "
    "learnt from one zip, accuracy on the other"
)


def probed(codec: Any, learnt: LabelledImages, test: LabelledImages) -> list[Row]:
    """Accuracy by the number of tokens."""
    firsts = [first_tokens(codec, pictures, max(COUNTS)) for pictures in (learnt, test)]
    rows = []
    for tokens in COUNTS:
        known, new = (_one_hot(ids[:, :tokens], codec.spec.levels[0].vocab) for ids in firsts)
        reader = LogisticRegression(C=0.1, max_iter=300).fit(known, learnt.labels.numpy())
        share = float(reader.score(new, test.labels.numpy()))
        rows.append({"tokens": tokens, "accuracy": share, "chance": 1 / len(learnt.classes)})
        print(rows[-1], flush=True)
    return rows


@torch.inference_mode()
def first_tokens(codec: Any, pictures: LabelledImages, count: int) -> NDArray[np.int64]:
    """The first ids (N, count) of pictures, each as one tile."""
    side = (codec.size, codec.size)
    parts = []
    for start in range(0, len(pictures), BATCH):
        images = pictures.images(slice(start, start + BATCH))
        images = F.interpolate(images, side, mode="bicubic", antialias=True).clamp(0, 1)
        parts.append(codec.model.encode({"image": images}).indices[0][:, :count])
    return torch.cat(parts).numpy()


def _one_hot(ids: NDArray[np.int64], vocab: int) -> csr_array:
    """Ids (N, k) as N rows of k ones among k times ``vocab`` columns."""
    count, tokens = ids.shape
    columns = (ids + vocab * np.arange(tokens)).reshape(-1)
    ends = tokens * np.arange(count + 1)
    return csr_array((np.ones(len(columns)), columns, ends), shape=(count, tokens * vocab))


def main(argv: Sequence[str] | None = None) -> None:
    """Probe the models asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--learnt", required=True, help="class/name.jpg, to learn from")
    parser.add_argument("--test", required=True, help="the same, to be told")
    parser.add_argument("--side", type=int, default=32, help="pixels a side of both")
    parser.add_argument("--model", nargs="+", required=True, help="weights tags or folders")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(argv)
    learnt, test = (read_labelled(path, args.side) for path in (args.learnt, args.test))
    about = {"method": METHOD, "learnt": len(learnt), "pictures": len(test)}
    keys = ("model", "tokens")
    results = Results("image_probe", about, fresh=args.fresh, folder=args.out, keys=keys)
    known = {row["model"] for row in results.rows}
    for model in args.model:
        if (name := Path(model).name) not in known:
            codec = load_codec(model)
            head = {"model": name, "weights": codec.weights}
            results.rows += [head | row for row in probed(codec, learnt, test)]
            results.save()


if __name__ == "__main__":
    main()
