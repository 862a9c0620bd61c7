"""The optimisation loop: rows in, steps out, the loss normalised over the global count. Light: torch when it trains.

Departures from common trainers: a step's rows are cut into micro-batches of similar length (less padding), and the
divisor is the weight (tokens, pairs) of the WHOLE step, known to every process beforehand. So the number of
processes, the micro-batch size and the order inside a step change nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rlhf.errors import InputError, notice
from rlhf.metrics import MetricsLog
from rlhf.stage.progress import progress_bar
from rlhf.training.config import OptimizerConfig
from rlhf.training.kept import States
from rlhf.training.spikes import Spikes, SpikeWatch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from rlhf.training.step import Batch, LossFunction

Row = TypeVar("Row")


@dataclass(frozen=True)
class Task(Generic[Row]):
    """What is trained: how rows become batches and batches a loss.

    Args:
        collate: rows -> tensors, on the CPU; a thread calls it for a step while the one before it is taken.
        loss: (model, batch) -> (sum of the loss over the batch's items, {name: sum} of figures to log).
        weight: items of a row that the loss sums over: its trained tokens, or 1 for a pair (decision 2).
        length: of a row, to put rows of similar length together.
    """

    collate: Callable[[Sequence[Row]], Batch]
    loss: LossFunction
    weight: Callable[[Row], float]
    length: Callable[[Row], int]


@dataclass
class TrainingResult:
    """rows trained on, and how many of them have lost their oldest turns; steps taken, those among them that only
    warmed up, steps skipped for non-finite values; the loss of each step (mean over its items) and its gradient norm;
    and how many of them stood out (`rlhf.training.spikes`)."""

    rows: int = 0
    cut: int = 0
    steps: int = 0
    warmup: int = 0
    skipped: int = 0
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    spikes: int = 0

    def ends(self) -> tuple[float, float]:
        """Mean loss of the first and of the last tenth of the steps, those that are not finite left out."""
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        tenth = max(1, len(finite) // 10)
        return (sum(finite[:tenth]) / tenth, sum(finite[-tenth:]) / tenth) if finite else (math.nan, math.nan)

    def figures(self) -> dict[str, float | int]:
        """For a stage's closing block."""
        first, last = self.ends()
        cut = {"rows_cut": self.cut} if self.cut else {}
        spikes = {"spikes": self.spikes} if self.spikes else {}
        return {"steps": self.steps, "first_loss": first, "last_loss": last, **cut, **spikes}


def steps_of(rows: Sequence[Row], config: OptimizerConfig, seed: int) -> Iterator[list[Row]]:
    """Each step's rows, over all epochs: a fresh permutation an epoch; the last step of an epoch may be smaller."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for _ in range(config.epochs):
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(order), config.batch_size):
            yield [rows[i] for i in order[start : start + config.batch_size].tolist()]


def micro_batches(
    step_rows: Sequence[Row], count: int, process: int, processes: int, length: Callable[[Row], int]
) -> list[list[Row]]:
    """This process's `count` micro-batches of one step: its share of the rows, sorted by length and cut evenly.

    Some are empty where the step has fewer rows than count x processes.
    """
    own = sorted(_shares(step_rows, processes, length)[process], key=length)
    cut = [len(own) * b // count for b in range(count + 1)]
    return [own[cut[b] : cut[b + 1]] for b in range(count)]


def _shares(rows: Sequence[Row], processes: int, length: Callable[[Row], int]) -> list[list[Row]]:
    """Each process's rows, about as long together as any other's: a step waits for the last of them.

    The longest come first, each to the process that has least so far and room for one more.
    """
    room = math.ceil(len(rows) / processes)
    shares: list[list[Row]] = [[] for _ in range(processes)]
    taken = [0] * processes
    for row in sorted(rows, key=length, reverse=True):
        process = min((p for p in range(processes) if len(shares[p]) < room), key=taken.__getitem__)
        shares[process].append(row)
        taken[process] += length(row)
    return shares


def accumulation_steps(config: OptimizerConfig, processes: int) -> int:
    """Micro-batches a process runs for one step."""
    return math.ceil(config.batch_size / (config.micro_batch_size * processes))


def train(
    model: nn.Module,
    rows: Sequence[Row],
    task: Task[Row],
    config: OptimizerConfig,
    accelerator: Accelerator,
    log: MetricsLog | None = None,
    *,
    seed: int = 0,
    name: str = "train",
    after_step: Callable[[int, int, nn.Module], None] | None = None,
    states: States | None = None,
    shown: Callable[[Row], Any] = repr,
) -> TrainingResult:
    """Train `model` in place (unwrap what `accelerator.prepare` made of it yourself, or keep your own reference).

    Args:
        model: any module; only parameters with requires_grad are trained. Dropout is as the model has it in train mode.
        rows: all rows, the same on every process.
        task: collate, loss, weight and length of a row.
        config: schedule and sizes.
        accelerator: from `make_accelerator`.
        log: one line a step: loss, learning_rate, grad_norm, the task's own figures per item; None: no log.
        after_step: called as (step, total steps, prepared model) after each step, on every process.
        states: where the training goes on from the newest state, and writes more; None: it starts, and writes none.
        shown: a row as plain JSON, for the rows of a step that stands out (`config.on_spike`).

    Raises:
        InputError: no rows, or non-finite loss or gradient three steps in a row (such steps change no weight and are
        counted); on_spike is stop, and a step stands out; it is skip under DeepSpeed.
    """
    from rlhf.training.checkpoints import Checkpoints
    from rlhf.training.feeding import ahead
    from rlhf.training.step import Stepper

    if not rows:
        raise InputError(f"{name}: there are no rows to train on")
    stepper = Stepper(model, config, accelerator, name=name)
    if stepper.deepspeed and config.on_spike != "keep":
        raise InputError(
            f"on_spike: {config.on_spike} must see a gradient before the step, and DeepSpeed shows none; say keep"
        )
    count = accumulation_steps(config, accelerator.num_processes)
    total = config.epochs * math.ceil(len(rows) / config.batch_size)
    result = TrainingResult(rows=len(rows), warmup=config.warmup_steps(total))
    if result.warmup < config.warmup_min_steps:
        notice(f"{name}: {total} steps are few; {result.warmup} warm up, not {config.warmup_min_steps}")
    checkpoints = None if states is None else Checkpoints(states.folder, stepper, accelerator, keep=1)
    if checkpoints is not None:
        state = checkpoints.restore() or {"losses": []}
        result.losses, result.norms = state["losses"], state.get("norms", [])
        result.spikes = state.get("spikes", 0)
        if log is not None:
            log.go_on(len(result.losses))
    start = result.steps = len(result.losses)
    result.skipped = stepper.skipped
    watch = SpikeWatch(
        name,
        config.on_spike,
        Spikes(result.losses, result.norms),
        None if log is None else log.path,
        shown,
        full=min(config.batch_size, len(rows)),
        writes=accelerator.is_main_process,
    )
    progress = progress_bar(total, name, "step", done=start, training=True)

    def prepared(step_rows: list[Row]) -> tuple[list[Row], list[tuple[Batch, float]]]:
        mine = micro_batches(step_rows, count, accelerator.process_index, accelerator.num_processes, task.length)
        # an empty micro-batch runs one row with share 0, so that every process takes part
        return step_rows, [(task.collate(micro or step_rows[:1]), float(bool(micro))) for micro in mine]

    steps = ahead(map(prepared, islice(steps_of(rows, config, seed), start, None)))
    for step, (step_rows, batches) in enumerate(steps, start=start):
        rate = config.learning_rate_at(step, total)
        figures = stepper.step(
            batches, task.loss, sum(task.weight(row) for row in step_rows), rate, watch.refuse(step_rows)
        )
        result.spikes += watch.saw(step, figures, step_rows)
        result.steps += 1
        result.skipped = stepper.skipped
        progress.set_postfix(loss=f"{figures.means['loss']:.4f}", refresh=False)
        progress.update()
        if log is not None:
            log.log(step, **figures.means, learning_rate=rate, grad_norm=figures.grad_norm, skipped=result.skipped)
        if after_step is not None:
            after_step(step, total, stepper.model)
        if checkpoints is not None and states is not None and (step + 1) % states.every == 0:
            kept = {"losses": result.losses, "norms": result.norms, "spikes": result.spikes}
            checkpoints.save(step + 1, kept)
    progress.close()
    stepper.close()
    return result
