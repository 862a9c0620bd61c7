from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from transformers import AutoModelForCausalLM

from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.iteration.pool import read_completions
from rlhf.metrics import read_metrics
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.loading import load_reward

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
import rejection_sampling
from rejection_sampling import RejectionSamplingConfig

if TYPE_CHECKING:
    from conftest import ChatServer

REWARDS = """
import torch

def brevity(conversations):
    return torch.tensor([2.0 - len(c[-1]["content"]) / 50 for c in conversations])

def letters(conversations):
    return torch.tensor([float(sum(ch.isalpha() for ch in c[-1]["content"])) / 10 for c in conversations])

def broken(conversations):
    return torch.zeros(len(conversations), 1)
"""


@pytest.fixture
def run(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run one version; returns its folder."""
    (tmp_path / "rewards_of_the_test.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"id": f"p{i}", "messages": [{"role": "user", "content": f"what is {i} ?"}], "domain": domain}
        for i, domain in enumerate(["helpfulness", "safety"] * 6)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(version: str, **options: object) -> Path:
        given = {
            "output": tmp_path / version,
            "policy": tiny_policy_path,
            "fine_tune_from": tiny_policy_path,
            "prompts": prompts,
            "helpfulness": "rewards_of_the_test:letters",
            "safety": "rewards_of_the_test:brevity",
            "version": version,
            "num_samples": 5,
            "sampling.max_new_tokens": 150,
            "sampling.top_k": 40,
            "finetuning.optimizer.learning_rate": 0.003,
            **options,
        }
        arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        rejection_sampling.main(parse_config(RejectionSamplingConfig, arguments))
        return tmp_path / version

    return start


def test_two_versions(run, tiny_policy_path: Path, tmp_path: Path) -> None:
    v1 = run("v1", seed=1)
    rows = read_completions(v1 / "completions.parquet")
    assert [(row.prompt_id, row.index) for row in rows] == [(f"p{p}", i) for p in range(12) for i in range(5)]
    assert {row.version for row in rows} == {"v1"}
    figures = json.loads((v1 / "selection.json").read_text())
    selected = [json.loads(line) for line in (v1 / "selected.jsonl").read_text().splitlines()]
    assert 0 < figures["selected"] == len(selected) == 12 - figures["prompts_without_answer"]
    for row in selected:
        finished = [c for c in rows if c.prompt_id == row["id"] and c.finished and c.text]
        assert row["reward"] == max(c.reward for c in finished)
        assert row["messages"][-1]["content"] in {c.text for c in finished if c.reward == row["reward"]}
        if int(row["id"][1:]) % 2:
            assert all(c.reward == c.safety for c in finished)
    assert figures["max_reward"] >= figures["mean_reward"]
    assert [point["k"] for point in figures["curve"]] == [1, 2, 4, 5]
    assert len(read_metrics(v1 / "metrics.jsonl")) == 2
    before = AutoModelForCausalLM.from_pretrained(tiny_policy_path).state_dict()
    after = AutoModelForCausalLM.from_pretrained(v1 / "checkpoint").state_dict()
    assert any(not before[name].equal(after[name]) for name in before)

    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "v1.parquet").symlink_to(v1 / "completions.parquet")
    chats = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "sure"}]
    chats.write_text(json.dumps({"messages": chat}) + "\n")
    v2 = run("v2", policy=v1 / "checkpoint", pool=pool, sft_data=chats, seed=2)
    figures = json.loads((v2 / "selection.json").read_text())
    assert figures["candidates_by_version"] == {"v1": 60, "v2": 60}
    assert set(figures["selected_by_version"]) <= {"v1", "v2"} and figures["selected_by_version"]["v1"] > 0
    assert {row.version for row in read_completions(v2 / "completions.parquet")} == {"v2"}
    with pytest.raises(InputError, match="v1 is in the pool already"):
        run("v1", pool=pool, output=tmp_path / "again")


def test_the_same_seed_gives_the_same_checkpoint(run, tmp_path: Path) -> None:
    one, two = run("v1", seed=3), run("v1", seed=3, output=tmp_path / "two", batch_size=7)
    assert (one / "selected.jsonl").read_text() == (two.parent / "two" / "selected.jsonl").read_text()
    weights = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "checkpoint").state_dict() for name in ("v1", "two")
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_an_ensemble_goes_where_a_reward_model_goes(run, tiny_policy_path: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_policy_path)
    RewardModel.from_policy(tiny_policy_path, safety_head=False, seed=0).save(tmp_path / "r0", tokenizer)
    file = tmp_path / "wary.json"
    members = [str(tmp_path / "r0"), "rewards_of_the_test:letters"]
    file.write_text(json.dumps({"members": members, "uncertainty_weight": 2.0}))
    v1 = run("v1", helpfulness=file, **{"sampling.max_new_tokens": 90})
    row = next(row for row in read_completions(v1 / "completions.parquet") if row.text.strip())
    messages = [{"role": "user", "content": f"what is {row.prompt_id[1:]} ?"}]
    talk = [*messages, {"role": "assistant", "content": row.text}]
    one, two = (load_reward(member)([talk]).item() for member in members)
    assert row.helpfulness == pytest.approx((one + two) / 2 - 2.0 * abs(one - two) / 2, abs=1e-4)
    assert {"helpfulness", "helpfulness.0"} <= json.loads((v1 / "stage.json").read_text())["inputs"].keys()


def test_a_server_answers_for_the_policy(run, chat_server: ChatServer, tmp_path: Path) -> None:
    def fails_after_five(body: dict[str, Any]) -> tuple[int, Any]:
        return (200, chat_server.answers(body)) if len(chat_server.asked) <= 5 else (400, b"out of memory")

    options = {"server.url": chat_server.url, "server.model": "tiny", "server.concurrency": 1}
    chat_server.reply = fails_after_five
    with pytest.raises(InputError, match=r"server: .* answers 400 \(out of memory\) to the prompt 'what is 5 \?'"):
        run("v1", **options)
    assert not (tmp_path / "v1").exists()
    chat_server.reply, before = lambda body: (200, chat_server.answers(body)), len(chat_server.asked)
    with pytest.raises(InputError, match=r"helpfulness \(broken\): .*got"):
        run("v1", **options, helpfulness="rewards_of_the_test:broken")
    assert len(chat_server.asked) - before == 7, "those that had no answer"
    v1 = run("v1", **options)
    assert len(chat_server.asked) - before == 7, "a reward that fails costs no answer"
    rows = read_completions(v1 / "completions.parquet")
    assert [row.text[:9] for row in rows] == [f"what is {i}"[:9] for i in range(12) for _ in range(5)]
    assert all(row.finished and len(row.token_ids) > 5 and math.isnan(row.logprob) for row in rows)
    assert json.loads((v1 / "selection.json").read_text())["selected"] == 12
    assert not (v1 / "samples").exists()
    chat_server.models = ["llama"]
    with pytest.raises(InputError, match="does not serve 'tiny' but llama"):
        run("v2", **options)


def test_bad_input_is_answered_in_one_sentence(run, tmp_path: Path) -> None:
    for options, message in [
        ({"helpfulness": "runs/demo/none"}, "helpfulness: runs/demo/none does not exist; `make demo` writes it"),
        ({"helpfulness": "rewards_of_the_test:broken"}, r"helpfulness \(broken\): .*\(60,\), got \(60, 1\)"),
        ({"sampling.temperature": 0}, "temperature: at 0"),
        ({"sampling.max_new_tokens": 1, "seed": 4}, "max_new_tokens: no answer came to its end"),
        ({"pool": tmp_path}, "pool: .* holds no"),
    ]:
        with pytest.raises(InputError, match=message):
            run("v1", **options)
    assert not (tmp_path / "v1").exists()
