"""Three classes of noisy pictures that a tiny classifier learns at once."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from PIL import Image

RECIPE = """
preset = "{preset}"
init = "{init}"
stages = [{{ name = "{stage}", samples = {samples} }}]
[config]
{config}
[data]
train = "{data}"
[sampling]
shift = 1
erase = 0.0
held_out = 6
[train]
batch_size = 12
lr = {lr}
weight_decay = 0.0
ema_decay = 0.0
precision = "fp32"
device = "cpu"
num_workers = 0
"""


def write_stripes(path: Path) -> Path:
    """A zip of rows, columns and plain tones, 16 pixels a side, ten of each."""
    rng = np.random.default_rng(0)
    waves = {
        "rows": np.sin(np.arange(16))[:, None],
        "columns": np.sin(np.arange(16))[None],
        "plain": np.zeros((16, 16)),
    }
    with ZipFile(path, "w") as out:
        for name, wave in waves.items():
            for i in range(10):
                tone = 128 + 80 * np.broadcast_to(wave, (16, 16)) + rng.normal(0, 8, (16, 16))
                file = BytesIO()
                Image.fromarray(tone.clip(0, 255).astype(np.uint8)).convert("RGB").save(file, "PNG")
                out.writestr(f"{name}/{i}.png", file.getvalue())
    return path


def write_recipe(folder: Path, data: Path, **values: object) -> Path:
    """A recipe of few samples on the stripes."""
    path = folder / f"{values['preset']}.toml"
    defaults = {"init": "", "config": "", "lr": "1e-3"}
    path.write_text(RECIPE.format(data=data, **{**defaults, **values}))
    return path
