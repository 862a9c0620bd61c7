"""Reward-model training: pairs a second and peak memory of ours and of trl's RewardTrainer.

    OMP_NUM_THREADS=1 python benchmarks/reward_training.py [--model SmolLM2] [--steps 50]

Same model (a Llama of 12.2M random weights, or `--model`, whose head is new), same HH pairs in the same order, AdamW,
rates and clipping, no dropout, no margin. trl runs twice: a step's four pairs in one padded forward pass, and a pair a
pass with accumulated gradients, which pads less; the better one counts. Each side is a process of its own with one
thread. They take their steps in turn, and seconds are of processor time, so that other work on the machine counts
little. The loss curves must agree; on a GPU, where both compute in bfloat16, in the mean over the steps; the clock is
then the wall's. The last line is JSON, with ours' share of the matmul peak (benchmarks/peak.py), a pair's prompt
counted once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peak import GPU, Arithmetic, clock, matmul_peak, parse, peak_memory, peak_share, run, unused_token

from rlhf.architecture import LlamaSize
from rlhf.conversation import Renderer
from rlhf.data.loading import load_preferences
from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.metrics import MetricsLog
from rlhf.models.checkpoint.pretrained import from_pretrained
from rlhf.models.policy import load_tokenizer, save_policy
from rlhf.models.pretraining import new_llama, train_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.pairs import Pair, render_pairs
from rlhf.rewards.training.train import pair_task
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.loop import steps_of, train
from rlhf.training.step import make_optimizer

SIZE = LlamaSize(hidden_size=384, intermediate_size=1024, num_layers=6, num_heads=6, num_kv_heads=6, context=1024)
VOCABULARY, SEED, PAIRS_A_STEP = 4096, 0, 4
FURTHEST = 0.1 if GPU else 1e-3  # of equal losses: see `apart`
FILES = ("helpful-base.jsonl.gz", "harmless-base.jsonl.gz")


def hh_rows(folder: Path) -> list[Preference]:
    """The pairs of two of HH's files; its few rows with an empty answer are skipped and reported."""
    for name in FILES:
        if not (folder / name).is_file():
            raise InputError(f"data: {folder} has no {name}; give the folder of HH's test files with --data")
    return [row for name in FILES for row in load_preferences(folder / name, on_bad_row="skip")]


def save_reward_model(rows: list[Preference], folder: Path, model: Path | None, size: LlamaSize = SIZE) -> None:
    """folder/policy: `model`, or random weights with a tokenizer trained on the rows; folder/reward: with a head."""
    if model is None:
        torch.manual_seed(SEED)
        texts = [message["content"] for row in rows for message in row.conversation("chosen")]
        tokenizer = train_tokenizer(texts, VOCABULARY)
        save_policy(new_llama(size, tokenizer), tokenizer, folder / "policy")
    else:
        (folder / "policy").symlink_to(model)
    reward = RewardModel.from_policy(folder / "policy", safety_head=False, seed=SEED)
    reward.save(folder / "reward", load_tokenizer(folder / "policy"))


class Turns:
    """A side's end of the pipe: waits for its turn, says how long its step took, and at last what came of it all."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.before = peak_memory()
        pipe.recv()
        self.started = clock()

    def end_step(self) -> None:
        self.pipe.send(clock() - self.started)
        self.pipe.recv()
        self.started = clock()

    def finish(self, losses: list[float]) -> None:
        self.pipe.send((losses, self.before, peak_memory()))


def ours(pipe: Connection, folder: Path, pairs: list[Pair], optimizer: OptimizerConfig) -> None:
    """Train with `rlhf.training.loop.train`."""
    accelerator = make_accelerator()
    model = RewardModel.load(folder / "reward")
    task = pair_task(RewardTrainingConfig(margin="none"), load_tokenizer(folder / "reward").pad_token_id)
    log, turns = MetricsLog(folder, accelerator), Turns(pipe)
    result = train(
        model, pairs, task, optimizer, accelerator, log, seed=SEED, after_step=lambda *_step: turns.end_step()
    )
    turns.finish(result.losses)


def peer(pipe: Connection, folder: Path, pairs: list[Pair], optimizer: OptimizerConfig) -> None:
    """Train with trl's RewardTrainer: our order, rates and AdamW settings; everything else is its own."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    losses: list[float] = []

    class Recorded(RewardTrainer):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())  # of a forward pass
            return loss

    class InTurn(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            turns.end_step()

    model = from_pretrained(AutoModelForSequenceClassification, folder / "reward", dtype=torch.float32)
    tokenizer = load_tokenizer(folder / "reward")
    tokenizer.pad_token = unused_token(tokenizer, (ids for pair in pairs for ids in (pair.chosen, pair.rejected)))
    steps = list(steps_of(pairs, optimizer, SEED))
    adamw = make_optimizer(model, optimizer)
    rate = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda step: optimizer.learning_rate_at(min(step, len(steps) - 1), len(steps)) / optimizer.learning_rate
    )
    trainer = Recorded(
        model,
        RewardConfig(
            str(folder / "trl"),
            use_cpu=not GPU,
            bf16=GPU,
            gradient_checkpointing=False,
            per_device_train_batch_size=optimizer.micro_batch_size,
            gradient_accumulation_steps=optimizer.batch_size // optimizer.micro_batch_size,
            num_train_epochs=1,
            max_grad_norm=optimizer.max_grad_norm,
            train_sampling_strategy="sequential",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(
            [{"chosen_ids": pair.chosen, "rejected_ids": pair.rejected} for step in steps for pair in step]
        ),
        processing_class=tokenizer,
        callbacks=[InTurn()],
        optimizers=(adamw, rate),
    )
    turns = Turns(pipe)
    trainer.train()
    passes = trainer.args.gradient_accumulation_steps
    turns.finish([sum(losses[i : i + passes]) / passes for i in range(0, len(losses), passes)])


def apart(curves: list[list[float]]) -> float:
    """How far loss curves are from each other: the most at a step; the mean on a GPU, where a score of 2 is known to a
    few hundredths in bfloat16, and what a step rounds the next ones carry on."""
    at_steps = [max(losses) - min(losses) for losses in zip(*curves, strict=True)]
    return sum(at_steps) / len(at_steps) if GPU else max(at_steps)


def distinct_tokens(pair: Pair) -> int:
    """Of both dialogues, what they begin with alike counted once."""
    both = zip(pair.chosen, pair.rejected, strict=False)
    alike = next((n for n, (one, other) in enumerate(both) if one != other), min(len(pair.chosen), len(pair.rejected)))
    return len(pair.chosen) + len(pair.rejected) - alike


SIDES = {"ours": (ours, PAIRS_A_STEP), "trl": (peer, PAIRS_A_STEP), "trl, a pair a pass": (peer, 1)}


def take_turns(folder: Path, pairs: list[Pair], optimizer: OptimizerConfig) -> dict[str, tuple[list[float], Any]]:
    """Side -> (seconds of each step, what it sent at last)."""
    spawn = multiprocessing.get_context("spawn")
    pipes, seconds = {}, {}
    for name, (side, micro) in SIDES.items():
        pipes[name], theirs = spawn.Pipe()
        seconds[name] = []
        arguments = (theirs, folder, pairs, replace(optimizer, micro_batch_size=micro))
        spawn.Process(target=side, args=arguments, daemon=True).start()
        theirs.close()
    for _ in range(len(pairs) // optimizer.batch_size):
        for name, pipe in pipes.items():
            pipe.send("step")
            seconds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send("finish")
    return {name: (seconds[name], pipe.recv()) for name, pipe in pipes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hh-rlhf"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--longest-pair", type=int, default=512, help="tokens of a dialogue; of longer ones turns are cut"
    )
    arguments = parse(parser, {"steps": 2, "longest_pair": 128})
    if arguments.steps < 2:
        raise InputError(f"steps: must be at least 2, got {arguments.steps}")
    rows, matmul = hh_rows(arguments.data), matmul_peak()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_reward_model(rows, folder, arguments.model)
        arithmetic = Arithmetic.of(folder / "policy")
        pairs = render_pairs(rows, Renderer(load_tokenizer(folder / "reward")), arguments.longest_pair)
        pairs = random.Random(SEED).sample(pairs, arguments.steps * PAIRS_A_STEP)
        optimizer = OptimizerConfig(learning_rate=1e-4, warmup_min_steps=5, batch_size=PAIRS_A_STEP)
        found = take_turns(folder, pairs, optimizer)
    rates, curves = {}, []
    for name, (seconds, (losses, before, peak)) in found.items():
        rates[name] = round(PAIRS_A_STEP * (len(seconds) - 1) / sum(seconds[1:]), 2)  # the first step sets things up
        curves.append(losses)
        print(f"{name}: {rates[name]} pairs/s, peak {peak:.0f} MB, {peak - before:.0f} MB of it to train; ", end="")
        print(f"loss {losses[0]:.4f} at first, {sum(losses[-10:]) / len(losses[-10:]):.4f} over the last ten steps")
    difference = apart(curves)
    print(f"difference of the loss curves over {arguments.steps} steps: {difference:.1e}")
    if difference > FURTHEST:
        raise SystemExit(f"reward_training: the loss curves differ by more than {FURTHEST}: not the same training")
    steps = list(steps_of(pairs, optimizer, SEED))[1:]
    tokens = sum(distinct_tokens(pair) for step in steps for pair in step)
    share = peak_share(arithmetic.training(tokens), sum(found["ours"][0][1:]), matmul)
    best = max(rate for name, rate in rates.items() if name != "ours")
    result = {"ours": rates["ours"], "peer": best, "ratio": round(rates["ours"] / best, 2), "unit": "pairs/s"}
    print(json.dumps({"name": "reward_training", **result, **share}))


if __name__ == "__main__":
    run(main)
