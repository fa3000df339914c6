"""Train the stub for two stages of so many steps: python _worker.py FOLDER STEPS."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from _stub import STAGE, Source, Stub

from polytok.training import TrainConfig, fit

folder, steps = sys.argv[1], int(sys.argv[2])
config = TrainConfig(
    batch_size=8,
    lr=1e-2,
    log_every=8,
    save_every=10**9,
    num_workers=1,
    precision="fp32",
    device="cpu",
)
late = replace(STAGE, name="late", train=("decoder.*", "norm.*"), options={"is_noisy": False})
fit(Stub(), [(STAGE, 8 * steps), (late, 8 * steps)], Source(), config, folder)
