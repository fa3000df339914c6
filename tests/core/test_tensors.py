"""What is said of tensors that do not fit."""

from __future__ import annotations

import pytest
import torch

from polytok.core.errors import WeightsError
from polytok.core.tensors import check_tensors


def test_dtypes_may_differ_but_not_floats_from_whole_numbers() -> None:
    wanted = {f"layer.{i}.weight": torch.zeros(2) for i in range(3)} | {"steps": torch.tensor(1)}
    check_tensors(wanted, {k: t.to("meta") for k, t in wanted.items()}, "file")
    narrow = {k: t.bfloat16() if t.ndim else t.int() for k, t in wanted.items()}
    check_tensors(wanted, narrow, "file")
    whole = {k: t.to(torch.uint8) for k, t in wanted.items()}
    with pytest.raises(WeightsError) as caught:
        check_tensors(wanted, whole, "file")
    kind = "uint8 instead of float32"
    assert str(caught.value) == f"file: tensors 3 of another kind (layer.{{0-2}}.weight {kind})"
