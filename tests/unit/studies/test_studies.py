"""Studies of reward models: variants, fractions of the rows, what is finished, and figures over seeds. No training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.evaluation.reward_models.pair_scores import PairScore
from rlhf.evaluation.reward_models.preference_figures import paired_gain, reward_figures
from rlhf.report.pages.reward_study import markdown_tables
from rlhf.rewards.training.config import RewardTrainingConfig
from rlhf.stage import open_stage
from rlhf.stage.fields import in_run
from rlhf.studies.reward_study import (
    RewardStudyRun,
    StudyModel,
    bag_figures,
    flat_figures,
    gather,
    make_variant,
    paired_gains,
    training_rows,
)
from rlhf.studies.runner import StudyConfig, is_finished, over_seeds

MODEL = StudyModel("{run}/sft", ("{run}/train.jsonl",), training=RewardTrainingConfig(margin="large", max_length=99))


def rows(count: int, domain: Any, **labels: Any) -> list[Preference]:
    ask = [{"role": "user", "content": "q"}]
    return [Preference(f"{domain}{i}", ask, "good", "bad one", domain=domain, **labels) for i in range(count)]


def test_a_variant_changes_what_it_names_and_nothing_else() -> None:
    assert make_variant(MODEL, "same", {}) == MODEL
    table = {"significantly": 2.0, "better": 1.0, "slightly": 0.5, "negligibly": 0.0}
    options = {"training.margin": table, "learns": "safety", "training.optimizer.epochs": 2}
    assert make_variant(MODEL, "other", options) == replace(
        MODEL,
        learns="safety",
        training=replace(
            MODEL.training,
            margin=table,
            optimizer=replace(MODEL.training.optimizer, epochs=2),
        ),
    )
    assert make_variant(MODEL, "whole", {"training": {"max_length": 7}}).training.max_length == 7
    assert make_variant(MODEL, "none", {"training.max_length": None}).training.max_length is None
    inside = in_run(MODEL, "runs/a")
    assert (inside.policy, inside.preferences) == ("runs/a/sft", ("runs/a/train.jsonl",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training.margins": "large"}, r"variants\.bad: .*training\.margins"),
        ({"training.margin": "huge"}, r"variants\.bad: margin"),
        ({"learns": "everything"}, r"variants\.bad: .*everything"),
        ({"other_share": 1.0}, r"variants\.bad: other_share: must lie in \[0, 1\), got 1\.0"),
        ({"preferences": []}, r"variants\.bad: preferences: must name at least one"),
    ],
)
def test_a_variant_with_a_mistake_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_variant(MODEL, "bad", options)
    assert "\n" not in str(caught.value)


def test_fractions_are_nested_and_mixed_with_their_share_of_the_others() -> None:
    everything = rows(40, "helpfulness") + rows(20, "safety")
    own = {}
    for fraction in (0.2, 1.0):
        drawn = training_rows(replace(MODEL, other_share=0.2), everything, fraction, seed=3)
        own[fraction] = {row.id for row in drawn if row.domain == "helpfulness"}
        assert len(own[fraction]) == 40 * fraction and len(drawn) == 50 * fraction
    assert own[0.2] < own[1.0]
    again = training_rows(MODEL, everything, 0.2, seed=4)
    assert {row.id for row in again} != own[0.2] and len(again) == 8
    assert len(training_rows(replace(MODEL, learns="joint"), everything, 0.5, seed=0)) == 30
    assert len(training_rows(replace(MODEL, learns="safety"), everything, 0.001, seed=0)) == 1
    with pytest.raises(InputError, match=r"preferences: \{run\}/train.jsonl hold no row of domain safety"):
        training_rows(replace(MODEL, learns="safety"), rows(3, "helpfulness"), 1.0, seed=0)


def test_a_finished_run_of_other_settings_or_files_is_not_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    checkpoint = ("sft/config.json", "sft/tokenizer_config.json", "sft/model.safetensors")
    for name in (*checkpoint, "train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(f'{{"file": "{name}"}}')
    run = RewardStudyRun(
        output=tmp_path / "out" / "v_0.5_seed1",
        variant="v",
        fraction=0.5,
        seed=1,
        model=in_run(MODEL, str(tmp_path)),
        test_preferences=(str(tmp_path / "test.jsonl"),),
    )
    assert not is_finished(run)
    with open_stage(run).work():
        assert not is_finished(run)
    assert is_finished(run)
    longer = replace(run, model=replace(run.model, training=RewardTrainingConfig(max_length=98)))
    with pytest.raises(InputError, match=r"out/v_0\.5_seed1 was made with another model; remove it"):
        is_finished(longer)
    with pytest.raises(InputError, match=r"was made with another chat_template_kwargs"):
        is_finished(replace(run, chat_template_kwargs={"enable_thinking": False}))
    assert is_finished(replace(run, quiet=True, strict=True, fresh=True, trackers=("wandb",))), "of no effect"
    (tmp_path / "train.jsonl").write_text("other rows")
    with pytest.raises(InputError, match=r"was made with another model\.preferences\.0"):
        is_finished(run)


def figures_of(leads: list[float], strength: Any = "better") -> dict[str, Any]:
    pairs = rows(len(leads), "safety", strength=strength, chosen_safe=True, rejected_safe=False)
    scores = [PairScore(lead, 0.0, -1.0 if lead < 0 else 1.0, -1.0) for lead in leads]
    return {"training_pairs": 10, "test_pairs": len(leads), "groups": reward_figures(pairs, scores)}


def test_the_figures_of_a_group_by_name() -> None:
    got = flat_figures(figures_of([2.0, 1.0, 1.0, -1.0])["groups"]["safety"])
    assert got["accuracy"] == got["accuracy.better"] == got["accuracy.shorter_chosen"] == 0.75
    assert got["accuracy.chosen_safe_other_unsafe"] == 0.75 and got["lead.better"] == 0.75
    assert got["prefers_longer"] == 0.25 and got["safe_flagged"] == 0.25 and got["unsafe_recall"] == 0.0
    assert got["head_safe_flagged"] == 0.25 and got["head_unsafe_recall"] == 1.0
    assert got["matched_recall"] == 0.0 and got["head_matched_recall"] == 0.0
    assert got["nll"] == pytest.approx((0.1269280 + 2 * 0.3132617 + 1.3132617) / 4)
    assert {"ece", "brier"} < set(got) and "accuracy.matched" not in got


def test_means_intervals_and_gains_over_the_seeds(tmp_path: Path) -> None:
    leads = {
        "plain": [[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, -1.0], [1.0, 1.0, 1.0, -1.0]],  # 50, 25, 75 %
        "new": [[1.0, 1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0], [1.0, 1.0, 1.0, 1.0]],  # 25 points more on each
    }
    same = {"fraction": 1.0, "model": MODEL, "test_preferences": ()}
    runs = [
        RewardStudyRun(output=tmp_path / f"{name}_1_seed{seed}", variant=name, seed=seed, **same)
        for seed in range(3)
        for name in leads
    ]
    for run in runs:
        (tmp_path / run.name).mkdir()
        strength = None if (run.variant, run.seed) == ("new", 2) else "better"
        content = figures_of(leads[run.variant][run.seed], strength)
        (tmp_path / run.name / "figures.json").write_text(json.dumps(content))
    baseline = {"longer wins": figures_of([-1.0, 1.0])["groups"]}
    study = gather(runs, tmp_path, [baseline])
    plain, new = (model["groups"]["safety"]["figures"] for model in study["models"])
    assert [model["variant"] for model in study["models"]] == ["plain", "new"]
    assert plain["accuracy"]["values"] == [0.5, 0.25, 0.75] and plain["accuracy"]["gain"] is None
    assert new["accuracy"]["mean"] == 0.75 and new["accuracy"]["gain"] == 0.25
    assert new["accuracy"]["ci"] == pytest.approx([0.75 - 0.6210344, 0.75 + 0.6210344])  # 4.302653 * 0.25 / sqrt(3)
    assert new["accuracy"]["gain_ci"] == [0.25, 0.25]
    assert "accuracy.better" in plain and "accuracy.better" not in new  # one seed's rows have no strengths
    histogram = study["models"][0]["groups"]["all"]["histogram"]
    assert sum(histogram["chosen"]) == sum(histogram["rejected"]) == 12
    assert study["baselines"]["longer wins"]["safety"]["figures"]["accuracy"]["ci"] is None

    first, printed = markdown_tables(study).replace("\u00a0", " ").split("\n\n**Safety pairs**\n\n")[:2]
    assert first.splitlines()[4:] == [
        "| plain | 10 | 50.0 % (−12.1 to 112.1) | – |",  # no bag of words in these figures
        "| new | 10 | 75.0 % (12.9 to 137.1) | – |",
        "| longer wins | – | 50.0 % | – |",
    ]
    printed = printed.splitlines()
    assert printed[:5] == [
        "|  | Pairs | Accuracy | Better |",
        "| --- | --- | --- | --- |",
        "| plain | 10 | 50.0 % (−12.1 to 112.1) | 50.0 % (−12.1 to 112.1) |",
        "| new | 10 | 75.0 % (12.9 to 137.1) | – |",
        "| longer wins | – | 50.0 % | 50.0 % |",
    ]
    assert "| new | +25.0 (25.0 to 25.0) |" in printed


def test_the_gain_over_words_is_pair_by_pair_over_the_seeds_of_one_test_set() -> None:
    def seed(hits: list[float], bag: list[float]) -> dict[str, Any]:
        return {"hits": {"safety": hits}, "bag_of_words": {"safety": bag}}

    seeds = [seed([1.0, 1.0, 0.0], [0.0, 1.0, 0.0]), seed([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]), seed([1.0], [0.5])]
    found = paired_gains(seeds, [("a",), ("a",), ("b",)], "safety")
    assert found is not None and found["pairs"] == 4  # of a each pair's mean over its two seeds: 1, -0.5, 0; of b 0.5
    assert found["gain"] == 0.25
    assert found["ci"] == paired_gain([1.0, -0.5, 0.0, 0.5], [0.0] * 4)["ci"]
    assert bag_figures(seeds, "safety")["bag_of_words"]["values"] == pytest.approx([1 / 3, 1 / 3, 0.5])
    assert paired_gains([*seeds, {}], [("a",)] * 4, "safety") is None and bag_figures([{}], "safety") == {}


def test_one_figure_over_seeds_beside_several_others() -> None:
    found = over_seeds([1.0, 3.0], gain=[0.0, 2.0], step=None)
    assert found["values"] == [1.0, 3.0] and found["mean"] == 2.0
    assert (found["gain"], found["gain_ci"], found["step"], found["step_ci"]) == (1.0, [1.0, 1.0], None, None)
    alone = over_seeds([1.0])
    assert alone == {"mean": 1.0, "ci": None, "values": [1.0]}


def test_what_a_study_is_told_each_of_its_trainings_is_told(tmp_path: Path) -> None:
    told = {"strict": True, "fresh": True, "quiet": True, "trackers": ("wandb",), "chat_template_kwargs": {"think": 0}}
    config = StudyConfig(output=tmp_path, runs=("a",), **told)  # type: ignore[arg-type]
    assert config.of_each_training == told
