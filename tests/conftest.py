"""Settings and fixtures of every test: few threads, fixed seeds, where the real data lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# Two threads in all, whatever the number of workers; processes that tests start inherit it.
_SHARE = max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ.setdefault("OMP_NUM_THREADS", str(_SHARE))
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# Tests of several folders share stubs and shapes: ``from contracts.stubs import ...``.
sys.path.append(str(ROOT / "tests"))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Seed torch's global generator, which only initial weights and tests draw from."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data sets: POLYTOK_DATA, else ``shared/data`` beside the repository."""
    folder = Path(os.environ.get("POLYTOK_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; set POLYTOK_DATA to the folder of the data sets")
    return folder
