"""recipes/evaluation/evaluate_instructions.py on a tiny model: its files, answers that outlive a kill, bad settings."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlhf.configuration import parse_config
from rlhf.errors import InputError

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "evaluation" / "evaluate_instructions.py"
ROWS = [
    {"key": 7, "prompt": "who ?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 8,
        "prompt": "what is it ?",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "at least", "num_words": 9999}],
    },
]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate_instructions_recipe", RECIPE)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_answers_are_drawn_and_judged_by_the_rules(
    recipe: ModuleType, tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    given = ["--policy", str(tiny_policy_path), "--prompts", str(tmp_path / "rows.jsonl"), "--name", "v1"]
    given += ["--output", str(tmp_path / "out"), "--sampling.max_new_tokens", "8"]
    recipe.main(parse_config(recipe.EvaluateInstructionsConfig, given))
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == ["7", "8"]
    assert answers[1]["followed"][1] is False, "eight tokens are no 9,999 words"
    assert answers[0]["followed"] == [bool(answers[0]["answer"].strip()) and "," not in answers[0]["answer"]]
    figures = json.loads((tmp_path / "out" / "instruction_evaluation.json").read_text())
    assert figures["name"] == "v1" and figures["prompts"] == 2 and figures["instruction_strict"]["n"] == 3
    assert figures["prompt_strict"]["share"] == sum(all(answer["followed"]) for answer in answers) / 2
    assert "| V1 |" in capsys.readouterr().out
    first = parse_config(
        recipe.EvaluateInstructionsConfig, [*given, "--questions", "1", "--output", str(tmp_path / "1")]
    )
    recipe.main(first)
    assert (tmp_path / "1" / "answers.jsonl").read_text() == (tmp_path / "out" / "answers.jsonl").read_text().split(
        "\n"
    )[0] + "\n"
    with pytest.raises(InputError, match="questions: must be at least 1, got 0"):
        parse_config(recipe.EvaluateInstructionsConfig, [*given, "--questions", "0"])
