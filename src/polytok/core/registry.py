"""The registry: a literal table of systems, presets and weights. Importing it imports no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Literal

from polytok.core.errors import UnknownNameError

Kind = Literal["tokenizer", "generator", "reducer", "model", "tool"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Trained weights of a preset.

    Args:
        preset: the preset they belong to.
        path: folder below ``polytok/weights`` that ships, or a Hugging Face repository id.
        fingerprint: 4 bytes, hex, that tie a ``.ptk`` file to these weights.
        notice: what whoever encodes with them should know, on one line; or nothing.
        draws: tag of the tokenizer whose codes a generator draws. Of several the last is its prior.
    """

    preset: str
    path: str
    fingerprint: str
    notice: str = ""
    draws: str = ""


@dataclass(frozen=True, kw_only=True)
class System:
    """One published method: where its code lives and what it offers."""

    name: str
    kind: Kind
    modality: str
    title: str
    paper: str
    target: str
    presets: tuple[str, ...]
    default_weights: dict[str, str] = field(default_factory=dict)

    def load(self) -> Any:
        """Import the system's module."""
        return importlib.import_module(self.target)


SYSTEMS: dict[str, System] = {
    s.name: s
    for s in (
        System(
            name="vat",
            kind="tokenizer",
            modality="shape",
            title="3D representation in 512-Byte: variational tokenizer",
            paper="arXiv 2412.02202",
            target="polytok.systems.shape.vat",
            presets=(
                "vat-512b-tiny",
                "vat-512b-small",
                "vat-512b",
                "vat-4kb-small",
                "vat-4kb",
            ),
            default_weights={"vat-512b-small": "vat-512b-small.shapes2"},
        ),
        System(
            name="vat-gen",
            kind="generator",
            modality="shape",
            title="3D representation in 512-Byte: next-scale generation",
            paper="arXiv 2412.02202",
            target="polytok.systems.shape.vat.generator",
            presets=(
                "vat-512b-tiny-gen",
                "vat-512b-small-gen",
                "vat-512b-gen-8m",
                "vat-512b-gen-28m",
                "vat-512b-gen-60m",
                "vat-512b-gen-120m",
                "vat-512b-gen-0.5b",
                "vat-512b-gen-1.5b",
            ),
            default_weights={"vat-512b-small-gen": "vat-512b-small-gen.shapes4"},
        ),
        System(
            name="titok",
            kind="tokenizer",
            modality="image",
            title="An image is worth 32 tokens: TiTok",
            paper="arXiv 2406.07550",
            target="polytok.systems.image.titok",
            presets=(
                "titok-tiny",
                "titok-l32",
                "titok-b64",
                "titok-s128",
                "titok-bl64-vq8k",
                "titok-bl128-vq8k",
                "titok-sl256-vq8k",
                "titok-ll32-vae-c16",
                "titok-bl64-vae-c16",
                "titok-bl128-vae-c16",
            ),
        ),
        System(
            name="one-d-piece",
            kind="tokenizer",
            modality="image",
            title="One-D-Piece: image tokens of which every prefix is a picture",
            paper="arXiv 2501.10064",
            target="polytok.systems.image.one_d_piece",
            presets=(
                "one-d-piece-tiny",
                "one-d-piece-micro",
                "one-d-piece-s-256",
                "one-d-piece-b-256",
                "one-d-piece-l-256",
            ),
            default_weights={"one-d-piece-tiny": "one-d-piece-tiny.free"},
        ),
        System(
            name="vqgan",
            kind="tokenizer",
            modality="image",
            title="VQGAN: a small convolutional tokenizer of images, a teacher of others",
            paper="arXiv 2012.09841",
            target="polytok.systems.classics.vqgan",
            presets=("vqgan-tiny", "vqgan-64"),
        ),
        System(
            name="maskgit-vqgan",
            kind="tokenizer",
            modality="image",
            title="MaskGIT's VQGAN: a grid of image tokens without attention",
            paper="arXiv 2202.04200",
            target="polytok.systems.classics.maskgit_vqgan",
            presets=("maskgit-vqgan-tiny", "maskgit-vqgan"),
        ),
        System(
            name="maskgit",
            kind="generator",
            modality="image",
            title="MaskGIT: masked generative image transformer, over the tokens of TiTok's kind",
            paper="arXiv 2202.04200",
            target="polytok.systems.classics.maskgit",
            presets=(
                "maskgit-tiny",
                "one-d-piece-tiny-gen",
                "one-d-piece-s-256-gen",
                "one-d-piece-b-256-gen",
                "one-d-piece-l-256-gen",
                "titok-l32-gen",
                "titok-b64-gen",
                "titok-s128-gen",
            ),
            default_weights={"one-d-piece-tiny-gen": "one-d-piece-tiny-gen.free"},
        ),
        System(
            name="vit-classifier",
            kind="model",
            modality="image",
            title="An image is worth 16x16 words: vision transformer, the subject of reduction",
            paper="arXiv 2010.11929",
            target="polytok.systems.classics.vit_classifier",
            presets=("vit-classifier-tiny", "vit-classifier-cifar"),
        ),
        System(
            name="attention-vat",
            kind="model",
            modality="text",
            title="Attention made robust and interpretable by virtual adversarial training",
            paper="arXiv 2104.08763",
            target="polytok.systems.theory.attention_vat",
            presets=(
                "attention-vat-tiny",
                "attention-vat-small",
                "attention-vat-projection-small",
                "attention-vat-pair-small",
                "attention-vat",
                "attention-vat-pair",
            ),
        ),
        System(
            name="fastervlm",
            kind="reducer",
            modality="multimodal",
            title="[CLS] attention is all you need for training-free visual token pruning",
            paper="arXiv 2412.01818",
            target="polytok.systems.vlm.fastervlm",
            presets=("fastervlm-64", "fastervlm-128", "fastervlm-192"),
        ),
        System(
            name="vtc-cls",
            kind="reducer",
            modality="multimodal",
            title="[CLS] token tells everything needed for training-free efficient MLLMs",
            paper="arXiv 2412.05819",
            target="polytok.systems.vlm.vtc_cls",
            presets=("vtc-cls-64", "vtc-cls-128", "vtc-cls-256"),
        ),
        System(
            name="hired",
            kind="reducer",
            modality="multimodal",
            title="HiRED: attention-guided token dropping for high-resolution models",
            paper="arXiv 2408.10945",
            target="polytok.systems.vlm.hired",
            presets=("hired-20", "hired-40", "hired-20-published"),
        ),
        System(
            name="dyvte",
            kind="reducer",
            modality="multimodal",
            title="Dynamic visual-token exit and the empirical findings",
            paper="arXiv 2411.19628",
            target="polytok.systems.vlm.dyvte",
            presets=(),
        ),
        System(
            name="evit",
            kind="reducer",
            modality="image",
            title="Not all patches are what you need: token reorganization by class attention",
            paper="arXiv 2202.07800",
            target="polytok.systems.vit.evit",
            presets=("evit",),
        ),
        System(
            name="mctf",
            kind="reducer",
            modality="image",
            title="Multi-criteria token fusion with one-step-ahead attention",
            paper="arXiv 2403.10030",
            target="polytok.systems.vit.mctf",
            presets=("mctf",),
        ),
        System(
            name="diffrate",
            kind="reducer",
            modality="image",
            title="Differentiable compression rates for vision transformers",
            paper="arXiv 2305.17997",
            target="polytok.systems.vit.diffrate",
            presets=("diffrate", "diffrate-deit-tiny-0.8"),
        ),
        System(
            name="tome",
            kind="reducer",
            modality="image",
            title="Token merging: your ViT but faster",
            paper="arXiv 2210.09461",
            target="polytok.systems.classics.tome",
            presets=("tome",),
        ),
        System(
            name="posterior-collapse",
            kind="tool",
            modality="any",
            title="Posterior collapse: closed forms of linear, conditional and hierarchical VAEs",
            paper="arXiv 2306.05023",
            target="polytok.systems.theory.posterior_collapse",
            presets=(),
        ),
        System(
            name="data-mixture-inference",
            kind="tool",
            modality="text",
            title="Data mixture inference: what a BPE tokenizer tells of its training text",
            paper="arXiv 2407.16607",
            target="polytok.systems.text.data_mixture_inference",
            presets=(),
        ),
        System(
            name="zett",
            kind="model",
            modality="text",
            title="Zero-shot tokenizer transfer: a hypernetwork for embeddings",
            paper="arXiv 2405.07883",
            target="polytok.systems.text.zett",
            presets=(
                "zett-tiny",
                "zett-small",
                "zett-gpt2",
                "zett-tinyllama",
                "zett-mistral-7b",
            ),
        ),
    )
}

WEIGHTS: dict[str, Weights] = {
    "vat-512b-small.shapes1": Weights(
        preset="vat-512b-small", path="vat-512b-small.shapes1", fingerprint="263f6244"
    ),
    "vat-512b-small.shapes2": Weights(
        preset="vat-512b-small", path="vat-512b-small.shapes2", fingerprint="ee79e958"
    ),
    "vat-512b-small-gen.shapes1": Weights(
        preset="vat-512b-small-gen",
        path="vat-512b-small-gen.shapes1",
        fingerprint="3147606c",
        draws="vat-512b-small.shapes1",
    ),
    "vat-512b-small-gen.shapes2": Weights(
        preset="vat-512b-small-gen",
        path="vat-512b-small-gen.shapes2",
        fingerprint="e784f4ec",
        draws="vat-512b-small.shapes2",
    ),
    "vat-512b-small-gen.shapes3": Weights(
        preset="vat-512b-small-gen",
        path="vat-512b-small-gen.shapes3",
        fingerprint="979df5e3",
        draws="vat-512b-small.shapes2",
    ),
    "vat-512b-small-gen.shapes4": Weights(
        preset="vat-512b-small-gen",
        path="vat-512b-small-gen.shapes4",
        fingerprint="a4c6e930",
        draws="vat-512b-small.shapes2",
    ),
    "one-d-piece-tiny.free": Weights(
        preset="one-d-piece-tiny",
        path="one-d-piece-tiny.free",
        fingerprint="9af3c9d6",
        notice="learnt from emoji, icons and renders of shapes, not from photos",
    ),
    "one-d-piece-tiny-gen.free": Weights(
        preset="one-d-piece-tiny-gen",
        path="one-d-piece-tiny-gen.free",
        fingerprint="afd88a4c",
        draws="one-d-piece-tiny.free",
    ),
}


def preset_names() -> list[str]:
    """Every preset of every system, sorted."""
    return sorted(p for s in SYSTEMS.values() for p in s.presets)


def system_of(preset: str) -> System:
    """Return the system that owns a preset.

    Raises:
        UnknownNameError: no system has it; the nearest name is suggested.
    """
    for system in SYSTEMS.values():
        if preset in system.presets:
            return system
    raise UnknownNameError("preset", preset, preset_names())


def list_systems(*, kind: Kind | None = None, modality: str | None = None) -> list[str]:
    """Names of the registered systems, sorted, of one kind or modality if given."""
    return sorted(
        s.name
        for s in SYSTEMS.values()
        if kind in (None, s.kind) and modality in (None, s.modality)
    )
