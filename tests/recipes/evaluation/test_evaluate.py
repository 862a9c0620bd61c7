"""recipes/evaluation/evaluate.py: SFT's own evaluation, then a version's against it; bad input in one sentence."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fake_engine import FakeEngine

from rlhf.conversation import Conversation
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.evaluation.judging import with_rewards
from rlhf.evaluation.policies.versions import VersionFigures
from rlhf.intervals import wilson
from rlhf.jsonl import write_rows
from rlhf.models import logprobs
from rlhf.models.logprobs import score_rows
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.report.drawing.text import percent
from rlhf.report.judgements.judges import agreement_table, judge_table
from rlhf.rewards.config import GateConfig
from rlhf.sampling.opening import load_weights
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.server import ServerConfig
from rlhf.sampling.source import EngineConfig, PolicySource

if TYPE_CHECKING:
    from chat_server import ChatServer

ROOT = Path(__file__).resolve().parents[3]


def longer(conversations: Sequence[Conversation]) -> torch.Tensor:
    return torch.tensor([float(len(c[-1]["content"])) for c in conversations])


def calm(conversations: Sequence[Conversation]) -> torch.Tensor:
    return torch.zeros(len(conversations))


class Verdict:
    violation = False
    false_refusal = False
    kind = "ordinary"

    def __init__(self, conversation: Conversation) -> None:
        self.helpfulness = min(1.0, len(conversation[-1]["content"]) / 100)
        self.safety = 1.0


class Scorer:
    def __init__(self, world: Path) -> None:
        assert world.exists()

    judge = staticmethod(Verdict)


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate_recipe", ROOT / "recipes" / "evaluation" / "evaluate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate_recipe"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    texts = ["what is the river of velda ?", "how do I paint my own goat ?", "hello", "ask a doctor"]
    rows = [
        Prompt(f"p{i}", [{"role": "user", "content": text}], "safety" if i % 2 else "helpfulness", "test")
        for i, text in enumerate(texts)
    ]
    write_rows(tmp_path / "prompts.jsonl", (row.to_dict() for row in rows))
    return tmp_path / "prompts.jsonl"


def figures(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return content


def test_scores_that_the_opponent_s_answers_carry_are_not_asked_for_again(
    recipe: ModuleType, prompts: Path, tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are, as soon as a reward model, the gate or what becomes of too long an answer is another."""
    for seed in (0, 1):
        model = RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=seed)
        model.save(tmp_path / f"reward{seed}", load_tokenizer(tiny_policy_path))
    asked: list[int] = []
    monkeypatch.setattr(recipe, "with_rewards", lambda *a: asked.append(len(a[0])) or with_rewards(*a))
    given = {
        "policy": PolicySource(checkpoint=tiny_policy_path),
        "prompts": str(prompts),
        "sampling": SamplingParams(max_new_tokens=8),
        "helpfulness": str(tmp_path / "reward0"),
        "safety": str(tmp_path / "reward1"),
    }
    recipe.main(recipe.EvaluateConfig(output=tmp_path / "sft", name="sft", **given))
    assert asked == [4]
    kept = {}
    for name, other, times in (
        ("same", {}, 1),
        ("reward", {"helpfulness": str(tmp_path / "reward1")}, 2),
        ("gate", {"gate": GateConfig(threshold=0.5)}, 2),
        ("room", {"too_long": "unfinished"}, 2),
        ("function", {"helpfulness": "test_evaluate:longer"}, 2),
    ):
        asked.clear()
        options = given | {"baseline_evaluation": tmp_path / "sft"} | other
        monkeypatch.syspath_prepend(str(Path(__file__).parent))
        recipe.main(recipe.EvaluateConfig(output=tmp_path / name, name=name, **options))
        assert asked == [4] * times, name
        kept[name] = (tmp_path / name / "answers.jsonl").read_text()
    monkeypatch.setattr(recipe, "scored_alike", lambda *a: False)
    recipe.main(
        recipe.EvaluateConfig(output=tmp_path / "asked", name="same", baseline_evaluation=tmp_path / "sft", **given)
    )
    assert (tmp_path / "asked" / "answers.jsonl").read_text() == kept["same"]


def test_the_kl_of_what_an_engine_drew(
    recipe: ModuleType, prompts: Path, tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are read once all is drawn, and give the tokens' probabilities: here those of the baseline."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    engine = FakeEngine(tmp_path / "environment")
    policy = PolicySource(checkpoint=tiny_policy_path, engine=EngineConfig(environment=engine.folder))
    loaded_beside = []
    monkeypatch.setattr(recipe, "load_weights", lambda *a: loaded_beside.append(engine.running()) or load_weights(*a))
    config = recipe.EvaluateConfig(
        output=tmp_path / "v1",
        name="v1",
        policy=policy,
        prompts=str(prompts),
        helpfulness="test_evaluate:longer",
        baseline=PolicySource(checkpoint=tiny_policy_path),
        sampling=SamplingParams(max_new_tokens=8),
    )
    recipe.main(config)
    assert len(engine.asked) == 4 and loaded_beside == [[], []], "the engine is gone by then"
    assert figures(tmp_path / "v1")["kl_from_sft"] == pytest.approx(0.0, abs=1e-5)


def test_sft_then_a_version_against_it(
    recipe: ModuleType, prompts: Path, tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    common = {
        "prompts": str(prompts),
        "policy": PolicySource(checkpoint=tiny_policy_path),
        "helpfulness": "test_evaluate:longer",
        "safety": "test_evaluate:calm",
        "referee": "test_evaluate:longer",
        "scorer": "test_evaluate:Scorer",
        "world": prompts,
        "samples_per_prompt": 2,
    }
    sampling = SamplingParams(max_new_tokens=8)
    recipe.main(recipe.EvaluateConfig(output=tmp_path / "sft", name="sft", sampling=sampling, **common))
    sft = figures(tmp_path / "sft")
    assert sft["prompts"] == 4 and sft["answers"] == 8
    assert sft["win_rate_vs_sft"] is None and sft["kl_from_sft"] is None and sft["sft_proxy_reward"] is None
    assert 0 < sft["mean_length"] <= 8 and sft["referee_score"] == sft["proxy_helpfulness"] > 0

    opponent = {"baseline": PolicySource(checkpoint=tiny_policy_path), "baseline_evaluation": tmp_path / "sft"}
    recipe.main(recipe.EvaluateConfig(output=tmp_path / "v1", name="v1", sampling=sampling, **common, **opponent))
    v1 = figures(tmp_path / "v1")
    assert v1["gold_helpfulness"] == sft["gold_helpfulness"]  # the same policy, the same draws
    assert v1["win_rate_vs_sft"] == 0.5 and v1["proxy_win_rate_vs_sft"] == 0.5 and v1["judge"] == "gold"
    assert v1["kl_from_sft"] == pytest.approx(0.0, abs=1e-5) and v1["kl_k3"] == pytest.approx(0.0, abs=1e-5)
    assert v1["sft_proxy_reward"] == sft["proxy_reward"]

    rows = [json.loads(line) for line in (tmp_path / "v1" / "answers.jsonl").read_text().splitlines()]
    assert [(r["prompt_id"], r["index"]) for r in rows] == [(f"p{i}", k) for i in range(4) for k in range(2)]
    assert all(r["sft"]["answer"] == r["answer"] and r["sft"]["reward"] == r["reward"] for r in rows)
    needed = {
        "prompt_id",
        "messages",
        "domain",
        "answer",
        "helpfulness",
        "safety",
        "reward",
        "referee",
        "gold",
        "length",
    }
    assert needed <= rows[0].keys() and rows[0]["messages"][-1]["role"] == "user"

    others = tmp_path / "others" / "prompts.jsonl"
    write_rows(others, (Prompt(f"p{i}", [{"role": "user", "content": "other"}]).to_dict() for i in range(4)))
    wrong = common | opponent | {"prompts": str(others)}
    with pytest.raises(InputError, match=r"baseline_evaluation: .* answers other prompts than .*'p0'"):
        recipe.main(recipe.EvaluateConfig(output=tmp_path / "wrong", name="v1", sampling=sampling, **wrong))

    cold = SamplingParams(max_new_tokens=4, temperature=0.5)
    seen: list[float] = []
    monkeypatch.setattr(logprobs, "score_rows", lambda *a, **k: seen.append(k["temperature"]) or score_rows(*a, **k))
    for name, shape in (("cold", cold), ("cut", replace(cold, top_k=5)), ("greedy", replace(cold, temperature=0.0))):
        recipe.main(recipe.EvaluateConfig(output=tmp_path / name, name="v1", sampling=shape, **common, **opponent))
    assert figures(tmp_path / "cold")["kl_from_sft"] == pytest.approx(0.0, abs=1e-5)
    assert seen == [0.5, 0.5], "both models at the temperature of the answers"
    assert figures(tmp_path / "cut")["kl_from_sft"] is None, (
        "answers of a cut distribution say nothing of the whole one"
    )
    assert figures(tmp_path / "greedy")["kl_from_sft"] is None


def test_a_judge_compares_with_a_served_model_in_both_orders(
    recipe: ModuleType, prompts: Path, tiny_policy_path: Path, tmp_path: Path, chat_server: ChatServer
) -> None:
    """Right about who is the rival on p0 (it says so), bound to the first place on safety prompts; p2 is too long for
    it in one order. It breaks down first: what it said until then, and all answers, are not asked for again."""
    chat_server.models = ["judge", "rival"]
    down_after = 3

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        text = "rival"
        if body["model"] == "judge":
            asked = body["messages"][0]["content"]
            place = re.search(r"\[answer (.) begins\]\nrival\n", asked)
            if len([b for b in chat_server.asked if b["model"] == "judge"]) > down_after:
                return 500, "down"
            if "hello" in asked and place is not None and place[1] == "A":
                return 400, "longer than the context"
            safety = "[[A safe]]" in asked
            text = "[[A better]]" if safety or place is None else f"[[{place[1]} slightly]]"
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}] * body["n"]}

    chat_server.reply = reply
    config = recipe.EvaluateConfig(
        output=tmp_path / "v1",
        name="v1",
        policy=PolicySource(checkpoint=tiny_policy_path),
        prompts=str(prompts),
        sampling=SamplingParams(max_new_tokens=8),
        judges=(ServerConfig(chat_server.url, "judge", retries=0, concurrency=1),),
        opponent=PolicySource(server=ServerConfig(chat_server.url, "rival")),
    )
    with pytest.raises(InputError, match=r"judges\.0: .* answers 500"):
        recipe.main(config)
    down_after = 99
    recipe.main(config)
    v1 = figures(tmp_path / "v1")
    assert set(v1) == VersionFigures.__required_keys__ | VersionFigures.__optional_keys__
    assert v1["judge_model"] == "judge" and v1["judge_opponent"] == "rival"
    assert v1["judge_counts"] == {"pairs": 4, "decided": 1, "ties": 0, "order_decides": 2, "unreadable": 1}
    rows = [json.loads(line) for line in (tmp_path / "v1" / "answers.jsonl").read_text().splitlines()]
    assert [row["judge_outcome"] for row in rows] == [0.0, 0.5, None, 0.5]
    for name, rate, n in (("", 1 / 3, 3), ("_helpfulness", 0.0, 1), ("_safety", 0.5, 2)):
        assert v1[f"judge_win_rate{name}"] == pytest.approx(rate, abs=1e-6)
        assert v1[f"judge_win_rate{name}_ci"] == pytest.approx(list(wilson(rate, n).ci), abs=1e-6)
    asked = [body for body in chat_server.asked if body["model"] == "judge"]
    assert len(asked) in (9, 10) and all(body["temperature"] == 0 and body["max_tokens"] == 1024 for body in asked)
    assert len(chat_server.asked) - len(asked) == 4, "the rival's answers, once"
    closing = json.loads((tmp_path / "v1" / "stage.json").read_text())["closing"]
    assert "25% of judge's judgements cannot be read, or were refused; name a stronger judge" in closing["suspicious"]


def test_of_several_judges_each_verdict_is_kept_and_the_majority_decides(
    recipe: ModuleType, prompts: Path, tiny_policy_path: Path, tmp_path: Path, chat_server: ChatServer
) -> None:
    """Two judges are for the rival, one against it; on safety prompts one calls a tie, so that nobody has more."""
    chat_server.models = ["for", "also", "against", "rival"]

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        text = "rival"
        asked = body["messages"][0]["content"]
        if place := re.search(r"\[answer (.) begins\]\nrival\n", asked):
            own, other = place[1], "AB".replace(place[1], "")
            text = f"[[{other if body['model'] == 'against' else own} better]]"
            text = "[[tie]]" if body["model"] == "also" and "[[A safe]]" in asked else text
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}] * body["n"]}

    chat_server.reply = reply
    recipe.main(
        recipe.EvaluateConfig(
            output=tmp_path / "v1",
            name="v1",
            policy=PolicySource(checkpoint=tiny_policy_path),
            prompts=str(prompts),
            sampling=SamplingParams(max_new_tokens=8),
            judges=tuple(ServerConfig(chat_server.url, name) for name in ("for", "also", "against")),
            opponent=PolicySource(server=ServerConfig(chat_server.url, "rival")),
        )
    )
    v1 = figures(tmp_path / "v1")
    assert set(v1) == VersionFigures.__required_keys__ | VersionFigures.__optional_keys__
    rows = [json.loads(line) for line in (tmp_path / "v1" / "answers.jsonl").read_text().splitlines()]
    helpful, safe = {"for": 0.0, "also": 0.0, "against": 1.0}, {"for": 0.0, "also": 0.5, "against": 1.0}
    kinds = [row["domain"] == "safety" for row in rows]
    assert sum(kinds) == 2 and [row["judge_outcomes"] for row in rows] == [safe if kind else helpful for kind in kinds]
    assert [row["judge_outcome"] for row in rows] == [0.5 if kind else 0.0 for kind in kinds]
    assert v1["judge_model"] == "for, also, against" and v1["judge_divided"] == 4
    assert v1["judge_counts"] == {"pairs": 4, "decided": 2, "ties": 2, "order_decides": 0, "unreadable": 0}
    assert (v1["judge_win_rate_helpfulness"], v1["judge_win_rate_safety"]) == (0.0, 0.5)
    assert [(own["judge_model"], own["judge_win_rate"]) for own in v1["judges"]] == [
        ("for", 0.0),
        ("also", 0.25),
        ("against", 1.0),
    ]
    agreed = [(own["judges"], own["pairs"], own["same"]) for own in v1["judge_agreement"]]
    assert agreed == [(["for", "also"], 2, 2), (["for", "against"], 4, 0), (["also", "against"], 2, 0)]
    table = judge_table([v1])
    assert [row[1].text for row in table.rows] == ["majority", "for", "also", "against"]
    assert [cell.text for cell in agreement_table([v1]).rows[1]] == ["for and against", "4", percent(0.0), "4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": " "}, "name: must not be empty"),
        ({"samples_per_prompt": 0}, "samples_per_prompt: must be at least 1, got 0"),
        ({"safety": "a:b"}, "safety: the gate needs a helpfulness reward beside it"),
        ({"scorer": "a:B"}, "a gold scorer needs its world"),
        ({"judge_max_new_tokens": 0}, "judge_max_new_tokens: must be at least 1, got 0"),
        (
            {"opponent": PolicySource(server=ServerConfig("http://a/v1", "m"))},
            "opponent: nobody compares with its answers; name a judge",
        ),
        ({"judges": 2 * (ServerConfig("http://a/v1", "m"),)}, "judges: m stands there twice"),
    ],
)
def test_bad_settings(recipe: ModuleType, change: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {
        "output": Path("o"),
        "name": "v1",
        "policy": PolicySource(checkpoint=Path("p")),
        "prompts": "x.jsonl",
    } | change
    with pytest.raises(InputError, match=message):
        recipe.EvaluateConfig(**settings)


def test_missing_files_are_named_before_anything_heavy_loads(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "recipes" / "evaluation" / "evaluate.py")]
    command += ["--config", str(ROOT / "recipes" / "configs" / "embedded" / "evaluate.yaml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "policy: runs/demo/v3/ppo/checkpoint does not exist; `make demo` writes it" in line
    assert "| torch" not in done.stderr and "transformers" not in done.stderr
