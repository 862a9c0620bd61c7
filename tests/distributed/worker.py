"""Started by the tests under several launchers: trains supervised, then makes PPO updates, and writes the figures.

    python tests/distributed/worker.py POLICY OUTPUT.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf.conversation import Conversation, Renderer
from rlhf.data.rows import Prompt
from rlhf.metrics import MetricsLog, read_metrics
from rlhf.models.batching import pad_rows
from rlhf.models.logprobs import sequence_logprobs
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.loop import PPO, train_ppo
from rlhf.sampling.protocol import SamplingParams
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.loop import Task, train

ROWS = [[1, *range(5 + i, 9 + 2 * i)] for i in range(14)]


def _collate(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    ids, mask = pad_rows(rows, pad_id=2)
    return {"input_ids": ids, "attention_mask": mask}


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    return -sequence_logprobs(model, **batch).sum(), {}


def vowels(conversations: Sequence[Conversation]) -> Tensor:
    return torch.tensor([float(sum(c[-1]["content"].count(v) for v in "aeiou")) for c in conversations])


def shortness(conversations: Sequence[Conversation]) -> Tensor:
    return torch.tensor([2.0 - 0.5 * len(c[-1]["content"]) for c in conversations])


def main(policy_path: Path, output: Path) -> None:
    accelerator = make_accelerator(seed=0)
    supervised = load_policy(policy_path)
    log = MetricsLog(output.parent, accelerator)
    config = OptimizerConfig(learning_rate=1e-2, batch_size=5, micro_batch_size=2, epochs=2)
    task = Task(_collate, _loss, weight=lambda row: len(row) - 1, length=len)
    losses = train(supervised, ROWS, task, config, accelerator, log).losses
    log.path = output.with_suffix(".jsonl")

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
        PPOConfig(iterations=2, batch_size=15, optimizer=optimizer, evaluate_every=2, beta=0.1),
        SamplingParams(max_new_tokens=6),
        accelerator,
    )
    texts = ("what is", "the river of velda", "hello", "how do I paint my own goat", "please answer in one word")
    prompts = [Prompt(f"p{i}", [{"role": "user", "content": text}]) for i, text in enumerate(texts)]
    saved = output.with_suffix("")
    train_ppo(ppo, prompts, prompts, log, keep_best=lambda: save_policy(policy, tokenizer, saved, accelerator))
    if accelerator.is_main_process:
        weights = load_policy(saved).state_dict()
        record = {
            "processes": accelerator.num_processes,
            "kind": str(accelerator.distributed_type),
            "supervised": losses,
            "ppo": read_metrics(log.path),
            "saved": {name: float(tensor.double().square().sum()) for name, tensor in weights.items()},
        }
        output.write_text(json.dumps(record))
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
