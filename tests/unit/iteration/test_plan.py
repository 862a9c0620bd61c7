"""The plan: which stages, in which order, reading what."""

from __future__ import annotations

import importlib.util
import json
import sys
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.iteration.checks import check_plan
from rlhf.iteration.config import DEFAULT_STEPS, IterativeConfig, VersionConfig
from rlhf.iteration.decision import stage_key
from rlhf.iteration.keeping import superseded
from rlhf.iteration.plan import (
    PlannedStage,
    dependencies,
    find_recipe,
    make_plan,
    recipe_file,
    start_order,
)
from rlhf.iteration.steps import KINDS
from rlhf.sampling.chat import ServerConfig
from rlhf.sampling.source import EngineConfig, PolicySource

ROOT = Path(__file__).resolve().parents[3]
WORLD = {
    "recipe": "simulated_world",
    "name": "data",
    "seed": "world.seed",
    "makes": {
        "world": "world.json",
        "pretrain_data": "pretrain.jsonl",
        "sft_data": "sft.jsonl",
        "dialogues": "sft.jsonl",
        "prompts": "prompts.jsonl",
        "validation_prompts": "validation_prompts.jsonl",
        "test_prompts": "test_prompts.jsonl",
    },
}
PPO = (*DEFAULT_STEPS, "ppo", "evaluate")


def config(**changes: Any) -> IterativeConfig:
    """The demo's plan."""
    versions = (VersionConfig("v1"), VersionConfig("v2"), VersionConfig("v3", PPO))
    given = {"run": Path("runs/x"), "configs": Path("c"), "start": (WORLD, "pretrain", "sft"), "versions": versions}
    return IterativeConfig(**given | changes)


def chat(steps: tuple[Any, ...] = ("rewards", "rejection_sampling", "evaluate"), **inputs: Any) -> IterativeConfig:
    """A plan on a chat checkpoint of the user's, with fixed preferences."""
    names = ("policy", "prompts", "test_prompts", "validation_prompts", "preferences", "test_preferences")
    given = {name: f"{name}.jsonl" for name in names} | inputs
    return config(start=(), inputs=given, versions=(VersionConfig("v1", steps), VersionConfig("v2", steps)))


def human() -> IterativeConfig:
    """The plan of real preferences with a referee, the reward models trained once."""
    made = ("pretrain_data", "sft_data", "preferences", "test_preferences", "referee_preferences")
    made += ("referee_test_preferences", "prompts", "validation_prompts", "test_prompts")
    data = {
        "recipe": "hh_data",
        "name": "data",
        "reads": {"data": "hh"},
        "makes": {name: f"{name}.jsonl" for name in made},
    }
    once = ("rejection_sampling", "evaluate")
    versions = (VersionConfig("v1", ("rewards", *once)), VersionConfig("v2", once), VersionConfig("v3", (*once, "ppo")))
    return config(inputs={"hh": "hh"}, start=(data, "pretrain", "sft", "referee"), versions=versions)


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
        inside = [path for stage in plan for path in stage.inputs]
        assert all(any(maker.output in path.parents or maker.output == path for maker in plan) for path in inside)


def test_each_version_uses_the_newest_policy_and_starts_from_sft() -> None:
    plan = by_name(make_plan(config()))
    sft, v1, v2 = (f"runs/x/{name}/checkpoint" for name in ("sft", "v1/rejection_sampling", "v2/rejection_sampling"))
    assert [plan[f"v{n}/preferences"].overrides.get("policy") for n in (1, 2, 3)] == [sft, v1, v2]
    assert [plan[f"v{n}/preferences"].overrides.get("second_policy") for n in (1, 2, 3)] == [None, sft, v1]
    assert [plan[f"v{n}/rejection_sampling"].overrides["policy"] for n in (1, 2, 3)] == [sft, v1, v2]
    assert {plan[f"v{n}/rejection_sampling"].overrides["fine_tune_from"] for n in (1, 2, 3)} == {sft}
    newest = {"step": "rejection_sampling", "reads": {"fine_tune_from": "policy"}}
    versions = (VersionConfig("v1"), VersionConfig("v2", ("preferences", "rewards", newest)))
    assert by_name(make_plan(config(versions=versions)))["v2/rejection_sampling"].overrides["fine_tune_from"] == v1
    assert plan["v3/ppo"].overrides["policy"] == "runs/x/v3/rejection_sampling/checkpoint"
    assert plan["v3/ppo_evaluation"].overrides["policy"] == "runs/x/v3/ppo/checkpoint"


def test_ppo_of_a_version_is_what_the_next_one_samples_from() -> None:
    plan = by_name(make_plan(config(versions=(VersionConfig("v1", PPO), VersionConfig("v2")))))
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
    alone = VersionConfig("v2", ("rewards", {"step": "rejection_sampling", "reads": {"pool": None}}))
    stage = by_name(make_plan(config(versions=(VersionConfig("v1"), alone))))["v2/rejection_sampling"]
    assert "pool" not in stage.overrides and not stage.links


def test_a_sweep_hands_its_best_temperature_to_the_same_version() -> None:
    assert not any("sweep" in name for name in by_name(make_plan(config())))
    steps = ("preferences", "rewards", "sweep", "rejection_sampling")
    stages = make_plan(config(versions=(VersionConfig("v1", steps), VersionConfig("v2", steps))))
    plan = by_name(stages)
    for name in ("v1", "v2"):
        sweep, sampling = plan[f"{name}/temperature_sweep"], plan[f"{name}/rejection_sampling"]
        for option in ("policy", "helpfulness", "safety", "prompts", "seed"):
            assert sweep.overrides[option] == sampling.overrides[option]
        assert sampling.overrides["temperature_from"] == f"runs/x/{name}/temperature_sweep/sweep.json"
        assert sweep.name in dependencies(stages)[sampling.name]


def test_a_trained_policy_is_reminded_of_what_was_selected_for_it_and_the_start_of_its_demonstrations() -> None:
    """Demonstrations mixed into a policy of a later version would take it back to where it came from."""
    steps = ("preferences", "rewards", "context_distillation", "rejection_sampling", "ghost_attention")
    again = (*steps[:3], "rejection_sampling")
    plan = by_name(make_plan(config(versions=(VersionConfig("v1", steps), VersionConfig("v2", again)))))
    assert plan["v1/context_distillation"].overrides["sft_data"] == "runs/x/data/sft.jsonl"
    for name in ("v1/ghost_attention", "v2/context_distillation"):
        assert plan[name].overrides["sft_data"] == "runs/x/v1/rejection_sampling/selected.jsonl", name


def test_ghost_attention_follows_ppo_and_is_measured() -> None:
    versions = (VersionConfig("v1", (*PPO, "ghost_attention", "evaluate")), VersionConfig("v2"))
    plan = by_name(make_plan(config(versions=versions)))
    stage = plan["v1/ghost_attention"]
    assert stage.overrides["policy"] == "runs/x/v1/ppo/checkpoint"
    assert stage.overrides["dialogues"] == "runs/x/data/sft.jsonl"
    assert plan["v1/ghost_attention_evaluation"].overrides["name"] == "v1_gatt"
    assert plan["v1/ghost_attention_evaluation"].overrides["policy"] == "runs/x/v1/ghost_attention/checkpoint"
    assert plan["v2/rejection_sampling"].overrides["policy"] == "runs/x/v1/ghost_attention/checkpoint"
    assert not [name for name in by_name(make_plan(config())) if "ghost" in name]


def test_students_learn_from_the_chosen_answers_and_are_measured_beside_the_policy() -> None:
    steps = ("rewards", "rejection_sampling", {"students": {"heldout_share": 0.1}}, "evaluate")
    stages = make_plan(chat(steps, students=["models/one", "runs/other/sft/checkpoint"]))
    plan = by_name(stages)
    for name, given in (("one", "models/one"), ("sft", "runs/other/sft/checkpoint")):
        for version in ("v1", "v2"):
            trained = plan[f"{version}/student_{name}"]
            assert trained.recipe == "sft" and trained.overrides["policy"] == given
            assert trained.overrides["data"] == f"runs/x/{version}/rejection_sampling/selected.jsonl"
            assert trained.overrides["finetuning.train"] == "last" and trained.overrides["heldout_share"] == "0.1"
            measured = plan[f"{version}/student_{name}_evaluation"]
            assert measured.overrides["name"] == f"{version}_{name}" and measured.student == name
            assert measured.overrides["policy"] == f"runs/x/{version}/student_{name}/checkpoint"
            same = ("prompts", "baseline_evaluation", "helpfulness", "safety", "seed")
            beside = plan[f"{version}/evaluation"].overrides
            assert [measured.overrides[option] for option in same] == [beside[option] for option in same]
            assert "baseline" not in measured.overrides, "the start is another model, there is no KL from it"
        assert plan[f"students_{name}_evaluation"].overrides["policy"] == given
        assert plan[f"students_{name}_evaluation"].overrides["name"] == name
    assert plan["v2/rejection_sampling"].overrides["policy"] == "runs/x/v1/rejection_sampling/checkpoint"
    gone = [stage.name for stage, _ in superseded(stages, set(plan), "newest")]
    assert {f"v1/student_{name}" for name in ("one", "sft")} <= set(gone), "of each student the newest stays"
    assert not [name for name in gone if name.startswith("v2")]
    later = ("rewards", "rejection_sampling", "evaluate", "students", "evaluate")
    assert "v1/student_one_evaluation" in by_name(make_plan(chat(later, students="models/one")))
    with pytest.raises(InputError, match="a/one is called 'one', as b/one is; give it a folder's name of its own"):
        make_plan(chat(steps, students=["b/one", "a/one"]))


CONTROL = {"step": "rejection_sampling", "branch": "random", "options": {"selection.rule": "random", "num_samples": 0}}
BESIDE = {"step": "dpo", "branch": "dpo", "reads": {"policy": "start"}}


def test_a_branch_is_measured_beside_its_version_and_read_by_no_later_step() -> None:
    first = VersionConfig("v1", ("rewards", "rejection_sampling", CONTROL, "evaluate", "leaderboard"))
    second = VersionConfig("v2", ("rejection_sampling", CONTROL, "evaluate", BESIDE, "ppo", "evaluate", "leaderboard"))
    stages = make_plan(replace(chat(), versions=(first, second)))
    plan = by_name(stages)
    control, real = plan["v2/random"], plan["v2/rejection_sampling"]
    same = ("policy", "fine_tune_from", "prompts", "helpfulness", "safety", "seed")
    assert {name: control.overrides[name] for name in same} == {
        name: "runs/x/v2/rejection_sampling/checkpoint" if name == "policy" else real.overrides[name] for name in same
    }, "the version's settings, prompts and seed"
    assert (control.overrides["version"], control.overrides["num_samples"]) == ("v2_random", "0")
    assert control.overrides["pool"] == "runs/x/v2/random_pool" and real.overrides["pool"] == "runs/x/v2/pool"
    assert [link.name for link, _ in control.links] == ["v1.parquet", "v2.parquet"], "what was drawn beside it too"
    assert [link.name for link, _ in real.links] == ["v1.parquet"], "no branch's answers"
    assert plan["v2/ppo"].overrides["policy"] == "runs/x/v2/rejection_sampling/checkpoint"
    assert plan["v2/dpo"].overrides["policy"] == "policy.jsonl"

    measured = [(s.name, s.overrides.get("name"), s.branch) for s in stages if s.recipe == "evaluate"]
    assert measured == [
        ("start_evaluation", "start", ""),
        ("v1/evaluation", "v1", ""),
        ("v1/random_evaluation", "v1_random", "v1_random"),
        ("v2/evaluation", "v2", ""),
        ("v2/random_evaluation", "v2_random", "v2_random"),
        ("v2/ppo_evaluation", "v2_ppo", ""),
        ("v2/dpo_evaluation", "v2_dpo", "v2_dpo"),
    ]
    beside = plan["v2/dpo_evaluation"].overrides
    assert beside["policy"] == "runs/x/v2/dpo/checkpoint"
    assert (beside["baseline"], beside["baseline_evaluation"]) == ("policy.jsonl", "runs/x/start_evaluation")
    boards = [s.name for s in stages if s.recipe == "leaderboard"]
    assert boards == [
        *("start_leaderboard", "v1/leaderboard", "v1/random_leaderboard"),
        *("v2/ppo_leaderboard", "v2/random_leaderboard", "v2/dpo_leaderboard"),
    ], "what was made since its last time"
    assert plan["v2/ppo_leaderboard"].overrides["models.v2_ppo"] == "runs/x/v2/ppo/checkpoint"

    gone = [stage.name for stage, _ in superseded(stages, {stage.name for stage in stages}, "newest")]
    assert set(gone) == {"v1/rejection_sampling", "v2/rejection_sampling", "v1/random"}, (
        "of each branch the newest stays"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": ({**BESIDE},)}, "start: the branch dpo belongs to a version"),
        ({"versions": (VersionConfig("v1", ({"step": "evaluate", "branch": "a"},)),)}, "evaluate makes no policy"),
        ({"versions": (VersionConfig("v1", ({**BESIDE, "branch": "a/b"},)),)}, r"branch: must be a folder's name"),
        ({"versions": (VersionConfig("v1", ("ppo", {**BESIDE, "branch": "ppo"})),)}, "two steps would write v1/ppo"),
    ],
)
def test_what_no_branch_can_be_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_plan(replace(chat(helpfulness="a:b", safety="a:b"), **changes))


def test_the_average_is_of_what_the_version_made() -> None:
    steps = (*PPO, "average_policies", "evaluate")
    plan = by_name(make_plan(config(versions=(VersionConfig("v1"), VersionConfig("v2", steps), VersionConfig("v3")))))
    own = [f"runs/x/v2/{name}/checkpoint" for name in ("rejection_sampling", "ppo")]
    assert json.loads(plan["v2/average_policies"].overrides["checkpoints"]) == own
    assert plan["v2/average_policies_evaluation"].overrides["name"] == "v2_average"
    assert plan["v3/rejection_sampling"].overrides["policy"] == "runs/x/v2/average_policies/checkpoint"
    everything = {"step": "average_policies", "reads": {"checkpoints": "policy*"}}
    plan = by_name(make_plan(config(versions=(VersionConfig("v1", (*DEFAULT_STEPS, everything)),))))
    wanted = ["runs/x/sft/checkpoint", "runs/x/v1/rejection_sampling/checkpoint"]
    assert json.loads(plan["v1/average_policies"].overrides["checkpoints"]) == wanted


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
    alone = [plan["referee_reward"].overrides[name] for name in ("other_share", "cut_off_share")]
    assert alone == ["0.0", "0.0"], "people's helpfulness pairs and nothing else"
    trained = {path for name in ("v1/helpfulness_reward", "v1/safety_reward") for path in plan[name].inputs}
    assert not any("referee" in str(path) for path in trained)
    users = [name for name, stage in plan.items() if any("referee" in str(path) for path in stage.inputs)]
    assert all(name == "referee_reward" or name.endswith("evaluation") for name in users)


def test_what_others_wait_for_goes_first() -> None:
    names = [stage.name for stage in start_order(make_plan(config()), 2)]
    assert names[0] == "data" and names.index("v2/preferences") < names.index("v1/evaluation")
    assert names.index("v1/rejection_sampling") < names.index("sft_evaluation")


def test_where_two_never_run_at_once_each_version_is_measured_before_the_next_begins() -> None:
    """Before, a run's first verdict came after its last training: evaluations are what nobody waits for."""
    stages = make_plan(config())
    assert start_order(stages, 1) == stages != start_order(stages, 2)
    alone = make_plan(config(launch={"default": {"processes": 2}}))
    assert {stage.processes for stage in alone} == {1, 2} and start_order(alone, 2) == alone


def test_processes_by_recipe() -> None:
    plan = by_name(make_plan(config(launch={"ppo": {"processes": 2}})))
    assert plan["v3/ppo"].processes == 2 and plan["sft"].processes == 1


def test_a_chat_checkpoint_is_the_start() -> None:
    plan = by_name(make_plan(chat()))
    assert list(plan)[:3] == ["v1/helpfulness_reward", "v1/safety_reward", "v1/rejection_sampling"]
    for stage in ("v1/helpfulness_reward", "v2/safety_reward"):
        assert plan[stage].overrides["policy"] == "policy.jsonl"
        assert json.loads(plan[stage].overrides["preferences"]) == ["preferences.jsonl"]
    assert plan["start_evaluation"].overrides["name"] == "start"
    assert plan["v2/evaluation"].overrides["baseline"] == "policy.jsonl"
    assert plan["v2/rejection_sampling"].overrides["fine_tune_from"] == "policy.jsonl"
    assert Path("prompts.jsonl") in plan["v1/rejection_sampling"].inputs


def test_given_rewards_and_one_reward_need_no_training() -> None:
    steps = ("rejection_sampling", "evaluate", "ppo", "evaluate")
    given = chat(steps, helpfulness="my.rewards:brevity")
    fixed = {name: source for name, source in given.inputs.items() if "preferences" not in name}
    plan = by_name(make_plan(replace(given, inputs=fixed)))
    for stage in ("v1/rejection_sampling", "v2/ppo", "v2/evaluation"):
        assert plan[stage].overrides["helpfulness"] == "my.rewards:brevity" and "safety" not in plan[stage].overrides
        assert not any("brevity" in str(path) for path in plan[stage].inputs)
    assert plan["v2/ppo_evaluation"].overrides["name"] == "v2_ppo"


def test_what_the_data_step_splits_takes_the_place_of_the_users_files() -> None:
    given = {"policy": "chat", "prompts": ["a.jsonl", "b.jsonl"], "helpfulness_preferences": ["p.jsonl"]}
    steps = ("helpfulness_reward", "rejection_sampling", "evaluate")
    versions = (VersionConfig("v1", steps), VersionConfig("v2", steps))
    plan = by_name(make_plan(config(inputs=given, start=("data",), versions=versions)))
    assert json.loads(plan["data"].overrides["prompts"]) == ["a.jsonl", "b.jsonl"]
    assert json.loads(plan["data"].overrides["versions"]) == ["v1", "v2"]
    assert [plan[f"v{n}/rejection_sampling"].overrides["prompts"] for n in (1, 2)] == [
        f"runs/x/data/prompts_v{n}.jsonl" for n in (1, 2)
    ]
    assert "earlier_prompts" not in plan["v1/rejection_sampling"].overrides
    assert json.loads(plan["v2/rejection_sampling"].overrides["earlier_prompts"]) == ["runs/x/data/prompts_v1.jsonl"]
    assert json.loads(plan["v2/helpfulness_reward"].overrides["test_preferences"]) == [
        "runs/x/data/preferences_test.jsonl"
    ]


def test_every_kind_has_a_recipe_and_stands_in_the_docs() -> None:
    page = (ROOT / "docs" / "recipes" / "iterative_rlhf.md").read_text(encoding="utf-8")
    for name, kind in KINDS.items():
        assert find_recipe(kind.recipe).is_file()
        assert f"| `{name}` | " in page


def test_a_recipe_is_found_by_its_name_whichever_folder_it_is_in() -> None:
    """No two have one name."""
    files = sorted((ROOT / "recipes").rglob("*.py"))
    assert {file.parent.name for file in files} == {"recipes", "data", "evaluation", "studies"}
    assert [find_recipe(file.stem) for file in files] == files
    assert find_recipe("nothing") == ROOT / "recipes" / "nothing.py"


def test_a_recipe_of_ones_own_is_a_step(tmp_path: Path) -> None:
    own = {"recipe": str(tmp_path / "polish.py"), "reads": {"policy": "policy"}, "makes": {"policy": "checkpoint"}}
    steps = ("rejection_sampling", {**own, "options": {"strength": 2}, "config": "p.yaml"}, "evaluate")
    plan = by_name(make_plan(_with(steps)))
    stage = plan["v1/polish"]
    assert stage.overrides["policy"] == "runs/x/v1/rejection_sampling/checkpoint"
    assert stage.overrides["strength"] == "2" and stage.config_file == Path("p.yaml")
    assert recipe_file(stage) == tmp_path / "polish.py"
    assert plan["v1/polish_evaluation"].overrides["name"] == "v1_polish"
    assert plan["v2/rejection_sampling"].overrides["policy"] == "runs/x/v1/polish/checkpoint"


def test_a_step_s_config_that_is_no_file_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    for config, wrong in ((tmp_path, "is a folder"), (tmp_path / "gone.yaml", "does not exist")):
        plan = by_name(make_plan(_with(({"step": "rejection_sampling", "config": str(config)}, "evaluate"))))
        with pytest.raises(InputError, match=f"^v1/rejection_sampling: {config} {wrong}; configs needs a YAML file"):
            check_plan([plan["v1/rejection_sampling"]])


def test_a_recipe_of_ones_own_needs_no_yaml_where_the_plan_says_all(tmp_path: Path) -> None:
    own = {"recipe": str(tmp_path / "polish.py"), "reads": {"policy": "policy"}, "options": {"strength": 2}}
    settings = replace(_with((own,)), configs=tmp_path)
    stage = by_name(make_plan(settings))["v1/polish"]
    assert stage.config_file is None and stage.arguments[0] == "--output"
    assert stage_key(stage, settings.run, {})["config"]
    (tmp_path / "polish.yaml").write_text("strength: 1")
    assert by_name(make_plan(settings))["v1/polish"].arguments[:2] == ["--config", str(tmp_path / "polish.yaml")]


def test_what_a_step_makes_under_a_misspelt_name_is_refused(tmp_path: Path) -> None:
    """The next step read the policy of before, and nobody said so."""
    own: dict[str, Any] = {"recipe": str(tmp_path / "polish.py"), "reads": {"policy": "policy"}}
    for artifact in ("policy", "notes", "polish"):
        make_plan(_with(({**own, "makes": {artifact: "made"}},)))
    with pytest.raises(InputError, match=r"v1/polish: makes.polcy: no step reads that; did you mean policy\?"):
        make_plan(_with(({**own, "makes": {"polcy": "made"}},)))
    reader = {"recipe": str(tmp_path / "read.py"), "reads": {"text": "polcy"}}
    make_plan(_with(({**own, "makes": {"polcy": "made"}}, reader)))


def _with(steps: tuple[Any, ...]) -> IterativeConfig:
    given = {"policy": "chat", "prompts": "p.jsonl", "test_prompts": "t.jsonl", "helpfulness": "a:b"}
    return config(start=(), inputs=given, versions=(VersionConfig("v1", steps), VersionConfig("v2", steps)))


def test_the_paper_s_five_versions_are_the_default() -> None:
    plan = by_name(make_plan(IterativeConfig(Path("runs/x"), Path("c"), start=(WORLD, "pretrain", "sft"))))
    assert [name for name in plan if name.endswith("/ppo")] == ["v5/ppo"]
    assert [name for name in plan if name.endswith("/ghost_attention")] == ["v3/ghost_attention"]
    assert len([name for name in plan if name.endswith("/rejection_sampling")]) == 5


def test_of_several_files_all_are_read_or_it_is_refused() -> None:
    stages = make_plan(chat(("safety_sft", "rewards", "evaluate"), safety_sft_data=["a.jsonl", "b.jsonl"]))
    (trained,) = [stage for stage in stages if stage.name == "v1/safety_sft"]
    assert json.loads(trained.overrides["data"]) == ["a.jsonl", "b.jsonl"]
    with pytest.raises(InputError, match=r"inputs.prompts: v1/rejection_sampling: prompts takes one, got 2; name one"):
        make_plan(chat(prompts=["round1.jsonl", "round2.jsonl"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"versions": ()}, "versions: name at least one"),
        ({"versions": (VersionConfig("a"), VersionConfig("a"))}, "'a' is taken"),
        ({"versions": (VersionConfig("pool"),)}, "'pool' is taken"),
        ({"versions": (VersionConfig("ledger.jsonl"),)}, "'ledger.jsonl' is taken already, by another version or by a"),
        ({"versions": (VersionConfig("sft"),)}, "two steps would write sft/preferences, or one inside the other"),
        ({"versions": (VersionConfig("sft_evaluation"),)}, "would write sft_evaluation, or one inside the other"),
        ({"slots": 0}, "slots: must be at least 1, got 0"),
        ({"launch": {"ppo": {"processes": 3}}}, r"launch.ppo.processes: must lie between 1 and slots \(2\), got 3"),
        ({"launch": {"sfft": {"processes": 2}}}, "launch: 'sfft' is no step or recipe; did you mean sft"),
        ({"inputs": {"promts": "x"}}, "inputs: no step of the plan reads promts; did you mean prompts"),
        ({"inputs": {"prompts": 3}}, "inputs.prompts: must be a file, folder or name"),
        (
            {"versions": (VersionConfig("a", ("rewads",)),)},
            r"versions.a.steps\[0\]: there is no step 'rewads'; did you mean",
        ),
        ({"versions": (VersionConfig("a", (3,)),)}, r"versions.a.steps\[0\]: must name a step"),
        ({"versions": (VersionConfig("a", ({"ppo": 3},)),)}, "must be {step: {option: value}}"),
        ({"versions": (VersionConfig("a", ({"step": "ppo", "read": {}},)),)}, r"steps\[0\].read: no such field"),
        ({"versions": (VersionConfig("a", ({"recipe": None},)),)}, r"steps\[0\].recipe: must be a text, got None"),
        (
            {"versions": (VersionConfig("a", ({"recipe": "x.py", "seed": 3},)),)},
            r"steps\[0\].seed: must be a text, got 3",
        ),
        (
            {"versions": (VersionConfig("a", ({"recipe": "x.py", "makes": {"policy": "../checkpoint"}},)),)},
            r"steps\[0\].makes.policy: must lie in the step's own folder, .*got '../checkpoint'",
        ),
        (
            {"versions": (VersionConfig("a", ({"recipe": "x.py", "maks": {}},)),)},
            r"steps\[0\].maks: no such field; there are branch, config, .*, makes, .*seed",
        ),
        (
            {"versions": (VersionConfig("a", ({"step": "ppo", "reads": {"policy": "Policy!"}},)),)},
            r"steps\[0\].reads.policy: must name an artifact",
        ),
        *(
            (
                {"versions": (VersionConfig("a", ({"step": "ppo", "reads": {"policy": odd}},)),)},
                r"steps\[0\].reads.policy: must be a text, such as policy, or null, got",
            )
            for odd in (3, [], {})
        ),
        *(
            ({"versions": (VersionConfig("a", ({"step": odd},)),)}, r"steps\[0\]: there is no step")
            for odd in (["ppo"], {}, None, 3)
        ),
        (
            {"versions": (VersionConfig("a", ({"ppo": {"output": "elsewhere"}},)),)},
            r"steps\[0\].options.output: a step writes into its own folder",
        ),
        ({"versions": (VersionConfig("a", ("ppo",)),)}, "a/ppo: helpfulness needs helpfulness, which no step before"),
        ({"versions": (VersionConfig("a", ("preferences", "preferences")),)}, "two steps would write a/preferences"),
    ],
)
def test_bad_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_plan(config(**changes))


@pytest.mark.parametrize("name", ["", "../x", "a b", "-v", "v" * 101])
def test_a_version_is_a_folder(name: str) -> None:
    with pytest.raises(InputError, match="a name is a folder's name of at most 100"):
        VersionConfig(name)


def test_later_versions_mix_in_the_rows_of_ghost_attention() -> None:
    """Without them V4, which starts from SFT again, obeyed less than V3 had before its Ghost Attention."""
    told = (*DEFAULT_STEPS, "ghost_attention", "evaluate")
    versions = (VersionConfig("v1"), VersionConfig("v2", told), VersionConfig("v3", told), VersionConfig("v4"))
    plan = by_name(make_plan(config(versions=versions)))
    mixed = [plan[f"v{n}/rejection_sampling"].overrides.get("mixed_data") for n in (1, 2, 3, 4)]
    rows = [f"runs/x/v{n}/ghost_attention/rows.jsonl" for n in (2, 3)]
    assert mixed[:2] == [None, None]
    assert [json.loads(given) for given in mixed[2:] if given] == [rows[:1], rows]
    assert "v3/ghost_attention" in dependencies(list(plan.values()))["v4/rejection_sampling"]


def test_the_gate_s_threshold_of_a_sweep_goes_to_every_step_that_gates() -> None:
    steps = ("preferences", "rewards", "gate_sweep", "sweep", "rejection_sampling", "ppo", "evaluate")
    plan = by_name(make_plan(config(versions=(VersionConfig("v1", steps),))))
    for name in ("temperature_sweep", "rejection_sampling", "ppo", "ppo_evaluation"):
        assert plan[f"v1/{name}"].overrides["gate.threshold_from"] == "runs/x/v1/gate_sweep/gate_sweep.json", name
    assert "seed" not in plan["v1/gate_sweep"].overrides
    assert "gate.threshold_from" not in by_name(make_plan(config()))["v1/rejection_sampling"].overrides


def test_the_plan_s_chat_template_kwargs_are_those_of_every_stage() -> None:
    stages = make_plan(replace(chat((*DEFAULT_STEPS[1:], "ppo")), chat_template_kwargs={"enable_thinking": False}))
    for stage in stages:
        options = [f"--{name}={value}" for name, value in stage.overrides.items()]
        assert parse_config(config_of(stage), options).chat_template_kwargs == {"enable_thinking": False}, stage.name
    assert not any("chat_template_kwargs" in stage.overrides for stage in make_plan(chat()))
    with pytest.raises(InputError, match=r"chat_template_kwargs.enable_thinking: must be true or false"):
        replace(chat(), chat_template_kwargs={"enable_thinking": "off"})


def test_a_step_may_say_how_the_newest_policy_is_held(tmp_path: Path) -> None:
    """In its YAML, with dots, or as a group: the plan names the checkpoint alone."""
    configs = tmp_path / "configs"
    configs.mkdir()
    texts = {"rejection_sampling": "policy: {dtype: bfloat16, rows: 9}\noutput: x\n", "evaluate": "{}\n"}
    for name, text in texts.items():
        (configs / f"{name}.yaml").write_text(text, encoding="utf-8")
    held = {"quantization": "nf4", "server": {"url": "http://a/v1", "model": "m"}}
    steps = (
        {"rejection_sampling": {"policy.rows": 7, "policy.engine": "vllm"}},
        {"evaluate": {"policy": held, "baseline": {"dtype": "float16"}}},
    )
    plan = make_plan(replace(chat(steps, helpfulness="h"), configs=configs))
    read = {stage.name: parse_config(config_of(stage), stage.arguments) for stage in plan}
    first = read["v2/rejection_sampling"].policy
    assert first == PolicySource(checkpoint=V1, dtype="bfloat16", rows=7, engine=EngineConfig())
    second = read["v2/evaluation"]
    assert second.policy == PolicySource(
        checkpoint=Path("runs/x/v2/rejection_sampling/checkpoint"),
        quantization="nf4",
        server=ServerConfig("http://a/v1", "m"),
    )
    assert second.baseline == PolicySource(checkpoint=Path("policy.jsonl"), dtype="float16")
    assert read["start_evaluation"].baseline is None, "how it is held names nobody"
    by_name = {stage.name: stage for stage in plan}
    assert by_name["v2/rejection_sampling"].overrides["policy"] == str(V1)
    assert V1 in by_name["v2/rejection_sampling"].inputs


V1 = Path("runs/x/v1/rejection_sampling/checkpoint")


def config_of(stage: PlannedStage) -> type:
    spec = importlib.util.spec_from_file_location(f"recipe_of_the_plan_{stage.recipe}", recipe_file(stage))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found: type = typing.get_type_hints(module.main)["config"]
    return found


def test_a_text_of_a_step_that_is_no_path_is_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, a long system message was refused as a name, and an empty text made the working folder an input."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    texts = {"system": "Answer in one sentence. " * 20, "label": "", "sft_data": "mine.jsonl"}
    plan = by_name(make_plan(chat(({"rejection_sampling": texts}, "evaluate"), helpfulness="a:b")))
    inputs = plan["v1/rejection_sampling"].inputs
    assert Path("mine.jsonl") in inputs and Path() not in inputs and len(inputs) == 3, inputs


def test_an_input_may_say_what_its_rows_are_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, a file with a tag behind its name was looked for with the tag, and refused as not there."""
    monkeypatch.chdir(tmp_path)
    prompts = ["mine.jsonl#safety", "mine.jsonl", "org/set#safety"]
    versions = (VersionConfig("v1", ("rejection_sampling", "evaluate")),)
    given = {"policy": "chat", "prompts": prompts, "helpfulness": "a:b"}
    data, round_ = make_plan(config(start=("data",), inputs=given, versions=versions))[:2]
    assert json.loads(data.overrides["prompts"]) == prompts and data.inputs == (Path("mine.jsonl"),)
    assert round_.overrides["helpfulness"] == "a:b"
