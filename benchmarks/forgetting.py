"""The paper's V3 regression and its cure (section 3.2.3): choosing among the last version's answers alone forgets.

    OMP_NUM_THREADS=1 python benchmarks/forgetting.py [RUN [OUTPUT]]

In the paper every round has new prompts, and its V3, trained on the last round's answers alone, was worse than V1 and
V2 at rhyming lines in poems. Here likewise: all prompts for verses, rhymes and repeated words are asked in V1's round;
V2 and V3 get other prompts. Every version starts from the SFT model. V3 is made twice, of the last round's answers, and
of the best of all rounds, rescored. Gold, which nothing trains on, says what became of the early skills. Each seed
deals out the prompts and decides every draw. Needs a finished `make demo` (RUN); the last line is JSON.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from rlhf.configuration import parse_config
from rlhf.data.loading import load_prompts
from rlhf.data.rows import Prompt
from rlhf.jsonl import write_rows
from rlhf.paths import require_files

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes/evaluation"))
import evaluate
import rejection_sampling

CONFIGS = Path(__file__).resolve().parents[1] / "recipes/configs/embedded"
EARLY = ("creative", "rhyme", "twice")
SEEDS = (0, 1, 2)


def rounds_of(prompts: list[Prompt], seed: int) -> list[list[Prompt]]:
    """Three rounds of about equal size; the early skills are asked in the first alone."""
    shuffled = random.Random(seed).sample(prompts, len(prompts))
    early = [prompt for prompt in shuffled if skill(prompt.source) in EARLY]
    others = [prompt for prompt in shuffled if skill(prompt.source) not in EARLY]
    size = len(prompts) // 3
    cut = max(0, size - len(early))
    return [early + others[:cut], others[cut : cut + size], others[cut + size :]]


def skill(source: str) -> str:
    return source.rpartition("/")[2]


def sample(run: Path, output: Path, policy: Path, number: int, seed: int, **options: Any) -> Path:
    """One version's rejection sampling with the run's reward models; returns its checkpoint."""
    rewards = {domain: run / f"v{number}/{domain}_reward/checkpoint" for domain in ("helpfulness", "safety")}
    settings = {"policy": policy, "fine_tune_from": run / "sft/checkpoint", "version": f"v{number}", "seed": seed}
    recipe(rejection_sampling, rejection_sampling.RejectionSamplingConfig, output, settings | rewards | options)
    return output / "checkpoint"


def gold(run: Path, output: Path, policy: Path, seed: int) -> dict[str, float]:
    """Mean gold helpfulness of each skill's test prompts, and "early" over all prompts of the early skills."""
    settings = {"name": "v", "policy": policy, "prompts": run / "data/test_prompts.jsonl", "seed": seed}
    settings |= {"scorer": "rlhf.simulation.gold:GoldScorer", "world": run / "data/world.json"}
    settings |= {"sampling.max_new_tokens": 48, "samples_per_prompt": 2}
    recipe(evaluate, evaluate.EvaluateConfig, output, settings, configured=False)
    kinds = json.loads((output / "evaluation.json").read_text())["by_kind"]
    early = {name: kind for name, kind in kinds.items() if skill(name) in EARLY}
    later = {name: kind for name, kind in kinds.items() if name not in early and kind["kind"] != "unsafe"}
    figures = {skill(name): kind["helpfulness"] for name, kind in early.items()}
    for group, members in (("early", early.values()), ("later", later.values())):
        weights = [kind["prompts"] for kind in members]
        figures[group] = sum(kind["helpfulness"] * kind["prompts"] for kind in members) / sum(weights)
    return figures


def recipe(module: Any, config_class: type, output: Path, settings: dict[str, Any], configured: bool = True) -> None:
    """Run a recipe in this process, on its embedded configuration; a finished stage is not run again."""
    if output.exists():
        return
    given = ["--config", str(CONFIGS / f"{module.__name__}.yaml")] if configured else []
    given += [part for name, value in ({"output": output} | settings).items() for part in (f"--{name}", str(value))]
    module.main(parse_config(config_class, given))


def one_seed(run: Path, folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Version -> gold figures."""
    files = []
    for number, prompts in enumerate(rounds_of(load_prompts(run / "data/prompts.jsonl"), seed), start=1):
        files.append(folder / f"prompts{number}.jsonl")
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(files[-1], (prompt.to_dict() for prompt in prompts))
    v1 = sample(run, folder / "v1", run / "sft/checkpoint", 1, 1000 + seed, prompts=files[0])
    figures = {"V1": gold(run, folder / "v1_gold", v1, seed)}
    for pool in ("last", "all"):
        policy = v1
        for number in (2, 3):
            options: dict[str, Any] = {"prompts": files[number - 1]}
            if pool == "all":
                earlier = folder / f"pool{number}"
                earlier.mkdir(exist_ok=True)
                for version in range(1, number):
                    drawn = folder / ("v1" if version == 1 else f"v{version}_all") / "completions.parquet"
                    shutil.copyfile(drawn, earlier / f"v{version}.parquet")
                options |= {"pool": earlier, "earlier_prompts": json.dumps([str(f) for f in files[: number - 1]])}
            policy = sample(run, folder / f"v{number}_{pool}", policy, number, 1000 * number + seed, **options)
            figures[f"V{number} {pool}"] = gold(run, folder / f"v{number}_{pool}_gold", policy, seed)
    return figures


def main() -> None:
    run, output = map(Path, [*sys.argv[1:], *("runs/demo", "runs/forgetting")[len(sys.argv) - 1 :]])
    require_files(run=run / "v3/safety_reward/checkpoint")
    found = [one_seed(run, output / f"seed{seed}", seed) for seed in SEEDS]
    sft = gold(run, output / "sft_gold", run / "sft/checkpoint", 0)
    columns = [*EARLY, "early", "later"]
    print("gold helpfulness, mean of the seeds; early skills, their mean, and all others")
    print(" " * 8, *(name.rjust(9) for name in columns), *(f"seed {seed}".rjust(9) for seed in SEEDS), "(early)")
    for version in ("SFT", *found[0]):
        rows = [sft] if version == "SFT" else [figures[version] for figures in found]
        means = [fmean(row[name] for row in rows) for name in columns]
        print(version.ljust(8), *(f"{value:9.3f}" for value in [*means, *(row["early"] for row in rows)]))
    last, every = ([figures[f"V3 {pool}"]["early"] for figures in found] for pool in ("last", "all"))
    for name, values in (("last", last), ("all", every)):
        change = [value - figures["V1"]["early"] for value, figures in zip(values, found, strict=True)]
        print(f"early skills, V3 {name} less V1:", *(f"{value:+.3f}" for value in change))
    ours, peer = round(fmean(every), 3), round(fmean(last), 3)
    result = {"name": "forgetting", "ours": ours, "peer": peer, "ratio": round(ours / peer, 2)}
    print(json.dumps(result | {"unit": "gold helpfulness of early skills"}))


if __name__ == "__main__":
    main()
