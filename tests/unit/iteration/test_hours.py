"""How long a plan takes: exact sums by hand, and what finished stages change."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace as Fields
from typing import Any

import pytest

from rlhf.evaluation.benchmarks.leaderboard import TASKS
from rlhf.evaluation.benchmarks.truthfulqa import EXAMPLES
from rlhf.iteration.hours import work as module
from rlhf.iteration.hours.counts import Counts, Rows, read_any, read_rows, together
from rlhf.iteration.hours.forecast import clock, forecast, makespan, stage_words, total_words
from rlhf.iteration.hours.speed import Line, Speed, Work, written
from rlhf.iteration.hours.work import ASKED, LISTS, RECIPES, TRUTHFULQA, tokens_of_a_pass, work_of
from rlhf.iteration.launching import Launch
from rlhf.iteration.plan import PlannedStage, find_recipe
from rlhf.iteration.steps import KINDS
from rlhf.rewards.training import accuracy, cut_off
from rlhf.synthesis.instructions import LIST_QUESTIONS

SPEED = Speed(load=3.0, score=Line(0.5, 0.01), train=Line(1.0, 0.1), decode=Line(0.2, 0.05))


def stage(name: str, *inputs: str, recipe: str = "sft", processes: int = 1, **options: str) -> PlannedStage:
    paths = tuple(Path(path) for path in inputs)
    made = {"prompts": "prompts_{version}.jsonl", "selected": "selected.jsonl"}
    launch = Launch(processes=processes)
    return PlannedStage(name, recipe, Path("x.yaml"), options, paths, Path(name), launch=launch, makes=made)


def test_a_line_goes_through_what_was_measured() -> None:
    assert Line.through([(4, 1.0)]) == Line(0.0, 0.25), "of one size it is in proportion"
    line = Line.through([(4, 1.0), (16, 2.5)])
    assert line.each == pytest.approx(0.125) and line.fixed == pytest.approx(0.5)
    assert line.seconds(3, 20) == pytest.approx(1.5 + 2.5)
    assert Line.through([(1, 1.0), (4, 8.0)]) == Line(0.0, 2.0), "no part is below 0"
    assert Line.through([(1, 2.0), (4, 1.0)]) == Line(0.0, 2.0), "the larger was quicker: noise"


def test_work_times_speed() -> None:
    work = Work(2, 4, 100, 3, 50, 10, 80) + Work(loads=1)
    shared = 4 * 0.5 + 100 * 0.01 + 3 * 1.0 + 50 * 0.1 + 10 * 0.2 + 80 * 0.05
    assert work.seconds(SPEED) == pytest.approx(3 * 3.0 + shared)
    assert work.seconds(SPEED, processes=2) == pytest.approx(3 * 3.0 + shared / 2), "each process loads"
    assert (work * 2).seconds(SPEED) == pytest.approx(2 * work.seconds(SPEED))
    assert written(64, 10, at_once=32, most=10) == Work(steps=20, answer_tokens=640)
    assert written(3, 10, at_once=32, most=10) == Work(steps=10, answer_tokens=30), "few answers take as many steps"
    assert written(64, 10, at_once=32, most=16) == Work(steps=26, answer_tokens=640), "the last ones are the long ones"
    assert written(32, 10, at_once=32, most=16) == Work(steps=16, answer_tokens=320), "none comes after them"
    assert written(0, 10, at_once=32, most=16) == Work()


def test_rows_are_counted_and_their_lengths_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "x" * 10}], "chosen": "y" * 6, "rejected": "z" * 4, "domain": domain}
        for domain in ["helpfulness"] * 900 + ["safety"] * 100
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_rows(path)
    assert found == Rows(1000, 20.0, pytest.approx(0.9), 10.0) and found.of_domain("safety") == pytest.approx(100)
    (tmp_path / "none.jsonl").touch()
    assert read_rows(tmp_path / "none.jsonl").number == 0
    assert together([Rows(10, 8.0, 1.0, 4.0), Rows(30, 4.0, 0.0)]) == Rows(40, 5.0, 0.25, 1.0)
    reader = stage("run/v1/rs", data=json.dumps([str(path), str(path)]), other=str(path.with_name("later.jsonl")))
    counts = Counts([stage("run/data"), reader], {"prompts": Rows(50, 40.0)})
    assert counts.rows(reader, "data") == Rows(2000, 20.0, pytest.approx(0.9), 10.0)
    assert counts.rows(reader, "not_given") == Rows(0, 0.0) and counts.rows(reader, "other") is None
    planned = stage("run/v1/rs", data="run/data/prompts_v1.jsonl", more="run/data/else.jsonl")
    assert counts.rows(planned, "data") == Rows(50, 40.0), "what is not made yet is expected"
    assert counts.rows(planned, "more") is None


def optimizer(epochs: int) -> Fields:
    return Fields(micro_batch_size=4, epochs=epochs)


def test_what_the_stages_do() -> None:
    """Rows of 40 characters are 10 tokens."""
    made = {name: f"data/{name}.jsonl" for name in ("prompts", "pairs", "test")}
    expected = {"prompts": Rows(60, 40.0), "pairs": Rows(100, 80.0, 0.7, 40.0), "test": Rows(20, 80.0)}
    data = PlannedStage("data", "prepare_data", Path("x"), {}, (), Path("data"), makes={
        name: f"{name}.jsonl" for name in made})  # fmt: skip
    sampling, rewards = Fields(max_new_tokens=16), {"helpfulness": "h", "safety": None}

    def work(recipe: str, config: Fields, share: float = 1.0, rounds: str = "share", **options: str) -> Work | None:
        one = stage("v1/x", recipe=recipe, **options)
        counts = Counts([data, one], expected, {"data": Fields(rounds=rounds), "v1/x": config})
        return work_of(one, config, counts, characters_per_token=4.0, answer_share=share)

    tuned = Fields(optimizer=optimizer(2), max_length=20)
    pairs = {"preferences": json.dumps([made["pairs"]]), "test_preferences": made["test"]}
    reward = Fields(training=tuned, other_share=0.5, cut_off_share=0.0)
    pair = 2 * 5 + 10 * (1 - math.exp(-15 / 10))  # answers of 5 tokens leave 15 to prompts, of 10 in the mean
    assert work("helpfulness_reward", reward, **pairs) == Work(
        loads=2, train_passes=2 * 70 / 4, train_tokens=2 * 70 * pair, score_passes=100 / 4, score_tokens=100 * pair
    )
    assert work("safety_reward", reward, other_preferences="x", **pairs) == Work(
        loads=2, train_passes=pytest.approx(2 * 60 / 4), train_tokens=pytest.approx(2 * 60 * pair),
        score_passes=pytest.approx(90 / 4), score_tokens=pytest.approx(90 * pair),
    )  # fmt: skip
    with_cut = Fields(training=tuned, other_share=0.5, cut_off_share=0.2)
    assert work("helpfulness_reward", with_cut, **pairs) == Work(
        loads=2, train_passes=pytest.approx(2 * 77 / 4), train_tokens=pytest.approx(2 * 77 * pair),
        score_passes=100 / 4, score_tokens=100 * pair,
    )  # fmt: skip
    drawing = Fields(
        policy=Fields(rows=24), sampling=sampling, finetuning=tuned, num_samples=4, pool_top=0, sft_share=0.2, **rewards
    )
    drawn = work("rejection_sampling", drawing, prompts=made["prompts"])
    assert drawn == Work(
        loads=4, steps=16 * 10, answer_tokens=240 * 16,
        score_passes=60 / 8 + 60, score_tokens=60 * 10 + 60 * (10 + 4 * 16),
        train_passes=2 * 15, train_tokens=2 * 60 * 20,
    )  # fmt: skip
    earlier = json.dumps([made["prompts"], made["prompts"]])
    third = work("rejection_sampling", drawing, prompts=made["prompts"], earlier_prompts=earlier)
    assert third == replace(drawn, train_passes=3 * 2 * 15, train_tokens=3 * 2 * 60 * 20), "earlier versions' best too"
    same = work("rejection_sampling", drawing, rounds="all", prompts=made["prompts"], earlier_prompts=earlier)
    assert same == drawn, "every version has the same prompts, and a row of each"
    ppo = Fields(batch_size=12, rows=12, iterations=5, evaluate_every=2, validation_size=6, learns_value=True,
                 samples_per_prompt=1, optimizer=optimizer(1))  # fmt: skip
    acting = Fields(ppo=ppo, sampling=sampling, max_prompt_tokens=None, **rewards)
    assert work("ppo", acting, prompts=made["prompts"], validation_prompts=made["test"]) == Work(
        loads=4, steps=16 * 5 + 16 * 3, answer_tokens=16 * (12 * 5 + 6 * 3),
        score_passes=(12 / 8) * 4 * 5 + (6 / 8) * 3 * 3, score_tokens=26 * (12 * 4 * 5 + 6 * 3 * 3),
        train_passes=3 * 2 * 5, train_tokens=26 * 12 * 2 * 5,
    )  # fmt: skip
    ppo.samples_per_prompt = 2
    two_a_prompt = work("ppo", acting, prompts=made["prompts"], validation_prompts=made["test"])
    assert two_a_prompt is not None and two_a_prompt.train_tokens == (5 + 16) * 12 * 2 * 5, "a prompt once for its two"
    assert two_a_prompt.score_tokens == 21 * 12 * 4 * 5 + 26 * 6 * 3 * 3, "held-out prompts have an answer each"
    asked = Fields(policy=Fields(rows=None), sampling=sampling, samples_per_prompt=2, max_prompt_tokens=8, referee=None,
                   baseline_evaluation="x", measures_kl=True, **rewards)  # fmt: skip
    assert work("evaluate", asked, prompts=made["prompts"]) == Work(
        loads=3, steps=16, answer_tokens=16 * 120,
        score_passes=60 / 8 + 4 * 120 / 8, score_tokens=60 * 8 + 4 * 120 * 24,
    ), "all at once"  # fmt: skip
    two = [stage(name, recipe="evaluate", prompts=made["prompts"], helpfulness="h") for name in ("start", "v1/x")]
    again = replace(two[1], overrides=two[1].overrides | {"helpfulness": "other"})
    beside = Fields(**vars(asked) | {"baseline_evaluation": str(two[0].output)})
    for one, passes in ((two[1], 3), (again, 4)):
        found = work_of(one, beside, Counts([data, two[0], one], expected), characters_per_token=4.0)
        assert found is not None and found.score_passes == 60 / 8 + passes * 120 / 8, "scores that are there are read"
    asked.policy.rows = 40
    two = replace(stage("v1/x", recipe="evaluate", prompts=made["prompts"]), launch=Launch(processes=2))
    found = work_of(two, asked, Counts([data, two], expected), characters_per_token=4.0, answer_share=0.5)
    assert found is not None and found.answer_tokens == 8 * 120
    assert found.steps == 2 * (8 * 60 / 40 + 8), "each process writes its 60, 40 at once"
    half = work("rejection_sampling", drawing, share=0.5, prompts=made["prompts"])
    assert half == Work(
        loads=4, steps=8 * 10 + 8, answer_tokens=240 * 8,
        score_passes=60 / 8 + 60, score_tokens=60 * 10 + 60 * (10 + 4 * 8),
        train_passes=2 * 15, train_tokens=2 * 60 * 18,
    )  # fmt: skip
    control = stage("v1/random", recipe="rejection_sampling", prompts=made["prompts"])
    control = replace(control, links=((Path("v1/random_pool/v1.parquet"), Path("v1/x")),))
    drawing.num_samples = 0
    assert work_of(control, drawing, Counts([data, control], expected), characters_per_token=4.0) == Work(
        loads=4, score_passes=60 / 8 + 60, score_tokens=60 * 10 + 60 * (10 + 16 * 16),
        train_passes=2 * 15, train_tokens=2 * 60 * 20,
    ), "it draws nothing, and scores what was drawn"  # fmt: skip
    maker = replace(stage("v1/x", recipe="rejection_sampling", helpfulness="h"), output=Path("v1/x"))
    for helpfulness, scored in (("h", 0), ("other", 16)):
        again = replace(control, overrides=control.overrides | {"helpfulness": helpfulness})
        found = work_of(again, drawing, Counts([data, maker, again], expected), characters_per_token=4.0)
        assert found is not None and found.score_tokens == 60 * 10 + 60 * (10 + scored * 16), "once by the same models"
    assert work("sft", Fields(finetuning=tuned, heldout_share=0.1), data="v0/unknown.jsonl") is None
    assert work("my/own.py", Fields()) is None
    assert all(find_recipe(recipe).is_file() for recipe in RECIPES)


def test_prompts_that_the_settings_name_are_counted_where_they_lie(tmp_path: Path) -> None:
    goals, rows = tmp_path / "goals.csv", tmp_path / "rows.jsonl"
    goals.write_text("goal,x\n" + "a" * 40 + ",1\n" + "b" * 40 + ",2\n")
    rows.write_text('{"prompt": "cccc"}\n' * 10)
    assert read_any(str(goals)) == Rows(2, 41.0) and read_any("org/set:train") is None
    sampling, counts = Fields(max_new_tokens=16), Counts([], {})
    asked = Fields(policy=Fields(rows=None), sampling=sampling, prompts=str(rows), questions=4)
    found = work_of(stage("x", recipe="evaluate_instructions"), asked, counts, characters_per_token=2.0)
    assert found == Work(loads=1, score_passes=4 / 8, score_tokens=4 * 2, steps=16, answer_tokens=64)
    judged = Fields(policy=Fields(rows=None), sampling=sampling, samples_per_prompt=1, dialogues=None, helpfulness=None,
                    safety="s", prompts={"a": str(goals), "b": str(rows)})  # fmt: skip
    found = work_of(stage("x", recipe="evaluate_safety"), judged, counts)
    assert found is not None and (found.loads, found.answer_tokens) == (2, 12 * 16)
    (tmp_path / "mmlu").mkdir()
    for name in ("one", "two"):
        (tmp_path / "mmlu" / f"{name}_dev.csv").write_text("q,answer\n" + "ddd,1\n" * 5)
    asked = Fields(tasks=("arc", "mmlu"), local={"arc": rows, "mmlu": tmp_path / "mmlu"}, limit=3)
    found = work_of(stage("x", recipe="leaderboard"), asked, counts, characters_per_token=2.0)
    assert found == Work(loads=1, score_passes=(3 + 10) / 8, score_tokens=3 * (25 / 2 + 1) * 2 + 10 * 6 * 2)
    assert {task: shots for task, (shots, _) in ASKED.items()} == {name: task.shots for name, task in TASKS.items()}
    pairs = stage("x", recipe="evaluate_rewards", test_preferences=str(rows))
    found = work_of(pairs, Fields(rewards={"a": "x", "b": "y"}), counts)
    assert found is not None and (found.loads, found.score_passes) == (2, 2 * 10 / 4)
    texts = Fields(models={"m": Fields(rows=2)}, data={"a": str(rows), "b": "org/x"}, rows=6, sampling=sampling)
    reader = stage("x", recipe="evaluate_text", **{"data.b": str(rows)})
    found = work_of(reader, texts, counts, characters_per_token=2.0)
    assert found == Work(loads=1, score_passes=12 / 8, score_tokens=6 * 2, steps=16 * 6, answer_tokens=12 * 16), (
        "b's rows are dialogues, of which these have none"
    )
    merged = Fields(data=str(rows), max_rows=4)
    assert work_of(stage("x", recipe="merge_adapter"), merged, counts, characters_per_token=2.0) == Work(
        loads=5, score_passes=8 * 4 / 8, score_tokens=8 * 4 * 2
    )
    assert work_of(stage("x", recipe="merge_adapter"), Fields(data=None), counts) == Work(loads=2)
    judged.prompts = {"a": "org/set:train"}
    assert work_of(stage("x", recipe="evaluate_safety"), judged, counts) is None, "nothing is known of the hub's"


def dialogue(*lengths: int) -> dict[str, Any]:
    """User and assistant in turn, messages of so many characters."""
    said = [{"role": ("user", "assistant")[i % 2], "content": "x" * n} for i, n in enumerate(lengths)]
    return {"messages": said}


def test_turns_of_dialogues_are_counted(tmp_path: Path) -> None:
    rows = [dialogue(8, 4), dialogue(8, 4, 8, 4), dialogue(8, 4, 8, 4, 8, 4), dialogue(8, 4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_rows(tmp_path / "rows.jsonl")
    assert found == Rows(4, 12 * 7 / 4, 1.0, 4 * 7 / 4, turns=7 / 4, several=0.5)
    both = together([found, Rows(4, 0.0)])
    assert (both.turns, both.several) == (11 / 8, 0.25)


def test_what_the_stages_of_synthesis_and_collection_do(tmp_path: Path) -> None:
    """Against the sums over each dialogue, turn and answer. A token is two characters."""
    talks = [dialogue(8, 4), *[dialogue(8, 4, 8, 4, 8, 4)] * 6]
    file = tmp_path / "dialogues.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in talks))
    expected = {"prompts": Rows(60, 20.0, 0.5), "pairs": Rows(40, 28.0, 0.5, 8.0)}
    makes = {name: f"{name}.jsonl" for name in expected}
    data = PlannedStage("data", "prepare_data", Path("x"), {}, (), Path("data"), makes=makes)
    tuned = Fields(optimizer=optimizer(3), max_length=1000)
    common = {"policy": Fields(rows=None), "sampling": Fields(max_new_tokens=10), "finetuning": tuned, "sft_data": None,
              "sft_share": 0.5, "mixed_data": (), "mixed_share": 0.2}  # fmt: skip

    def work(recipe: str, config: Fields, processes: int = 1, **options: str) -> Work | None:
        one = stage("v1/x", recipe=recipe, processes=processes, **options)
        return work_of(one, config, Counts([data, one], expected), characters_per_token=2.0, answer_share=0.5)

    # six dialogues of three turns: a user's message has 4 tokens, an answer that is drawn 5
    asked = [4, 4 + 5 + 4, 4 + 5 + 4 + 5 + 4]
    ghost = Fields(**common, num_dialogues=0, history="sampled", instructions=None, list_samples=2)
    found = work("ghost_attention", ghost, dialogues=str(file), sft_data="x")
    lists = written(2, 5, at_once=2, most=10) * 3
    drawn = written(6, 5, at_once=6, most=10) * 3
    assert found == Work(
        loads=3, score_passes=pytest.approx(6 * 3 / 8), score_tokens=pytest.approx(6 * sum(asked)),
        train_passes=pytest.approx(3 * 12 / 4), train_tokens=pytest.approx(3 * 12 * (asked[-1] + 5)),
        steps=pytest.approx(drawn.steps + lists.steps), answer_tokens=pytest.approx(6 * 3 * 5 + 3 * 2 * 5),
    )  # fmt: skip
    given = Fields(**{**vars(ghost), "history": "given", "instructions": "x", "num_dialogues": 4})
    history = 4 + 2 + 4 + 2 + 4
    assert work("ghost_attention", given, dialogues=str(file), mixed_data="x") == Work(
        loads=3, score_passes=4 / 8, score_tokens=pytest.approx(4 * history), steps=10, answer_tokens=4 * 5,
        train_passes=3 * 5 / 4, train_tokens=pytest.approx(3 * 5 * (history + 5)),
    )  # fmt: skip
    assert work("ghost_attention", given) is None, "the plan has to name its dialogues"

    # 30 prompts of 10 tokens about safety, two answers each of three kinds, two of them behind 4 tokens
    held_out = tmp_path / "test.txt"
    held_out.write_text("x" * 6 + "\n" + "y" * 6 + "\n")
    distilling = Fields(**common, num_samples=2, generic="x" * 8, test_prompts=str(held_out), safety="s")
    drawn = written(60, 5, at_once=60, most=10) * 3 + written(2, 5, at_once=2, most=10) * 2
    assert work("context_distillation", distilling, prompts="data/prompts.jsonl") == Work(
        loads=5, score_passes=pytest.approx(3 * 30 / 8 + 3 * 30 + 2 * 2 / 8),
        score_tokens=pytest.approx(30 * (10 + 14 + 14) + 3 * 30 * (10 + 2 * 5) + 2 * 2 * 3),
        train_passes=3 * 60 / 4, train_tokens=3 * 60 * 15, steps=drawn.steps, answer_tokens=60 * 5 * 3 + 2 * 5 * 2,
    )  # fmt: skip

    # each prompt's pair drawn by two policies, and one more for safety; one reward model looks at its domain's pairs
    collecting = Fields(**common, annotator="simulated", annotator_options={}, pairs_per_prompt=1,
                        safety_pairs_per_prompt=2, helpfulness="h", safety=None)  # fmt: skip
    drawn = written(90, 5, at_once=90, most=10) * 2
    found = work("collect_preferences", collecting, prompts="data/prompts.jsonl")
    assert found == Work(
        loads=3, score_passes=2 * 60 / 8 + 30 / 4, score_tokens=2 * 60 * 10 + 30 * (10 + 2 * 5),
        steps=drawn.steps, answer_tokens=2 * 90 * 5,
    )  # fmt: skip
    collecting.annotator, collecting.annotator_options = "proxy", {"safety": "s", "safe_above": 0.0}
    proxied = work("collect_preferences", collecting, prompts="data/prompts.jsonl")
    assert proxied is not None and proxied.loads == 5
    assert proxied.score_tokens - found.score_tokens == 2 * 90 * 20, "each by its domain's, and all by safety's"
    shared = work("collect_preferences", collecting, processes=2, prompts="data/prompts.jsonl")
    assert shared is not None, "one process of both asks the proxies; both ask the reward models"
    assert shared.score_tokens - proxied.score_tokens == 2 * 90 * 20
    for waits in ("people", "file", "judge", "my_own:Annotator"):
        collecting.annotator = waits
        assert work("collect_preferences", collecting, prompts="data/prompts.jsonl") is None, "on others' time"

    assert work("gate_sweep", Fields(), preferences="data/pairs.jsonl") == Work(
        loads=2, score_passes=2 * 40 / 4, score_tokens=2 * 40 * 14
    )


def test_truthfulqa_s_answers_stand_behind_its_examples(tmp_path: Path) -> None:
    file = tmp_path / "mc_task.json"
    file.write_text(json.dumps([{"question": "q", "mc1_targets": {"a": 1}, "mc2_targets": {"a": 1, "b": 0}}] * 9))
    asked = Fields(truthfulqa=file, truthful=None, toxigen=None, bold=(), questions=5)
    found = work_of(stage("x", recipe="safety_benchmarks"), asked, Counts([], {}), characters_per_token=2.0)
    answers, characters = TRUTHFULQA
    assert found == Work(loads=1, score_passes=5 * answers / 8, score_tokens=5 * answers * characters / 2)
    assert 60 < characters - len(EXAMPLES) < 160, "a question and an answer"
    both = work_of(stage("x", recipe="safety_benchmarks", processes=2), asked, Counts([], {}), 2.0)
    assert both is not None and both.seconds(SPEED, 2) == found.seconds(SPEED), "each process scores all"
    asked.bold = ("people_prompt.json",)
    assert work_of(stage("x", recipe="safety_benchmarks"), asked, Counts([], {})) is None
    assert len(LIST_QUESTIONS) == LISTS
    assert (module.ORIGIN_PAIRS, module.CUT_OFF_PAIRS) == (accuracy.ORIGIN_PAIRS, cut_off.CUT_OFF_PAIRS)


def test_every_step_of_a_plan_has_its_work_counted() -> None:
    """But the base's training, whose size is not the calibrated model's."""
    assert {kind.recipe for kind in KINDS.values()} - RECIPES.keys() == {"pretrain"}


def test_the_tokens_of_a_training_s_forward_pass() -> None:
    tuned = Fields(optimizer=optimizer(1), max_length=20)
    assert tokens_of_a_pass(Fields(training=tuned)) == 2 * 4 * 20, "a pair is two dialogues"
    assert tokens_of_a_pass(Fields(finetuning=tuned)) == 4 * 20
    ppo = Fields(ppo=Fields(optimizer=optimizer(1)), max_prompt_tokens=12, sampling=Fields(max_new_tokens=16))
    assert tokens_of_a_pass(ppo) == 4 * 28
    ppo.max_prompt_tokens = None
    assert tokens_of_a_pass(ppo) is None and tokens_of_a_pass(Fields()) is None


def test_the_makespan_is_the_driver_s() -> None:
    first, second = stage("a"), stage("b")
    last = stage("c", "a/x", "b/x")
    wide = stage("d", "a/x", processes=2)
    seconds = {"a": 10.0, "b": 4.0, "c": 5.0, "d": 7.0}
    assert makespan([first, second, last], seconds, slots=2) == 15
    assert makespan([first, second, last], seconds, slots=1) == 19
    assert makespan([first, second, last, wide], seconds, slots=2) == 22, "two processes wait for both slots"
    assert makespan([first, second, last, wide], seconds, slots=3) == 17
    assert makespan([last], seconds, slots=2) == 5, "what it reads is finished"
    assert makespan([], {}, slots=2) == 0
    assert makespan([first, second, last], seconds, slots=1, running=["b"]) == 19
    assert makespan([first, wide, last], seconds, slots=2, running=["a"]) == 22


def finished(name: str, seconds: float) -> dict[str, Any]:
    return {"event": "finished", "time": 1.0, "stage": name, "seconds": seconds}


def test_finished_stages_put_the_rest_right() -> None:
    stages = [stage("v1/rs"), stage("v1/ppo", "v1/rs/x", recipe="ppo"), stage("v2/rs", "v1/ppo/x"), stage("v2/own",
              "v2/rs/x", recipe="own.py")]  # fmt: skip
    estimated = {"v1/rs": 100.0, "v1/ppo": 50.0, "v2/rs": 120.0}
    fresh = forecast(stages, estimated, [], slots=2)
    assert fresh.left == fresh.total == 270 and list(fresh.unknown) == ["v2/own"]
    assert total_words(fresh, {}).startswith("at least 4 min in all, at least 4 min to go")
    one = forecast(stages, estimated, [finished("v1/rs", 150.0)], slots=2)
    assert one.expected == {"v1/ppo": pytest.approx(75), "v2/rs": pytest.approx(180)}, "half as much again"
    assert one.left == pytest.approx(255) and one.total == pytest.approx(405)
    two = forecast(stages, estimated, [finished("v1/rs", 150.0), finished("v1/ppo", 25.0)], slots=2)
    assert two.expected == {"v2/rs": pytest.approx(180)}, "its own recipe tells more than another's"
    assert stage_words(two, "v1/ppo") == "; took 25 s, 50 s were estimated"
    assert stage_words(two, "v2/rs") == "; about 3 min" and stage_words(two, "v2/own") == ""
    again = forecast(stages, estimated, [finished("v1/rs", 150.0)], 2, to_run=["v1/rs"])
    assert again.expected["v1/rs"] == 150 and not again.taken
    assert "4 min to go (up to 7 min where what is made anew comes out another), by" in total_words(one, {}, 405.0)
    assert "up to" not in total_words(one, {}, 255.0)
    alone = forecast(stages, {}, [finished("v1/rs", 150.0)], slots=2)
    assert alone.expected == {"v2/rs": 150.0} and list(alone.unknown) == ["v1/ppo", "v2/own"]
    assert total_words(forecast(stages, {}, [], 2), None).startswith("not known")
    at_work = forecast(stages, estimated, [finished("v1/rs", 150.0)], 2, running={"v1/ppo": 45.0})
    assert at_work.left == pytest.approx(30 + 180) and at_work.total == one.total, "counted down inside the stage"
    assert stage_words(at_work, "v1/ppo") == " for 45 s; about 75 s in all"
    unknown = forecast(stages, estimated, [], 2, running={"v2/own": 5.0})
    assert stage_words(unknown, "v2/own") == " for 5 s"
    late = forecast(stages, estimated, [finished("v1/rs", 150.0)], 2, running={"v1/ppo": 450.0})
    assert late.left == pytest.approx(180), "no stage takes less than nothing"
    quick = forecast(stages, estimated, [finished("v1/rs", 1.0)], slots=2)
    assert quick.expected["v1/ppo"] == 50, "a second says nothing"


def test_hours_in_words() -> None:
    assert [clock(s) for s in (0.2, 89, 90, 3570, 11000)] == ["1 s", "89 s", "2 min", "1 h 00 min", "3 h 03 min"]
