"""Visual-token reduction for VLMs: time to first token, what scores find, what answers stay right.

    python benchmarks/vlm_reduction.py ttft --dtype fp32 --pairs 9
    python benchmarks/vlm_reduction.py glyphs
    python benchmarks/vlm_reduction.py scenes --seeds 0

Each part writes benchmarks/results/vlm_PART.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

import _glyph_tower
import _scene_llava
from _results import Results
from polytok.core.config import to_dict
from polytok.data.glyphs import GlyphCanvas
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers.vlm.bench import time_generation
from polytok.reducers.vlm.cost import tower_flops
from polytok.systems.vlm.api import methods, vlm

IMAGE_ID, TEXT, TOKENS, KEEP = 31_999, 32, 576, 128
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
METHODS: dict[str, dict[str, Any]] = {
    "fastervlm": {"keep": KEEP},
    "vtc-cls": {"keep": KEEP},
    "random": {"keep": KEEP},
    "fastv": {"layer": 1, "keep": KEEP},
    "dyvte": {"layer": 7},
}
SCENE_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fastervlm": ("fastervlm", {}),
    "vtc-cls": ("vtc-cls", {}),
    "attention received": ("fastervlm", {"row": "received"}),
    "fastv, layer 1": ("fastv", {"layer": 1}),
    "uniform": ("uniform", {}),
    "random": ("random", {}),
    "norm": ("norm", {}),
}


def subject(dtype: torch.dtype) -> Any:
    """A LLaVA with random weights: tower 12x768 at 336/14, gated language model 24x1024."""
    hf = import_hf("transformers")
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            image_size=336,
            patch_size=14,
        ),
        text_config=hf.LlamaConfig(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=24,
            num_attention_heads=16,
            vocab_size=32_000,
        ),
        image_token_id=IMAGE_ID,
    )
    torch.manual_seed(0)
    model = hf.LlavaForConditionalGeneration(config).to(dtype).eval()
    model.generation_config.pad_token_id = 0
    return model


def prompt(dtype: torch.dtype) -> dict[str, Any]:
    """One picture and ``TEXT`` tokens, half before it and half after."""
    rng = torch.Generator().manual_seed(0)
    words = torch.randint(3, 31_000, (TEXT,), generator=rng)
    ids = torch.cat([words[: TEXT // 2], torch.full((TOKENS,), IMAGE_ID), words[TEXT // 2 :]])
    return {
        "input_ids": ids[None],
        "attention_mask": torch.ones_like(ids[None]),
        "pixel_values": torch.randn(1, 3, 336, 336, generator=rng).to(dtype),
    }


def first_token(args: argparse.Namespace) -> None:
    """Time to first token, batch 1, from pixels, with 128 of 576 tokens."""
    protocol = {
        "what": "generate(max_new_tokens=1) from pixel_values, batch 1, greedy, sdpa; "
        "interleaved pairs against the same model without a plan; medians",
        "tower": "CLIP 12x768, 336/14",
        "language_model": "Llama 24x1024, inner 2816, vocabulary 32000",
        "text_tokens": TEXT,
        "visual_tokens": TOKENS,
        "pairs": args.pairs,
        "threads": torch.get_num_threads(),
        "transformers": metadata.version("transformers"),
    }
    results = Results("vlm_ttft", protocol, fresh=args.fresh, keys=("dtype", "method"))
    for name in args.dtype:
        dtype = DTYPES[name]
        model, inputs = subject(dtype), prompt(dtype)
        tower = tower_flops(model.config.vision_config, TOKENS + 1, 12)
        for method in args.methods:
            timing = time_generation(
                model, inputs, vlm(method, **METHODS[method]), pairs=args.pairs
            )
            report = timing.report
            low, high = timing.spread
            row = {
                "dtype": name,
                "method": method,
                "tokens": report.after[0],
                "plain_seconds": median(timing.plain),
                "reduced_seconds": median(timing.reduced),
                "speedup": timing.speedup,
                "speedup_min": low,
                "speedup_max": high,
                "flop_ratio": (report.flops_before + tower) / (report.flops_after + tower),
                "tower_gflops": tower / 1e9,
                "prefill_gflops_before": report.flops_before / 1e9,
                "prefill_gflops_after": report.flops_after / 1e9,
                "kv_mb_before": report.kv_before / 1e6,
                "kv_mb_after": report.kv_after / 1e6,
            }
            _put(results, row)


def glyphs(args: argparse.Namespace) -> None:
    """Which scores find the informative cells of the glyph canvas."""
    canvas = GlyphCanvas()
    protocol = {
        "what": "share of glyph cells among those kept, 500 canvases per seed",
        "tower": "CLIP, 4 layers of 64, features from the third, trained to name the glyphs",
        "steps": _glyph_tower.STEPS,
        "canvas": to_dict(canvas),
    }
    results = Results("vlm_glyphs", protocol, fresh=args.fresh, keys=("keep", "seed"))
    for seed in args.seeds:
        model, exact = _glyph_tower.train(canvas, seed=seed)
        probes = _glyph_tower.probe(model, canvas, keep=8, seed=seed)
        print(seed, "exact sets", exact, "probes", probes, flush=True)
        for keep in (4, 8, 16):
            found = _glyph_tower.recall(model, canvas, keep=keep, seed=seed)
            row = {"seed": seed, "keep": keep, "exact": exact, **found}
            if keep == 8:
                row |= {f"probe: {name}": value for name, value in probes.items()}
            _put(results, row)


def scenes(args: argparse.Namespace) -> None:
    """Accuracy of the small trained LLaVA at equal visual tokens."""
    protocol = {
        "what": "share of right one-word answers about rendered scenes, 1000 new scenes",
        "model": "CLIP tower 4x64, 64 patches; gated language model 4x128",
        "steps": args.steps,
    }
    results = Results("vlm_scenes", protocol, fresh=args.fresh, keys=("keep", "method", "seed"))
    for seed in args.seeds:
        model = _scene_llava.saved(args.work / f"scenes{seed}.safetensors", seed, args.steps)
        full = _scene_llava.accuracy(model, seed=0)
        _put(results, {"seed": seed, "keep": 64, "method": "everything", **full})
        blind = _scene_llava.accuracy(model, seed=0, is_blind=True)
        _put(results, {"seed": seed, "keep": 64, "method": "another picture", **blind})
        for keep in (32, 16, 8):
            for name, (method, options) in SCENE_METHODS.items():
                with vlm(method, **options, keep=keep).applied(model):
                    found = _scene_llava.accuracy(model, seed=0)
                _put(results, {"seed": seed, "keep": keep, "method": name, **found})
        gates = _scene_llava.trained_gates(model, seed=seed)
        exits = {f"none after layer {layer}": vlm("dyvte", layer=layer) for layer in range(4)}
        exits["none after gates"] = vlm("dyvte", gates=gates)
        for name, plan in exits.items():
            with plan.applied(model) as run:
                found = _scene_llava.accuracy(model, seed=0)
            # Of the last hundred prompts; one that never leaves counts as the last layer.
            layers = [3 if layer is None else layer for layer in run.exit_layers]
            row = {"seed": seed, "keep": 64, "method": name, **found}
            _put(results, {**row, "mean_exit_layer": sum(layers) / len(layers)})


def _put(results: Results, row: dict[str, Any]) -> None:
    """Keep a row, in place of one with the same keys."""
    keys = results.keys
    results.rows = [r for r in results.rows if any(r[k] != row[k] for k in keys)] + [row]
    results.save()
    print(row, flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "ttft": first_token,
    "glyphs": glyphs,
    "scenes": scenes,
}


def main(argv: list[str] | None = None) -> int:
    """Run one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000, help="of the scenes' model")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="trained models lie here")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--fresh", action="store_true", help="drop the stored rows")
    args = parser.parse_args(argv)
    for method in methods().values():
        method.load()  # now, so that a long run does not meet code of another day
    torch.set_num_threads(args.threads)
    PARTS[args.part](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
