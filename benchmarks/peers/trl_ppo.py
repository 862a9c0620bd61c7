"""trl's side of benchmarks/ppo.py, run by the Python of an environment of its own: knows nothing of rlhf.

    python benchmarks/peers/trl_ppo.py FOLDER

Reads FOLDER/settings.json; writes FOLDER/peer.json: processor seconds of each iteration, mean length of the answers,
peak memory before and in all (MB).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

torch.set_num_threads(1)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock(TrainerCallback):  # type: ignore[misc]
    """Processor seconds from the end of one iteration to the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self.last = time.process_time()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        now = time.process_time()
        self.seconds.append(now - self.last)
        self.last = now


def main(folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    before, clock = peak(), Clock()
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left", trust_remote_code=False)
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder / "policy", trust_remote_code=False) for _ in range(2)
    )
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1, trust_remote_code=False)
        for _ in range(2)
    )
    rows, micro = settings["batch_size"], settings["micro_batch_size"]
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // micro,
        num_mini_batches=1,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=rows,
        total_episodes=rows * settings["iterations"],
        response_length=settings["max_new_tokens"],
        stop_token="eos",
        missing_eos_penalty=1.0,
        temperature=1.0,
        kl_coef=0.01,
        learning_rate=1e-6,
        num_sample_generations=0,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list([{"input_ids": ids} for ids in settings["prompts"]]),
        eval_dataset=Dataset.from_list([{"input_ids": settings["prompts"][0]}]),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    )
    ended: list[float] = []
    log = trainer.log
    trainer.log = lambda metrics, *a, **k: ended.append(metrics["val/num_eos_tokens"]) or log(metrics, *a, **k)
    trainer.train()
    result = {"seconds": clock.seconds, "before": before, "peak": peak(), "ended": ended}
    (folder / "peer.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
