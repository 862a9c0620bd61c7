"""trl's side of benchmarks/ppo.py, run by the Python of an environment of its own: knows nothing of rlhf.

    python benchmarks/peers/trl_ppo.py FOLDER

Reads FOLDER/settings.json; writes FOLDER/peer.json: seconds of each iteration (of processor time, on a GPU the wall's),
how many end tokens were written (trl writes on behind the first), peak memory before and in all (MB).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, inject_adapter_in_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

torch.set_num_threads(1)
GPU = torch.cuda.is_available()


def now() -> float:
    if not GPU:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> float:
    if GPU:
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds from the end of one iteration to the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self.last = now()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        ended = now()
        self.seconds.append(ended - self.last)
        self.last = ended


def main(folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    before, clock = peak(), Clock()
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left", trust_remote_code=False)
    tokenizer.pad_token = settings["pad_token"]  # trl takes every pad token for padding, a prompt's end tokens too
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder / "policy", trust_remote_code=False, dtype=torch.float32)
        for _ in range(2)
    )
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(
            folder / "reward", num_labels=1, trust_remote_code=False, dtype=torch.float32
        )
        for _ in range(2)
    )
    lora = None if settings["lora"] is None else LoraConfig(target_modules="all-linear", **settings["lora"])
    if lora is not None:
        reference = None  # the policy without its adapter
        inject_adapter_in_model(replace(lora, task_type="SEQ_CLS"), value)
        value.score.requires_grad_(True)
    rows, micro = settings["batch_size"], settings["micro_batch_size"]
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=not GPU,
        bf16=GPU,
        gradient_checkpointing=False,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rows // micro,
        num_mini_batches=1,
        num_ppo_epochs=1,
        local_rollout_forward_batch_size=settings["rollout_rows"],
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
        peft_config=None if lora is None else replace(lora, task_type="CAUSAL_LM"),
    )
    ended: list[float] = []
    log = trainer.log
    trainer.log = lambda metrics, *a, **k: ended.append(metrics["val/num_eos_tokens"]) or log(metrics, *a, **k)
    trainer.train()
    result = {"seconds": clock.seconds, "before": before, "peak": peak(), "ended": ended}
    (folder / "peer.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
