"""Official weights of TiTok and One-D-Piece: their names and shapes in ours (card titok 8)."""

from __future__ import annotations

from polytok.core import registry
from polytok.core.errors import WeightsError
from polytok.systems.classics import maskgit_vqgan
from polytok.systems.image.titok.config import TiTokConfig, TowerConfig
from polytok.systems.image.titok.model import TiTok
from polytok.systems.keymap import (
    FIRST,
    POINTWISE,
    KeyMap,
    Official,
    Row,
    codebook_rows,
    row,
    rows,
    under,
)

_BLOCK = [
    row("attention.qkv.weight", "attn.in_proj_weight"),
    row("attention.qkv.bias", "attn.in_proj_bias"),
    *rows(
        {
            "norm_attention": "ln_1",
            "attention.out": "attn.out_proj",
            "norm_mlp": "ln_2",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        }
    ),
]


def key_map(config: TiTokConfig) -> KeyMap:
    """Rows between our tensors and the official ones.

    A stage-1 checkpoint, of codes without pixels, lacks ``pixel_*`` and does not fit.
    """
    found = [
        row("encoder.latents", "latent_tokens"),
        *under("encoder.", "encoder.", _tower(config.encoder)),
        *rows({"encoder.embed": "encoder.patch_embed"}),
        *under("decoder.", "decoder.", _tower(config.decoder)),
        row("decoder.mask_token", "decoder.mask_token", FIRST),
        *rows({"from_code": "decoder.decoder_embed"}),
    ]
    if config.bottleneck == "gaussian":
        found += _pointwise("bottleneck.to_moments", "encoder.conv_out")
    else:
        found += _pointwise("to_code", "encoder.conv_out")
        found += codebook_rows("bottleneck.", "quantize.", config.codebook_size)
    if config.pixels:
        found += _pointwise("head.up", "decoder.ffn.0") + _pointwise("head.out", "decoder.ffn.2")
        found += _pixels(config.pixels)
    else:
        found += _pointwise("head.out", "decoder.ffn.0")
        found += rows({"head.smooth": "decoder.conv_out"})
    return KeyMap(tuple(found))


def _tower(tower: TowerConfig) -> list[Row]:
    found = [
        row("class_token", "class_embedding"),
        row("position", "positional_embedding"),
        row("latent_position", "latent_token_positional_embedding"),
        *rows({"norm_in": "ln_pre", "norm_out": "ln_post"}),
    ]
    for i in range(tower.num_layers):
        found += under(f"blocks.{i}.", f"transformer.{i}.", _BLOCK)
    return found


def _pixels(name: str) -> list[Row]:
    """The codes that are predicted and the decoder of their pixels."""
    if registry.system_of(name).name != "maskgit-vqgan":
        raise WeightsError(
            f"no official weights decode through {name!r}, but through MaskGIT-VQGAN"
        )
    config = maskgit_vqgan.preset(name)
    return [
        row("pixels.codes", "pixel_quantize.embedding.weight"),
        *under("pixels.decoder.", "pixel_decoder.", maskgit_vqgan.decoder_rows(config)),
    ]


def _pointwise(ours: str, theirs: str) -> list[Row]:
    return [
        row(f"{ours}.weight", f"{theirs}.weight", POINTWISE),
        row(f"{ours}.bias", f"{theirs}.bias"),
    ]


OFFICIAL = Official(
    build=TiTok, key_map=key_map, source="bytedance/1d-tokenizer, turingmotors/One-D-Piece"
)
