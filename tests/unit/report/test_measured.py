"""What a run measured beside its evaluations, as its page shows it: a row a policy, branches behind their versions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.rows import Preference
from rlhf.evaluation.instructions.ifeval import InstructedPrompt, instruction_figures, judge
from rlhf.evaluation.reward_models.pair_scores import PairScore
from rlhf.evaluation.reward_models.preference_figures import paired_gain, reward_figures
from rlhf.report.drawing.tables import Table, as_markdown
from rlhf.report.run.build import render
from rlhf.report.run.measured import measured_tables, reward_tables
from rlhf.report.run.reading import read_run

NAMES = {"start": "start", "v1": "v1/", "v1_random": "v1/random", "v2_ppo": "v2/ppo"}


def rate(value: float) -> dict[str, Any]:
    return {"rate": value, "ci": [value - 0.1, value + 0.1], "prompts": 100}


def safety(name: str, violations: float) -> dict[str, Any]:
    verdicts = {"violation": {"all": rate(violations)}, "false_refusal": {"ordinary": None, "borderline": rate(0.2)}}
    return {
        "name": name,
        "judges": {"refusal detector": verdicts},
        "by_source": {"advbench": {"kind": "unsafe", "prompts": 520, "refusal detector": rate(violations)}},
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    versions = [{"name": name} for name in ("start", "v1", "v2_ppo")]
    summary = {"versions": versions, "branches": [{"name": "v1_random"}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    prompt = InstructedPrompt("a", "Write.", (("punctuation:no_comma", {}),))
    for number, (name, folder) in enumerate(NAMES.items()):
        joined = "" if folder.endswith("/") else "_"
        for file, content in (
            ("safety_evaluation", safety(name, 0.9 - 0.2 * number)),
            ("instruction_evaluation", instruction_figures(name, [prompt], [judge(prompt, "a" if number else "a, b")])),
            ("leaderboard", {name: {"arc": {"score": 0.3, "standard_error": 0.01, "questions": 9, "by_subject": {}}}}),
            ("safety_benchmarks", {"toxigen": {"all": {"mean": 0.25, "ci": [0.2, 0.3], "n": 10}}}),
        ):
            place = tmp_path / f"{folder}{joined}{file}" / f"{file}.json"
            place.parent.mkdir(parents=True)
            place.write_text(json.dumps(content))
    return tmp_path


def rows(table: Table) -> list[str]:
    return [line.replace("\u00a0", " ") for line in as_markdown(table).splitlines()[2:]]


def test_policies_stand_side_by_side(run: Path) -> None:
    tables = dict(measured_tables(read_run(run).measured))
    assert list(tables) == [
        "Violations and false refusals",
        "The same by source, refusal detector",
        "Instructions that a rule can check",
        "Knowledge kept",
        "toxigen",
    ]
    order = ["start", "V1", "V2 + PPO", "V1 (random)"]
    for title in (*list(tables)[:1], *list(tables)[2:4]):
        assert [row.split(" | ")[0].removeprefix("| ") for row in rows(tables[title])] == order, title
    assert rows(tables["Violations and false refusals"])[1] == (
        "| V1 | refusal detector | 70.0 % (60.0 to 80.0) | – | 20.0 % (10.0 to 30.0) |"
    )
    assert [title for title, _ in tables["The same by source, refusal detector"].heads][3:] == order
    assert rows(tables["Instructions that a rule can check"])[0].startswith("| start | 0.0 %")
    assert rows(tables["Knowledge kept"])[0] == "| start | 30.00 (± 1.96) | 30.00 (± 1.96) |"
    assert rows(tables["toxigen"])[0] == "| start_safety_benchmarks | 0.250 (0.200 to 0.300) |"


def test_reward_models_stand_beside_longer_answers_and_bags_of_words(run: Path) -> None:
    pairs = [Preference(str(i), [{"role": "user", "content": "?"}], "long", "no") for i in range(4)]
    groups = reward_figures(pairs, [PairScore(1.0, 0.0), PairScore(1.0, 0.0), PairScore(1.0, 0.0), PairScore(0.0, 1.0)])
    over = {"helpfulness": paired_gain([1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0])}
    evaluation = {
        "test_pairs": {"all": 4, "helpfulness": 4},
        "test_prompts_in_training": 0,
        "rewards": {"helpfulness": {"spec": "x", "groups": groups, "over_bag_of_words": over}},
        "baselines": {"longer wins": groups},
    }
    place = run / "v1" / "reward_evaluation" / "reward_evaluation.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(evaluation))
    files = read_run(run)
    [(stage, table)] = reward_tables(files.measured)
    assert stage == "v1/reward_evaluation"
    assert rows(table)[0].startswith("| helpfulness | 75.0 % (30.1 to 95.4) | +25.0 (")
    assert rows(table)[1] == "| longer wins | 75.0 % (30.1 to 95.4) | – | 75.0 % |"
    assert "Beside longer answers and bags of words: v1/reward_evaluation" in render(files)


def test_they_are_on_the_page_and_nothing_is_where_nothing_measured(run: Path) -> None:
    files = read_run(run)
    page = render(files)
    assert '<section id="measured">' in page and page.count("Knowledge kept") == 1
    for file in run.rglob("*_evaluation/*.json"):
        file.unlink()
    for name in ("leaderboard", "safety_benchmarks"):
        for file in run.rglob(f"{name}.json"):
            file.unlink()
    assert measured_tables(read_run(run).measured) == []


def figures(mean: float) -> dict[str, Any]:
    return {"rouge1": {"n": 2, "mean": mean, "ci": [mean - 0.1, mean + 0.1], "quantiles": None}}


def test_answers_against_references_have_a_table_for_each_set_of_them(run: Path) -> None:
    """Of all policies; the references come last."""
    for number, (name, folder) in enumerate(NAMES.items()):
        place = run / f"{folder}{'' if folder.endswith('/') else '_'}text_evaluation" / "text_metrics.json"
        place.parent.mkdir(parents=True)
        ease = {"reading_ease": {"n": 2, "mean": 60.0, "ci": None, "quantiles": None}}
        row = {name: figures(0.5 + number / 10) | ease, "reference": ease}
        place.write_text(json.dumps({"dolly": row, "wiki": row}))
    tables = dict(measured_tables(read_run(run).measured))
    assert "Knowledge kept" in tables
    for source in ("dolly", "wiki"):
        table = tables[f"Answers against references: {source}"]
        assert [head for head, _ in table.heads] == ["Model", "ROUGE-1", "Reading ease"]
        assert [row.split(" | ")[0].removeprefix("| ") for row in rows(table)] == [
            *("start", "V1", "V2 + PPO", "V1 (random)", "reference")
        ]
        assert rows(table)[0] == "| start | 0.500 (0.400 to 0.600) | 60.0 |"
        assert rows(table)[-1] == "| reference | – | 60.0 |"


def test_merges_stand_beside_what_was_trained(run: Path) -> None:
    losses = {name: {"loss": 2.5 + number, "kl": number / 100} for number, name in enumerate(("base", "simple"))}
    heldout = {"rows": 2, "tokens": 9, "trained": {"loss": 2.25, "kl": 0.0}, **losses, "closest": "simple"}
    for stage, report in (("v1/careful", {"layers": [], "heldout": heldout}), ("v1/simple", {"layers": []})):
        (run / stage).mkdir(parents=True)
        (run / stage / "merge.json").write_text(json.dumps(report))
    tables = dict(measured_tables(read_run(run).measured))
    assert [title for title in tables if title.startswith("Merges")] == ["Merges of an adapter: v1/careful"]
    assert rows(tables["Merges of an adapter: v1/careful"]) == [
        "| trained | 2.2500 | 0.0000 |",
        "| base | 2.5000 | 0.0000 |",
        "| simple | 3.5000 | 0.0100 |",
    ]


def test_a_section_whose_stages_nobody_planned_is_left_out(run: Path) -> None:
    files = replace(read_run(run), reward_models=[], ppo=[], selections=[], sweeps=[])
    everything = render(replace(files, recipes=frozenset()))
    planned = render(replace(files, recipes=frozenset({"evaluate", "ppo"})))
    for section, kept in (("ppo", True), ("rewards", False), ("sampling", False)):
        assert f'<section id="{section}">' in everything, "no plan is known"
        assert (f'<section id="{section}">' in planned) == kept


def test_policies_that_nothing_evaluated_stand_in_the_order_of_the_plan(tmp_path: Path) -> None:
    """Their stages' names are in another: both, dolly, start, wiki."""
    texts = {"step": "evaluate_text", "reads": {"data.d": "rows"}}
    train = {"step": "sft", "reads": {"policy": "start", "data": "rows"}}
    plan = {
        "run": str(tmp_path),
        "configs": str(tmp_path),
        "inputs": {"policy": "p", "rows": "r.jsonl"},
        "versions": [{"name": name, "steps": [train, texts]} for name in ("wiki", "dolly", "both")],
    }
    (tmp_path / "config.yaml").write_text(json.dumps({"config": plan}))
    (tmp_path / "ledger.jsonl").write_text('{"event": "started", "stage": "wiki/sft"}\n')
    for name in ("start", "wiki", "dolly", "both"):
        place = tmp_path / ("start_text_evaluation" if name == "start" else f"{name}/text_evaluation")
        place.mkdir(parents=True)
        (place / "text_metrics.json").write_text(json.dumps({"d": {name: figures(0.5), "reference": {}}}))
    files = read_run(tmp_path)
    ((_, table),) = measured_tables(files.measured)
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows(table)]
    assert names == ["start", "wiki", "dolly", "both", "reference"]
    page = render(files)
    assert "There are not two evaluated versions" not in page and "stages, " in page
