"""Tiny vision-language models with random weights, one builder per family, and their inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polytok.networks.pretrained.optional import import_hf
from polytok.reducers.vlm.hosts import host_of
from reducers.models import IS_NEWER

hf = import_hf("transformers")

IMAGE = 90
START = 92
TEXT = 80
SIZE, PATCH = 32, 4
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": PATCH,
}


def build(family: str, kernel: str = "sdpa", **options: Any) -> Any:
    """A model of a family, in eval mode, with weights from seed 0."""
    torch.manual_seed(0)
    model = BUILDERS[family](**options)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    model.set_attn_implementation(kernel)
    # Larger weights than at initialisation, so that attention is far from uniform.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model.eval()


def llava(**options: Any) -> Any:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER),
        text_config=hf.LlamaConfig(**DECODER),
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        **{"vision_feature_layer": -2, **options},
    )
    return hf.LlavaForConditionalGeneration(config)


def llava_siglip(**options: Any) -> Any:
    config = hf.LlavaConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.LlamaConfig(**DECODER),
        image_token_id=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        **options,
    )
    return hf.LlavaForConditionalGeneration(config)


def llava_next(**options: Any) -> Any:
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER),
        text_config=hf.LlamaConfig(**DECODER),
        image_token_id=IMAGE,
        image_grid_pinpoints=[[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]],
        **options,
    )
    return hf.LlavaNextForConditionalGeneration(config)


def internvl(**options: Any) -> Any:
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**TOWER, use_qk_norm=True),
        text_config=hf.Qwen2Config(**DECODER),
        image_token_id=IMAGE,
        **options,
    )
    model = hf.InternVLForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.vision_tower.embeddings.cls_token)
    return model


def qwen2_5_vl(**options: Any) -> Any:
    sections = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    rope: dict[str, Any] = {"rope_scaling": sections, "rope_theta": 1e4}
    if IS_NEWER:
        rope = {"rope_parameters": {**sections, "rope_theta": 1e4}}
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 32,
            "depth": 4,
            "num_heads": 3,
            "patch_size": PATCH,
            "window_size": 16,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": 32,
        },
        text_config={**DECODER, **rope},
        image_token_id=IMAGE,
        video_token_id=91,
        vision_start_token_id=START,
        vision_end_token_id=93,
        **options,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


BUILDERS = {
    "llava": llava,
    "llava_siglip": llava_siglip,
    "llava_next": llava_next,
    "internvl": internvl,
    "qwen2_5_vl": qwen2_5_vl,
}
FAMILIES = ["llava", "llava_next", "internvl", "qwen2_5_vl"]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prompt(runs: list[int], text: int, seed: int) -> Tensor:
    """Ids with ``text`` words before, between and after runs of image tokens."""
    words = torch.randint(3, TEXT, (text * (len(runs) + 1),), generator=rng(seed)).split(text)
    parts = [words[0]]
    for run, after in zip(runs, words[1:], strict=True):
        parts += [torch.full((run,), IMAGE), after]
    return torch.cat(parts)


def padded(rows: list[Tensor]) -> dict[str, Tensor]:
    """Rows of ids in a batch, padded on the left."""
    longest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(r, (longest - len(r), 0)) for r in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(r) for r in rows]).long()
    return {"input_ids": ids, "attention_mask": mask}


def right(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch that is padded on the left, padded on the right."""
    mask = inputs["attention_mask"]
    order = mask.argsort(dim=1, descending=True, stable=True)
    return {
        k: v.gather(1, order) if isinstance(v, Tensor) and v.shape == mask.shape else v
        for k, v in inputs.items()
    }


def pixels(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=rng(seed))


# Sizes (H, W) of pictures for families whose tokens depend on them.
NEXT_SIZES = [(60, 40), (32, 64)]
QWEN_GRIDS = [(1, 8, 12), (1, 6, 4)]


def single(family: str, item: int, text: int | None = None) -> dict[str, Any]:
    """A prompt with one picture; items differ in picture, text and, where it can, size."""
    text = 3 + 2 * item if text is None else text
    seed = 10 + item
    if family in ("llava", "llava_siglip"):
        ids = prompt([(SIZE // PATCH) ** 2], text, seed)
        return {**padded([ids]), "pixel_values": pixels(1, 3, SIZE, SIZE, seed=seed)}
    if family == "llava_next":
        size = NEXT_SIZES[item % 2]
        tiles = 5 if item % 2 == 0 else 3
        found = {
            "pixel_values": pixels(1, tiles, 3, SIZE, SIZE, seed=seed),
            "image_sizes": torch.tensor([size]),
        }
        return {**padded([prompt([next_tokens(size)], text, seed)]), **found}
    if family == "internvl":
        tiles = 1 + 2 * (item % 2)
        ids = prompt([tiles * (SIZE // PATCH // 2) ** 2], text, seed)
        return {**padded([ids]), "pixel_values": pixels(tiles, 3, SIZE, SIZE, seed=seed)}
    frames, height, width = QWEN_GRIDS[item % 2]
    ids = padded([prompt([frames * height * width // 4], text, seed)])
    ids["input_ids"][0, text - 1] = START  # which some releases count images by
    return {
        **ids,
        **_kinds(ids["input_ids"]),
        "pixel_values": pixels(frames * height * width, 3 * 2 * PATCH**2, seed=seed),
        "image_grid_thw": torch.tensor([[frames, height, width]]),
    }


def _kinds(ids: Tensor) -> dict[str, Tensor]:
    """What Qwen's processor says of each token, which older models do not take."""
    return {"mm_token_type_ids": (ids == IMAGE).int()} if IS_NEWER else {}


def next_tokens(size: tuple[int, int]) -> int:
    """Packed tokens of a LLaVA-NeXT picture: thumbnail, unpadded grid, a newline per row."""
    model = build("llava_next")
    tiles = 5 if size == NEXT_SIZES[0] else 3
    pictures = {
        "pixel_values": torch.zeros(1, tiles, 3, SIZE, SIZE),
        "image_sizes": torch.tensor([size]),
    }
    with torch.no_grad():
        return len(host_of(model).encode(model, pictures).pooler_output[0])


def batch(family: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Several prompts in one batch, padded on the left."""
    rows = [x["input_ids"][0] for x in items]
    found: dict[str, Any] = dict(padded(rows))
    if family == "llava_next":
        most = max(x["pixel_values"].shape[1] for x in items)
        found["pixel_values"] = torch.cat(
            [
                torch.nn.functional.pad(
                    x["pixel_values"], (0,) * 7 + (most - x["pixel_values"].shape[1],)
                )
                for x in items
            ]
        )
        found["image_sizes"] = torch.cat([x["image_sizes"] for x in items])
        return found
    found["pixel_values"] = torch.cat([x["pixel_values"] for x in items])
    if family == "qwen2_5_vl":
        found |= _kinds(found["input_ids"])
        found["image_grid_thw"] = torch.cat([x["image_grid_thw"] for x in items])
    return found
