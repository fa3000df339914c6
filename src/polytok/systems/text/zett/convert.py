"""Official hypernetworks: their names and shapes in ours, row by row (card section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from polytok.core import hub
from polytok.core.errors import WeightsError
from polytok.systems.keymap import FIRST, KeyMap, Row, check, row, rows, to_ours, under
from polytok.systems.text.zett.config import HypernetConfig
from polytok.systems.text.zett.hypernet import Hypernet

# What the official configuration must say, as its other ways of working were never published.
_ONLY = {
    "hn_model_type": "roberta",
    "hn_embed_using_source_embeddings": True,
    "hn_rescale_embeddings": True,
    "hn_single_head": False,
    "hn_concat_last_hidden_state": False,
    "hn_add_inter_token_attention": False,
    "hn_embed_target_priors": False,
}
_UNREAD = ("model.embeddings.word_embeddings.weight", "model.embeddings.position_ids")


def official_config(values: Mapping[str, Any], num_positions: int) -> HypernetConfig:
    """The configuration that an official config.json describes.

    Args:
        num_positions: rows of the stored position table.

    Raises:
        WeightsError: it lacks a key, or describes a hypernetwork of another kind.
    """
    for name, only in _ONLY.items():
        if values.get(name, only) != only:
            raise WeightsError(f"{name}={values[name]!r} is not known here; only {only!r} is")
    try:
        dim = values["hn_hidden_size"]
        return HypernetConfig(
            language_model=values.get("_name_or_path", ""),
            vocab_size=values["original_vocab_size"],
            # The official table always has a row, read or not.
            num_extra=max(values.get("hn_n_extra_tokens", 0), 1),
            pad_id=values["pad_token_id"],
            embed_dim=values["n_embd"],
            is_tied=not values.get("separate_out_embeddings", False),
            has_bias=values.get("hn_predict_bias", True),
            dim=dim,
            inner_dim=values["hn_intermediate_size"],
            num_heads=values.get("hn_num_attention_heads") or dim // 64,
            num_layers=values.get("hn_n_layers", 3),
            max_pieces=values["hn_surface_maxlen"],
            num_positions=num_positions,
            num_languages=values["n_langs"] if values.get("hn_embed_lang_id") else 0,
        )
    except KeyError as error:
        raise WeightsError(f"the official configuration lacks {error.args[0]}") from error


def key_map(config: HypernetConfig) -> KeyMap:
    """Rows between our tensors and the official ones."""
    found = [
        row("positions.weight", "model.embeddings.position_embeddings.weight"),
        row("kind", "model.embeddings.token_type_embeddings.weight", FIRST),
        *rows({"norm": "model.embeddings.LayerNorm", "input.0": "input_projection.0"}),
        *_projector("input.1", "input_projection.1"),
        *_scaler("in_scaler", "in_scaler"),
        *_head("output", "output_projection", "scaler"),
    ]
    if not config.is_tied:
        found += _head("output_out", "output_projection_out", "out_scaler")
    if config.num_extra:
        found.append(row("fallback.weight", "fallback_embeddings.weight"))
    if config.num_languages:
        found.append(row("languages.weight", "lang_embeddings.weight"))
    if config.has_bias:
        found += rows({"bias": "bias_projection"})
    for index in range(config.num_layers):
        found += under(f"layers.{index}.", f"model.encoder.layer.{index}.", rows(_LAYER))
    return KeyMap(tuple(found), unread=_UNREAD)


def convert_hypernet(official: Mapping[str, Tensor], values: Mapping[str, Any]) -> Hypernet:
    """Build a hypernetwork of official weights.

    Args:
        official: the state dict of ``ZettHypernet``. values: its config.json.

    Raises:
        WeightsError: tensors are missing, unknown or of another shape, or see
            :func:`official_config`.
    """
    table = "model.embeddings.position_embeddings.weight"
    if table not in official:
        raise WeightsError(f"not a hypernetwork's tensors: {table} is missing")
    network = Hypernet(official_config(values, len(official[table])))
    names = key_map(network.config)
    check(names, network.state_dict(), official, "not a hypernetwork's")
    network.load_state_dict(to_ours(names, official))
    return network.eval()


def save_hypernet(network: Hypernet, folder: hub.StrPath, preset: str = "zett-gpt2") -> str:
    """Write a folder that :func:`load_hypernet` takes; returns the fingerprint of its weights."""
    module = nn.ModuleDict({"hypernet": network})
    return hub.save_pretrained(module, network.config, folder, system="zett", preset=preset)


_LAYER = {
    "to_q": "attention.self.query",
    "to_k": "attention.self.key",
    "to_v": "attention.self.value",
    "out": "attention.output.dense",
    "norm_attention": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm_mlp": "output.LayerNorm",
}


def _projector(ours: str, theirs: str) -> list[Row]:
    names = (("up", "dense1"), ("down", "dense2"), ("norm", "ln"))
    return rows({f"{ours}.{a}": f"{theirs}.{b}" for a, b in names})


def _scaler(ours: str, theirs: str) -> list[Row]:
    return [
        row(f"{ours}.gain", f"{theirs}.w", FIRST),
        row(f"{ours}.shift", f"{theirs}.b", FIRST),
    ]


def _head(ours: str, theirs: str, scaler: str) -> list[Row]:
    return [
        *_projector(f"{ours}.block", f"{theirs}.0"),
        *rows({f"{ours}.proj": f"{theirs}.1"}),
        *_scaler(f"{ours}.scaler", scaler),
    ]
