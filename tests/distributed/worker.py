"""Started by the tests under several launchers: trains supervised, skips bad steps, fine-tunes, trains a LoRA reward
model, makes PPO updates, runs rejection sampling, writes figures.

python tests/distributed/worker.py POLICY REWARD OUTPUT
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf.conversation import Conversation, Renderer
from rlhf.data.rows import Preference, Prompt
from rlhf.finetuning.config import FinetuningConfig
from rlhf.finetuning.supervised import finetune
from rlhf.metrics import MetricsLog, read_metrics
from rlhf.models.batching import pad_rows
from rlhf.models.config import AdapterConfig
from rlhf.models.logprobs import sequence_logprobs
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.algorithm import PPO
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.loop import train_ppo
from rlhf.ppo.roles import Roles, SeparateRoles
from rlhf.ppo.saving import Saving
from rlhf.ppo.shared import SharedRoles
from rlhf.rewards.loading import load_reward
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.rewards.training.train import train_reward_model
from rlhf.sampling.early_rejection import EarlyRejectionConfig
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.source import PolicySource
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.loop import Task, TrainingResult, train
from rlhf.training.step import LossFunction

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
import rejection_sampling

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


def rejection_sample(policy_path: Path, output: Path) -> None:
    """The recipe, early rejection included, on prompts that it writes for itself beside `output`."""
    prompts = output.with_name(f"{output.parent.name}_prompts.jsonl")
    rows = [{"id": f"p{i}", "messages": [{"role": "user", "content": f"what is {i} ?"}]} for i in range(7)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = rejection_sampling.RejectionSamplingConfig(
        output=output,
        policy=PolicySource(checkpoint=policy_path),
        fine_tune_from=policy_path,
        prompts=str(prompts),
        helpfulness="worker:vowels",
        safety="worker:shortness",
        num_samples=6,
        sampling=SamplingParams(max_new_tokens=150, top_k=40),
        early_rejection=EarlyRejectionConfig(at=(8,), drop=0.4),
        finetuning=FinetuningConfig(
            train="last", optimizer=OptimizerConfig(learning_rate=1e-3, batch_size=3, micro_batch_size=2)
        ),
    )
    rejection_sampling.main(config)


def shared_ppo(
    policy_path: Path, reward_path: Path, folder: Path, accelerator: Accelerator
) -> tuple[list[dict[str, Any]], list[bool]]:
    """Roles on one base: a new adapter for the policy; helpfulness, and from it the value, a saved adapter. Safety and
    the referee have weights of their own; also returns of either whether they are divided."""
    adapter, own = AdapterConfig(r=4, alpha=8.0), reward_path.with_name("own_weights")
    roles = SharedRoles.load(policy_path, str(reward_path), str(own), accelerator, adapter=adapter)
    judges: list[Any] = [roles.safety, load_reward(own, accelerator=accelerator)]
    models = [judge.model for judge in judges]
    metrics = run_ppo(roles, policy_path, folder, accelerator, temperature=0.7, referee=judges[1])
    return metrics, [all(hasattr(p, "ds_id") for p in model.parameters()) for model in models]


def separate_roles(policy_path: Path, reward_path: Path, accelerator: Accelerator) -> Roles:
    value = RewardModel.from_policy(policy_path, safety_head=True, seed=0)
    policy, reference = load_policy(policy_path), load_policy(policy_path)
    judge = load_reward(reward_path, accelerator=accelerator)
    return SeparateRoles(policy, reference, value, judge, shortness, accelerator)


def resumed_ppo(
    policy_path: Path, reward_path: Path, killed: Path, folder: Path, accelerator: Accelerator
) -> list[dict[str, Any]]:
    """What `run_ppo` computes in the folder `killed`, but from the state after its first iteration."""
    if accelerator.is_main_process:
        for state in ("step-000001", "best-000000"):
            shutil.copytree(killed / "resume" / state, folder / "resume" / state)
        shutil.copyfile(killed / "metrics.jsonl", folder / "metrics.jsonl")
    accelerator.wait_for_everyone()
    return run_ppo(separate_roles(policy_path, reward_path, accelerator), policy_path, folder, accelerator)


def run_ppo(
    roles: Roles,
    policy_path: Path,
    folder: Path,
    accelerator: Accelerator,
    temperature: float = 1.0,
    referee: RewardFunction | None = None,
) -> list[dict[str, Any]]:
    """Two iterations with a state after each, saved; their metrics."""
    tokenizer, log = load_tokenizer(policy_path), MetricsLog(folder, accelerator)
    optimizer = OptimizerConfig(
        learning_rate=1e-3, schedule="constant", warmup_fraction=0.0, batch_size=7, micro_batch_size=2
    )
    config = PPOConfig(iterations=2, batch_size=15, optimizer=optimizer, evaluate_every=1, beta=0.1, checkpoint_every=1)
    sampling = SamplingParams(max_new_tokens=6, temperature=temperature)
    ppo = PPO(roles, Renderer(tokenizer), config, sampling, accelerator, referee=referee)
    texts = ("what is", "the river of velda", "hello", "how do I paint my own goat", "please answer in one word")
    prompts = [Prompt(f"p{i}", [{"role": "user", "content": text}]) for i, text in enumerate(texts)]
    saving = Saving(folder, ppo.stepper, accelerator, lambda path: roles.save_policy(path, tokenizer))
    train_ppo(ppo, prompts, prompts, log, saving)
    roles.save_policy(folder, tokenizer)
    return read_metrics(log.path)


def fine_tune(policy_path: Path, folder: Path, accelerator: Accelerator) -> MetricsLog:
    """Full SFT of dialogues, packed; 5 rows in steps of 3, so that a process runs out of rows."""
    policy, tokenizer = load_policy(policy_path), load_tokenizer(policy_path)
    words = ("what is", "the river of velda is mora", "hello", "how do I paint my own goat", "please")
    dialogues: list[Conversation] = [
        [{"role": "user", "content": word}, {"role": "assistant", "content": answer}]
        for word, answer in zip(words, reversed(words), strict=True)
    ]
    optimizer = OptimizerConfig(learning_rate=1e-2, batch_size=3, micro_batch_size=1, epochs=2)
    log = MetricsLog(folder, accelerator)
    config = FinetuningConfig(optimizer=optimizer)
    finetune(policy, Renderer(tokenizer), dialogues, config, accelerator, log, 0, heldout=dialogues[:3])
    save_policy(policy, tokenizer, folder, accelerator)
    return log


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


def main(policy_path: Path, reward_path: Path, output: Path) -> None:
    """Everything is written into the folder `output`; figures.json last."""
    accelerator = make_accelerator(seed=0)
    for name in ("supervised", "poisoned", "sft", "reward", "ppo", "resumed", "shared"):
        (output / name).mkdir(parents=True, exist_ok=True)
    supervised = supervise(policy_path, output / "supervised", accelerator, _loss)
    poisoned = supervise(policy_path, output / "poisoned", accelerator, _poisoned_loss)
    reward = learn_preferences(policy_path, output / "reward", accelerator)

    sft = fine_tune(policy_path, output / "sft", accelerator)
    ppo = run_ppo(separate_roles(policy_path, reward_path, accelerator), policy_path, output / "ppo", accelerator)
    resumed = resumed_ppo(policy_path, reward_path, output / "ppo", output / "resumed", accelerator)
    shared, judges_divided = shared_ppo(policy_path, reward_path, output / "shared", accelerator)
    rejection_sample(policy_path, output / "rejection_sampling")
    if accelerator.is_main_process:
        figures = {
            "processes": accelerator.num_processes,
            "kind": accelerator.distributed_type.value,
            "supervised": supervised.losses,
            "poisoned": [None if math.isinf(loss) else loss for loss in poisoned.losses],
            "skipped": poisoned.skipped,
            "reward": reward,
            "sft": read_metrics(sft.path),
            "ppo": ppo,
            "resumed": resumed,
            "shared": shared,
            "judges_divided": judges_divided,
        }
        (output / "figures.json").write_text(json.dumps(figures))
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
