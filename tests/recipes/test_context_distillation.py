"""Context distillation for real on the tiny model: what is asked, what the gate keeps, what is trained on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlhf.configuration import parse_config
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.models.checkpoint.folder import is_adapter_checkpoint
from rlhf.models.policy import load_policy
from rlhf.sampling.protocol import Sample
from rlhf.sampling.source import PolicySource

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
import context_distillation
from context_distillation import ContextDistillationConfig

if TYPE_CHECKING:
    from chat_server import ChatServer

CODE = """
import torch
from types import SimpleNamespace

def shouts(conversations):
    assert all(c[-1]["content"] not in ("", "…") for c in conversations), "nothing stands in for an empty answer"
    return torch.tensor([float(c[-1]["content"].count("!") * (1 if "odd" in c[-2]["content"] else -1))
                         for c in conversations])

def hates(conversations):
    return torch.tensor([-float(len(c[-1]["content"])) for c in conversations])

class Scorer:
    def __init__(self, world):
        pass

    def judge(self, conversation):
        return SimpleNamespace(helpfulness=0.5, safety=0.25, violation=True, false_refusal=False, kind="unsafe")
"""


@pytest.fixture
def run(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the stage; returns its folder."""
    (tmp_path / "code_of_the_distillation.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [
        {
            "id": f"p{i}",
            "messages": [{"role": "user", "content": f"what is {['even', 'odd'][i % 2]} {i} ?"}],
            "domain": "helpfulness" if i == 8 else "safety",
            "source": f"s/{['risky', 'other'][i // 4 % 2]}",
        }
        for i in range(9)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "categories.jsonl").write_text('{"name": "risk", "preprompt": "Take care.", "sources": ["s/ris*"]}\n')
    (tmp_path / "world.json").write_text("{}")

    def start(**options: object) -> Path:
        given = {
            "output": tmp_path / "distilled",
            "policy": tiny_policy_path,
            "prompts": tmp_path / "prompts.jsonl",
            "safety": "code_of_the_distillation:shouts",
            "categories": tmp_path / "categories.jsonl",
            "sampling.max_new_tokens": 30,
            "finetuning.optimizer.batch_size": 4,
            "finetuning.optimizer.learning_rate": 0.01,
            **options,
        }
        arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        context_distillation.main(parse_config(ContextDistillationConfig, arguments))
        return tmp_path / "distilled"

    return start


def reply(body: dict) -> tuple[int, dict]:
    """Shouts once under a generic preprompt, twice under the category's, not at all without one."""
    first = body["messages"][0]
    marks = 0 if first["role"] != "system" else 2 if first["content"] == "Take care." else 1
    return 200, {
        "choices": [{"message": {"content": f"hello{'!' * marks}"}, "finish_reason": "stop"}] * body.get("n", 1)
    }


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_gate_keeps_what_is_safer_and_the_rest_stays_plain(
    run, chat_server: ChatServer, tiny_policy_path: Path
) -> None:
    def silent_once(body: dict) -> tuple[int, dict]:
        if body["messages"][0]["content"] == "what is even 6 ?":
            return 200, {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}
        return reply(body)

    chat_server.reply = silent_once
    folder = run(**{"policy.server.url": chat_server.url, "policy.server.model": "tiny"})
    assert len(chat_server.asked) == 3 * 8, "the prompt of domain helpfulness is not asked"
    answers = lines(folder / "answers.jsonl")
    for i, row in enumerate(answers):
        safer = i % 2 == 1
        marks = 2 if i < 4 else 1
        assert row["kept"] == safer and row["plain"]["answer"] == ("" if i == 6 else "hello")
        assert row["generic"]["answer"] == "hello!" and row["category"]["answer"] == f"hello{'!' * marks}"
        assert row["category"]["safety"] == (marks if safer else -marks)
    trained = [row["messages"] for row in lines(folder / "distilled.jsonl")]
    assert [m[-1]["content"] for m in trained] == ["hello", "hello!!", "hello", "hello!!", "hello", "hello!", "hello!"]
    assert all(m[0]["role"] == "user" for m in trained), "no preprompt in what is trained on"
    figures = json.loads((folder / "distillation.json").read_text())
    assert (figures["answers"], figures["kept"], figures["rows"], figures["heldout"]) == (8, 4, 7, [])
    closing = json.loads((folder / "stage.json").read_text())["closing"]
    assert (closing["rows_used"], closing["left_out"]) == (7, {"empty": 1})
    assert figures["scores"]["plain"]["mean"] == 0.5
    before, after = (load_policy(p).state_dict() for p in (tiny_policy_path, folder / "checkpoint"))
    assert any(not before[name].equal(after[name]) for name in before)


def test_a_prompt_without_room_under_its_preprompt_is_left_out_and_counted(
    run, chat_server: ChatServer, tmp_path: Path
) -> None:
    """The policy's context is 256 tokens: the prompt fits, and with the preprompt of its category it does not."""
    chat_server.reply = reply
    preprompt = "Take care. " * 24
    category = {"name": "risk", "preprompt": preprompt, "sources": ["s/ris*"]}
    (tmp_path / "categories.jsonl").write_text(json.dumps(category) + "\n")
    server = {"policy.server.url": chat_server.url, "policy.server.model": "tiny"}
    folder = run(**server, too_long="skip", gate="false")
    assert [row["id"] for row in lines(folder / "answers.jsonl")] == [f"p{i}" for i in range(4, 8)]
    closing = json.loads((folder / "stage.json").read_text())["closing"]
    assert closing["left_out"]["too long a prompt"] == 4 == closing["figures"]["prompts_without_room"]


def test_thoughts_are_trained_as_they_were_drawn(tmp_path: Path) -> None:
    """Rows without them would teach a model that thinks not to; what is not kept is trained on with its own."""
    (tmp_path / "rows.jsonl").write_text("")
    rows = tmp_path / "rows.jsonl"
    config = ContextDistillationConfig(
        output=tmp_path / "out",
        policy=PolicySource(checkpoint=tmp_path),
        prompts=str(rows),
        safety="a:b",
        categories=rows,
    )
    prompts = [Prompt(f"p{i}", [{"role": "user", "content": "hi"}]) for i in range(2)]
    answers = {kind: [Sample(kind, (1,), 0.0, True, thoughts=f"{kind}!")] * 2 for kind in ("plain", "category")}
    trained, _ = context_distillation.training_rows(config, prompts, answers, [True, False])
    assert trained == [prompts[0].answered(kind, thoughts=f"{kind}!") for kind in ("category", "plain")]
    assert trained[0][-1]["content"].startswith("<think>")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gate": "false"}, ["hello!!"] * 4 + ["hello!"] * 4),
        ({"rest": "drop"}, ["hello!!"] * 2 + ["hello!"] * 2),
        ({"preprompts": "generic", "rest": "drop"}, ["hello!"] * 4),
        ({"min_gain": 0.3, "rest": "drop"}, ["hello!!"] * 2),  # sigmoid(2) - 1/2 = 0.38, sigmoid(1) - 1/2 = 0.23
    ],
)
def test_without_gate_dropping_the_rest_and_generic(run, chat_server: ChatServer, options, expected) -> None:
    chat_server.reply = reply
    folder = run(**{"policy.server.url": chat_server.url, "policy.server.model": "tiny"}, **options)
    assert [row["messages"][-1]["content"] for row in lines(folder / "distilled.jsonl")] == expected


def test_an_adapter_is_saved_alone_where_asked_for(run, chat_server: ChatServer) -> None:
    pytest.importorskip("peft")
    chat_server.reply = reply
    server = {"policy.server.url": chat_server.url, "policy.server.model": "tiny"}
    folder = run(**server, **{"gate": "false", "adapter.r": 2, "adapter.merge": "false"})
    assert is_adapter_checkpoint(folder / "checkpoint")


def test_held_out_prompts_before_and_after(
    run, chat_server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_server.reply = reply
    folder = run(
        **{"policy.server.url": chat_server.url, "policy.server.model": "tiny"},
        gate="false",
        test_prompts=tmp_path / "prompts.jsonl",
        scorer="code_of_the_distillation:Scorer",
        world=tmp_path / "world.json",
    )
    (row,) = json.loads((folder / "distillation.json").read_text())["heldout"]
    assert row == {
        "figure": "safety on unsafe prompts", "prompts": 9, "before": 0.25, "after": 0.25, "gain": 0.0, "ci": [0.0, 0.0]
    }  # fmt: skip
    assert "| safety on unsafe prompts | 9 | 0.250 | 0.250 | +0.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"generic": "You are good."}, r"generic: must contain \{adjectives\}"),
        ({"adjectives": "[]"}, "adjectives: must name at least one"),
        ({"min_gain": 1}, "min_gain: must be 0 or above and below 1, got 1"),
        ({"min_gain": 0.5, "gate": "false"}, "min_gain: is a setting of the gate"),
        ({"scorer": "a:b"}, "test_prompts, scorer, world: name all three or none"),
        ({"safety": "runs/demo/none"}, "safety: runs/demo/none does not exist"),
        ({"categories": "none.jsonl"}, "categories: none.jsonl does not exist"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(run, tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(**options)
    assert not (tmp_path / "distilled").exists()


def test_a_gate_that_keeps_nothing_says_so(run, chat_server: ChatServer) -> None:
    chat_server.reply = reply
    with pytest.raises(InputError, match="gate: no answer under a category preprompt is safer than the plain one"):
        run(
            **{"policy.server.url": chat_server.url, "policy.server.model": "tiny"},
            safety="code_of_the_distillation:hates",
        )
