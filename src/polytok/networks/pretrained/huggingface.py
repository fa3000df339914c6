"""Frozen pretrained towers from the Hugging Face hub, through ``transformers``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError, PolytokError, WeightsError, one_line
from polytok.layers import Frozen
from polytok.networks.pretrained.image import prepare_images
from polytok.networks.pretrained.optional import import_hf
from polytok.networks.pretrained.slots import (
    Tower,
    TowerOutput,
    listed,
    masked_mean,
    taken,
    taken_text,
)


class HFTextTower(Tower):
    """``text`` (B, n) int64 and ``text_mask`` (B, n) bool -> a text model's last hidden states.

    Encoders (BERT, CLIP, SigLIP), and the encoder of T5 and its kind. ``pooled`` is the model's
    own where it has one of width ``dim``, else the mean of the valid tokens.

    Args:
        model_id: a repository of the hub, or a local folder; weights must be safetensors.
        revision: commit, tag or branch; give a commit to have the same weights for ever.
        max_tokens: longer texts are cut, see :meth:`is_cut`.

    Raises:
        PolytokError: ``transformers`` is not installed.
        WeightsError: the model cannot be had.
        ConfigError: the model takes fewer than ``max_tokens``.
    """

    def __init__(self, model_id: str, revision: str | None = None, max_tokens: int = 77) -> None:
        super().__init__()
        self._hold(
            _fetched_model(model_id, revision),
            _fetched("transformers", "AutoTokenizer.from_pretrained", model_id, revision),
            max_tokens,
        )

    @classmethod
    def from_model(cls, model: nn.Module, processor: Any, max_tokens: int = 77) -> Self:
        """Make the tower of a model and a tokenizer that are there already."""
        tower = cls.__new__(cls)
        Tower.__init__(tower)
        tower._hold(model, processor, max_tokens)
        return tower

    def _hold(self, model: Any, processor: Any, max_tokens: int) -> None:
        model = _part(model, "text_model")
        limit = getattr(model.config, "max_position_embeddings", None) or max_tokens
        if not 1 <= max_tokens <= limit:
            raise ConfigError(f"max_tokens={max_tokens} is not within 1..{limit}")
        if processor.pad_token_id is None:
            raise ConfigError("the tokenizer has no token to pad with; set its pad_token")
        self.dim, self.max_tokens = _width(model), max_tokens
        self.processor = processor
        self.model = Frozen(model)

    def prepare(self, signals: Sequence[Any]) -> dict[str, Tensor]:
        """Encode texts: ``text`` (B, max_tokens) and ``text_mask`` with one valid token or more."""
        found = self.processor(
            listed(signals, str, "texts"),
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = found["attention_mask"].bool()
        # Tokenizers without a begin or end token give nothing for an empty text.
        mask[:, 0] = True
        return {"text": found["input_ids"].long(), "text_mask": mask}

    def is_cut(self, signals: Sequence[str]) -> list[bool]:
        """Whether a text is too long for ``max_tokens``, for each."""
        limit = self.max_tokens + 1
        found = self.processor(listed(signals, str, "texts"), truncation=True, max_length=limit)
        return [len(ids) == limit for ids in found["input_ids"]]

    def forward(self, inputs: dict[str, Tensor]) -> TowerOutput:
        """Turn ``text`` (B, n), n at most ``max_tokens``, into tokens (B, n, dim)."""
        ids, mask = taken_text(inputs, self.max_tokens)
        found = self.model(input_ids=ids, attention_mask=mask.long())
        tokens = found.last_hidden_state
        pooled = _own_pooled(found, self.dim)
        return TowerOutput(
            tokens=tokens,
            mask=mask,
            pooled=masked_mean(tokens, mask) if pooled is None else pooled,
        )


class HFImageTower(Tower):
    """``image`` (B, 3, size, size) in [0, 1] -> a vision model's last hidden states, all valid.

    Vision transformers such as DINOv2, ViT, and the image side of CLIP and SigLIP. ``size`` and
    the normalisation are those of the model's processor. ``tokens`` keep what stands before the
    patches. ``pooled`` is the model's own where it has one of width ``dim``, else its class token,
    else the mean.

    Args:
        model_id: a repository of the hub, or a local folder; weights must be safetensors.
        revision: commit, tag or branch; give a commit to have the same weights for ever.

    Raises:
        PolytokError: ``transformers`` is not installed.
        WeightsError: the model cannot be had.
        ConfigError: its processor's settings are missing or of an unknown kind.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model_id: str, revision: str | None = None) -> None:
        super().__init__()
        model = _fetched_model(model_id, revision)
        # The processor itself may want torchvision; its settings are all that is needed.
        settings, _ = _fetched(
            "transformers.image_processing_base",
            "ImageProcessingMixin.get_image_processor_dict",
            model_id,
            revision,
        )
        self._hold(model, settings)

    @classmethod
    def from_model(cls, model: nn.Module, processor: Any) -> Self:
        """Make the tower of a model and an image processor, or the processor's settings."""
        tower = cls.__new__(cls)
        Tower.__init__(tower)
        tower._hold(model, processor if isinstance(processor, Mapping) else processor.to_dict())
        return tower

    def _hold(self, model: Any, settings: Mapping[str, Any]) -> None:
        model = _part(model, "vision_model")
        self.dim, self.size = _width(model), _side(settings)
        # Settings count pixels from 0 to 255, batches from 0 to 1.
        scale = 255 * settings.get("rescale_factor", 1 / 255)
        self.scale = scale if settings.get("do_rescale", True) else 255.0
        mean: list[float] | None = [0.0] * 3
        std: list[float] | None = [1.0] * 3
        if settings.get("do_normalize", True):
            mean, std = settings.get("image_mean"), settings.get("image_std")
        if mean is None or std is None or len(mean) != 3 or len(std) != 3:
            raise ConfigError(f"image_mean={mean}, image_std={std} are not three values each")
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        patch = getattr(model.config, "patch_size", None)
        self.num_patches = (self.size // patch) ** 2 if isinstance(patch, int) else None
        self.model = Frozen(model)

    def prepare(self, signals: Sequence[Any]) -> dict[str, Tensor]:
        """Frame PIL images on white: ``image`` (B, 3, size, size) in [0, 1]."""
        return prepare_images(signals, self.size)

    def forward(self, inputs: dict[str, Tensor]) -> TowerOutput:
        """Turn ``image`` into tokens (B, m, dim)."""
        image = taken(inputs, "image", (None, 3, self.size, self.size))
        found = self.model(pixel_values=(image * self.scale - self.mean) / self.std)
        tokens = found.last_hidden_state
        if tokens.ndim != 3:
            raise PolytokError(f"the model gives a map {tuple(tokens.shape)}, not (B, m, dim)")
        pooled = _own_pooled(found, self.dim)
        if pooled is None:
            has_class = self.num_patches is not None and tokens.shape[1] > self.num_patches
            pooled = tokens[:, 0] if has_class else tokens.mean(1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return TowerOutput(tokens=tokens, mask=mask, pooled=pooled)


def _fetched(
    module: str, function: str, model_id: str, revision: str | None, **options: Any
) -> Any:
    """What a function of ``transformers``, named ``Class.method``, makes of a repository."""
    found = import_hf(module)
    owner, method = function.split(".")
    call = getattr(getattr(found, owner), method)
    try:
        return call(model_id, revision=revision, **options)
    except Exception as error:
        where = model_id if revision is None else f"{model_id}@{revision}"
        raise WeightsError(f"cannot fetch {where!r}: {one_line(error)}") from error


def _fetched_model(model_id: str, revision: str | None) -> nn.Module:
    return _fetched(
        "transformers",
        "AutoModel.from_pretrained",
        model_id,
        revision,
        dtype=torch.float32,
        use_safetensors=True,
    )


def _part(model: Any, side: str) -> Any:
    """The side that is needed of a model with two, or the encoder of one that also writes."""
    if hasattr(model, side):
        return getattr(model, side)
    return model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model


def _width(model: Any) -> int:
    width = getattr(model.config, "hidden_size", None)
    if not isinstance(width, int):
        raise ConfigError(f"{type(model).__name__} has no hidden_size, so no tokens of one width")
    return width


def _side(settings: Mapping[str, Any]) -> int:
    """Pixels per side that a processor's settings lead to."""
    name = "crop_size" if settings.get("do_center_crop") and settings.get("crop_size") else "size"
    given = settings.get(name)
    sides = set(given.values()) if isinstance(given, Mapping) else {given}
    side = sides.pop() if len(sides) == 1 else None
    if not isinstance(side, int) or side < 1:
        raise ConfigError(f"the image processor's {name}={given} is not one side in pixels")
    return side


def _own_pooled(found: Any, dim: int) -> Tensor | None:
    pooled = getattr(found, "pooler_output", None)
    return pooled if pooled is not None and pooled.shape[1:] == (dim,) else None
