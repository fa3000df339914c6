"""What importing costs: the names, the registry and the file format need no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "scipy", "trimesh", "skimage", "accelerate", "transformers")
PROBE = """
import sys
{statement}
print(*(name for name in {heavy!r} if name in sys.modules))
"""


def loaded_by(statement: str) -> set[str]:
    """Heavy modules that a fresh interpreter has loaded after a statement."""
    code = PROBE.format(statement=statement, heavy=HEAVY)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import polytok",
        "import polytok; polytok.__version__; dir(polytok)",
        "import polytok; polytok.list_systems()",
        "import polytok.core.registry, polytok.core.config, polytok.core.files",
        "import polytok.core.seeding; polytok.core.seeding.numpy_rng(0)",
        "import polytok.bitstream",
        "import polytok.systems",
        "import polytok.signals.mesh",
        "import polytok.cli",
    ],
)
def test_no_torch_is_imported(statement: str) -> None:
    assert not loaded_by(statement) & {"torch", "accelerate", "transformers"}


def test_the_front_door_imports_nothing_heavy() -> None:
    assert not loaded_by("import polytok; polytok.list_systems()")


def test_contracts_do_import_torch() -> None:
    assert "torch" in loaded_by("import polytok.core.contracts")
