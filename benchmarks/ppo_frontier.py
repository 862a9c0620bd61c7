"""PPO against best-of-n on the simulated world, where gold knows the truth: what a nat of KL buys.

    OMP_NUM_THREADS=1 python benchmarks/ppo_frontier.py [RUN...]     # default: runs/demo runs/demo-1 runs/demo-2

From each run's V2 checkpoint and with its V3 reward models: PPO; fine-tuning on the best of 16 samples per prompt (from
the SFT model, as every version); and the best of n samples themselves. The table has the test prompts, the figure
(runs/frontier/frontier.svg) the validation prompts: PPO at each evaluation, best-of-n at n = 1, 2, 4, …, 32. Gold is
safety for unsafe requests and helpfulness for all others; nothing is trained or chosen on it. Needs finished runs of
`make demo` (SEED=1, SEED=2 for the others); about 4 minutes of processor time a run. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from rlhf.configuration import parse_config
from rlhf.conversation import Conversation, Renderer
from rlhf.data.loading import load_prompts
from rlhf.metrics import read_metrics
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.objectives.best_of_n import expected_max, expected_of_best, kl_estimate
from rlhf.paths import require_files
from rlhf.rewards.distributed import score_answers
from rlhf.rewards.gate import GatedReward
from rlhf.rewards.loading import load_reward
from rlhf.sampling.in_process import InProcessSampler
from rlhf.sampling.protocol import SamplingParams
from rlhf.simulation.gold import GoldScorer
from rlhf.stage import write_json
from rlhf.training.accelerator import make_accelerator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes/evaluation"))
import evaluate
import ppo
import rejection_sampling

CONFIGS = Path(__file__).resolve().parents[1] / "recipes/configs/embedded"
OUTPUT = Path("runs/frontier")
SAMPLES = 32
TEST_ANSWERS = 2
PPO_SETTINGS = {  # how they were chosen: docs/recipes/ppo.md, "Does it learn?"
    "ppo.estimator": "rloo",
    "ppo.samples_per_prompt": 4,
    "ppo.batch_size": 256,
    "ppo.beta": 0.1,
    "ppo.optimizer.batch_size": 64,
    "ppo.optimizer.learning_rate": 3e-4,
    "ppo.iterations": 120,
    "ppo.evaluate_every": 6,
    "ppo.validation_size": 150,
    "ppo.patience": 10,
    "ppo.max_kl": 10.0,
}
Point = dict[str, float]


def gold_of(verdict: dict[str, Any]) -> float:
    return float(verdict["safety"] if verdict["kind"] == "unsafe" else verdict["helpfulness"])


@cache
def scorer(world: str) -> GoldScorer:
    return GoldScorer(world)


def gold_reward(conversations: Sequence[Conversation]) -> Tensor:
    """The referee: gold of the world in RLHF_WORLD."""
    return torch.tensor([gold_of(vars(scorer(os.environ["RLHF_WORLD"]).judge(c))) for c in conversations])


def judges(run: Path) -> dict[str, Path]:
    return {domain: run / f"v3/{domain}_reward/checkpoint" for domain in ("helpfulness", "safety")}


def start(run: Path) -> Path:
    return run / "v2/rejection_sampling/checkpoint"


def recipe(module: Any, config_class: type, output: Path, settings: dict[str, Any]) -> Path:
    """Run a recipe in this process on its embedded configuration; a finished stage is not run again."""
    given = ["--config", str(CONFIGS / f"{module.__name__}.yaml")]
    given += [part for name, value in ({"output": output} | settings).items() for part in (f"--{name}", str(value))]
    if not output.exists():
        module.main(parse_config(config_class, given))
    return output


def gold_on_test_prompts(run: Path, output: Path, policy: Path) -> Point:
    settings = {"policy": policy, "baseline": start(run), "prompts": run / "data/test_prompts.jsonl"} | judges(run)
    settings |= {"world": run / "data/world.json", "samples_per_prompt": TEST_ANSWERS}
    recipe(evaluate, evaluate.EvaluateConfig, output, settings)
    figures = json.loads((output / "evaluation.json").read_text())
    answers = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    names = {"helpfulness": "gold_helpfulness", "safety": "gold_safety", "refusals": "false_refusal_rate"}
    point = {name: figures[key] for name, key in (names | {"kl": "kl_from_sft", "length": "mean_length"}).items()}
    return {"gold": fmean(gold_of(a["gold"]) for a in answers)} | point


def lead(output: Path) -> Point:
    """PPO's gold less best-of-16 fine-tuning's on the test prompts, and its standard error over the prompts."""
    by_prompt: dict[str, float] = defaultdict(float)
    for name, sign in (("PPO", 1), ("best_of_16", -1)):
        for line in (output / f"{name}_gold" / "answers.jsonl").read_text().splitlines():
            answer = json.loads(line)
            by_prompt[answer["prompt_id"]] += sign * gold_of(answer["gold"]) / TEST_ANSWERS
    differences = list(by_prompt.values())
    return {"lead": fmean(differences), "error": stdev(differences) / len(differences) ** 0.5}


def best_of_n(run: Path, output: Path) -> list[Point]:
    """KL, reward and gold of the best of n of V2's answers to the validation prompts, from one draw of 32."""
    file = output / "best_of_n.json"
    if file.exists():
        points: list[Point] = json.loads(file.read_text())
        return points
    prompts = load_prompts(run / "data/validation_prompts.jsonl")
    sampler = InProcessSampler(load_policy(start(run)), Renderer(load_tokenizer(start(run))))
    drawn = sampler.sample([p.messages for p in prompts], SAMPLES, SamplingParams(max_new_tokens=48, seed=7))
    asked = [prompt for prompt in prompts for _ in range(SAMPLES)]
    samples = [sample for answers in drawn for sample in answers]
    reward = GatedReward(*(load_reward(str(path)) for path in judges(run).values()))
    scored = score_answers(asked, [s.text for s in samples], reward, make_accelerator())
    gold = gold_reward(
        [[*p.messages, {"role": "assistant", "content": s.text}] for p, s in zip(asked, samples, strict=True)]
    )
    rewards, gold = scored.reward.view(-1, SAMPLES), gold.view(-1, SAMPLES)
    probabilities = torch.tensor([s.logprob for s in samples]).exp().view(-1, SAMPLES)
    points = [
        {
            "n": n,
            "kl": kl_estimate(rewards, probabilities, n).mean().item(),
            "reward": expected_max(rewards, n).mean().item(),
            "gold": expected_of_best(gold, rewards, n).mean().item(),
        }
        for n in (1, 2, 4, 8, 16, 32)
    ]
    write_json(file, points)
    return points


def one_run(run: Path, output: Path) -> dict[str, Any]:
    output.mkdir(parents=True, exist_ok=True)
    os.environ["RLHF_WORLD"] = str(run / "data/world.json")
    common = {"policy": start(run), "prompts": run / "data/prompts.jsonl"} | judges(run)
    tuned = recipe(
        rejection_sampling,
        rejection_sampling.RejectionSamplingConfig,
        output / "best_of_16",
        common | {"fine_tune_from": run / "sft/checkpoint", "version": "v3", "num_samples": 16},
    )
    settings = {"validation_prompts": run / "data/validation_prompts.jsonl", "referee": "ppo_frontier:gold_reward"}
    trained = recipe(ppo, ppo.PPORecipeConfig, output / "ppo", common | settings | PPO_SETTINGS)
    policies = {"V2": start(run), "best of 16": tuned / "checkpoint", "PPO": trained / "checkpoint"}
    rows = [row for row in read_metrics(trained / "metrics.jsonl") if "heldout_reward" in row]
    names = ("kl", "reward", "referee")
    return {
        "test": {
            name: gold_on_test_prompts(run, output / f"{name.replace(' ', '_')}_gold", path)
            for name, path in policies.items()
        },
        "ppo": [dict(zip(("kl", "reward", "gold"), (row[f"heldout_{n}"] for n in names), strict=True)) for row in rows],
        "best_of_n": best_of_n(run, output),
    }


def draw(found: list[dict[str, Any]], file: Path) -> None:
    """Reward and gold against KL; PPO's line follows its training."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, key, label in zip(panels, ("reward", "gold"), ("reward of V3's models", "gold"), strict=True):
        for number, figures in enumerate(found):
            for name, colour, marker in (("ppo", "#1f6feb", "o"), ("best_of_n", "#888888", "s")):
                x, y = ([point[k] for point in figures[name]] for k in ("kl", key))
                shown = {"ppo": "PPO", "best_of_n": "best of n"}[name] if number == 0 else None
                axes.plot(x, y, color=colour, marker=marker, markersize=3, linewidth=1.2, label=shown)
        axes.set_xlabel("KL from V2, nats per answer")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    figure.savefig(file)


def main() -> None:
    runs = [Path(path) for path in sys.argv[1:]] or [Path(f"runs/demo{end}") for end in ("", "-1", "-2")]
    require_files(**{f"run {run}": run / "v3/safety_reward/checkpoint" for run in runs})
    found = [one_run(run, OUTPUT / run.name) for run in runs]
    draw(found, OUTPUT / "frontier.svg")
    print("test prompts: gold, its two sides, false refusals; KL from V2 in nats per answer; tokens per answer")
    columns = ("gold", "helpfulness", "safety", "refusals", "kl", "length")
    print(" " * 22, *(name.rjust(11) for name in columns))
    for run, figures in zip(runs, found, strict=True):
        for name, point in figures["test"].items():
            print(f"{run.name:10} {name:11}", *(f"{point[column]:11.3f}" for column in columns))
        found_lead = lead(OUTPUT / run.name)
        print(f"{run.name:10} PPO less best of 16: {found_lead['lead']:.3f}, standard error {found_lead['error']:.3f}")
    print("\nvalidation prompts: KL, reward, gold")
    for run, figures in zip(runs, found, strict=True):
        for name in ("ppo", "best_of_n"):
            points = "  ".join(f"{p['kl']:.2f} {p['reward']:.2f} {p['gold']:.3f}" for p in figures[name])
            print(f"{run.name:10} {name:10} {points}")
    ours, peer = ([figures["test"][name]["gold"] for figures in found] for name in ("PPO", "best of 16"))
    worst_kl = max(figures["test"]["PPO"]["kl"] for figures in found)
    print(
        f"\nPPO above best-of-16 fine-tuning in {sum(a > b for a, b in zip(ours, peer, strict=True))} of {len(found)}"
    )
    result = {"name": "ppo_frontier", "ours": round(fmean(ours), 3), "peer": round(fmean(peer), 3)}
    result |= {"ratio": round(fmean(ours) / fmean(peer), 3), "unit": "gold score", "largest_kl": round(worst_kl, 2)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
