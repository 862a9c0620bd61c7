"""PPO: seconds an iteration and peak memory of ours and of trl 1.12's experimental PPO, the last that trl had.

    OMP_NUM_THREADS=1 python benchmarks/ppo.py [--data ../shared/data/hh-rlhf] [--iterations 4] [--cache FOLDER]

Same model (a Llama of random weights), the same one reward model, value model, HH prompts, batch and length of answers
(no end token comes from random weights, so all are as long as they may be); one optimizer step an iteration, float32.
With `--run runs/demo` the demo's V2 models and prompts, where answers end by themselves.
Our second reward is a constant. trl 1.12 needs an environment of its own, which the first call makes in the cache
folder (some 2 GB, from the package index). Each side is a process with one thread; seconds are of processor time, so
that other work on the machine counts little; the first iteration sets things up and does not count. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from reward_training import SEED, hh_rows

from rlhf.architecture import LlamaSize
from rlhf.conversation import Conversation, Renderer
from rlhf.data.loading import load_prompts
from rlhf.data.rows import Prompt
from rlhf.models.policy import load_policy, load_tokenizer, save_policy
from rlhf.models.pretraining import new_llama, train_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.algorithm import PPO
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.roles import SeparateRoles
from rlhf.rewards.loading import load_reward
from rlhf.sampling.protocol import SamplingParams
from rlhf.stage import peak_memory_mb
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig

SIZE = LlamaSize(hidden_size=256, intermediate_size=704, num_layers=4, num_heads=4, num_kv_heads=4, context=1024)
VOCABULARY, LONGEST_PROMPT, NEW_TOKENS, BATCH, MICRO = 4096, 256, 64, 32, 8
TRL = "trl==1.12.0"
SHARED_VERSIONS = ("torch", "transformers", "accelerate", "datasets")


def peer_python(cache: Path) -> Path:
    """The Python of trl's environment, made where it is not there yet."""
    python = cache / "bin" / "python"
    if not (cache / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", cache], check=True)
        wanted = [f"{name}=={version(name).partition('+')[0]}" for name in SHARED_VERSIONS]
        subprocess.run([python, "-m", "pip", "install", "--quiet", TRL, *wanted], check=True)
        (cache / "whole").touch()
    return python


def all_safe(conversations: Sequence[Conversation]) -> torch.Tensor:
    return torch.full((len(conversations),), 5.0)


def prepare(data: Path, folder: Path, iterations: int) -> list[Prompt]:
    """Models, and the prompts of all iterations, as text for us and as ids for trl."""
    torch.manual_seed(SEED)
    rows = hh_rows(data)
    texts = [message["content"] for row in rows for message in row.conversation("chosen")]
    tokenizer = train_tokenizer(texts, VOCABULARY)
    save_policy(new_llama(SIZE, tokenizer), tokenizer, folder / "policy")
    RewardModel.from_policy(folder / "policy", safety_head=False, seed=SEED).save(folder / "reward", tokenizer)
    prompts = [row.messages for row in rows]
    rendered = Renderer(load_tokenizer(folder / "policy")).prompts(prompts)
    short = [i for i, ids in enumerate(rendered) if len(ids) <= LONGEST_PROMPT]
    chosen = random.Random(SEED).sample(short, iterations * BATCH)
    write_settings(folder, [prompts[i] for i in chosen], iterations)
    return [Prompt(str(i), prompts[i]) for i in chosen]


def prepare_from_run(run: Path, folder: Path, iterations: int) -> list[Prompt]:
    """The same from a run's second version: trained models, whose answers end by themselves."""
    for name, stage in (("policy", "rejection_sampling"), ("reward", "helpfulness_reward")):
        shutil.copytree(run / "v2" / stage / "checkpoint", folder / name)
    prompts = load_prompts(run / "data" / "prompts.jsonl")
    chosen = random.Random(SEED).sample(prompts, iterations * BATCH)
    write_settings(folder, [prompt.messages for prompt in chosen], iterations)
    return chosen


def write_settings(folder: Path, conversations: Sequence[Conversation], iterations: int) -> None:
    """What trl's side reads, the prompts as ids."""
    settings = {
        "prompts": Renderer(load_tokenizer(folder / "policy")).prompts(conversations),
        "batch_size": BATCH,
        "micro_batch_size": MICRO,
        "max_new_tokens": NEW_TOKENS,
        "iterations": iterations,
    }
    (folder / "settings.json").write_text(json.dumps(settings))


def ours(folder: Path) -> None:
    """Write FOLDER/ours.json, as benchmarks/peers/trl_ppo.py does for trl."""
    settings = json.loads((folder / "settings.json").read_text())
    prompts = [Prompt(**row) for row in json.loads((folder / "prompts.json").read_text())]
    before = peak_memory_mb()
    torch.set_num_threads(1)
    accelerator = make_accelerator(seed=SEED)
    policy, reference = load_policy(folder / "policy"), load_policy(folder / "policy")
    roles = SeparateRoles(
        policy, reference, RewardModel.load(folder / "reward"), load_reward(folder / "reward"), all_safe, accelerator
    )
    optimizer = OptimizerConfig(
        learning_rate=1e-6, schedule="constant", warmup_fraction=0.0, batch_size=BATCH, micro_batch_size=MICRO
    )
    config = PPOConfig(iterations=settings["iterations"], batch_size=BATCH, optimizer=optimizer)
    renderer = Renderer(load_tokenizer(folder / "policy"))
    ppo = PPO(roles, renderer, config, SamplingParams(max_new_tokens=NEW_TOKENS), accelerator)
    seconds, finished = [], []
    for iteration in range(settings["iterations"]):
        start = time.process_time()
        figures = ppo.iterate(prompts[iteration * BATCH : (iteration + 1) * BATCH], iteration)
        seconds.append(time.process_time() - start)
        finished.append(figures["finished_share"] * BATCH)
        parts = {name: value for name, value in figures.items() if name.startswith("seconds")}
        print(f"ours, iteration {iteration}: {parts}", file=sys.stderr)
    result = {"seconds": seconds, "before": before, "peak": peak_memory_mb(), "ended": finished}
    (folder / "ours.json").write_text(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hh-rlhf"))
    parser.add_argument("--run", type=Path, help="a finished run, e.g. runs/demo: its V2 models and prompts")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "rlhf" / "trl-1.12")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours is not None:
        ours(arguments.ours)
        return
    python = peer_python(arguments.cache.resolve())
    means = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.run is None:
            prompts = prepare(arguments.data, folder, arguments.iterations)
        else:
            prompts = prepare_from_run(arguments.run, folder, arguments.iterations)
        (folder / "prompts.json").write_text(json.dumps([vars(prompt) for prompt in prompts]))
        peer = [python, Path(__file__).with_name("peers") / "trl_ppo.py", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        environment.pop("PYTHONPATH", None)
        for side, command, variables in (
            ("ours", [sys.executable, __file__, "--ours", folder], os.environ),
            ("peer", peer, environment),
        ):
            subprocess.run(command, check=True, env=variables, stdout=subprocess.DEVNULL)
            found = json.loads((folder / f"{side}.json").read_text())
            means[side] = sum(found["seconds"][1:]) / len(found["seconds"][1:])
            beyond = found["peak"] - found["before"]
            print(
                f"{side}: {means[side]:.2f} s an iteration, peak {found['peak']:.0f} MB, {beyond:.0f} MB of it beyond "
                f"the imports; answers that ended in each iteration: {found['ended']}"
            )
    result = {"ours": round(means["ours"], 2), "peer": round(means["peer"], 2), "unit": "s an iteration"}
    print(json.dumps({"name": "ppo", **result, "ratio": round(means["peer"] / means["ours"], 2)}))


if __name__ == "__main__":
    main()
