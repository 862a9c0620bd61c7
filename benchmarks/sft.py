"""Supervised fine-tuning: tokens a second of ours, packed, and of trl's SFTTrainer, padded and packed.

    OMP_NUM_THREADS=1 python benchmarks/sft.py [--data ../shared/data] [--steps 5]

A Llama of 12.2M random weights learns Dolly's and Open Assistant's answers, the loss on answers alone, AdamW, no
dropout. Ours packs a step's dialogues into one row in which none sees another, and runs its output head on answers
alone. trl runs as a user would run it: a step's dialogues in one padded pass; and with `packing=True`, four rows of
MAX_LENGTH tokens per pass, which is about as many tokens per step. Counted are the dialogues' own tokens, from
the second step on: the first sets things up. Each side is a process of its own with one thread; they take their steps
in turn, and seconds are of processor time, so that other work on the machine counts little. The loss curves of ours and
of trl padded, which see the same rows in the same order, must agree. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from reward_training import SIZE, VOCABULARY, Turns

from rlhf.conversation import Rendered, Renderer
from rlhf.data.loading import load_conversations
from rlhf.errors import InputError
from rlhf.finetuning.config import FinetuningConfig
from rlhf.finetuning.supervised import AnswerLogprobs, answer_task, render_rows
from rlhf.metrics import MetricsLog
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.pretraining import new_llama, train_tokenizer
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.loop import steps_of, train
from rlhf.training.step import make_optimizer

SEED, ROWS_A_STEP, MAX_LENGTH, PACKED_ROWS = 0, 8, 512, 4
FILES = ("dolly/dolly_387.jsonl", "oasst/en_100_tree.jsonl")
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-4, warmup_min_steps=3, batch_size=ROWS_A_STEP, micro_batch_size=ROWS_A_STEP
)


def prepare(data: Path, folder: Path, count: int) -> list[Rendered]:
    """Write a policy with random weights and its own tokenizer; `count` dialogues that fit into MAX_LENGTH."""
    for name in FILES:
        if not (data / name).is_file():
            raise InputError(f"data: {data} has no {name}; give the folder of the shared data with --data")
    dialogues = [row for name in FILES for row in load_conversations(data / name, on_bad_row="skip")]
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer([message["content"] for row in dialogues for message in row], VOCABULARY)
    save_policy(new_llama(SIZE, tokenizer), tokenizer, folder)
    config = FinetuningConfig(max_length=MAX_LENGTH, on_bad_row="skip")
    rows = render_rows(Renderer(load_tokenizer(folder), MAX_LENGTH), dialogues, config, "data")
    if len(rows) < count:
        raise InputError(f"steps: {len(rows)} dialogues fit, {count} are needed; ask for fewer")
    return random.Random(SEED).sample(rows, count)


def ours(pipe: Connection, folder: Path, rows: list[Rendered]) -> None:
    """Train with `rlhf.training.loop.train`, as `rlhf.finetuning.supervised.finetune` does."""
    accelerator = make_accelerator()
    model = AnswerLogprobs(load_policy(folder), packing=True)
    assert model.packing
    log, turns = MetricsLog(folder, accelerator), Turns(pipe)
    task = answer_task(load_tokenizer(folder).pad_token_id)
    result = train(model, rows, task, OPTIMIZER, accelerator, log, seed=SEED, after_step=lambda *_: turns.end_step())
    tokens = [sum(len(row.input_ids) for row in step) for step in steps_of(rows, OPTIMIZER, SEED)]
    turns.finish(list(zip(result.losses, tokens, strict=True)))


def trl_padded(pipe: Connection, folder: Path, rows: list[Rendered]) -> None:
    trl(pipe, folder, rows, per_device_train_batch_size=ROWS_A_STEP)


def trl_packed(pipe: Connection, folder: Path, rows: list[Rendered]) -> None:
    trl(pipe, folder, rows, per_device_train_batch_size=PACKED_ROWS, packing=True)


def trl(pipe: Connection, folder: Path, rows: list[Rendered], **options: Any) -> None:
    """Train with trl's SFTTrainer: our order, AdamW settings and peak rate; everything else is its own."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    steps_done: list[tuple[float, int]] = []

    class Recorded(SFTTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            tokens = int(inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum())
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            steps_done.append((loss.item(), tokens))
            return loss

    class InTurn(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            turns.end_step()

    model = from_pretrained(AutoModelForCausalLM, folder)
    steps = list(steps_of(rows, OPTIMIZER, SEED))
    adamw = make_optimizer(model, OPTIMIZER)
    rate = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda step: OPTIMIZER.learning_rate_at(min(step, len(steps) - 1), len(steps)) / OPTIMIZER.learning_rate
    )
    ordered = [row for step in steps for row in step]
    trainer = Recorded(
        model,
        SFTConfig(
            str(folder / "trl"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_length=MAX_LENGTH,
            num_train_epochs=1,
            max_grad_norm=OPTIMIZER.max_grad_norm,
            train_sampling_strategy="sequential",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        ),
        train_dataset=Dataset.from_list(
            [{"input_ids": row.input_ids, "assistant_masks": [int(t) for t in row.loss_mask]} for row in ordered]
        ),
        processing_class=load_tokenizer(folder),
        callbacks=[InTurn()],
        optimizers=(adamw, rate),
    )
    turns = Turns(pipe)
    trainer.train()
    turns.finish(steps_done)


SIDES = {"ours": ours, "trl, padded": trl_padded, "trl, packed": trl_packed}


def take_turns(folder: Path, rows: list[Rendered]) -> dict[str, tuple[list[float], list[tuple[float, int]], float]]:
    """Side -> (seconds of each step, (loss, tokens) of each, peak memory in MB)."""
    spawn = multiprocessing.get_context("spawn")
    pipes, seconds = {}, {}
    for name, side in SIDES.items():
        pipes[name], theirs = spawn.Pipe()
        seconds[name] = []
        spawn.Process(target=side, args=(theirs, folder, rows), daemon=True).start()
        theirs.close()
    results = {}
    while len(results) < len(SIDES):
        for name in [name for name in SIDES if name not in results]:
            pipes[name].send("step")
            sent = pipes[name].recv()
            if isinstance(sent, tuple):
                done, _, peak = sent
                results[name] = (seconds[name], done, peak)
            else:
                seconds[name].append(sent)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.steps < 2:
        raise InputError(f"steps: must be at least 2, got {arguments.steps}")
    with tempfile.TemporaryDirectory() as name:
        rows = prepare(arguments.data, Path(name), arguments.steps * ROWS_A_STEP)
        found = take_turns(Path(name), rows)
    total = sum(len(row.input_ids) for row in rows)
    rates = {}
    for name, (seconds, done, peak) in found.items():
        if sum(tokens for _, tokens in done) != total:
            raise SystemExit(f"sft: {name} was trained on other tokens than the rows have")
        rates[name] = round(sum(tokens for _, tokens in done[1:]) / sum(seconds[1:]))
        print(f"{name}: {rates[name]} tokens/s in {len(seconds)} steps, peak {peak:.0f} MB; ", end="")
        print(f"loss {done[0][0]:.4f} at first, {done[-1][0]:.4f} at last")
    curves = zip(found["ours"][1], found["trl, padded"][1], strict=True)
    difference = max(abs(one - other) for (one, _), (other, _) in curves)
    print(f"largest difference of ours and trl padded over {arguments.steps} steps: {difference:.1e}")
    if difference > 1e-3:
        raise SystemExit("sft: the loss curves differ by more than 1e-3: not the same training")
    peers = {name: rate for name, rate in rates.items() if name != "ours"}
    best = max(peers.values())
    result = {"ours": rates["ours"], "peer": best, "ratio": round(rates["ours"] / best, 2), "unit": "tokens/s"}
    print(json.dumps({"name": "sft", **result, "peers": peers}))


if __name__ == "__main__":
    main()
