"""Peak memory of PPO: five roles on one base with LoRA, five separate models, and LoRA fine-tuning of that one base.

    OMP_NUM_THREADS=1 python benchmarks/ppo_memory.py [--model SmolLM2] [--gradient_checkpointing]

A Llama of random weights, or `--model`, in float32, rows of PROMPT + ANSWER tokens; adapters of rank 16 on every linear
layer; both reward models adapters over the base. PPO makes two iterations: sampling, scoring, experience, update;
fine-tuning trains on as many rows of the same length. Each is a process of its own, with one thread. Memory is the
process's peak resident memory (VmHWM) less what it held after the same run with a tiny model, which imports and sets up
all there is; malloc is told to give freed blocks back (MALLOC_MMAP_THRESHOLD_). On a GPU it is what tensors take there,
products in bfloat16. Beside it what `rlhf.ppo.planning` says of PPO without running it, and each one's share of the
matmul peak (benchmarks/peak.py) in the processor time of its last step or iteration. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peak import GPU, Arithmetic, clock, matmul_peak, parse, peak_share, run
from ppo import ADAPTER, operations

from rlhf.architecture import LlamaSize
from rlhf.conversation import Conversation, Rendered, Renderer
from rlhf.data.rows import Prompt
from rlhf.finetuning.supervised import AnswerLogprobs, answer_task
from rlhf.metrics import MetricsLog
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.pretraining import new_llama, train_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.algorithm import PPO
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.planning.hardware import Hardware
from rlhf.ppo.planning.models import Setting
from rlhf.ppo.planning.plan import make_plan
from rlhf.ppo.setup import load_roles
from rlhf.sampling.protocol import SamplingParams
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig
from rlhf.training.loop import train

SIZE = LlamaSize(hidden_size=384, intermediate_size=1024, num_layers=8, num_heads=6, num_kv_heads=6, context=512)
TINY = LlamaSize(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, num_kv_heads=2, context=512)
PROMPT, ANSWER = 192, 64
KINDS = ("fine-tuning", "shared", "separate")


def prepare(folder: Path, size: LlamaSize, model: Path | None) -> None:
    """The base, `model` or a new one, and two reward models twice: whole, and as adapters over it."""
    folder.mkdir()
    if model is None:
        torch.manual_seed(0)
        words = [f"word{i}" for i in range(2000)]
        tokenizer = train_tokenizer([" ".join(words)] * 2, 4096)
        save_policy(new_llama(size, tokenizer), tokenizer, folder / "base")
    else:
        (folder / "base").symlink_to(model)
        tokenizer = load_tokenizer(model)
    for seed, name in enumerate(("helpfulness", "safety")):
        RewardModel.from_policy(folder / "base", safety_head=False, seed=seed).save(folder / "whole" / name, tokenizer)
        adapted = RewardModel.from_policy(folder / "base", safety_head=False, seed=seed, adapter=ADAPTER)
        adapted.save(folder / "adapter" / name, tokenizer, merge=False)


def optimizer(rows: int, checkpointing: bool) -> OptimizerConfig:
    return OptimizerConfig(
        learning_rate=1e-4,
        schedule="constant",
        batch_size=rows,
        micro_batch_size=rows,
        gradient_checkpointing=checkpointing,
    )


def prompts(renderer: Renderer, rows: int) -> list[Conversation]:
    """Of PROMPT tokens each."""
    found: list[Conversation] = []
    for i in range(rows):
        words = [f"word{i}"]
        while len(renderer.prompt_ids([{"role": "user", "content": " ".join([*words, "a"])}])) <= PROMPT:
            words.append("a")
        found.append([{"role": "user", "content": " ".join(words)}])
    return found


def fine_tune(folder: Path, count: int, checkpointing: bool) -> float:
    """Two steps on rows of PROMPT + ANSWER tokens; the seconds of the second."""
    accelerator = make_accelerator(seed=0)
    policy = load_policy(folder / "base", adapter=ADAPTER)
    mask = [False] * PROMPT + [True] * ANSWER
    rows = [Rendered([5 + i] * (PROMPT + ANSWER), mask) for i in range(2 * count)]
    log = MetricsLog(folder, accelerator)
    ends: list[float] = []
    config = optimizer(count, checkpointing)
    model = AnswerLogprobs(policy)
    train(model, rows, answer_task(2), config, accelerator, log, after_step=lambda *_: ends.append(clock()))
    return ends[1] - ends[0]


def ppo(folder: Path, roles: str, rows: int, checkpointing: bool) -> float:
    """Two iterations; the seconds of the second."""
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
    config = PPOConfig(iterations=2, batch_size=rows, optimizer=optimizer(rows, checkpointing), rows=rows)
    loop = PPO(players, renderer, config, SamplingParams(max_new_tokens=ANSWER), accelerator)
    asked = [Prompt(str(i), messages) for i, messages in enumerate(prompts(renderer, rows))]
    loop.iterate(asked, 0)
    started = clock()
    loop.iterate(asked, 1)
    return clock() - started


def held(which: str = "VmRSS") -> float:
    """MB of this process, now (VmRSS) or at its peak (VmHWM); on a GPU those of its tensors."""
    if GPU:
        return (torch.cuda.memory_allocated() if which == "VmRSS" else torch.cuda.max_memory_allocated()) / 2**20
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {which}")


def measure(kind: str, folder: Path, rows: int, checkpointing: bool) -> None:
    """Print the seconds of the last step, and the MB that this process needs beyond its imports."""
    before = seconds = 0.0
    for size in ("tiny", "real"):
        gc.collect()
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = held()
        if kind == "fine-tuning":
            seconds = fine_tune(folder / size, rows, checkpointing)
        else:
            seconds = ppo(folder / size, kind, rows, checkpointing)
    print(seconds, held("VmHWM") - before)


def planned(kind: str, folder: Path, rows: int, checkpointing: bool) -> float:
    """The MB that the planner says."""
    config = PPOConfig(batch_size=rows, optimizer=optimizer(rows, checkpointing), rows=rows)
    judges = {n: folder / ("adapter" if kind == "shared" else "whole") / n for n in ("helpfulness", "safety")}
    setting = Setting(folder / "base", judges, config, ANSWER, shared=kind == "shared", adapter=ADAPTER)
    return make_plan(setting, Hardware(mixed_precision="bf16" if GPU else "no", prompt_tokens=PROMPT)).peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parse(parser, {"rows": 1})
    rows, checkpointing = arguments.rows, arguments.gradient_checkpointing
    if arguments.measure:
        measure(arguments.measure, arguments.folder, rows, checkpointing)
        return
    flags = ["--rows", str(rows), *(["--gradient_checkpointing"] if checkpointing else [])]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    peaks, shares, matmul = {}, {}, matmul_peak()
    with tempfile.TemporaryDirectory() as name:
        for size, llama in (("tiny", TINY), ("real", SIZE)):
            prepare(Path(name, size), llama, arguments.model if size == "real" else None)
        arithmetic = Arithmetic.of(Path(name, "real", "base"))
        tokens, answers = rows * (PROMPT + ANSWER), rows * ANSWER
        for kind in KINDS:
            command = [sys.executable, __file__, "--measure", kind, "--folder", name, *flags]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            seconds, peak = map(float, done.stdout.split()[-2:])
            peaks[kind] = round(peak)
            lora = kind != "separate"
            counted = (
                arithmetic.training(tokens, answers, lora=lora)
                if kind == "fine-tuning"
                else operations(arithmetic, tokens, answers, lora=lora)
            )
            said = "" if kind == "fine-tuning" else planned(kind, Path(name, "real"), rows, checkpointing)
            print(
                f"{kind}: {peaks[kind]} MB"
                + (f", planned {said:.0f} MB ({said / peaks[kind] - 1:+.0%})" if said else "")
            )
            shares[kind] = peak_share(counted, seconds, matmul)["peak_share"]
    ours, peer = peaks["shared"], peaks["fine-tuning"]
    figures = {"ours": ours, "peer": peer, "ratio": round(ours / peer, 2), "unit": "MB"}
    print(json.dumps({"name": "ppo_memory", **figures, "peak_shares": shares}))


if __name__ == "__main__":
    run(main)
