"""The training loop; the only file that imports accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polytok.core.config import to_dict
from polytok.core.contracts import Batch, Stage, StepContext, StepOutput
from polytok.core.errors import ConfigError, PolytokError
from polytok.core.seeding import derive, torch_rng
from polytok.training import checkpoint
from polytok.training.adversary import ADVERSARIAL, Adversary
from polytok.training.config import TrainConfig, computes_in_bf16
from polytok.training.ema import WeightAverage, own_parameters
from polytok.training.interrupt import Interrupt
from polytok.training.log import Means, RunLog
from polytok.training.muon import Muon
from polytok.training.samples import SampleSource, batches, start_batches
from polytok.training.schedule import parameter_groups, rate_factor
from polytok.training.stages import Plan, apply_stage, weigh

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_BAD_STEPS = 20
Validate = Callable[[Any], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a run ended.

    Args:
        steps, samples: done since the first start. skipped: steps whose loss was not finite.
        is_complete: whether nothing is left to do; else calling ``fit`` again continues.
    """

    steps: int
    samples: int
    skipped: int
    is_complete: bool


def fit(
    model: nn.Module,
    stages: Sequence[tuple[Stage, int]],
    source: SampleSource,
    config: TrainConfig,
    run_dir: str | PathLike[str],
    *,
    validate: Validate | None = None,
    adversary: Adversary | None = None,
) -> FitResult:
    """Train a model, or continue the run whose checkpoints ``run_dir`` holds.

    Under ``torchrun`` every process calls this; results do not depend on their number beyond
    rounding. ``run_dir`` gets metrics.jsonl, tensorboard/, checkpoints/ (the newest two) and
    model.safetensors (the averaged weights, as of the last checkpoint). At the end ``model``
    holds the averaged weights too, in eval mode.

    Args:
        model: a tokenizer or generator: called with a batch and a ``StepContext`` it gives a
            ``StepOutput``, whose ``bottleneck``, if any, goes to ``model.bottleneck.update``.
        stages: what to do, for how many samples each.
        source: numbered samples; their ``seed`` stays on the CPU.
        validate: called with the averaged weights in eval mode, by the first process alone;
            returns scores by name.
        adversary: learns in the stages that weigh its loss ``adversarial``.

    Raises:
        ConfigError: a stage or the configuration does not fit the model or the saved run, or the
            machine does not compute in the precision asked for.
        PolytokError: the extra ``train`` is not installed, or the loss was not finite for 20
            steps in a row.
        WeightsError: a checkpoint is damaged or belongs to another model.
    """
    # Here, so that a library installed without the extra ``train`` still loads and runs models.
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise PolytokError("training needs its extra: pip install 'polytok[train]'") from error
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    # The loss alone leaves the wrapped module, but a stage need not use every parameter.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[ddp])
    if config.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"batch_size={config.batch_size} is not a multiple of the "
            f"{accelerator.num_processes} processes"
        )
    run = _Run(accelerator, model, stages, source, config, Path(run_dir), validate, adversary)
    return run.run()


class _Objective(nn.Module):
    """What is differentiated: the weighted loss. The rest of a step's output stays in ``out``."""

    def __init__(
        self, model: nn.Module, weights: Mapping[str, float], adversary: Adversary | None = None
    ) -> None:
        super().__init__()
        self.model, self.weights, self.adversary = model, weights, adversary
        self.out: StepOutput | None = None

    def forward(self, batch: Batch, ctx: StepContext) -> Tensor:
        self.out = out = self.model(batch, ctx)
        if self.adversary is not None:
            out.losses = {**out.losses, ADVERSARIAL: self.adversary.judge(out.output, out.losses)}
        return weigh(out.losses, self.weights)


class _Run:
    """State of one run on one process."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        stages: Sequence[tuple[Stage, int]],
        source: SampleSource,
        config: TrainConfig,
        folder: Path,
        validate: Validate | None,
        adversary: Adversary | None,
    ) -> None:
        self.accelerator, self.config, self.source = accelerator, config, source
        self.folder, self.validate, self.adversary = folder, validate, adversary
        self.device = accelerator.device
        has_bf16 = computes_in_bf16(self.device.type)
        self.precision = config.precision
        if config.precision == "auto":
            self.precision = "bf16" if has_bf16 else "fp32"
        if self.precision == "bf16" and not has_bf16:
            raise ConfigError(
                "precision='bf16', but this CPU only imitates bf16, slowly and not in every layer; "
                "use 'fp32' or 'auto'"
            )
        self.model: Any = model.to(self.device)
        self.plan = Plan.of(stages, config.batch_size)
        self.parameters = own_parameters(model)
        self.optimizer = Muon(
            parameter_groups(
                model, self.parameters, self.plan.stages, config.weight_decay, config.muon
            ),
            scale=config.muon_scale,
            dtype=torch.bfloat16 if self.precision == "bf16" else torch.float32,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
        self.average = (
            WeightAverage(self.parameters, config.ema_decay) if config.ema_decay else None
        )
        if adversary is not None:
            adversary.start(self.device, config.betas, config.eps)
        for stage in self.plan.stages:
            if stage.weights.get(ADVERSARIAL) and adversary is None:
                raise ConfigError(f"stage {stage.name!r} weighs the word of a critic; none is here")
        self.means = Means()
        self.step, self.skipped, self.bad_steps, self.entered = 0, 0, 0, -1
        self.objective = _Objective(self.model, {})
        self.wrapped: nn.Module | None = None
        if config.compile:
            # The parts take tensors alone; a whole step, with its step number, would recompile.
            for part in self.model.children():
                part.compile()

    @property
    def samples(self) -> int:
        return self.step * self.config.batch_size

    @property
    def world(self) -> dict[str, int]:
        """Whose share of the samples this process takes."""
        return {
            "batch_size": self.config.batch_size,
            "rank": self.accelerator.process_index,
            "world": self.accelerator.num_processes,
        }

    def run(self) -> FitResult:
        self._resume()
        log = RunLog(
            self.folder,
            step=self.step,
            done=self.samples,
            total=self.plan.num_steps * self.config.batch_size,
            is_active=self.accelerator.is_main_process,
        )
        with Interrupt(self.config.time_limit_minutes) as interrupt, log:
            self._train(log, interrupt)
        if self.average is not None:
            self.average.copy_to_model()
        self.model.eval()
        return FitResult(
            steps=self.step,
            samples=self.samples,
            skipped=self.skipped,
            is_complete=self.step == self.plan.num_steps,
        )

    def _train(self, log: RunLog, interrupt: Interrupt) -> None:
        steps = range(self.step, self.plan.num_steps)
        if not steps:
            return
        stop = False
        for batch in self._batches(steps):
            self._enter_stage(log)
            stop = self._advance(batch, interrupt, log)
            is_last = stop or self.step == self.plan.num_steps
            log.advance(self.samples)
            if is_last or self._passed(self.config.log_every):
                self._record(log)
            if is_last or self._passed(self.config.save_every):
                self._save()
            if self.step == self.plan.num_steps or self._passed(self.config.validate_every):
                self._validate(log)
            if stop:
                break
        if stop and self.step < self.plan.num_steps:
            reason = interrupt.reason or "another process asked for it"
            log.say(f"stopped at step {self.step:,}, since {reason}; run again to continue")

    def _passed(self, every: int) -> bool:
        """Whether the last step crossed a multiple of ``every`` samples."""
        before = self.samples - self.config.batch_size
        return every > 0 and self.samples // every > before // every

    def _batches(self, steps: range) -> Iterator[Batch]:
        loader = batches(
            self.source,
            steps,
            num_workers=self.config.num_workers,
            pin_memory=self.device.type == "cuda",
            **self.world,
        )
        for batch in loader:
            yield self._to_device(batch)

    def _to_device(self, batch: Batch) -> Batch:
        # Seeds are read on the CPU; from a GPU they would make it wait.
        return {
            key: value if key == "seed" else value.to(self.device, non_blocking=True)
            for key, value in batch.items()
        }

    def _enter_stage(self, log: RunLog) -> None:
        """Switch to the stage of the next step, if it is not the present one."""
        index = self.plan.index(self.step)
        if self.wrapped is not None and index == self.entered:
            return
        stage = self.plan.stages[index]
        apply_stage(self.model, stage, self.parameters)
        self.model.train()
        if index != self.entered:
            self._start_stage(stage)
            log.say(f"stage {stage.name!r} starts at step {self.step:,}, in {self.precision}")
        self.entered = index
        self.means = Means()
        # The hooks of the last stage's wrapper must be gone before the next one sets its own.
        self.wrapped = None
        self.accelerator.free_memory()
        judge = self.adversary if stage.weights.get(ADVERSARIAL) else None
        self.objective = _Objective(self.model, stage.weights, judge)
        self.wrapped = self.accelerator.prepare_model(self.objective)

    def _start_stage(self, stage: Stage) -> None:
        start = getattr(self.model, "start_stage", None)
        if start is None:
            return
        before = {name: p.detach().clone() for name, p in self.parameters.items()}
        window = start_batches(self.source, self.step, self.config.start_batches, **self.world)
        torch.manual_seed(derive(self.config.seed, "stage", stage.name))
        start(stage, (self._to_device(batch) for batch in window))
        if self.average is not None:
            for name, parameter in self.parameters.items():
                if not torch.equal(before[name], parameter):
                    self.average.follow(name)

    def _advance(self, batch: Batch, interrupt: Interrupt, log: RunLog) -> bool:
        """Do one step and count it; returns whether the run should stop after it."""
        stage = self.plan.index(self.step)
        rate = self._set_rates(stage)
        ctx = StepContext(
            step=self.step,
            progress=self.plan.progress(self.step),
            rng=torch_rng(self.config.seed, "step", self.step, device=str(self.device)),
        )
        # Dropout and the like draw from the global generator: each step and rank has its seed.
        torch.manual_seed(derive(self.config.seed, "global", self.step, self.world["rank"]))
        self.optimizer.zero_grad(set_to_none=True)
        assert self.wrapped is not None
        with self._autocast():
            loss = self.wrapped(batch, ctx)
        self.accelerator.backward(loss)
        trained = [p for p in self.parameters.values() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, self.config.clip)
        stop, is_bad = self._agree(interrupt.is_due, not bool((loss + norm).isfinite()))
        if is_bad:
            self._skip(log)
        else:
            self._update(batch, loss, norm, rate)
        self.step += 1
        return stop

    def _update(self, batch: Batch, loss: Tensor, norm: Tensor, rate: float) -> None:
        self.bad_steps = 0
        self.optimizer.step()
        out = self.objective.out
        assert out is not None
        if out.bottleneck is not None:
            self.model.bottleneck.update(out.bottleneck)
        if self.average is not None:
            self.average.update()
        if (judge := self.objective.adversary) is not None:
            said = judge.learn(
                batch[judge.key],
                out.output[judge.key],
                rate=rate,
                clip=self.config.clip,
                accelerator=self.accelerator,
                autocast=self._autocast(),
            )
            self.means.add("metrics", said)
        self.means.add("", {"loss": loss, "grad_norm": norm, "lr": loss.new_full((), rate)})
        self.means.add("losses", out.losses)
        self.means.add("metrics", out.metrics)
        self.objective.out = None

    def _skip(self, log: RunLog) -> None:
        self.skipped += 1
        self.bad_steps += 1
        log.say(f"step {self.step:,} skipped: its loss or gradient is not finite")
        if self.bad_steps >= MAX_BAD_STEPS:
            raise PolytokError(
                f"the loss was not finite for {MAX_BAD_STEPS} steps in a row, up to step "
                f"{self.step:,}; try a lower lr than {self.config.lr} or precision fp32"
            )

    def _set_rates(self, stage: int) -> float:
        """Set the rate of every group; returns the rate of factor 1."""
        total = self.plan.num_steps * self.config.batch_size
        done = self.samples + self.config.batch_size
        rate = self.config.lr * rate_factor(
            done, self.config.warmup_samples, total, self.config.final_lr_factor
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factors"][stage]
        return rate

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _agree(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any process raised each flag."""
        if self.world["world"] == 1:
            return flags
        total = self.accelerator.reduce(torch.tensor(flags, device=self.device).float())
        return tuple(bool(f) for f in total.tolist())

    def _record(self, log: RunLog) -> None:
        """Write the means since the last record, over all processes."""
        names = self.means.names
        if not names:
            return
        means = self.accelerator.reduce(self.means.pop().to(self.device), "mean").tolist()
        record: dict[str, Any] = {
            "step": self.step,
            "samples": self.samples,
            "stage": self.plan.stages[self.entered].name,
            "precision": self.precision,
            "skipped": self.skipped,
        }
        for name, value in zip(names, means, strict=True):
            group, _, key = name.partition("/")
            if group:
                record.setdefault(group, {})[key] = value
            else:
                record[key] = value
        log.write(record)

    def _validate(self, log: RunLog) -> None:
        if self.validate is None:
            return
        if self.accelerator.is_main_process:
            self.model.eval()
            with torch.no_grad(), self.average.swapped() if self.average else nullcontext():
                scores = dict(self.validate(self.model))
            self.model.train()
            log.write({"step": self.step, "samples": self.samples, "val": scores})
        self.accelerator.wait_for_everyone()
        log.pause()

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            notes = {
                "step": self.step,
                "stage": self.entered,
                "skipped": self.skipped,
                "average_updates": self.average.num_updates if self.average else 0,
                "config": to_dict(self.config),
            }
            tensors = checkpoint.pack_state(self.model, self.optimizer, self.average)
            if self.adversary is not None:
                tensors |= self.adversary.pack()
            with self.average.swapped() if self.average else nullcontext():
                checkpoint.save_weights(self.folder / "model.safetensors", self.model)
            checkpoint.save_state(self.folder / "checkpoints", self.step, tensors, notes)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        if self.accelerator.is_main_process:
            checkpoint.tidy(self.folder)
        found = checkpoint.checkpoints(self.folder / "checkpoints")
        if not found:
            return
        tensors, notes = checkpoint.load_state(found[-1])
        for name in ("batch_size", "seed"):
            if notes["config"][name] != getattr(self.config, name):
                raise ConfigError(
                    f"{name}={getattr(self.config, name)}, but the run in {self.folder} has "
                    f"{notes['config'][name]}; use another folder for another run"
                )
        if notes["step"] > self.plan.num_steps:
            raise ConfigError(
                f"the run in {self.folder} has {notes['step']} steps already, more than the "
                f"{self.plan.num_steps} asked for"
            )
        checkpoint.unpack_state(tensors, notes, self.model, self.optimizer, self.average)
        if self.adversary is not None:
            self.adversary.unpack(tensors)
        self.step, self.skipped, self.entered = notes["step"], notes["skipped"], notes["stage"]
