"""Our hypernetwork against the official PyTorch port, on random weights.

``data/zett_hypernet.npz`` holds arrays alone: every tensor of ``ZettHypernet`` of
bminixhofer/zett (commit 0167758; ``hf_hypernet/modeling_hypernet.py``, with RoBERTa-base's own
configuration) and what it gave in fp32 on a CPU. n_embd 6, width 8, inner width 20, 3 layers of 2
heads, 7 pieces of 50 source tokens, 40 rows. A (generator seed 11): separate output embeddings, 3
languages of which the third is used, 4 extra tokens, a bias, pad 1. B (seed 12): tied, none of
these, pad 49. All tensors 0.3 * randn in the order of their sorted names, gains of norms and
scalers about 1, then lengths, ids and source embeddings from the same generator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polytok.core.errors import WeightsError
from polytok.systems.keymap import to_ours, to_theirs
from polytok.systems.text.zett import Hypernet, convert_hypernet, load_hypernet, save_hypernet
from polytok.systems.text.zett.convert import key_map

pytestmark = pytest.mark.parity
DATA = Path(__file__).parent / "data" / "zett_hypernet.npz"
SHARED: dict[str, Any] = {
    "n_embd": 6,
    "hn_hidden_size": 8,
    "hn_intermediate_size": 20,
    "hn_n_layers": 3,
    "hn_num_attention_heads": 2,
    "hn_surface_maxlen": 7,
    "hn_rescale_embeddings": True,
    "hn_embed_using_source_embeddings": True,
    "original_vocab_size": 50,
}
VALUES: dict[str, dict[str, Any]] = {
    "A": {
        **SHARED,
        "separate_out_embeddings": True,
        "hn_embed_lang_id": True,
        "n_langs": 3,
        "hn_n_extra_tokens": 4,
        "pad_token_id": 1,
    },
    "B": {**SHARED, "hn_n_extra_tokens": 0, "hn_predict_bias": False, "pad_token_id": 49},
}


def arrays(name: str) -> dict[str, Tensor]:
    start = f"{name}/"
    with np.load(DATA) as found:
        return {
            k.removeprefix(start): torch.from_numpy(found[k])
            for k in found.files
            if k.startswith(start)
        }


def state_of(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("state/"): v for k, v in found.items() if k.startswith("state/")}


@pytest.fixture(params=VALUES)
def case(request: pytest.FixtureRequest) -> tuple[str, Hypernet, dict[str, Tensor]]:
    found = arrays(request.param)
    return request.param, convert_hypernet(state_of(found), VALUES[request.param]), found


@pytest.mark.parametrize("way", ["forward", "by_length"])
@torch.no_grad()
def test_embeddings_are_those_of_the_official_port(
    way: str, case: tuple[str, Hypernet, dict[str, Tensor]]
) -> None:
    name, network, found = case
    call = network if way == "forward" else network.by_length
    out = call(found["surface"], found["source"], 2 if name == "A" else None)
    torch.testing.assert_close(out.input, found["input"], atol=2e-5, rtol=0)
    if name == "A":
        assert out.output is not None and out.bias is not None
        torch.testing.assert_close(out.output, found["output"], atol=2e-5, rtol=0)
        torch.testing.assert_close(out.bias, found["bias"], atol=2e-5, rtol=0)
    else:
        assert out.output is None and out.bias is None
        assert not found["bias"].any()


def test_rows_of_the_key_map_go_both_ways(
    case: tuple[str, Hypernet, dict[str, Tensor]],
) -> None:
    _, network, found = case
    official, names = state_of(found), key_map(network.config)
    back = to_theirs(names, network.state_dict())
    assert all(torch.equal(tensor, official[key]) for key, tensor in back.items())
    assert to_ours(names, back).keys() == network.state_dict().keys()


def test_a_converted_network_is_saved_and_loaded(
    case: tuple[str, Hypernet, dict[str, Tensor]], tmp_path: Path
) -> None:
    _, network, _ = case
    save_hypernet(network, tmp_path)
    again = load_hypernet(tmp_path)
    assert again.config == network.config
    for key, value in network.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hn_model_type": "t5"}, "hn_model_type='t5'"),
        ({"hn_single_head": True}, "hn_single_head=True"),
        ({"hn_hidden_size": 16}, "shape"),
        ({"hn_n_layers": 2}, "unknown"),
        ({"hn_n_layers": 4}, "missing"),
    ],
)
def test_other_hypernetworks_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        convert_hypernet(state_of(arrays("B")), {**VALUES["B"], **change})


def test_tensors_and_configurations_that_lack_something_are_refused() -> None:
    with pytest.raises(WeightsError, match="position_embeddings"):
        convert_hypernet({"weight": torch.zeros(1)}, VALUES["B"])
    with pytest.raises(WeightsError, match="lacks pad_token_id"):
        values = {k: v for k, v in VALUES["B"].items() if k != "pad_token_id"}
        convert_hypernet(state_of(arrays("B")), values)
