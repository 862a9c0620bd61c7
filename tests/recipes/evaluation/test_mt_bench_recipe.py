from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlhf.errors import InputError
from rlhf.evaluation.benchmarks.mt_bench import PROMPT_NAMES
from rlhf.sampling.server import ServerConfig
from rlhf.sampling.source import PolicySource

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mt_bench_recipe", ROOT / "recipes" / "evaluation" / "mt_bench.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mt_bench_recipe"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    questions = [
        {"question_id": i, "category": c, "turns": ["what is the river ?", "in one word"]}
        for i, c in ((1, "writing"), (2, "math"))
    ]
    single, pair = "{question} {answer}", "{question} {answer_a} | {answer_b}"
    prompts = [
        {"name": n, "system_prompt": "judge", "prompt_template": pair if n.startswith("pair") else single}
        for names in PROMPT_NAMES.values()
        for n in names
    ]
    for name, rows in (("questions", questions), ("judge_prompts", prompts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: tmp_path / f"{name}.jsonl" for name in ("questions", "judge_prompts")}


def _judging(text: str) -> Any:
    return lambda body: (200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})


def _config(recipe: ModuleType, output: Path, model: Path, server: Any, files: dict[str, Path], **others: Any) -> Any:
    judges = tuple(ServerConfig(server.url, name, retries=0) for name in others.pop("judges", ["tiny"]))
    models = others.pop("models", {"mine": PolicySource(checkpoint=model)})
    return recipe.MTBenchConfig(output=output, models=models, judges=judges, max_new_tokens=6, **files, **others)


def test_each_turn_is_rated(
    recipe: ModuleType, tiny_policy_path: Path, tmp_path: Path, chat_server: Any, files: dict[str, Path]
) -> None:
    chat_server.reply = _judging("Fine. Rating: [[6]]")
    recipe.main(_config(recipe, tmp_path / "out", tiny_policy_path, chat_server, files))
    figures = json.loads((tmp_path / "out/mt_bench.json").read_text())["models"]["mine"]
    assert (figures["overall"]["mean"], figures["overall"]["n"]) == (6.0, 2)
    closing = json.loads((tmp_path / "out/stage.json").read_text())["closing"]
    assert closing["suspicious"] == ["100% of the answers are cut off; raise max_new_tokens"]
    assert {body["messages"][0]["content"] for body in chat_server.asked} == {"judge"}
    assert len(chat_server.asked) == 4 and {body["temperature"] for body in chat_server.asked} == {0.0}
    assert len((tmp_path / "out/judgements.jsonl").read_text().splitlines()) == 4
    assert (tmp_path / "out/index.html").is_file()


def test_a_judge_that_breaks_down_costs_no_answer_and_no_judgement(
    recipe: ModuleType, tiny_policy_path: Path, tmp_path: Path, chat_server: Any, files: dict[str, Path]
) -> None:
    count = 0

    def failing(body: dict[str, Any]) -> tuple[int, Any]:
        nonlocal count
        count += body["max_tokens"] > 1
        return (500, "down") if count > 2 else _judging("[[3]]")(body)

    chat_server.reply = failing
    config = _config(recipe, tmp_path / "out", tiny_policy_path, chat_server, files)
    with pytest.raises(InputError, match="500"):
        recipe.main(config)
    kept = tmp_path / "out.partial/drawn"
    first = sorted(file.read_bytes() for file in kept.glob("model0/*/*.jsonl"))
    judged = sum(len(file.read_text().splitlines()) for file in kept.glob("judge0/*.jsonl"))
    assert judged >= 1
    chat_server.asked.clear()
    chat_server.reply = _judging("[[3]]")
    recipe.main(config)
    assert len(chat_server.asked) == 4 - judged
    assert first and (tmp_path / "out/mt_bench.json").is_file()


def test_pairwise_in_both_orders(
    recipe: ModuleType, tiny_policy_path: Path, tmp_path: Path, chat_server: Any, files: dict[str, Path]
) -> None:
    chat_server.reply = _judging("[[A]]")  # always the first: every comparison is a tie
    models = dict.fromkeys(("base", "mine"), PolicySource(checkpoint=tiny_policy_path))
    config = _config(
        recipe, tmp_path / "out", tiny_policy_path, chat_server, files, models=models, mode="pairwise", baseline="base"
    )
    recipe.main(config)
    figures = json.loads((tmp_path / "out/mt_bench.json").read_text())["models"]
    assert list(figures) == ["mine"] and figures["mine"]["overall"]["mean"] == 0.5
    assert len(chat_server.asked) == 8


@pytest.mark.parametrize("mode", ["single", "pairwise"])
def test_several_judges_are_told_apart_and_their_disagreement_is_counted(
    recipe: ModuleType, tmp_path: Path, chat_server: Any, files: dict[str, Path], mode: str
) -> None:
    """The ratings of three differ; one is for mine and two for base in the first turn, of the second all call a tie."""
    ratings = {"kind": "[[8]]", "stern": "[[5]]", "sterner": "[[2]]"}
    chat_server.models = [*ratings, "base", "mine"]

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        judge = body["model"]
        if judge not in ratings or mode == "single":
            return _judging(ratings.get(judge, judge))(body)
        places = re.search(r"(base|mine) \| (base|mine)", body["messages"][-1]["content"])
        better = "mine" if judge == "kind" else "base"
        return _judging("[[C]]" if places is None else "[[A]]" if places[1] == better else "[[B]]")(body)

    chat_server.reply = reply
    models = {name: PolicySource(server=ServerConfig(chat_server.url, name)) for name in ("base", "mine")}
    others = {"mode": mode, "models": models} | ({"baseline": "base"} if mode == "pairwise" else {})
    recipe.main(_config(recipe, tmp_path / "out", tmp_path, chat_server, files, judges=ratings, **others))
    content = json.loads((tmp_path / "out/mt_bench.json").read_text())
    mine, between = content["models"]["mine"], content["judges"]
    [row, *_] = [json.loads(line) for line in (tmp_path / "out/judgements.jsonl").read_text().splitlines()]
    page = (tmp_path / "out/index.html").read_text()
    assert list(row["judges"]) == list(mine["judges"]) == list(ratings)
    assert "mine, by sterner" in page and "How far the judges agree" in page
    pairs = [["kind", "stern"], ["kind", "sterner"], ["stern", "sterner"]]
    assert [own["judges"] for own in between["agreement"]] == pairs
    if mode == "single":
        assert mine["overall"]["mean"] == 5.0 and mine["judges"]["sterner"]["overall"]["mean"] == 2.0
        assert [own["mean_difference"] for own in between["agreement"]] == [3.0, 6.0, 3.0]
    else:
        assert [mine[turn]["mean"] for turn in ("overall", "turn_1", "turn_2")] == [0.25, 0.0, 0.5]
        assert mine["judges"]["kind"]["turn_1"]["mean"] == 1.0 and between["divided"] == 2
        assert [(own["pairs"], own["same"]) for own in between["agreement"]] == [(2, 0), (2, 0), (2, 2)]


def test_bad_settings_in_one_sentence(recipe: ModuleType, tmp_path: Path) -> None:
    server = ServerConfig("http://localhost:1/v1", "judge")
    with pytest.raises(InputError, match="baseline: pairwise needs"):
        recipe.MTBenchConfig(
            output=tmp_path,
            models={"a": PolicySource(checkpoint=tmp_path)},
            judges=(server,),
            questions=tmp_path,
            judge_prompts=tmp_path,
            mode="pairwise",
            baseline="b",
        )
