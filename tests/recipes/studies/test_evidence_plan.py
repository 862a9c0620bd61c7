"""The plan of `make evidence-chat`: it is planned as shipped, and a small copy of it runs from the data to the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf.cli import main
from rlhf.configuration import parse_config
from rlhf.iteration.checks import _import as import_file
from rlhf.iteration.checks import check_plan
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.links import make_link
from rlhf.iteration.plan import make_plan, recipe_file
from rlhf.iteration.summary import write_summary
from rlhf.report import build_report

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "recipes" / "configs" / "smollm2_135m"
MEASURES = ("evaluation", "safety_evaluation", "instruction_evaluation")
SMALL: dict[str, dict[str, Any]] = {
    "prepare_data": {"max_prompts": 6, "max_test_prompts": 6, "max_preferences": 16, "max_test_preferences": 6},
    "helpfulness_reward": {"training.optimizer.batch_size": 8},
    "safety_reward": {"training.optimizer.batch_size": 8},
    "rejection_sampling": {
        "num_samples": 4,
        "sampling.max_new_tokens": 24,
        "finetuning.optimizer.epochs": 1,
        "selection.missing_end_penalty": 0.5,  # what was never trained seldom ends
    },
    "dpo": {"finetuning.optimizer.batch_size": 8},
    "ppo": {
        "max_prompt_tokens": 128,
        "sampling.max_new_tokens": 24,
        "ppo.iterations": 1,
        "ppo.batch_size": 8,
        "ppo.evaluate_every": 1,
        "ppo.validation_size": 4,
        "ppo.optimizer.batch_size": 8,
        "ppo.rows": 8,
    },
    "evaluate": {"max_prompt_tokens": 128, "sampling.max_new_tokens": 24},
    "evaluate_safety": {"kinds": {"plain": "ordinary"}, "sampling.max_new_tokens": 24},
    "evaluate_instructions": {"questions": 2, "sampling": {"max_new_tokens": 16}},
    "leaderboard": {"tasks": ["truthfulqa"], "limit": 2},
}


@pytest.fixture
def given(tiny_policy_path: Path, tmp_path: Path) -> list[str]:
    """Options of the inputs: the tiny model, and sixty pairs a file whose longer answer is chosen."""
    names = {"helpfulness_preferences": "helpful", "safety_preferences": "harmless", "referee_preferences": "others"}
    for name in names.values():
        rows = [
            {"prompt": f"{name} {'abcdefghij'[i % 10]} {i} ?", "chosen": "sure it is mora .", "rejected": "no"}
            for i in range(60)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = {"policy": str(tiny_policy_path)}
    inputs |= {field: [str(tmp_path / f"{name}.jsonl")] for field, name in names.items()}  # type: ignore[misc]
    return ["--run", str(tmp_path / "run"), "--inputs", json.dumps(inputs)]


def test_the_plan_is_read_and_sets_all_policies_side_by_side(
    given: list[str], shared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    plan = str((CONFIGS / "iterative_rlhf.yaml").relative_to(ROOT))
    stages = {stage.name: stage for stage in make_plan(parse_config(IterativeConfig, ["--config", plan, *given]))}
    policies = ("start_", "v1/", "v1/random_", "v1/longest_", "v1/dpo_", "v2/", "v2/ppo_")
    assert {f"{policy}{measure}" for policy in policies for measure in MEASURES} < set(stages)
    assert {name for name in stages if "leaderboard" in name} == {
        *("start_leaderboard", "v2/ppo_leaderboard"),
        *(f"v1/{branch}_leaderboard" for branch in ("random", "longest", "dpo")),
    }
    for branch in ("random", "longest"):
        control = stages[f"v1/{branch}"].overrides
        assert (control["selection.rule"], control["num_samples"]) == (branch, "0")
    assert stages["data"].overrides["seed"] == "0", "one split for all seeds"
    if shared_data != ROOT.parent / "shared" / "data":
        pytest.skip("the settings name the data beside the checkout")
    main(["plan", "--config", plan, *given])
    printed = capsys.readouterr().out
    assert all(name in printed for name in stages) and "hours: " in printed


def small(configs: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    for recipe, options in changes.items():
        file = configs / f"{recipe}.yaml"
        content = yaml.safe_load(file.read_text())
        for option, value in options.items():
            *parents, last = option.split(".")
            inner = content
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
        file.write_text(yaml.safe_dump(content))


@pytest.mark.long
def test_a_small_copy_of_the_plan_runs_to_its_page(given: list[str], shared_data: Path, tmp_path: Path) -> None:
    configs = shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "plain.jsonl").write_text('{"prompt": "what is velda ?"}\n{"prompt": "what is mora ?"}\n')
    (tmp_path / "goals.csv").write_text("goal,target\ndo it,sure\ntry it,sure\n")
    files = {"plain": str(tmp_path / "plain.jsonl"), "advbench": str(tmp_path / "goals.csv")}
    here = {
        "evaluate_safety": {"prompts": files},
        "evaluate_instructions": {"prompts": str(shared_data / "ifeval" / "input_data_270.jsonl")},
        "leaderboard": {"local": {"truthfulqa": str(shared_data / "truthfulqa" / "mc_task_400.json")}},
    }
    small(configs, {name: {**options, **here.get(name, {})} for name, options in SMALL.items()})
    options = ["--config", str(configs / "iterative_rlhf.yaml"), "--configs", str(configs), *given]
    config = parse_config(IterativeConfig, options)
    stages = make_plan(config)
    settings = check_plan(stages)
    for stage in stages:  # in this process, where the driver would start one each
        for link, target in stage.links:
            make_link(link, target)
        import_file(recipe_file(stage), stage).main(settings[stage.name])
    write_summary(config.run, stages)
    summary = json.loads((config.run / "summary.json").read_text())
    assert [version["name"] for version in summary["versions"]] == ["start", "v1", "v2", "v2_ppo"]
    assert [branch["name"] for branch in summary["branches"]] == ["v1_random", "v1_longest", "v1_dpo"]
    for one in [*summary["versions"][1:], *summary["branches"]]:
        for figure in ("proxy_reward_gain", "proxy_safety_gain", "referee_gain_equal_length", "kl_from_sft"):
            assert one[figure] is not None, (one["name"], figure)
    drawn = [
        json.loads((config.run / f"v1/{name}/selection.json").read_text()) for name in ("rejection_sampling", "random")
    ]
    assert drawn[1]["candidates"] == drawn[0]["candidates"] and drawn[1]["num_samples"] == 0
    assert (config.run / "pool" / "v1.parquet").exists() and not (config.run / "pool" / "v1_random.parquet").exists()
    page = build_report(config.run).read_text()
    for words in ("Prompt by prompt", "v1_random, equal length", "Violations and false refusals", "Knowledge kept"):
        assert words in page, words
