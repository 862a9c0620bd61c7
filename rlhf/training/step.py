"""One optimisation step, the same on one process, under data parallel and under DeepSpeed ZeRO-1/2/3.

Supervised training, reward models and PPO all step here. What differs from accelerate's accumulate, backward and step:

- the divisor of the loss is the weight of the whole step over all processes, not a mean of means;
- the number of micro-batches may change from step to step;
- accelerate steps a DeepSpeed engine inside `backward`, whichever engine was prepared first; here the engine at hand is
  asked, so that a process may train several models after one another.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from rlhf.errors import InputError
from rlhf.training.config import OptimizerConfig
from rlhf.training.dropout import pack_dropout
from rlhf.training.feeding import on_device
from rlhf.training.whole import divide, fill_sizes, holds_4_bit, refuse_4_bit, shape_of

Batch = dict[str, Any]
"""Tensors, and rows that are packed already (`rlhf.models.packing.PackedRows`)."""
LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]
MAX_SKIPPED_IN_A_ROW = 3


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; InputError where nothing is trained.

    Float32 weights on a CPU or a GPU get torch's fused kind: one pass over the weights in place of ten.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError(
            "adapter: no weight of this model is trained; a checkpoint that is an adapter goes on training where one "
            "of its size is asked for, e.g. --adapter.r 64"
        )
    groups = [
        {"params": [p for p in trained if len(shape_of(p)) >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if len(shape_of(p)) < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    fused = all(p.dtype == torch.float32 and p.device.type in ("cpu", "cuda") for p in trained)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused or None)


@dataclass(frozen=True)
class StepFigures:
    """`means`: "loss" and the loss function's figures, per item; `grad_norm` before clipping; `taken`: not skipped, as
    values were not finite, or `refused`."""

    means: dict[str, float]
    grad_norm: float
    taken: bool
    refused: bool = False


class Stepper:
    """A prepared model with its optimizer.

    Args:
        model: any module; only parameters with requires_grad are trained. ZeRO-3 partitions its weights in place.
        config: AdamW's settings; gradient_checkpointing is switched on where the model has it.
        accelerator: prepares both. The DeepSpeed settings that depend on `config` are filled in here.
        name: for the error message.

    Raises:
        InputError: nothing is trained; or weights in 4 bit under ZeRO-3.
    """

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, accelerator: Accelerator, *, name: str = "train"
    ) -> None:
        if holds_4_bit(model):
            refuse_4_bit(accelerator)
        self.config = config
        self.accelerator = accelerator
        self.name = name
        self.steps = self.skipped = self.skipped_in_a_row = 0
        self.deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        enable = getattr(model, "gradient_checkpointing_enable", None)
        if config.gradient_checkpointing and enable is not None:
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        pack_dropout(model)
        if self.deepspeed:
            _fill_deepspeed(accelerator, config, model)
        optimizer = make_optimizer(model, config)
        divide(model, accelerator)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.model.train()

    def step(
        self,
        batches: Sequence[tuple[Batch, float]],
        loss: LossFunction,
        weight: float,
        learning_rate: float,
        refuse: Callable[[float, float], bool] | None = None,
    ) -> StepFigures:
        """Take one step on this process's micro-batches, at least one and as many on every process.

        Args:
            batches: (batch, share); share 1.0, or 0.0 for a stand-in that only keeps the processes in step.
            loss: (model, batch) -> (sum over the batch's items, {name: sum} of figures).
            weight: items of the step over all processes and micro-batches.
            learning_rate: of this step.
            refuse: asked with the step's loss and gradient norm whether it is to change no weight; the same answer on
                every process. Not under DeepSpeed.

        Raises:
            InputError: loss or gradient not finite for the third time in a row. Such a step changes no weight.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        sums: dict[str, Any] = {}
        # the processes' gradients are averaged, by DDP and by ZeRO: undo it, and divide by the step's items
        scale = self.accelerator.num_processes / weight
        for number, (batch, share) in enumerate(batches):
            batch = on_device(batch, self.accelerator.device)
            last = number == len(batches) - 1
            if self.deepspeed:
                self.model.set_gradient_accumulation_boundary(last)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                value, figures = loss(self.model, batch)
                self._backward(value, share * scale)
            for key, figure in {"loss": value, **figures}.items():
                sums[key] = sums.get(key, 0.0) + share * figure.detach().float()
        reduced = self.accelerator.reduce(torch.stack(list(sums.values())), reduction="sum") / weight
        means = dict(zip(sums, reduced.tolist(), strict=True))
        norm, finite, refused = self._update(means["loss"], refuse)
        self._count(finite)
        return StepFigures(means, norm, finite and not refused, refused)

    def close(self) -> None:
        """Let the accelerator forget the model and the optimizer, whose moments it would hold as long as it lives."""
        self.accelerator.deepspeed_engine_wrapped = None  # or the engine is taken apart, and its weights not gathered
        self.accelerator.free_memory()

    def _backward(self, value: Tensor, scale: float) -> None:
        if not self.deepspeed:
            # a schedule of accelerate's own may be set on the accelerator; its division is not wanted here
            self.accelerator.backward(value * (scale * self.accelerator.gradient_accumulation_steps))
            return
        # DeepSpeed skips a step only for its gradient: let a bad loss always have a bad gradient
        factor = torch.where(value.detach().isfinite(), scale, math.nan)  # on the device: nobody waits for the loss
        self.model.backward(value * factor, scale_wrt_gas=False)

    def _update(self, loss: float, refuse: Callable[[float, float], bool] | None) -> tuple[float, bool, bool]:
        """Clip and step unless something is not finite, or it is refused: (gradient norm, all finite, refused)."""
        loss_finite = math.isfinite(loss)
        if self.deepspeed:
            self.model.step()
            norm = _number(self.model.get_global_grad_norm())
            return norm, loss_finite and math.isfinite(norm), False
        norm = _number(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm))
        finite = loss_finite and math.isfinite(norm)
        refused = finite and refuse is not None and refuse(loss, norm)
        if finite and not refused:
            self.optimizer.step()
        elif self.accelerator.scaler is not None:  # fp16: its scale falls, and the gradients count as dealt with
            self.accelerator.scaler.update()
        self.optimizer.zero_grad()
        return norm, finite, refused

    def _count(self, finite: bool) -> None:
        self.steps += 1
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise InputError(
                f"{self.name}: loss or gradient not finite {MAX_SKIPPED_IN_A_ROW} steps in a row, the last is step "
                f"{self.steps}; lower learning_rate"
            )


def _number(norm: Any) -> float:
    return float(norm) if norm is not None else 0.0


def _fill_deepspeed(accelerator: Accelerator, config: OptimizerConfig, model: nn.Module) -> None:
    """What accelerate's YAML cannot say, what depends on the model, and what the user's own JSON leaves "auto"."""
    accelerator.deepspeed_engine_wrapped = None  # of an earlier model; accelerate warns of keeping it
    settings = accelerator.state.deepspeed_plugin.deepspeed_config
    for derived in ("train_batch_size", "gradient_accumulation_steps"):
        settings.pop(derived, None)
    settings.update(
        train_micro_batch_size_per_gpu=config.micro_batch_size,
        gradient_accumulation_steps=accelerator.gradient_accumulation_steps,
        train_batch_size=config.micro_batch_size * accelerator.gradient_accumulation_steps * accelerator.num_processes,
        gradient_clipping=config.max_grad_norm,
        zero_allow_untested_optimizer=True,
        steps_per_print=10**9,
    )
    settings.setdefault("bf16", {}).setdefault("check_grad_overflow", True)  # else a bad gradient changes the weights
    zero = settings["zero_optimization"]
    zero.setdefault("overlap_comm", True)
    if not torch.cuda.is_available():  # DeepSpeed's own optimizer for offloading is compiled at first use, two minutes
        settings.setdefault("zero_force_ds_cpu_optimizer", False)
    for part in ("offload_optimizer", "offload_param"):
        if zero.get(part, {}).get("device") == "cpu":
            zero[part].setdefault("pin_memory", torch.cuda.is_available())
    fill_sizes(zero, model)
