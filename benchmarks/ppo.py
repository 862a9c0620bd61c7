"""PPO: seconds an iteration and peak memory of ours and of trl 1.12's experimental PPO, the last that trl had.

    OMP_NUM_THREADS=1 python benchmarks/ppo.py [--model SmolLM2] [--roles shared] [--iterations 4] [--cache FOLDER]

Same model (a Llama of random weights, or `--model`), the same one reward model, value model, HH prompts, batch and
length of answers (no end token comes from random weights, so all are as long as they may be); one optimizer step an
iteration, float32. With `--run runs/demo` the demo's V2 models and prompts; there, and with `--model`, answers end by
themselves. `--roles separate` are four models whose weights train whole; `--roles shared` are ours on one base, policy
and value by LoRA, and trl's policy and value by the same adapters, its reward model a model of its own that gives the
same scores. trl 1.12 needs an environment of its own, which the first call makes in the cache folder (some 2 GB, from
the package index). Each side is a process with one thread; seconds are of processor time, so that other work on the
machine counts little, and on a GPU of the wall's, in bfloat16; the first iteration sets things up and does not count.
The last line is JSON, with ours' share of the matmul peak (benchmarks/peak.py).
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
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from peak import Arithmetic, clock, matmul_peak, parse, peak_memory, peak_share, run, unused_token
from reward_training import SEED, hh_rows, save_reward_model

from rlhf.architecture import LlamaSize
from rlhf.conversation import Conversation, Renderer
from rlhf.data.loading import load_prompts
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.models.config import AdapterConfig
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.ppo.algorithm import PPO
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.setup import load_roles
from rlhf.sampling.protocol import SamplingParams
from rlhf.training.accelerator import make_accelerator
from rlhf.training.config import OptimizerConfig

SIZE = LlamaSize(hidden_size=256, intermediate_size=704, num_layers=4, num_heads=4, num_kv_heads=4, context=1024)
ADAPTER, MICRO = AdapterConfig(r=16, alpha=16.0, dropout=0.0), 8
TRL = "trl==1.12.0"
SHARED_VERSIONS = ("torch", "transformers", "accelerate", "datasets", "peft")


def peer_python(cache: Path) -> Path:
    """The Python of trl's environment, made where it is not there yet."""
    python, whole = cache / "bin" / "python", cache / "whole"
    wanted = [TRL, *(f"{name}=={version(name).partition('+')[0]}" for name in SHARED_VERSIONS)]
    if not whole.exists() or whole.read_text() != str(wanted):
        subprocess.run([sys.executable, "-m", "venv", "--clear", cache], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        whole.write_text(str(wanted))
    return python


def prepare(arguments: argparse.Namespace, folder: Path) -> list[Prompt]:
    """Models, and the prompts of all iterations."""
    rows = hh_rows(arguments.data)
    save_reward_model(rows, folder, arguments.model, SIZE)
    if arguments.roles == "shared":
        adapted = RewardModel.from_policy(folder / "policy", safety_head=False, seed=SEED, adapter=ADAPTER)
        adapted.save(folder / "adapter", load_tokenizer(folder / "policy"), merge=False)
    prompts = [row.messages for row in rows]
    rendered = Renderer(load_tokenizer(folder / "policy")).prompts(prompts)
    short = [i for i, ids in enumerate(rendered) if len(ids) <= arguments.longest_prompt]
    chosen = random.Random(SEED).sample(short, arguments.iterations * arguments.batch)
    return [Prompt(str(i), prompts[i]) for i in chosen]


def prepare_from_run(arguments: argparse.Namespace, folder: Path) -> list[Prompt]:
    """The same from a run's second version: trained models, whose answers end by themselves."""
    for name, stage in (("policy", "rejection_sampling"), ("reward", "helpfulness_reward")):
        shutil.copytree(arguments.run / "v2" / stage / "checkpoint", folder / name)
    prompts = load_prompts(arguments.run / "data" / "prompts.jsonl")
    return random.Random(SEED).sample(prompts, arguments.iterations * arguments.batch)


def write_settings(folder: Path, conversations: Sequence[Conversation], arguments: argparse.Namespace) -> None:
    """What both sides read, the prompts as ids."""
    tokenizer = load_tokenizer(folder / "policy")
    prompts = Renderer(tokenizer).prompts(conversations)
    settings = {
        "prompts": prompts,
        "pad_token": unused_token(tokenizer, [*prompts, [tokenizer.eos_token_id]]),
        "batch_size": arguments.batch,
        "micro_batch_size": min(MICRO, arguments.batch),
        "rollout_rows": arguments.batch if arguments.model is None else min(MICRO, arguments.batch),
        "max_new_tokens": arguments.new_tokens,
        "iterations": arguments.iterations,
        "lora": {"r": ADAPTER.r, "lora_alpha": ADAPTER.alpha} if arguments.roles == "shared" else None,
    }
    (folder / "settings.json").write_text(json.dumps(settings))


def ours(folder: Path) -> None:
    """Write FOLDER/ours.json, as benchmarks/peers/trl_ppo.py does for trl."""
    settings = json.loads((folder / "settings.json").read_text())
    prompts = [Prompt(**row) for row in json.loads((folder / "prompts.json").read_text())]
    before, batch = peak_memory(), settings["batch_size"]
    torch.set_num_threads(1)
    accelerator = make_accelerator(seed=SEED)
    shared = settings["lora"] is not None
    reward = folder / ("adapter" if shared else "reward")
    roles = load_roles(
        folder / "policy", str(reward), None, reward, accelerator, shared=shared, adapter=ADAPTER if shared else None
    )
    optimizer = OptimizerConfig(
        learning_rate=1e-6,
        schedule="constant",
        warmup_fraction=0.0,
        batch_size=batch,
        micro_batch_size=settings["micro_batch_size"],
    )
    config = PPOConfig(iterations=settings["iterations"], batch_size=batch, optimizer=optimizer)
    renderer = Renderer(load_tokenizer(folder / "policy"))
    ppo = PPO(roles, renderer, config, SamplingParams(max_new_tokens=settings["max_new_tokens"]), accelerator)
    seconds, finished, drawn = [], [], []
    for iteration in range(settings["iterations"]):
        start = clock()
        figures = ppo.iterate(prompts[iteration * batch : (iteration + 1) * batch], iteration)
        seconds.append(clock() - start)
        finished.append(round(figures["finished_share"] * batch))
        drawn.append(round(figures["length"] * batch))
        parts = {name: value for name, value in figures.items() if name.startswith("seconds")}
        print(f"ours, iteration {iteration}: {parts}", file=sys.stderr)
    result = {"seconds": seconds, "before": before, "peak": peak_memory(), "ended": finished, "drawn": drawn}
    (folder / "ours.json").write_text(json.dumps(result))


def operations(model: Arithmetic, tokens: int, drawn: int, *, lora: bool) -> float:
    """Of PPO on prompts and answers of so many `tokens`, `drawn` of them the answers': sampling; the reward; policy,
    reference and value once more; the update of policy and value."""
    before = 3 * model.forward(tokens, drawn) + 2 * model.forward(tokens)
    return before + model.training(tokens, drawn, lora=lora) + model.training(tokens, lora=lora)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hh-rlhf"))
    parser.add_argument("--run", type=Path, help="a finished run, e.g. runs/demo: its V2 models and prompts")
    parser.add_argument("--roles", choices=("separate", "shared"), default="separate")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32, help="answers an iteration")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--longest-prompt", type=int, default=256, help="tokens; longer prompts are left out")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "rlhf" / "trl-1.12")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    arguments = parse(parser, {"iterations": 2, "batch": 4, "new_tokens": 16, "longest_prompt": 64})
    if arguments.ours is not None:
        ours(arguments.ours)
        return
    if arguments.iterations < 2:
        raise InputError(f"iterations: must be at least 2, got {arguments.iterations}")
    if arguments.run is not None and (arguments.model is not None or arguments.roles == "shared"):
        raise InputError(
            f"run: {arguments.run} has models of its own, for separate roles; leave out --model and --roles"
        )
    python, matmul = peer_python(arguments.cache.resolve()), matmul_peak()
    means: dict[str, float] = {}
    drawn: list[int] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = (prepare if arguments.run is None else prepare_from_run)(arguments, folder)
        write_settings(folder, [prompt.messages for prompt in prompts], arguments)
        asked = json.loads((folder / "settings.json").read_text())["prompts"][arguments.batch :]
        arithmetic = Arithmetic.of(folder / "policy")
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
            drawn = found.get("drawn", [0, *drawn])[1:]  # ours alone says
            beyond = found["peak"] - found["before"]
            counted = "answers that ended" if side == "ours" else "end tokens"  # trl writes on behind the first
            print(
                f"{side}: {means[side]:.2f} s an iteration, peak {found['peak']:.0f} MB, {beyond:.0f} MB of it beyond "
                f"the imports; {counted} in each iteration: {found['ended']}"
            )
    result = {"ours": round(means["ours"], 2), "peer": round(means["peer"], 2), "unit": "s an iteration"}
    tokens, lora = sum(map(len, asked)) + sum(drawn), arguments.roles == "shared"
    seconds = means["ours"] * (arguments.iterations - 1)
    share = peak_share(operations(arithmetic, tokens, sum(drawn), lora=lora), seconds, matmul)
    ratio = round(means["peer"] / means["ours"], 2)
    print(json.dumps({"name": "ppo", "roles": arguments.roles, **result, "ratio": ratio, **share}))


if __name__ == "__main__":
    run(main)
