"""What a training run may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polytok.core.errors import ConfigError


def computes_in_bf16(device: str) -> bool:
    """Whether a kind of device has bf16 arithmetic; CPUs without AVX-512 only imitate it."""
    import torch

    return device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimiser, schedule and bookkeeping of a run. Everything "every" counts samples.

    Args:
        batch_size: samples per optimiser step, over all processes together.
        lr: peak rate of AdamW; ``betas``, ``eps`` and ``weight_decay`` are its other settings.
            Biases, norms, embeddings and other vectors do not decay.
        muon: globs of parameters; matrices among them move by Muon instead of AdamW, see
            :mod:`polytok.training.muon`. Meant for those within blocks; it needs far fewer samples.
        muon_scale: of its steps against those of AdamW.
        warmup_samples: linear rise of the rate; a cosine then falls to ``final_lr_factor`` x lr
            at the end of the run.
        clip: largest gradient norm.
        precision: ``bf16`` runs the forward pass under autocast; weights stay fp32. ``auto`` is
            bf16 on an accelerator and on a CPU that computes in it, else fp32: a CPU that must
            imitate bf16 takes tens of times as long.
        ema_decay: of the averaged weights, which warm up as (1 + n) / (10 + n); 0 = no average.
        save_every, log_every, validate_every: samples between checkpoints, records and
            validations; 0 validates at the end alone.
        compile: compile the tokenizer's parts with torch.compile.
        device: ``auto`` takes an accelerator when there is one.
        num_workers: processes that prepare samples; 0 = in the training process.
        start_batches: batches a tokenizer's ``start_stage`` may look at.
        time_limit_minutes: save and stop after this long.
    """

    batch_size: int = 32
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-6
    weight_decay: float = 0.01
    muon: tuple[str, ...] = ()
    muon_scale: float = 1.0
    warmup_samples: int = 0
    final_lr_factor: float = 0.05
    clip: float = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    ema_decay: float = 0.999
    seed: int = 0
    save_every: int = 20_000
    log_every: int = 1_000
    validate_every: int = 0
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    num_workers: int = 1
    start_batches: int = 8
    time_limit_minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "save_every", "log_every", "start_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("warmup_samples", "validate_every", "num_workers", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("lr", "eps", "clip", "muon_scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("ema_decay", "final_lr_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not within [0, 1]")
        if self.ema_decay == 1:
            raise ConfigError("ema_decay=1.0 would never move; use a value below 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas={self.betas} are not within [0, 1)")
        if self.time_limit_minutes is not None and self.time_limit_minutes < 0:
            raise ConfigError(f"time_limit_minutes={self.time_limit_minutes} must not be negative")
