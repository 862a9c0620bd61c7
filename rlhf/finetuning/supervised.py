"""Supervised training on dialogues: SFT, rejection sampling, Ghost Attention and distillation all train here.

The loss is the negative log-likelihood of the answers' tokens, end token included (Llama 2 paper, section 3.1),
divided by their number in the whole step, over all processes (decision 2). Unlike in common trainers the output head
runs on the trained positions alone, which saves most of the logits' time and memory.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.conversation import Conversation, Rendered, Renderer, TooLongError
from rlhf.errors import InputError, notice
from rlhf.finetuning.config import FinetuningConfig
from rlhf.metrics import MetricsLog
from rlhf.models.batching import batch_tokens_on, batches_by_length, pad_rows
from rlhf.models.checkpoint.context import Context
from rlhf.models.packing import PackedRows, enable_packing, pack_rows
from rlhf.objectives.policy import token_logprobs
from rlhf.training.feeding import on_device
from rlhf.training.kept import States
from rlhf.training.loop import Task, TrainingResult, micro_batches, train
from rlhf.training.step import Batch
from rlhf.training.whole import settle


def training_renderer(
    tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel, config: FinetuningConfig
) -> Renderer:
    """A renderer whose dialogues are at most config.max_length tokens long and fit into the policy's context."""
    return Renderer(tokenizer, max_length=Context.of(policy.config).limit(config.max_length))


def finetune(
    policy: PreTrainedModel,
    renderer: Renderer,
    conversations: Sequence[Conversation],
    config: FinetuningConfig,
    accelerator: Accelerator,
    log: MetricsLog | None = None,
    seed: int = 0,
    *,
    heldout: Sequence[Conversation] = (),
    name: str = "fine-tuning",
    states: Path | None = None,
    left_out: Counter[str] | None = None,
) -> TrainingResult:
    """Train `policy` in place on dialogues that end with an answer; afterwards it is in eval mode.

    Args:
        policy: causal LM, whole or with an adapter; not wrapped.
        renderer: of its tokenizer; see `training_renderer`.
        conversations: all of them, the same on every process.
        log: one line a step: loss (per trained token), learning rate, gradient norm; at the end of each epoch the
            `heldout_loss`; None: no log.
        seed: of the rows' order.
        heldout: dialogues to measure, never trained on.
        states: folder for states to go on from after a kill, one every config.checkpoint_every steps; None: no states.
        left_out: the dialogues that were skipped are added here, by reason.

    Raises:
        InputError: no rows, a row that is too long or that the template refuses (as the config says), or a loss that is
            not finite three times in a row.
    """
    rows = render_rows(renderer, conversations, config, name, left_out)
    heldout_rows = render_rows(renderer, heldout, config, f"held-out {name}") if heldout else []
    task = answer_task(renderer.pad_token_id)
    measure = _Heldout(heldout_rows, task, config, accelerator, log) if heldout_rows and log is not None else None
    result = train(
        AnswerLogprobs(policy, packing=config.packing),
        rows,
        task,
        config.optimizer,
        accelerator,
        log,
        seed=seed,
        name=name,
        after_step=None if measure is None else measure.after_step,
        states=None if states is None else States(states, config.checkpoint_every),
        shown=lambda row: renderer.tokenizer.decode(row.input_ids),
    )
    result.cut = sum(row.cut for row in rows)
    policy.eval()
    return result


def render_rows(
    renderer: Renderer,
    conversations: Sequence[Conversation],
    config: FinetuningConfig,
    name: str,
    left_out: Counter[str] | None = None,
) -> list[Rendered]:
    """Dialogues as ids with their loss masks (see `Renderer.training_rows`).

    What is too long, and what the template refuses, is dealt with as the config says; what is left out is added to
    `left_out`, by reason.
    """
    reasons: Counter[str] = Counter()
    rows: list[Rendered] = []
    try:
        whole = renderer.training_rows(conversations, config.train)
        if config.too_long == "cut" or not any(row.cut for row in whole):
            return whole
    except InputError:  # find the rows
        pass
    for number, conversation in enumerate(conversations, start=1):
        try:
            rendered = renderer.training_rows([conversation], config.train)
            if config.too_long != "cut" and any(row.cut for row in rendered):
                raise TooLongError(f"messages: longer than max_length={renderer.max_length}; raise it, or set too_long")
            rows += rendered
        except InputError as error:
            rule = config.too_long if isinstance(error, TooLongError) else config.on_bad_row
            if rule == "refuse":
                raise InputError(f"{name}: row {number}: {error}") from error
            reasons[re.sub(r"\d+", "n", str(error).partition(";")[0])] += 1
    notice(
        f"{name}: skipped {reasons.total()} of {len(conversations)} rows: "
        + "; ".join(f"{count} x {why}" for why, count in reasons.most_common(3))
    )
    if left_out is not None:
        left_out.update(reasons)
    return rows


class AnswerLogprobs(nn.Module):
    """A causal LM that returns the log-probabilities of chosen tokens, running its head on their positions alone.

    Meant to be prepared (DDP, DeepSpeed) in the model's stead.

    Args:
        policy: causal LM of transformers, with or without an adapter.
        packing: compute a batch's packed rows, where it has them and the policy's attention can take them: one row
            without padding, in which each sees itself alone (see `rlhf.models.packing`). Same numbers up to rounding.
    """

    def __init__(self, policy: PreTrainedModel, *, packing: bool = False) -> None:
        super().__init__()
        self.policy = policy
        self.packing = packing and enable_packing(getattr(policy, "get_base_model", lambda: policy)())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        rows: Tensor,
        positions: Tensor,
        targets: Tensor,
        packed: PackedRows | None = None,
    ) -> Tensor:
        """Log-probabilities (N,) float32.

        Args:
            input_ids, attention_mask: (B, T) int64, right padded.
            rows, positions: (N,) int64: at input_ids[rows[i], positions[i]] the token targets[i] is predicted.
            targets: (N,) int64.
            packed: the same rows, packed; None: they are computed as they are padded.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if self.packing and packed is not None:
            rows, positions = torch.zeros_like(rows), packed.places[rows, positions]
            inputs = packed.inputs()
        head = self.policy.get_output_embeddings()

        def select(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (inputs[0][rows, positions].unsqueeze(0), *inputs[1:])

        hook = head.register_forward_pre_hook(select) if isinstance(head, nn.Module) else None
        try:
            logits = self.policy(**inputs).logits
        finally:
            if hook is not None:
                hook.remove()
        # N < T in a batch of one row, its first token being never a target: the shapes cannot be confused
        selected = logits.shape[:2] == (1, len(targets))
        return token_logprobs(logits[0] if selected else logits[rows, positions], targets)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """The policy's own."""
        self.policy.gradient_checkpointing_enable(**options)


def answer_task(pad_id: int) -> Task[Rendered]:
    """Rows of ids and loss mask -> summed negative log-likelihood of the masked tokens, weighted by their number."""

    def collate(rows: Sequence[Rendered]) -> Batch:
        input_ids, attention_mask = pad_rows([row.input_ids for row in rows], pad_id)
        places = [(r, t) for r, row in enumerate(rows) for t, trained in enumerate(row.loss_mask) if trained and t]
        row_numbers, columns = torch.tensor(places, dtype=torch.long).view(-1, 2).unbind(1)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "rows": row_numbers,
            "positions": columns - 1,
            "targets": input_ids[row_numbers, columns],
            "packed": pack_rows(input_ids, attention_mask),
        }

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return -model(**batch).sum(), {}

    return Task(
        collate=collate,
        loss=loss,
        weight=lambda row: sum(row.loss_mask[1:]),
        length=lambda row: len(row.input_ids),
    )


@torch.no_grad()
def heldout_loss(
    policy: PreTrainedModel, rows: Sequence[Rendered], pad_id: int, batch_tokens: int | None = None
) -> float:
    """Negative log-likelihood a trained token of `rows`, in nats, by a policy that is not wrapped; dropout off."""
    training, device = policy.training, next(policy.parameters()).device
    policy.eval()
    task, total = answer_task(pad_id), 0.0
    most = batch_tokens or batch_tokens_on(device, logits=True)
    for batch in batches_by_length([len(row.input_ids) for row in rows], most):
        inputs = on_device(task.collate([rows[i] for i in batch]), device)
        total += float(task.loss(AnswerLogprobs(policy), inputs)[0])
    policy.train(training)
    return total / sum(task.weight(row) for row in rows)


class _Heldout:
    """The loss per trained token on held-out rows, logged at the end of each epoch."""

    def __init__(
        self,
        rows: Sequence[Rendered],
        task: Task[Rendered],
        config: FinetuningConfig,
        accelerator: Accelerator,
        log: MetricsLog,
    ) -> None:
        self.rows, self.task, self.config, self.accelerator, self.log = rows, task, config, accelerator, log

    def after_step(self, step: int, total: int, model: nn.Module) -> None:
        if (step + 1) % (total // self.config.optimizer.epochs) == 0:
            self.log.log(step, heldout_loss=self.measure(model))

    @torch.no_grad()
    def measure(self, model: nn.Module) -> float:
        """The same on every process; every process takes part."""
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        count = -(-len(self.rows) // (self.config.optimizer.micro_batch_size * processes))
        model.eval()
        total = torch.zeros((), device=self.accelerator.device)
        for micro in micro_batches(self.rows, count, process, processes, self.task.length):
            # where there is no row left, one runs for company: under ZeRO-3 all processes run forward together
            batch = on_device(self.task.collate(micro or self.rows[:1]), self.accelerator.device)
            loss, _ = self.task.loss(model, batch)
            total += loss * float(bool(micro))
        settle(model)
        model.train()
        summed: Tensor = self.accelerator.reduce(total, reduction="sum")
        return float(summed) / sum(self.task.weight(row) for row in self.rows)
