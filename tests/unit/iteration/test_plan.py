"""The plan: which stages, in which order, reading what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import InputError
from rlhf.iteration.config import RECIPES_OF_A_RUN, IterativeConfig, VersionConfig
from rlhf.iteration.plan import PlannedStage, dependencies, dependents_depth, make_plan


def config(**changes: Any) -> IterativeConfig:
    versions = (VersionConfig("v1"), VersionConfig("v2"), VersionConfig("v3", ppo=True))
    return IterativeConfig(**{"run": Path("runs/x"), "configs": Path("c"), "versions": versions} | changes)


def human(**changes: Any) -> IterativeConfig:
    fixed = {"data_recipe": "hh_data", "data": Path("hh"), "collect": False, "referee": True}
    return config(**fixed | changes)


def by_name(stages: list[PlannedStage]) -> dict[str, PlannedStage]:
    return {stage.name: stage for stage in stages}


def test_stages_of_the_demo() -> None:
    version = ["preferences", "helpfulness_reward", "safety_reward", "rejection_sampling", "evaluation"]
    expected = {"data", "base", "sft", "sft_evaluation", "v3/ppo", "v3/ppo_evaluation"}
    expected |= {f"{v}/{stage}" for v in ("v1", "v2", "v3") for stage in version}
    assert {stage.name for stage in make_plan(config())} == expected
    assert all(stage.output == Path("runs/x") / stage.name for stage in make_plan(config()))


def test_every_stage_comes_after_those_it_reads_from() -> None:
    for plan in (make_plan(config()), make_plan(human())):
        needs, seen = dependencies(plan), set()
        for stage in plan:
            assert seen.issuperset(needs[stage.name]), stage.name
            seen.add(stage.name)
        inside = [path for stage in plan for path in stage.inputs if path != Path("hh")]
        assert all(any(maker.output in path.parents or maker.output == path for maker in plan) for path in inside)


def test_each_version_uses_the_newest_policy_and_starts_from_sft() -> None:
    plan = by_name(make_plan(config()))
    sft, v1, v2 = (f"runs/x/{name}/checkpoint" for name in ("sft", "v1/rejection_sampling", "v2/rejection_sampling"))
    assert [plan[f"v{n}/preferences"].overrides.get("policy") for n in (1, 2, 3)] == [sft, v1, v2]
    assert [plan[f"v{n}/preferences"].overrides.get("second_policy") for n in (1, 2, 3)] == [None, sft, v1]
    assert [plan[f"v{n}/rejection_sampling"].overrides["policy"] for n in (1, 2, 3)] == [sft, v1, v2]
    assert {plan[f"v{n}/rejection_sampling"].overrides["fine_tune_from"] for n in (1, 2, 3)} == {sft}
    newest = by_name(make_plan(config(fine_tune_from="newest")))
    assert newest["v3/rejection_sampling"].overrides["fine_tune_from"] == v2
    assert plan["v3/ppo"].overrides["policy"] == "runs/x/v3/rejection_sampling/checkpoint"
    assert plan["v3/ppo_evaluation"].overrides["policy"] == "runs/x/v3/ppo/checkpoint"


def test_ppo_of_a_version_is_what_the_next_one_samples_from() -> None:
    plan = by_name(make_plan(config(versions=(VersionConfig("v1", ppo=True), VersionConfig("v2")))))
    assert plan["v2/rejection_sampling"].overrides["policy"] == "runs/x/v1/ppo/checkpoint"
    assert plan["v2/preferences"].overrides["policy"] == "runs/x/v1/ppo/checkpoint"
    assert plan["v2/preferences"].overrides["second_policy"] == "runs/x/sft/checkpoint"


def test_reward_models_learn_from_all_preferences_so_far_and_start_from_sft() -> None:
    plan = by_name(make_plan(config()))
    for domain in ("helpfulness", "safety"):
        stage = plan[f"v2/{domain}_reward"]
        files = [f"runs/x/{v}/preferences/preferences_train.jsonl" for v in ("v1", "v2")]
        assert json.loads(stage.overrides["preferences"]) == files
        assert stage.overrides["policy"] == "runs/x/sft/checkpoint"
        assert plan["v2/rejection_sampling"].overrides[domain] == f"runs/x/v2/{domain}_reward/checkpoint"


def test_the_pool_holds_earlier_versions_only() -> None:
    plan = by_name(make_plan(config()))
    assert [len(plan[f"v{n}/rejection_sampling"].links) for n in (1, 2, 3)] == [0, 1, 2]
    stage = plan["v3/rejection_sampling"]
    assert stage.overrides["pool"] == "runs/x/v3/pool"
    assert [link.name for link, _ in stage.links] == ["v1.parquet", "v2.parquet"]
    assert {target for _, target in stage.links} <= set(stage.inputs)
    last = by_name(make_plan(config(pool="last")))
    assert all("pool" not in last[f"v{n}/rejection_sampling"].overrides for n in (1, 2, 3))


def test_a_sweep_hands_its_best_temperature_to_the_same_version() -> None:
    assert not any("sweep" in name for name in by_name(make_plan(config())))
    stages = make_plan(config(sweep=True))
    plan = by_name(stages)
    for name in ("v1", "v2", "v3"):
        sweep, sampling = plan[f"{name}/temperature_sweep"], plan[f"{name}/rejection_sampling"]
        for option in ("policy", "helpfulness", "safety", "prompts", "seed"):
            assert sweep.overrides[option] == sampling.overrides[option]
        assert sampling.overrides["temperature_from"] == f"runs/x/{name}/temperature_sweep/sweep.json"
        assert sweep.name in dependencies(stages)[sampling.name]


def test_ghost_attention_follows_ppo_and_is_measured() -> None:
    versions = (VersionConfig("v1", ppo=True, ghost_attention=True), VersionConfig("v2"))
    plan = by_name(make_plan(config(versions=versions)))
    stage = plan["v1/ghost_attention"]
    assert stage.overrides["policy"] == "runs/x/v1/ppo/checkpoint"
    assert stage.overrides["dialogues"] == stage.overrides["sft_data"] == "runs/x/data/sft.jsonl"
    assert plan["v1/ghost_attention_evaluation"].overrides["name"] == "v1_gatt"
    assert plan["v1/ghost_attention_evaluation"].overrides["policy"] == "runs/x/v1/ghost_attention/checkpoint"
    assert plan["v2/rejection_sampling"].overrides["policy"] == "runs/x/v1/ghost_attention/checkpoint"
    assert not [name for name in by_name(make_plan(config())) if "ghost" in name]


def test_evaluation_is_against_sft() -> None:
    plan = by_name(make_plan(config()))
    assert "baseline" not in plan["sft_evaluation"].overrides
    assert plan["v2/evaluation"].overrides["baseline"] == "runs/x/sft/checkpoint"
    assert plan["v2/evaluation"].overrides["baseline_evaluation"] == "runs/x/sft_evaluation"
    assert plan["v3/ppo_evaluation"].overrides["name"] == "v3_ppo"
    assert {stage.overrides["prompts"] for stage in plan.values() if stage.recipe == "evaluate"} == {
        "runs/x/data/test_prompts.jsonl"
    }


def test_seeds_differ_between_versions_but_not_between_evaluations() -> None:
    plan = by_name(make_plan(config(seed=7)))
    assert [plan[f"v{n}/rejection_sampling"].overrides["seed"] for n in (1, 2, 3)] == ["1007", "2007", "3007"]
    assert {stage.overrides["seed"] for stage in plan.values() if stage.recipe == "evaluate"} == {"7"}


def test_fixed_preferences_train_the_reward_models_once() -> None:
    plan = by_name(make_plan(human()))
    rewards = [name for name in plan if name.endswith("_reward")]
    assert rewards == ["referee_reward", "v1/helpfulness_reward", "v1/safety_reward"]
    assert plan["v2/rejection_sampling"].overrides["safety"] == "runs/x/v1/safety_reward/checkpoint"
    assert plan["v3/evaluation"].overrides["referee"] == "runs/x/referee_reward/checkpoint"
    trained = {path for name in ("v1/helpfulness_reward", "v1/safety_reward") for path in plan[name].inputs}
    assert not any("referee" in str(path) for path in trained)
    users = [name for name, stage in plan.items() if any("referee" in str(path) for path in stage.inputs)]
    assert all(name == "referee_reward" or name.endswith("evaluation") for name in users)


def test_what_others_wait_for_goes_first() -> None:
    depth = dependents_depth(make_plan(config()))
    assert depth["v2/preferences"] > depth["v1/evaluation"] == 0
    assert depth["v1/rejection_sampling"] > depth["sft_evaluation"] == 1
    assert depth["data"] == max(depth.values())


def test_processes_by_recipe() -> None:
    plan = by_name(make_plan(config(processes={"ppo": 2})))
    assert plan["v3/ppo"].processes == 2 and plan["sft"].processes == 1


def test_the_recipes_of_a_run_are_those_of_its_plans() -> None:
    everything = config(sweep=True, versions=(VersionConfig("v1", ppo=True, ghost_attention=True),))
    assert {stage.recipe for stage in [*make_plan(everything), *make_plan(human())]} == set(RECIPES_OF_A_RUN)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"versions": ()}, "versions: name at least one"),
        ({"versions": (VersionConfig("a"), VersionConfig("a"))}, "'a' is taken"),
        ({"versions": (VersionConfig("sft"),)}, "'sft' is taken"),
        ({"slots": 0}, "slots: must be at least 1, got 0"),
        ({"processes": {"ppo": 3}}, r"processes: ppo must lie between 1 and slots \(2\), got 3"),
        ({"processes": {"sfft": 2}}, "processes: 'sfft' is no recipe of a run"),
        ({"data_recipe": "hh_data"}, "data: hh_data needs the folder"),
        ({"data_recipe": "hh_data", "data": Path("x")}, "collect: hh_data has fixed preferences"),
        ({"referee": True}, "simulated_world"),
    ],
)
def test_bad_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        config(**changes)


@pytest.mark.parametrize("name", ["", "../x", "a b", "-v"])
def test_a_version_is_a_folder(name: str) -> None:
    with pytest.raises(InputError, match="a name is a folder's name"):
        VersionConfig(name)


def test_later_versions_mix_in_the_rows_of_ghost_attention() -> None:
    """Without them V4, which starts from SFT again, obeyed less than V3 had before its Ghost Attention."""
    versions = (VersionConfig("v1"), *(VersionConfig(f"v{n}", ghost_attention=n < 4) for n in (2, 3, 4)))
    plan = by_name(make_plan(config(versions=versions)))
    mixed = [plan[f"v{n}/rejection_sampling"].overrides.get("mixed_data") for n in (1, 2, 3, 4)]
    rows = [f"runs/x/v{n}/ghost_attention/rows.jsonl" for n in (2, 3)]
    assert mixed[:2] == [None, None]
    wanted = [[{"data": rows[0], "share": 0.2}], [{"data": path, "share": 0.1} for path in rows]]
    assert [json.loads(given) for given in mixed[2:] if given] == wanted
    assert "v3/ghost_attention" in dependencies(list(plan.values()))["v4/rejection_sampling"]
    plan = by_name(make_plan(config(versions=versions, ghost_attention_share=0.0)))
    assert "mixed_data" not in plan["v4/rejection_sampling"].overrides
