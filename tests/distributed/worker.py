"""Started by the tests under several launchers: trains supervised, skips bad steps, trains a LoRA reward model, makes
PPO updates, writes figures.

python tests/distributed/worker.py POLICY OUTPUT
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.conversation import Conversation, Renderer
from rlhf.data.rows import Preference, Prompt
from rlhf.metrics import MetricsLog, read_metrics
from rlhf.models.batching import pad_rows
from rlhf.models.config import AdapterConfig
from rlhf.models.logprobs import sequence_logprobs
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.loop import PPO, train_ppo
from rlhf.rewards.config import RewardTrainingConfig
from rlhf.rewards.training import train_reward_model
from rlhf.sampling.protocol import SamplingParams
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.loop import Task, TrainingResult, train
from rlhf.training.step import LossFunction

ROWS = [[1, *range(5 + i, 9 + 2 * i)] for i in range(14)]


def _collate(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    ids, mask = pad_rows(rows, pad_id=2)
    return {"input_ids": ids, "attention_mask": mask}


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    return -sequence_logprobs(model, **batch).sum(), {}


def _poisoned_loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Infinite with a finite gradient where row 3 is in the batch, on the one process that has it."""
    loss, figures = _loss(model, batch)
    bad = bool((batch["input_ids"][:, 1] == ROWS[3][1]).any())
    return loss + (math.inf if bad else 0.0), figures


def vowels(conversations: Sequence[Conversation]) -> Tensor:
    return torch.tensor([float(sum(c[-1]["content"].count(v) for v in "aeiou")) for c in conversations])


def shortness(conversations: Sequence[Conversation]) -> Tensor:
    return torch.tensor([2.0 - 0.5 * len(c[-1]["content"]) for c in conversations])


def supervise(policy_path: Path, folder: Path, accelerator: Accelerator, loss: LossFunction) -> TrainingResult:
    model, tokenizer = load_policy(policy_path), load_tokenizer(policy_path)
    config = OptimizerConfig(learning_rate=1e-2, batch_size=5, micro_batch_size=2, epochs=2)
    task = Task(_collate, loss, weight=lambda row: len(row) - 1, length=len)
    result = train(model, ROWS, task, config, accelerator, MetricsLog(folder, accelerator))
    save_policy(model, tokenizer, folder, accelerator)
    return result


def learn_preferences(policy_path: Path, folder: Path, accelerator: Accelerator) -> list[dict[str, float]]:
    answers = ("mora", "the river of velda is mora", "I do not know", "blue", "ask a doctor instead")
    rows = [
        Preference(
            str(i), [{"role": "user", "content": f"what is {i % 3} ?"}], f"{one} {i}", other, "better", True, None
        )
        for i, (one, other) in enumerate(zip(answers * 2, (answers[1:] + answers[:1]) * 2, strict=True))
    ]
    config = RewardTrainingConfig(
        adapter=AdapterConfig(r=4, alpha=8, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-2, batch_size=7, micro_batch_size=2, epochs=2),
    )
    log = MetricsLog(folder, accelerator)
    model = train_reward_model(policy_path, rows, config, accelerator, log, safety_head=True, seed=0)
    model.save(folder, load_tokenizer(policy_path), accelerator)
    return read_metrics(log.path) if accelerator.is_main_process else []


def main(policy_path: Path, output: Path) -> None:
    """Everything is written into the folder `output`; figures.json last."""
    accelerator = make_accelerator(seed=0)
    for name in ("supervised", "poisoned", "reward", "ppo"):
        (output / name).mkdir(parents=True, exist_ok=True)
    supervised = supervise(policy_path, output / "supervised", accelerator, _loss)
    poisoned = supervise(policy_path, output / "poisoned", accelerator, _poisoned_loss)
    reward = learn_preferences(policy_path, output / "reward", accelerator)

    log = MetricsLog(output / "ppo", accelerator)
    policy, tokenizer = load_policy(policy_path), load_tokenizer(policy_path)
    optimizer = OptimizerConfig(
        learning_rate=1e-3, schedule="constant", warmup_fraction=0.0, batch_size=7, micro_batch_size=2
    )
    ppo = PPO(
        policy,
        load_policy(policy_path),
        RewardModel.from_policy(policy_path, safety_head=True, seed=0),
        Renderer(tokenizer),
        vowels,
        shortness,
        PPOConfig(iterations=2, batch_size=15, optimizer=optimizer, evaluate_every=1, beta=0.1),
        SamplingParams(max_new_tokens=6),
        accelerator,
    )
    texts = ("what is", "the river of velda", "hello", "how do I paint my own goat", "please answer in one word")
    prompts = [Prompt(f"p{i}", [{"role": "user", "content": text}]) for i, text in enumerate(texts)]
    train_ppo(ppo, prompts, prompts, log, keep_best=accelerator.wait_for_everyone)
    save_policy(policy, tokenizer, output / "ppo", accelerator)
    if accelerator.is_main_process:
        figures = {
            "processes": accelerator.num_processes,
            "kind": accelerator.distributed_type.value,
            "supervised": supervised.losses,
            "poisoned": [None if math.isinf(loss) else loss for loss in poisoned.losses],
            "skipped": poisoned.skipped,
            "reward": reward,
            "ppo": read_metrics(log.path),
        }
        (output / "figures.json").write_text(json.dumps(figures))
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
