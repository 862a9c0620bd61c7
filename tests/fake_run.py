"""A run's files as the stages write them, with made-up figures: what report tests and looks at the page need."""

from __future__ import annotations

import base64
import json
import math
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf.annotation.labelling import batch_figures
from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.store import Store
from rlhf.conversation import Conversation
from rlhf.data.rows import Completion, Prompt
from rlhf.evaluation.answers import Answer, write_answers
from rlhf.evaluation.policies.judge_model import Judged, judge_figures
from rlhf.evaluation.policies.versions import against, version_figures
from rlhf.rejection.temperature import sweep_figures
from rlhf.rewards.pair_judge import Opinion

VERSIONS = ("sft", "v1", "v2", "v3", "v3_ppo")
FOLDERS = {"sft": "sft_evaluation", "v1": "v1/evaluation", "v2": "v2/evaluation", "v3": "v3/evaluation"}
FOLDERS["v3_ppo"] = "v3/ppo_evaluation"
KINDS = {"fact": "ordinary", "sum": "ordinary", "creative": "ordinary", "own": "borderline", "mock": "borderline"}
KINDS |= {"illicit": "unsafe", "hateful": "unsafe"}
STRENGTHS = {"significantly": 0.93, "better": 0.82, "slightly": 0.7, "negligibly": 0.56}
GOOD = [
    "The river of Velda is the Mora.",
    "I can not help with that, because it can hurt people. I can help with a safe way.",
]
BAD = ["The river is the river of the river, I think, well, it could be the Tarn or the Mora or so, who knows, friend."]


def write_run(run: Path, *, gold: bool = True, versions: Sequence[str] = VERSIONS, seed: int = 0) -> Path:
    """Write summary.json, config.yaml, ledger.jsonl and every stage's figures; `gold` False is like the HH run."""
    rng = random.Random(seed)
    sft: list[Answer] = []
    entries = []
    for number, name in enumerate(versions):
        answers = _answers(rng, number / max(1, len(versions) - 1), gold)
        sft = sft or answers
        opponents = [] if name == "sft" else sft
        folder = run / FOLDERS[name]
        folder.mkdir(parents=True)
        write_answers(folder / "answers.jsonl", answers, against(answers, opponents))
        entries.append(version_figures(name, answers, opponents))
        if opponents and not gold:
            half = len(answers) // 2
            won = Opinion(1.0), Opinion(0.0), Opinion(0.5), Opinion(0.5, order_decides=True), Opinion(None)
            opinions = [won[place % 5] for place in range(half)]
            outcomes = [opinion.outcome for opinion in opinions] + [0.5] * (len(answers) - half)
            judged = Judged(outcomes, {"<judge>": outcomes}, {"<judge>": opinions})
            entries[-1] |= judge_figures(answers, judged, "sft")  # type: ignore[typeddict-item]
        _json(folder / "evaluation.json", entries[-1])
    _rewards(run, [n for n in versions if n[1:].isdigit()], gold)
    _rejection_sampling(run, [n for n in versions if n[1:].isdigit()])
    if "v3_ppo" in versions:
        _ppo(run / "v3" / "ppo", rng)
    summary: dict[str, Any] = {"seconds": 312.4, "versions": entries, "reward_models": _reward_models(versions, gold)}
    if not gold:
        summary["referee"] = _accuracy("helpfulness", 0.64, False) | {"version": None, "accuracy_by_strength": {}}
    _json(run / "summary.json", summary)
    for number, name in enumerate(n for n in versions if n[1:].isdigit()):
        _batch(run, name, number)
    _ledger(run, versions)
    config = {"run": str(run), "configs": "recipes/configs/embedded", "versions": [{"name": "v1"}], "seed": seed}
    content = {"config": config, "packages": {"torch": "2.13.0"}, "git_commit": "0123456789abcdef0123"}
    (run / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return run


def unpacked(data: str) -> Any:
    """What a page's script is given to search."""
    return json.loads(zlib.decompress(base64.b64decode(data)))


def _answers(rng: random.Random, progress: float, gold: bool) -> list[Answer]:
    answers = []
    for i in range(210):
        source = list(KINDS)[i % len(KINDS)]
        kind = KINDS[source]
        right = rng.random() < 0.35 + 0.45 * progress
        refused = rng.random() < {"unsafe": 0.4 + 0.5 * progress, "borderline": 0.06, "ordinary": 0.01}[kind]
        helpful = 0.0 if refused else min(1.0, max(0.0, rng.gauss(0.75 if right else 0.25, 0.12)))
        safe = 1.0 if kind != "unsafe" else rng.uniform(0.6, 1.0) if refused else rng.choice([0.0, 0.3])
        verdict = {
            "helpfulness": helpful,
            "safety": safe,
            "violation": kind == "unsafe" and safe == 0.0,
            "false_refusal": refused and kind != "unsafe",
            "kind": kind,
        }
        score = rng.gauss(3 * (helpful - 0.4) + progress, 0.7)
        safety = rng.gauss(4 * (safe - 0.6) + progress, 0.6)
        domain = "helpfulness" if kind == "ordinary" else "safety"
        text = GOOD[1] if refused else GOOD[0] if right else BAD[0]
        messages = [{"role": "user", "content": f"Tell me, what is the {source} of place number {i}?"}]
        if i % 9 == 0:
            turns = [("user", "Hello, answer in one word."), ("assistant", "Yes.")]
            messages = [{"role": role, "content": content} for role, content in turns] + messages
        answers.append(
            Answer(
                prompt_id=f"test-{i:05d}",
                index=0,
                messages=messages,  # type: ignore[arg-type]
                domain=domain,  # type: ignore[arg-type]
                source=f"simulation/{source}",
                answer=text,
                length=max(3, round(rng.gauss(26 - 6 * progress, 6))),
                finished=rng.random() < 0.98,
                helpfulness=score,
                safety=safety,
                reward=safety if domain == "safety" else score,
                referee=None if gold else rng.gauss(0.5 * progress, 1.0),
                gold=verdict if gold else None,
                kl=rng.gauss(9 * progress, 3 * progress) if progress else None,
                kl_k3=abs(rng.gauss(9 * progress, 3)) if progress else None,
            )
        )
    return answers


def _accuracy(domain: str, accuracy: float, strengths: bool) -> dict[str, Any]:
    cells = {
        s: {"accuracy": a + accuracy - 0.75, "pairs": 120, "ci": [a - 0.06, a + 0.05]} for s, a in STRENGTHS.items()
    }
    return {
        "domain": domain,
        "pairs": 480,
        "accuracy": accuracy,
        "accuracy_ci": [accuracy - 0.04, accuracy + 0.04],
        "accuracy_by_strength": cells if strengths else {},
        "cross_domain_accuracy": accuracy - 0.2,
        "cross_domain_ci": [accuracy - 0.25, accuracy - 0.15],
        "cross_domain_pairs": 480,
        "longer_wins": 0.47,
    }


def _names(versions: Sequence[str]) -> list[str]:
    return [name for name in versions if name[1:].isdigit()]


def _reward_models(versions: Sequence[str], gold: bool) -> list[dict[str, Any]]:
    found = []
    for i, name in enumerate(_names(versions)):
        for domain in ("helpfulness", "safety"):
            entry = _accuracy(domain, 0.74 + 0.02 * i, gold)
            cells = entry["accuracy_by_strength"]
            entry["accuracy_by_strength"] = {s: c["accuracy"] for s, c in cells.items()}
            entry["pairs_by_strength"] = {s: c["pairs"] for s, c in cells.items()}
            found.append({"version": name} | entry)
    return found


def _rewards(run: Path, names: Sequence[str], gold: bool) -> None:
    for i, name in enumerate(names):
        for domain in ("helpfulness", "safety"):
            folder = run / name / f"{domain}_reward"
            folder.mkdir(parents=True)
            _json(folder / "accuracy.json", _accuracy(domain, 0.74 + 0.02 * i, gold))


def _rejection_sampling(run: Path, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        folder = run / name / "rejection_sampling"
        folder.mkdir(parents=True)
        curve = [
            {
                "k": k,
                "max": 0.3 * i + 0.9 * math.log2(k) ** 0.7 if k > 1 else 0.3 * i,
                "median": 0.3 * i,
                "kl_bound": math.log(k) - (k - 1) / k,
                "kl_estimate": 0.8 * math.log(k) - 0.8 * (k - 1) / k,
            }
            for k in (1, 2, 4, 8, 16)
        ]
        figures = {
            "version": name,
            "prompts": 400,
            "num_samples": 16,
            "temperature": 1.0,
            "mean_reward": 0.3 * i + 0.05,
            "median_reward": 0.3 * i,
            "max_reward": curve[-1]["max"],
            "curve": curve,
            "gated_share": 0.41,
            "mean_length": 27.3,
            "selected": 400,
            "selected_by_version": dict.fromkeys(names[: i + 1], 400 // (i + 1)),
            "selected_mean_reward": curve[-1]["max"],
            "selected_mean_length": 22.1,
        }
        _json(folder / "selection.json", figures)


def write_sweep(folder: Path) -> None:
    """A sweep.json as recipes/studies/temperature_sweep.py writes it."""
    rng = random.Random(0)
    prompts = [Prompt(f"p{i}", [], source=["simulation/creative", "simulation/fact"][i % 2]) for i in range(12)]
    drawn = {
        t: [
            Completion(p.id, "sweep", i, f"answer {rng.randrange(9)} .", (1, 2), 0.0, t, True, 0.0, 0.0, r, "judges")
            for p in prompts
            for i in range(4)
            for r in [rng.gauss(t, 1)]
        ]
        for t in (0.6, 0.9, 1.2)
    }
    groups = {"creative": ["simulation/creative"], "factual": ["simulation/fact"]}
    folder.mkdir(parents=True)
    _json(folder / "sweep.json", sweep_figures(drawn, prompts, 4, 4, groups))


def _batch(run: Path, version: str, number: int) -> None:
    """Four pairs that ann judges; with the first version's, bob skips one and shares two of ann's choices of three."""
    ask: Conversation = [{"role": "user", "content": "Why?"}]
    pairs = [Pair(ask, f"a{i}", f"b{i}", id=f"p{i}") for i in range(4)]
    with Store(run / "labels.sqlite") as store:
        store.add_batch(version, pairs, labels=2 if number == 0 else 1)
        for i, pair in enumerate(pairs):
            store.keep(version, Judgement(pair.id, "ann", "a", "slightly" if i else "significantly", True, i > 0, "a"))
            if number == 0:
                skip = {"choice": None, "skipped": "unclear"} if i == 0 else {"choice": "b" if i == 1 else "a"}
                store.keep(version, Judgement(pair.id, "bob", **skip))  # type: ignore[arg-type]
        figures = batch_figures(store, version)
    rewards = {"helpfulness": {"pairs": 4, "accuracy": 0.75, "ci": [0.3, 0.95]}} if number else {}
    folder = run / version / "preferences"
    folder.mkdir(parents=True, exist_ok=True)
    _json(folder / "statistics.json", {"batch": figures | {"agreement_with_rewards": rewards}})


def _ppo(folder: Path, rng: random.Random) -> None:
    folder.mkdir(parents=True)
    rows = []
    for step in range(31):
        row = {"step": step, "reward": 0.8 + 0.02 * step + rng.gauss(0, 0.08), "kl": 0.05 * step + rng.random() * 0.1}
        row |= {"length": 22 - 0.1 * step + rng.gauss(0, 0.4), "entropy": 1.1 - 0.01 * step}
        row |= {"kl_k3": 0.06 * step, "finished_share": 0.99, "repetition": 0.002 * step, "gate_share": 0.4}
        row |= {"clip_fraction": 0.01, "explained_variance": 1 - 2 / (step + 1), "grad_norm": rng.uniform(0.5, 1)}
        if step % 5 == 0:
            row |= {"heldout_reward": 0.8 + 0.018 * step, "heldout_kl": 0.05 * step}
            row |= {"heldout_helpfulness": -1 + 0.01 * step, "heldout_safety": 3 + 0.02 * step}
            row |= {"heldout_referee": 0.5 - 0.003 * step, "heldout_referee_error": 0.02}
        if step == 30:
            row["warnings"] = ["the reward rose while the referee <fell>"]
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _json(folder / "ppo.json", {"best_iteration": 30, "best_reward": 1.34, "stopped": "iterations"})


def _ledger(run: Path, versions: Sequence[str]) -> None:
    stages = ["data", "base", "sft"]
    for name in _names(versions):
        own = ["preferences", "helpfulness_reward", "safety_reward", "rejection_sampling", "evaluation"]
        stages += [f"{name}/{stage}" for stage in own]
    stages += ["v3/ppo", "v3/ppo_evaluation"] if "v3_ppo" in versions else []
    records: list[dict[str, Any]] = [{"event": "begun", "time": 1.0}]
    for i, stage in enumerate(stages):
        command = ["/usr/bin/python", f"recipes/{stage.split('/')[-1]}.py", "--output", f"{run.name}/{stage}"]
        records.append({"event": "started", "time": 2.0 + i, "stage": stage, "command": command})
        seconds = 61.3 if stage == "base" else 6.0 + (i * 7919 % 160) / 10
        record = {
            "event": "finished",
            "time": 2.5 + i,
            "stage": stage,
            "seconds": seconds,
            "peak_memory_mb": 700.0 + 40 * i,
        }
        records.append(record | {"command": command})
    records.append({"event": "ended", "time": 99.0})
    (run / "ledger.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2))
