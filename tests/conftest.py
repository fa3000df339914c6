"""Settings and fixtures of every test: few threads, fixed seeds, where the real data lies."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
START = time.monotonic()

# Two threads in all, whatever the number of workers; processes that tests start inherit it.
_SHARE = max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ.setdefault("OMP_NUM_THREADS", str(_SHARE))
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# Tests of several folders share stubs and shapes: ``from contracts.stubs import ...``.
sys.path.append(str(ROOT / "tests"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Slow tests can be bound in time, so that a slow machine runs fewer of them."""
    parser.addoption("--within", type=float, metavar="MINUTES", help="skip what starts later")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that would start after ``--within``."""
    minutes = item.config.getoption("--within")
    if minutes is not None and time.monotonic() - START > 60 * minutes:
        pytest.skip(f"not started within {minutes:g} minutes")


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
