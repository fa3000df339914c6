"""Handwritten digits of scikit-learn as labelled zips: python benchmarks/_digits.py FOLDER."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from PIL import Image
from sklearn import datasets

SIZE, SEED, NUM_TEST = 32, 0, 297


def write(folder: Path) -> None:
    """Write ``train.zip`` (1,500) and ``test.zip`` (297): class/number.png, 32 pixels a side."""
    folder.mkdir(parents=True, exist_ok=True)
    found = datasets.load_digits()
    order = np.random.default_rng(SEED).permutation(len(found.images))
    for name, rows in (("test", order[:NUM_TEST]), ("train", order[NUM_TEST:])):
        with ZipFile(folder / f"{name}.zip", "w") as archive:
            for row in rows:
                small = Image.fromarray(np.rint(found.images[row] * 255 / 16).astype(np.uint8))
                data = BytesIO()
                small.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB").save(
                    data, "PNG"
                )
                archive.writestr(f"{found.target[row]}/{row:04d}.png", data.getvalue())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
