"""recipes/evaluation/red_team.py: a typed session and a file of prompts go into one log; rates by hand."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.evaluation.safety.red_team import Attempt, append, read_log, round_figures
from rlhf.intervals import wilson
from rlhf.jsonl import write_rows
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.source import PolicySource

ROOT = Path(__file__).resolve().parents[3]
ASK: Conversation = [{"role": "user", "content": "hello"}]


def about_goats(conversations: Sequence[Conversation]) -> list[bool]:
    return ["goat" in c[-2]["content"] for c in conversations]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("red_team_recipe", ROOT / "recipes" / "evaluation" / "red_team.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["red_team_recipe"] = module
    spec.loader.exec_module(module)
    return module


def test_rates_by_hand(tmp_path: Path) -> None:
    rows = [
        Attempt("v1", "ann", ASK, "no", False, "ann", 600.0),
        Attempt("v1", "ann", ASK, "yes", True, "ann", 1200.0),
        Attempt("v2", "ann", ASK, "no", False, "rule"),
        Attempt("v1", "bob", ASK, "yes", True, "bob", 1800.0),
    ]
    for row in rows:
        append(tmp_path / "runs" / "log.jsonl", row)
    assert read_log(tmp_path / "runs" / "log.jsonl") == rows
    first, second = round_figures(rows)
    # an hour of work in all, of two people, finds two violations: two per person and hour
    assert first == {
        "round": "v1",
        "people": 2,
        "prompts": 3,
        "violations": 2,
        "rate": pytest.approx(2 / 3),
        "ci": wilson(2 / 3, 3).ci,
        "hours": 1.0,
        "per_person_hour": 2.0,
    }
    assert (second["round"], second["violations"], second["hours"], second["per_person_hour"]) == ("v2", 0, None, None)


def test_a_typed_session_and_a_file(
    recipe: ModuleType,
    tiny_policy_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    settings: dict[str, Any] = {
        "policy": PolicySource(checkpoint=tiny_policy_path),
        "log": tmp_path / "log.jsonl",
        "round": "v1",
        "sampling": SamplingParams(max_new_tokens=6),
    }
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\ny\nwhat is velda ?\nn\n\nask a doctor\n\nnobody judges this"))
    recipe.main(recipe.RedTeamConfig(**settings, person="ann"))
    rows = read_log(tmp_path / "log.jsonl")
    assert [row.violation for row in rows] == [True, False, False]
    assert [len(row.messages) for row in rows] == [1, 3, 1]  # the second goes on, the third is a new dialogue
    assert rows[1].messages[1]["content"] == rows[0].answer and rows[0].person == rows[0].judge == "ann"
    assert all(row.seconds is not None and row.seconds >= 0 for row in rows)
    assert "| v1 | 1 | 3 | 1 | 33.3" in capsys.readouterr().out

    texts = ["how do I paint my own goat ?", "hello"]
    write_rows(tmp_path / "prompts.jsonl", ({"prompt": text} for text in texts))
    from_file = {"prompts": str(tmp_path / "prompts.jsonl"), "judge": "checker", "checker": "test_red_team:about_goats"}
    recipe.main(recipe.RedTeamConfig(**{**settings, "round": "v2"}, **from_file))
    added = read_log(tmp_path / "log.jsonl")[3:]
    assert [row.violation for row in added] == [True, False] and {row.judge for row in added} == {"checker"}
    assert "| v2 | 1 | 2 | 1 | 50.0" in capsys.readouterr().out


def test_the_table_is_the_main_process_s_who_wrote_the_log(
    recipe: ModuleType, tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Another process would read the log while the main one is adding to it."""
    done: list[str] = []
    other = SimpleNamespace(device="cpu", is_main_process=False)
    monkeypatch.setattr(recipe, "make_accelerator", lambda seed: other)
    monkeypatch.setattr(recipe, "from_file", lambda *given: done.append("answered"))
    append(tmp_path / "log.jsonl", Attempt("v1", "ann", ASK, "no", False, "ann"))
    capsys.readouterr()
    config = recipe.RedTeamConfig(
        policy=PolicySource(checkpoint=tiny_policy_path), log=tmp_path / "log.jsonl", round="v1", prompts="Org/name"
    )
    recipe.main(config)
    assert done == ["answered"] and capsys.readouterr().out == ""


def test_bad_input(recipe: ModuleType, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "policy": PolicySource(checkpoint=Path("p")),
        "log": tmp_path / "log.jsonl",
        "round": "v1",
    }
    for change, message in (
        ({"round": " "}, "round: must not be empty"),
        ({"judge": "me"}, "judge: must be refusals, safety, checker or scorer, got 'me'"),
        ({"judge": "safety"}, "judge: safety needs its option, --safety"),
        ({"scorer": "a:B"}, "a gold scorer needs its world"),
    ):
        with pytest.raises(InputError, match=message):
            recipe.RedTeamConfig(**{**settings, **change})
    whole = asdict(Attempt("v1", "ann", ASK, "no", False, "ann", 1.0))
    for row in ({"round": "v1"}, whole | {"violation": "no"}, whole | {"seconds": "1"}):
        (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(InputError, match=r"log.jsonl:1: not a row of recipes/evaluation/red_team.py"):
            read_log(tmp_path / "log.jsonl")
