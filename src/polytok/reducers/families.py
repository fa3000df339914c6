"""Which model families and methods go together: data that tests walk and the docs print."""

from __future__ import annotations

from dataclasses import dataclass

from polytok.reducers.methods import method


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family.

    Args:
        example: a name of timm's, or a class of transformers'.
        patch: pixels a side. prefix: class and register tokens.
        has_class_token: whether the first token is one.
        averages: whether the example's head averages patch tokens without knowing their sizes.
        refused: why no method works; "" where some do.
    """

    name: str
    library: str
    example: str
    patch: int = 16
    prefix: int = 1
    has_class_token: bool = True
    averages: bool = False
    refused: str = ""

    def cell(self, name: str) -> str:
        """Why a method does not work, "" if it does."""
        reducer = method(name)[1]
        if self.refused:
            return self.refused
        if reducer.needs_cls and not self.has_class_token:
            return "no class token"
        if reducer.tracks_size and self.averages:
            return "with restore='grid'"
        return ""


_PAIRS = "a position bias per pair of patches"
_TIMM, _HF = "timm", "transformers"

FAMILIES = (
    Family(name="ViT", library=_TIMM, example="vit_tiny_patch16_224"),
    Family(name="DeiT", library=_TIMM, example="deit_small_patch16_224"),
    Family(
        name="DeiT distilled", library=_TIMM, example="deit_small_distilled_patch16_224", prefix=2
    ),
    Family(name="DeiT-III", library=_TIMM, example="deit3_small_patch16_224"),
    Family(name="DINOv2", library=_TIMM, example="vit_small_patch14_dinov2", patch=14),
    Family(
        name="DINOv2 with registers",
        library=_TIMM,
        example="vit_small_patch14_reg4_dinov2",
        patch=14,
        prefix=5,
    ),
    Family(name="CLIP", library=_TIMM, example="vit_base_patch16_clip_224"),
    Family(
        name="SigLIP",
        library=_TIMM,
        example="vit_base_patch16_siglip_224",
        prefix=0,
        has_class_token=False,
    ),
    Family(name="EVA-02", library=_TIMM, example="eva02_tiny_patch14_224", patch=14),
    Family(name="DINOv3", library=_TIMM, example="vit_small_patch16_dinov3", prefix=5),
    Family(name="Perception Encoder", library=_TIMM, example="vit_pe_core_tiny_patch16_384"),
    Family(name="ViT, axial RoPE", library=_TIMM, example="vit_small_patch16_rope_224"),
    Family(name="ViT, mixed RoPE", library=_TIMM, example="vit_small_patch16_rope_mixed_224"),
    Family(name="ViT", library=_HF, example="ViTForImageClassification"),
    Family(name="DeiT", library=_HF, example="DeiTForImageClassificationWithTeacher", prefix=2),
    Family(name="DINOv2", library=_HF, example="Dinov2Model"),
    Family(
        name="DINOv2, classifier",
        library=_HF,
        example="Dinov2ForImageClassification",
        averages=True,
    ),
    Family(name="DINOv2 with registers", library=_HF, example="Dinov2WithRegistersModel", prefix=5),
    Family(name="BEiT", library=_TIMM, example="beit_base_patch16_224", refused=_PAIRS),
    Family(name="BEiT", library=_HF, example="BeitModel", refused=_PAIRS),
    Family(
        name="ViT, relative positions",
        library=_TIMM,
        example="vit_relpos_small_patch16_224",
        refused=_PAIRS,
    ),
    Family(
        name="NaFlexViT",
        library=_TIMM,
        example="naflexvit_base_patch16_gap",
        refused="padded sequences with their own masks",
    ),
    Family(
        name="ViT, parallel blocks",
        library=_TIMM,
        example="vit_small_patch16_18x2_224",
        refused="no place between attention and MLP",
    ),
    Family(
        name="Swin",
        library=_TIMM,
        example="swin_tiny_patch4_window7_224",
        patch=4,
        refused="windows need every patch",
    ),
    Family(
        name="DINOv2, backbone",
        library=_HF,
        example="Dinov2Backbone",
        refused="returns maps of every block",
    ),
)
