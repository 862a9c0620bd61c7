"""The optimisation loop: rows in, steps out, the loss normalised over the global count.

Departures from common trainers: a step's rows are cut into micro-batches of similar length (less padding), and the
divisor is the weight (tokens, pairs) of the WHOLE step, known to every process beforehand. So the number of
processes, the micro-batch size and the order inside a step change nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from tqdm import tqdm

from rlhf.errors import InputError
from rlhf.metrics import MetricsLog
from rlhf.training.config import OptimizerConfig

Row = TypeVar("Row")
Batch = dict[str, Tensor]
MAX_SKIPPED_IN_A_ROW = 3


@dataclass(frozen=True)
class Task(Generic[Row]):
    """What is trained: how rows become batches and batches a loss.

    Args:
        collate: rows -> tensors, on the CPU.
        loss: (model, batch) -> (sum of the loss over the batch's items, {name: sum} of figures to log).
        weight: items of a row that the loss sums over: its trained tokens, or 1 for a pair.
        length: of a row, to put rows of similar length together.
    """

    collate: Callable[[Sequence[Row]], Batch]
    loss: Callable[[nn.Module, Batch], tuple[Tensor, dict[str, Tensor]]]
    weight: Callable[[Row], float]
    length: Callable[[Row], int]


@dataclass
class TrainingResult:
    """steps taken, steps skipped for non-finite values, and the loss of each step (mean over its items)."""

    steps: int = 0
    skipped: int = 0
    losses: list[float] = field(default_factory=list)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps)


def steps_of(rows: Sequence[Row], config: OptimizerConfig, seed: int) -> Iterator[list[Row]]:
    """Each step's rows, over all epochs: a fresh permutation an epoch; the last step of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(config.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(order), config.batch_size):
            yield [rows[i] for i in order[start : start + config.batch_size]]


def micro_batches(
    step_rows: Sequence[Row], count: int, process: int, processes: int, length: Callable[[Row], int]
) -> list[list[Row]]:
    """This process's `count` micro-batches of one step: sorted by length, cut evenly, neighbours dealt to processes.

    Some are empty where the step has fewer rows than count x processes.
    """
    ordered = sorted(step_rows, key=length)
    blocks = count * processes
    cut = [len(ordered) * b // blocks for b in range(blocks + 1)]
    return [list(ordered[cut[b] : cut[b + 1]]) for b in range(process, blocks, processes)]


def accumulation_steps(config: OptimizerConfig, processes: int) -> int:
    """Micro-batches a process runs for one step."""
    return math.ceil(config.batch_size / (config.micro_batch_size * processes))


def train(
    model: nn.Module,
    rows: Sequence[Row],
    task: Task[Row],
    config: OptimizerConfig,
    accelerator: Accelerator,
    log: MetricsLog,
    *,
    seed: int = 0,
    name: str = "train",
    after_step: Callable[[int, int, nn.Module], None] | None = None,
) -> TrainingResult:
    """Train `model` in place (unwrap what `accelerator.prepare` made of it yourself, or keep your own reference).

    Args:
        model: any module; only parameters with requires_grad are trained. Dropout is as the model has it in train mode.
        rows: all rows, the same on every process.
        task: collate, loss, weight and length of a row.
        config: schedule and sizes.
        accelerator: made with `accumulation_steps=accumulation_steps(config, processes)` where DeepSpeed is used.
        log: one line a step: loss, learning_rate, grad_norm, the task's own figures per item.
        after_step: called as (step, total steps, prepared model) after each step, on every process.

    Raises:
        InputError: no rows, or non-finite loss or gradient three steps in a row (such steps change no weight and are
        counted).
    """
    if not rows:
        raise InputError(f"{name}: there are no rows to train on")
    count = accumulation_steps(config, accelerator.num_processes)
    accelerator.gradient_accumulation_steps = count
    optimizer = make_optimizer(model, config)
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if deepspeed:
        accelerator.state.deepspeed_plugin.deepspeed_config.update(
            train_micro_batch_size_per_gpu=config.micro_batch_size, gradient_clipping=config.max_grad_norm
        )
    if config.gradient_checkpointing and hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    prepared, optimizer = accelerator.prepare(model, optimizer)
    prepared.train()
    total = config.epochs * math.ceil(len(rows) / config.batch_size)
    result = TrainingResult()
    skipped_in_a_row = 0
    progress = tqdm(
        steps_of(rows, config, seed),
        total=total,
        desc=name,
        disable=not accelerator.is_local_main_process,
        mininterval=1.0,
    )
    for step, step_rows in enumerate(progress):
        rate = config.learning_rate_at(step, total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        weight = sum(task.weight(row) for row in step_rows)
        mine = micro_batches(step_rows, count, accelerator.process_index, accelerator.num_processes, task.length)
        sums: dict[str, Tensor] = {}
        norm: Any = None
        for micro in mine:
            batch = {k: v.to(accelerator.device) for k, v in task.collate(micro or step_rows[:1]).items()}
            with accelerator.accumulate(prepared):
                loss, figures = task.loss(prepared, batch)
                share = float(bool(micro))  # an empty one runs a row with weight 0: every process takes part
                # backward() divides by count, the processes' mean by num_processes: undo both, divide by the step's
                # items
                accelerator.backward(loss * (share * count * accelerator.num_processes / weight))
                for key, value in {"loss": loss, **figures}.items():
                    sums[key] = (
                        sums.get(key, torch.zeros((), device=accelerator.device)) + share * value.detach().float()
                    )
                if accelerator.sync_gradients and not deepspeed:
                    norm = accelerator.clip_grad_norm_(prepared.parameters(), config.max_grad_norm)
        reduced = accelerator.reduce(torch.stack(list(sums.values())), reduction="sum") / weight
        means = dict(zip(sums, reduced.tolist(), strict=True))
        if deepspeed:
            norm = prepared.get_global_grad_norm()
        norm = float(norm) if norm is not None else 0.0
        if math.isfinite(means["loss"]) and math.isfinite(norm):
            optimizer.step()
            skipped_in_a_row = 0
        else:
            result.skipped += 1
            skipped_in_a_row += 1
            if skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
                raise InputError(
                    f"{name}: loss or gradient not finite {MAX_SKIPPED_IN_A_ROW} steps in a row at step {step}; "
                    "lower learning_rate"
                )
        optimizer.zero_grad()
        result.steps += 1
        result.losses.append(means["loss"])
        progress.set_postfix(loss=f"{means['loss']:.4f}")
        log.log(step, **means, learning_rate=rate, grad_norm=norm, skipped=result.skipped)
        if after_step is not None:
            after_step(step, total, prepared)
    return result
