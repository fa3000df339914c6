"""timm and transformers import beside a torchvision of another build."""

from __future__ import annotations

import subprocess
import sys

import pytest

from polytok.core.errors import PolytokError
from polytok.networks.pretrained.optional import import_hf


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_timm_and_transformers_import_in_a_fresh_process() -> None:
    run(
        "from polytok.networks.pretrained.optional import import_hf\n"
        "assert import_hf('timm').create_model('vit_tiny_patch16_224', num_classes=3)\n"
        "assert import_hf('transformers').ViTModel\n"
    )


def test_a_missing_library_is_named_with_its_extra() -> None:
    run(
        "import sys; sys.modules['timm'] = None\n"
        "from polytok.core.errors import PolytokError\n"
        "from polytok.networks.pretrained.optional import import_hf\n"
        "try: import_hf('timm')\n"
        "except PolytokError as error: assert 'polytok[hf]' in str(error), error\n"
        "else: raise AssertionError('no error')\n"
    )


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(PolytokError, match=r"polytok\[hf\]"):
        import_hf("transformers_of_nowhere")
