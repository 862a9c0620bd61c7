"""Peak memory of PPO: five roles on one base with LoRA, five separate models, and LoRA fine-tuning of that one base.

    OMP_NUM_THREADS=1 python benchmarks/ppo_memory.py [--gradient_checkpointing]

A Llama of random weights in float32, rows of PROMPT + ANSWER tokens, MICRO of them a forward pass; adapters of rank 16 on
every linear layer; both reward models adapters over the base. PPO makes two iterations: sampling, scoring, experience,
update; fine-tuning trains on as many rows of the same length. Each is a process of its own, with one thread. Memory is
the process's peak resident memory (VmHWM) less what it held after its imports; malloc is told to give freed blocks back
(MALLOC_MMAP_THRESHOLD_). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from rlhf.conversation import Conversation, Rendered, Renderer
from rlhf.data.rows import Prompt
from rlhf.finetuning.supervised import AnswerLogprobs, answer_task
from rlhf.metrics import MetricsLog
from rlhf.models.config import AdapterConfig, LlamaSize
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.pretraining import new_llama, train_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.loop import PPO
from rlhf.ppo.setup import load_roles
from rlhf.sampling.protocol import SamplingParams
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.loop import train

SIZE = LlamaSize(hidden_size=512, intermediate_size=1408, num_layers=8, num_heads=8, num_kv_heads=8, context=512)
ADAPTER = AdapterConfig(r=16, alpha=16.0, dropout=0.0)
PROMPT, ANSWER, MICRO, BATCH = 128, 128, 4, 8
KINDS = ("fine-tuning", "shared", "separate")


def prepare(folder: Path) -> None:
    """The base, and two reward models twice: whole, and as adapters over it."""
    torch.manual_seed(0)
    words = [f"word{i}" for i in range(2000)]
    tokenizer = train_tokenizer([" ".join(words)] * 2, 4096)
    save_policy(new_llama(SIZE, tokenizer), tokenizer, folder / "base")
    for seed, name in enumerate(("helpfulness", "safety")):
        RewardModel.from_policy(folder / "base", safety_head=False, seed=seed).save(folder / "whole" / name, tokenizer)
        adapted = RewardModel.from_policy(folder / "base", safety_head=False, seed=seed, adapter=ADAPTER)
        adapted.save(folder / "adapter" / name, tokenizer, merge=False)


def optimizer(checkpointing: bool) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=1e-4,
        schedule="constant",
        batch_size=BATCH,
        micro_batch_size=MICRO,
        gradient_checkpointing=checkpointing,
    )


def prompts(renderer: Renderer) -> list[Conversation]:
    """Of PROMPT tokens each, BATCH of them."""
    found: list[Conversation] = []
    for i in range(BATCH):
        words = [f"word{i}"]
        while len(renderer.prompt_ids([{"role": "user", "content": " ".join([*words, "a"])}])) <= PROMPT:
            words.append("a")
        found.append([{"role": "user", "content": " ".join(words)}])
    return found


def fine_tune(folder: Path, checkpointing: bool) -> None:
    """Two steps on rows of PROMPT + ANSWER tokens."""
    accelerator = make_accelerator(seed=0)
    policy = load_policy(folder / "base", adapter=ADAPTER)
    mask = [False] * PROMPT + [True] * ANSWER
    rows = [Rendered([5 + i] * (PROMPT + ANSWER), mask) for i in range(2 * BATCH)]
    log = MetricsLog(folder, accelerator)
    start = held()
    train(AnswerLogprobs(policy), rows, answer_task(2), optimizer(checkpointing), accelerator, log)
    del start


def ppo(folder: Path, roles: str, checkpointing: bool) -> None:
    """Two iterations."""
    accelerator = make_accelerator(seed=0)
    kind = "adapter" if roles == "shared" else "whole"
    judges = [str(folder / kind / name) for name in ("helpfulness", "safety")]
    players = load_roles(
        folder / "base",
        *judges,
        folder / "whole" / "helpfulness" if roles == "separate" else None,
        accelerator,
        shared=roles == "shared",
        adapter=ADAPTER,
    )
    renderer = Renderer(load_tokenizer(folder / "base"))
    config = PPOConfig(iterations=2, batch_size=BATCH, optimizer=optimizer(checkpointing), sampling_batch_size=BATCH)
    loop = PPO(players, renderer, config, SamplingParams(max_new_tokens=ANSWER), accelerator)
    asked = [Prompt(str(i), messages) for i, messages in enumerate(prompts(renderer))]
    for iteration in range(2):
        print(loop.iterate(asked, iteration), file=sys.stderr)


def held(which: str = "VmRSS") -> float:
    """MB of this process, now (VmRSS) or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {which}")


def measure(kind: str, folder: Path, checkpointing: bool) -> None:
    """Print the MB that this process needs beyond its imports."""
    import peft  # noqa: F401

    Path("/proc/self/clear_refs").write_text("5")  # forget the imports' peak
    before = held()
    if kind == "fine-tuning":
        fine_tune(folder, checkpointing)
    else:
        ppo(folder, kind, checkpointing)
    print(held("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.folder, arguments.gradient_checkpointing)
        return
    flags = ["--gradient_checkpointing"] if arguments.gradient_checkpointing else []
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for kind in KINDS:
            command = [sys.executable, __file__, "--measure", kind, "--folder", name, *flags]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            peaks[kind] = round(float(done.stdout.split()[-1]))
            print(f"{kind}: {peaks[kind]} MB")
    ours, peer = peaks["shared"], peaks["fine-tuning"]
    print(json.dumps({"name": "ppo_memory", "ours": ours, "peer": peer, "ratio": round(ours / peer, 2), "unit": "MB"}))


if __name__ == "__main__":
    main()
