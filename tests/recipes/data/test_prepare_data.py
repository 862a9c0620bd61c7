"""The split of a user's own files, by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.splitting import first_turn
from rlhf.jsonl import read_rows

ROOT = Path(__file__).resolve().parents[3]


def prepare(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [part for name, value in options.items() for part in (f"--{name}", json.dumps(value).strip('"'))]
    command = [sys.executable, "recipes/data/prepare_data.py", "--output", str(folder), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


def turns(path: Path) -> set[str]:
    return {first_turn(row["messages"]) for row in rows(path)}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Eighty pairs a domain over forty first turns; sixty prompts, half of which begin like a pair."""

    def write(name: str, content: list[dict[str, Any]]) -> str:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return str(path)

    pairs = [{"prompt": f"question {i % 40}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(80)]
    return {
        "helpful": write("helpful", pairs),
        "harmless": write("harmless", pairs),
        "prompts": write("prompts", [{"prompt": f"Question  {i}"} for i in range(10, 70)]),
        "more": write("more", [{"prompt": f"more {i}"} for i in range(20)]),
        "test": write("test", [{"prompt": f"question {i}"} for i in range(5)]),
    }


def test_nothing_held_out_is_trained_on(files: dict[str, str], tmp_path: Path) -> None:
    options = {"helpfulness_preferences": [files["helpful"]], "safety_preferences": [files["harmless"]]}
    done = prepare(tmp_path / "out", prompts=[files["prompts"]], versions=["v1", "v2"], rounds="share", **options)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    trained = [turns(out / f"{name}.jsonl") for name in ("prompts_v1", "prompts_v2", "preferences_train")]
    held_out = [turns(out / f"{n}.jsonl") for n in ("validation_prompts", "test_prompts", "preferences_test")]
    assert all(a.isdisjoint(b) for a in trained for b in held_out)
    assert trained[0].isdisjoint(trained[1]) and len(trained[0] | trained[1]) > 30
    assert held_out[0].isdisjoint(held_out[1])
    domains = [row["domain"] for row in rows(out / "preferences_train.jsonl")]
    assert domains.count("helpfulness") == domains.count("safety") == len(domains) / 2
    split = json.loads((out / "split.json").read_text())
    assert split["written"]["preferences_train"] == len(domains)


def test_files_held_out_by_the_user_stay_whole(files: dict[str, str], tmp_path: Path) -> None:
    done = prepare(tmp_path / "out", prompts=[files["prompts"]], test_prompts=[files["test"]])
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "out" / "test_prompts.jsonl")) == 5
    pairs = {"helpfulness_preferences": [files["helpful"]], "test_preferences": [files["harmless"]]}
    none_left = prepare(tmp_path / "none", prompts=[files["prompts"]], **pairs)
    assert none_left.returncode == 2 and "preferences_train; give more rows" in none_left.stderr
    assert not (tmp_path / "none").exists()


def test_without_prompts_the_preferences_own_are_taken(files: dict[str, str], tmp_path: Path) -> None:
    done = prepare(tmp_path / "out", helpfulness_preferences=[files["helpful"]])
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out" / "split.json").read_text())["written"]
    assert written["prompts_v1"] + written["validation_prompts"] + written["test_prompts"] == 40


def test_a_file_a_version(files: dict[str, str], tmp_path: Path) -> None:
    both = {"prompts": [files["prompts"], files["more"]], "rounds": "files"}
    done = prepare(tmp_path / "out", versions=["v1", "v2"], **both)
    assert done.returncode == 0, done.stderr
    assert all(turn.startswith("more") for turn in turns(tmp_path / "out" / "prompts_v2.jsonl"))
    refused = prepare(tmp_path / "no", versions=["v1"], **both)
    assert refused.returncode == 2 and "rounds: files needs one file of prompts a version" in refused.stderr


def test_a_system_message_stands_before_every_dialogue_that_has_none(tmp_path: Path) -> None:
    questions = [{"messages": [{"role": "user", "content": f"question {i}"}]} for i in range(60)]
    own = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "one of its own"}]
    pairs = [{"prompt": f"pair {i}", "chosen": "yes", "rejected": "no"} for i in range(60)]
    for name, content in {"prompts": [*questions, {"messages": own}], "pairs": pairs}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    given = {"prompts": [str(tmp_path / "prompts.jsonl")], "helpfulness_preferences": [str(tmp_path / "pairs.jsonl")]}
    assert prepare(tmp_path / "out", **given, system="Be short.").returncode == 0
    seen = Counter(row["messages"][0]["content"] for file in (tmp_path / "out").glob("*.jsonl") for row in rows(file))
    assert seen == {"Be short.": 120, "Be kind.": 1}


def test_no_more_pairs_than_asked_for(files: dict[str, str], tmp_path: Path) -> None:
    given = {"helpfulness_preferences": [files["helpful"]], "safety_preferences": [files["harmless"]]}
    assert prepare(tmp_path / "all", **given).returncode == 0
    assert prepare(tmp_path / "few", **given, max_preferences=20, max_test_preferences=3).returncode == 0
    for part, most in (("train", 20), ("test", 3)):
        every, few = (rows(tmp_path / run / f"preferences_{part}.jsonl") for run in ("all", "few"))
        assert Counter(row["domain"] for row in few) == {"helpfulness": most, "safety": most}
        assert few == [row for row in every if row in few], "in their order"
    counted = json.loads((tmp_path / "few" / "split.json").read_text())["left_out"]["a pair more than asked for"]
    assert counted == 160 - 2 * 20 - 2 * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "prompts: name files of prompts"),
        ({"prompts": ["nowhere.jsonl"]}, "nowhere.jsonl does not exist"),
        ({"prompts": ["x.jsonl"], "test_share": 1.5}, "test_share: must lie between 0 and 1"),
        ({"prompts": ["x.jsonl"], "system": " "}, "system: must be a non-empty text"),
        ({"prompts": ["x.jsonl"], "max_prompts": -1}, "max_prompts: must be 0"),
    ],
)
def test_bad_settings(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    done = prepare(tmp_path / "out", **options)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_a_referee_learns_from_nothing_that_a_reward_model_has_seen(files: dict[str, str], tmp_path: Path) -> None:
    own = [{"prompt": f"question {i % 40}", "chosen": f"fine {i}", "rejected": f"bad {i}"} for i in range(80)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    given = {"helpfulness_preferences": [files["helpful"]], "referee_preferences": [files["harmless"]]}
    refused = prepare(tmp_path / "refused", **given)
    assert refused.returncode == 2 and "nothing is left for referee_train;" in refused.stderr
    given["referee_preferences"].append(str(tmp_path / "own.jsonl"))
    assert prepare(tmp_path / "out", **given).returncode == 0
    out = tmp_path / "out"
    assert {row["chosen"].split()[0] for row in rows(out / "referee_train.jsonl")} == {"fine"}
    assert turns(out / "referee_train.jsonl").isdisjoint(turns(out / "test_prompts.jsonl"))


def test_a_referee_learns_from_what_the_limit_leaves_of_the_same_file(files: dict[str, str], tmp_path: Path) -> None:
    given = {"helpfulness_preferences": [files["helpful"]], "referee_preferences": [files["helpful"]]}
    limits = {"max_preferences": 30, "max_referee_preferences": 20}
    assert prepare(tmp_path / "out", **given, **limits).returncode == 0
    parts = ("preferences_train", "referee_train", "preferences_test", "referee_test")
    chosen = {name: {row["chosen"] for row in rows(tmp_path / "out" / f"{name}.jsonl")} for name in parts}
    assert [len(chosen[name]) for name in parts[:2]] == [30, 20]
    assert chosen["referee_train"].isdisjoint(chosen["preferences_train"] | chosen["referee_test"])
    assert chosen["referee_test"] == chosen["preferences_test"], "both are measured on the same held-out pairs"


def test_each_row_of_a_file_is_counted_once(files: dict[str, str], tmp_path: Path) -> None:
    """Before, a pair was counted with its prompt, and again where the referee has the same file."""
    given = {"helpfulness_preferences": [files["helpful"]], "max_preferences": 30, "max_test_preferences": 5}
    referee = {"referee_preferences": [files["helpful"]], "max_referee_preferences": 20}
    done = prepare(tmp_path / "out", **given, **referee)
    assert "rows        55 used; left out: 25 a pair more than asked for\n" in done.stderr
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    assert split["rows_used"] == 30 + 20 + 5 and split["left_out"] == {"a pair more than asked for": 25}
    assert split["prompts_left_out"] == {"the same prompt again": 40}
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "Question 1", "chosen": "yes", "rejected": "no"}) + "\n")
    held_out = {"test_prompts": [files["test"]], "validation_prompts": [files["more"]]}
    done = prepare(
        tmp_path / "held",
        **given,
        **held_out,
        prompts=[files["prompts"]],
        test_preferences=[str(tmp_path / "own.jsonl")],
    )
    split = json.loads((tmp_path / "held" / "split.json").read_text())
    assert split["rows_used"] == 60 + 5 + 20 + 1 + 30, done.stderr
    assert split["left_out"] == {"begins like a row that is held out": 10, "a pair more than asked for": 40}
