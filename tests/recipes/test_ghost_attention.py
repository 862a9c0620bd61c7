"""Ghost Attention for real on the tiny model: what it trains on, dry run, the policy's own lists, bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rlhf.configuration import parse_config
from rlhf.conversation import Renderer
from rlhf.errors import InputError
from rlhf.metrics import read_metrics
from rlhf.models.checkpoint.context import Context
from rlhf.models.checkpoint.folder import is_adapter_checkpoint
from rlhf.models.policy import load_policy, load_tokenizer
from rlhf.synthesis.ghost_attention import Answered
from rlhf.synthesis.instructions import Instruction

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
import ghost_attention
from ghost_attention import GhostAttentionConfig

if TYPE_CHECKING:
    from chat_server import ChatServer


@pytest.fixture
def run(tiny_policy_path: Path, tmp_path: Path):
    """Run the stage; returns its folder."""
    dialogues = tmp_path / "dialogues.jsonl"
    rows = [
        [
            {"role": role, "content": f"what is {i} {turn} ?"}
            for turn in range(1 + i % 3)
            for role in ("user", "assistant")
        ]
        for i in range(9)
    ]
    dialogues.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    (tmp_path / "instructions.jsonl").write_text(
        '{"kind": "figure", "value": "Napoleon", "pattern": "a"}\n{"kind": "language", "value": "French"}\n'
    )

    def start(**options: object) -> Path:
        given = {
            "output": tmp_path / "ghost",
            "policy": tiny_policy_path,
            "dialogues": dialogues,
            "instructions": tmp_path / "instructions.jsonl",
            "sampling.max_new_tokens": 40,
            "finetuning.optimizer.batch_size": 4,
            "finetuning.optimizer.learning_rate": 0.01,
            **options,
        }
        arguments = [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
        ghost_attention.main(parse_config(GhostAttentionConfig, arguments))
        return tmp_path / "ghost"

    return start


def texts(body: dict, answer: str = "oui") -> tuple[int, dict]:
    """A server's reply: always the same text."""
    return 200, {"choices": [{"message": {"content": answer}, "finish_reason": "stop"}] * body.get("n", 1)}


def test_a_server_answers_under_the_instruction_in_every_turn(run, chat_server: ChatServer, tiny_policy_path) -> None:
    chat_server.reply = texts
    folder = run(**{"policy.server.url": chat_server.url, "policy.server.model": "tiny"}, sft_share=0.5)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 6, "dialogues of one turn are left out"
    for row in rows:
        told = row["instruction"]
        users = [m["content"] for m in row["messages"] if m["role"] == "user"]
        assert [u.count(told) for u in users] == [1, *[0] * (len(users) - 1)] and users[0].startswith(told)
        assert {m["content"] for m in row["messages"] if m["role"] == "assistant"} == {"oui"}
    for body in chat_server.asked:
        users = [m["content"] for m in body["messages"] if m["role"] == "user"]
        assert len({u.split(" what is ")[0] for u in users}) == 1 and all(" what is " in u for u in users)
    counts = json.loads((folder / "ghost_attention.json").read_text())
    assert counts == {"rows": 6, "left_out": {}, "turns": 2.5}
    assert read_metrics(folder / "metrics.jsonl")[-1]["loss"] > 0
    before, after = (load_policy(p).state_dict() for p in (tiny_policy_path, folder / "checkpoint"))
    assert any(not before[name].equal(after[name]) for name in before)


def test_an_adapter_is_saved_alone_where_asked_for(run, chat_server: ChatServer) -> None:
    pytest.importorskip("peft")
    chat_server.reply = texts
    server = {"policy.server.url": chat_server.url, "policy.server.model": "tiny"}
    folder = run(**server, **{"adapter.r": 2, "adapter.merge": "false"})
    assert is_adapter_checkpoint(folder / "checkpoint")


@pytest.mark.parametrize("checker", [None, "pattern", "rlhf.evaluation.instructions.checkers:obeys_patterns"])
def test_only_dialogues_that_obey_train_where_there_is_a_checker(
    run, chat_server: ChatServer, tmp_path: Path, checker: str | None
) -> None:
    """By default (None: the option is left out) the constraints' patterns decide, where all have one."""
    chat_server.reply = lambda body: texts(body, "a" if "Napoleon" in body["messages"][0]["content"] else "b")
    only = tmp_path / "napoleon.jsonl"
    only.write_text(
        '{"kind": "figure", "value": "Napoleon", "text": "Act as Al.", "short": "Napoleon.", "pattern": "a"}'
    )
    server = {"policy.server.url": chat_server.url, "policy.server.model": "tiny"}
    folder = run(**server, history="given", checker=checker, instructions=only)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert len(chat_server.asked) == 6, "one answer a dialogue"
    assert {row["instruction"] for row in rows} == {"Napoleon."}, "under the other wording the server disobeys"
    counts = json.loads((folder / "ghost_attention.json").read_text())
    assert 0 < counts["rows"] == len(rows) == 6 - counts["left_out"]["does not obey"] < 6
    for row in rows:
        answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        assert all(a.startswith("what is") for a in answers[:-1]) and answers[-1] == "a"


def test_where_nobody_obeys_the_counts_and_a_way_out_are_said(run, chat_server: ChatServer, tmp_path: Path) -> None:
    chat_server.reply = lambda body: texts(body, "b")
    only = tmp_path / "napoleon.jsonl"
    only.write_text('{"kind": "figure", "value": "Napoleon", "text": "Act as Al.", "short": "Al.", "pattern": "a"}')
    server = {"policy.server.url": chat_server.url, "policy.server.model": "tiny"}
    with pytest.raises(InputError, match=r"^dialogues: none of 6 is left to train on \(6 does not obey\); raise "):
        run(**server, history="given", instructions=only)


def test_dry_run_prints_rows_and_writes_nothing(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(dry_run=2)
    printed = capsys.readouterr().out
    assert printed.count("sampled under:") == 2 and printed.count("trained on") == 2
    assert printed.count("\x1b[33m") == 2 and printed.count("\x1b[1;32m") == 2
    assert not list(tmp_path.glob("ghost*"))


def test_the_policy_writes_the_lists(run, chat_server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    lists = {"hobbies": "1. Tennis\n2. Chess", "languages": "French", "figures": "Napoleon"}

    def reply(body):
        asked = body["messages"][-1]["content"]
        found = next((text for word, text in lists.items() if word in asked and "Write a list" in asked), "oui")
        return texts(body, found)

    chat_server.reply = reply
    run(
        **{"policy.server.url": chat_server.url, "policy.server.model": "tiny"},
        instructions=None,
        list_samples=2,
        dry_run=6,
    )
    printed = capsys.readouterr().out
    assert len([b for b in chat_server.asked if "Write a list" in b["messages"][-1]["content"]]) == 6
    assert any(f"user: {text}" in printed for text in ("You enjoy", "Hobby: ", "Speak in French.", "Act as Napoleon."))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"finetuning.train": "all"}, "finetuning.train: must be last"),
        ({"short_share": 2}, "short_share: must lie between 0 and 1, got 2"),
        ({"dry_run": -1}, "dry_run: must be 0 or above, got -1"),
        ({"checker": "pattern"}, "checker: language 'French' has no pattern"),
        ({"policy": "runs/demo/none"}, "policy: runs/demo/none does not exist; `make demo` writes it"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(run, tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(**options)
    assert not (tmp_path / "ghost").exists()


def test_dialogues_of_one_turn_alone_are_refused(run, tmp_path: Path) -> None:
    single = tmp_path / "single.jsonl"
    single.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    with pytest.raises(InputError, match=r"dialogues: no dialogue of .*single.jsonl has two turns"):
        run(dialogues=single)


def test_a_checker_reads_no_thoughts_and_the_row_has_them(tiny_policy_path: Path) -> None:
    talk = [{"role": role, "content": "hello"} for role in ("user", "assistant") * 2]
    read: list[Any] = []

    def checker(instructions: Any, dialogues: Any) -> list[bool]:
        read.extend(dialogues)
        return [True] * len(dialogues)

    renderer = Renderer(load_tokenizer(tiny_policy_path))
    answered = [Answered(talk, True, thoughts="I think")]
    kept, left_out = ghost_attention.training_rows(
        [Instruction("Act.", ())], answered, checker, renderer, Context(None)
    )
    assert not left_out and read[0][-1]["content"] == "hello"
    assert "I think" in kept[0][1][-1]["content"] and kept[0][1][:-1] == read[0][:-1]
