"""Supervised fine-tuning: tokens a second of ours, packed, and of trl's SFTTrainer, padded and packed.

    OMP_NUM_THREADS=1 python benchmarks/sft.py [--model SmolLM2] [--data ../shared/data] [--steps 5]

A Llama of 12.2M random weights, or `--model`, learns Dolly's and Open Assistant's answers, the loss on answers alone,
AdamW, no dropout. Ours packs a step's dialogues into one row in which none sees another, and runs its output head on
answers alone. trl runs as a user would run it: a step's dialogues in one padded pass; and with `packing=True`, half as
many rows of the longest length per pass, which is about as many tokens per step. Counted are the dialogues' own tokens,
from the second step on: the first sets things up. Each side is a process of its own with one thread; they take their
steps in turn, and seconds are of processor time, so that other work on the machine counts little. The loss curves of
ours and of trl padded, which see the same rows in the same order, must agree. On a GPU all compute in bfloat16, and the
clock is the wall's. The last line is JSON, with ours' share of the matmul peak (benchmarks/peak.py).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peak import GPU, Arithmetic, matmul_peak, parse, peak_share, run
from reward_training import FURTHEST, SIZE, VOCABULARY, Turns, apart

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

SEED = 0
FILES = ("dolly/dolly_387.jsonl", "oasst/en_100_tree.jsonl")


@dataclass(frozen=True)
class Work:
    """What every side does: the model in folder/policy trained on the rows, of at most `longest` tokens."""

    folder: Path
    rows: list[Rendered]
    longest: int
    optimizer: OptimizerConfig

    @property
    def policy(self) -> Path:
        return self.folder / "policy"


def prepare(data: Path, folder: Path, model: Path | None, longest: int, count: int) -> list[Rendered]:
    """Make folder/policy, `model` or random weights with a tokenizer of their own; `count` dialogues that fit."""
    for name in FILES:
        if not (data / name).is_file():
            raise InputError(f"data: {data} has no {name}; give the folder of the shared data with --data")
    dialogues = [row for name in FILES for row in load_conversations(data / name, on_bad_row="skip")]
    if model is None:
        torch.manual_seed(SEED)
        tokenizer = train_tokenizer([message["content"] for row in dialogues for message in row], VOCABULARY)
        save_policy(new_llama(SIZE, tokenizer), tokenizer, folder / "policy")
    else:
        (folder / "policy").symlink_to(model)
    config = FinetuningConfig(max_length=longest, on_bad_row="skip")
    rows = render_rows(Renderer(load_tokenizer(folder / "policy"), longest), dialogues, config, "data")
    if len(rows) < count:
        raise InputError(f"steps: {len(rows)} dialogues fit, {count} are needed; ask for fewer")
    return random.Random(SEED).sample(rows, count)


def ours(pipe: Connection, work: Work) -> None:
    """Train with `rlhf.training.loop.train`, as `rlhf.finetuning.supervised.finetune` does."""
    accelerator = make_accelerator()
    model = AnswerLogprobs(load_policy(work.policy), packing=True)
    assert model.packing
    log, turns = MetricsLog(work.folder, accelerator), Turns(pipe)
    task = answer_task(load_tokenizer(work.policy).pad_token_id)
    rows, optimizer = work.rows, work.optimizer
    result = train(model, rows, task, optimizer, accelerator, log, seed=SEED, after_step=lambda *_: turns.end_step())
    tokens = [sum(len(row.input_ids) for row in step) for step in steps_of(rows, optimizer, SEED)]
    turns.finish(list(zip(result.losses, tokens, strict=True)))


def trl_padded(pipe: Connection, work: Work) -> None:
    trl(pipe, work, per_device_train_batch_size=work.optimizer.batch_size)


def trl_packed(pipe: Connection, work: Work) -> None:
    trl(pipe, work, per_device_train_batch_size=max(1, work.optimizer.batch_size // 2), packing=True)


def trl(pipe: Connection, work: Work, **options: Any) -> None:
    """Train with trl's SFTTrainer: our order, AdamW settings and peak rate; everything else is its own."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
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

    optimizer = work.optimizer
    model = from_pretrained(AutoModelForCausalLM, work.policy, dtype=torch.float32)
    steps = list(steps_of(work.rows, optimizer, SEED))
    adamw = make_optimizer(model, optimizer)
    rate = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda step: optimizer.learning_rate_at(min(step, len(steps) - 1), len(steps)) / optimizer.learning_rate
    )
    ordered = [row for step in steps for row in step]
    trainer = Recorded(
        model,
        SFTConfig(
            str(work.folder / "trl"),
            use_cpu=not GPU,
            bf16=GPU,
            gradient_checkpointing=False,
            max_length=work.longest,
            num_train_epochs=1,
            max_grad_norm=optimizer.max_grad_norm,
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
        processing_class=from_pretrained(AutoTokenizer, work.policy),  # not ours, which may add a token to pad with
        callbacks=[InTurn()],
        optimizers=(adamw, rate),
    )
    turns = Turns(pipe)
    trainer.train()
    turns.finish(steps_done)


SIDES = {"ours": ours, "trl, padded": trl_padded, "trl, packed": trl_packed}


def take_turns(work: Work) -> dict[str, tuple[list[float], list[tuple[float, int]], float]]:
    """Side -> (seconds of each step, (loss, tokens) of each, peak memory in MB)."""
    spawn = multiprocessing.get_context("spawn")
    pipes, seconds = {}, {}
    for name, side in SIDES.items():
        pipes[name], theirs = spawn.Pipe()
        seconds[name] = []
        spawn.Process(target=side, args=(theirs, work), daemon=True).start()
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
    parser.add_argument("--rows", type=int, default=8, help="dialogues a step")
    parser.add_argument("--longest", type=int, default=512, help="tokens; longer dialogues are left out")
    arguments = parse(parser, {"steps": 3, "rows": 2, "longest": 256})
    if arguments.steps < 2:
        raise InputError(f"steps: must be at least 2, got {arguments.steps}")
    optimizer = OptimizerConfig(
        learning_rate=1e-4, warmup_min_steps=3, batch_size=arguments.rows, micro_batch_size=arguments.rows
    )
    matmul, count = matmul_peak(), arguments.steps * arguments.rows
    with tempfile.TemporaryDirectory() as name:
        rows = prepare(arguments.data, Path(name), arguments.model, arguments.longest, count)
        work = Work(Path(name), rows, arguments.longest, optimizer)
        arithmetic = Arithmetic.of(work.policy)
        found = take_turns(work)
    total = sum(len(row.input_ids) for row in rows)
    rates = {}
    for name, (seconds, done, peak) in found.items():
        if sum(tokens for _, tokens in done) != total:
            raise SystemExit(f"sft: {name} was trained on other tokens than the rows have")
        rates[name] = round(sum(tokens for _, tokens in done[1:]) / sum(seconds[1:]))
        print(f"{name}: {rates[name]} tokens/s in {len(seconds)} steps, peak {peak:.0f} MB; ", end="")
        print(f"loss {done[0][0]:.4f} at first, {done[-1][0]:.4f} at last")
    difference = apart([[loss for loss, _ in found[side][1]] for side in ("ours", "trl, padded")])
    print(f"difference of ours and trl padded over {arguments.steps} steps: {difference:.1e}")
    if difference > FURTHEST:
        raise SystemExit(f"sft: the loss curves differ by more than {FURTHEST}: not the same training")
    counted = [row for step in list(steps_of(rows, optimizer, SEED))[1:] for row in step]
    tokens, trained = sum(len(row.input_ids) for row in counted), sum(sum(row.loss_mask) for row in counted)
    share = peak_share(arithmetic.training(tokens, trained), sum(found["ours"][0][1:]), matmul)
    peers = {name: rate for name, rate in rates.items() if name != "ours"}
    best = max(peers.values())
    result = {"ours": rates["ours"], "peer": best, "ratio": round(rates["ours"] / best, 2), "unit": "tokens/s"}
    print(json.dumps({"name": "sft", **result, "peers": peers, **share}))


if __name__ == "__main__":
    run(main)
