"""Consistency of two policies for real on the tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rlhf.configuration import parse_config
from rlhf.data.suspicion import suspicious_ends
from rlhf.errors import InputError
from rlhf.report.pages.consistency import everyday_table

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes/evaluation"))
import evaluate_consistency
from evaluate_consistency import EvaluateConsistencyConfig

SCORER = """
from types import SimpleNamespace

class Scorer:
    def __init__(self, world):
        pass

    def judge(self, conversation):
        helpful = len(conversation[-1]["content"]) / 1000
        return SimpleNamespace(helpfulness=helpful, safety=1.0, violation=False, false_refusal=False, kind="ordinary")
"""


@pytest.fixture
def run(tiny_policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the recipe on two runs; returns its folder."""
    (tmp_path / "scorer_of_the_consistency.py").write_text(SCORER)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy").symlink_to(tiny_policy_path)
        chats = [[{"role": r, "content": f"what is {name} {t} ?"} for t in range(5) for r in ("user", "assistant")]] * 2
        (tmp_path / name / "chats.jsonl").write_text("".join(json.dumps({"messages": c}) + "\n" for c in chats))
        prompt = {"id": "p", "messages": chats[0][:1], "domain": "safety"}
        (tmp_path / name / "prompts.jsonl").write_text(json.dumps(prompt) + "\n")
        (tmp_path / name / "world.json").write_text("{}")
    for name, pattern in (("seen", "."), ("new", "^never$")):
        row = {"kind": "figure", "value": name, "pattern": pattern}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")

    def start(**options: object) -> Path:
        given = {
            "output": tmp_path / "out",
            "policies": json.dumps({"old": "{run}/policy", "new": "{run}/policy"}),
            "runs": json.dumps([str(tmp_path / "a"), str(tmp_path / "b")]),
            "dialogues": "{run}/chats.jsonl",
            "instructions": tmp_path / "seen.jsonl",
            "unseen_instructions": tmp_path / "new.jsonl",
            "turns": "[1, 2, 4]",
            "num_dialogues": 3,
            "sampling.max_new_tokens": 30,
            "attention_turns": 1,
            "everyday_prompts": "{run}/prompts.jsonl",
            "scorer": "scorer_of_the_consistency:Scorer",
            "world": "{run}/world.json",
            **options,
        }
        arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        evaluate_consistency.main(parse_config(EvaluateConsistencyConfig, arguments))
        return tmp_path / "out"

    return start


def test_figures_pictures_and_trials(run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run()
    figures = json.loads((folder / "consistency.json").read_text())
    trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert len(trials) == 2 * 2 * 2 * 3
    closing = json.loads((folder / "stage.json").read_text())["closing"]
    everyday = [json.loads(line) for line in (folder / "everyday.jsonl").read_text().splitlines()]
    ended = [trial["finished"] for trial in trials if trial["obeyed"]] + [row["finished"] for row in everyday]
    assert closing["suspicious"] == suspicious_ends(ended) != []
    rows = {(r["policy"], r["group"], r["turn"]): r for r in figures["consistency"]}
    assert rows["old", "trained", 1]["dialogues"] == 6 and set(rows["old", "trained", 1]["by_run"]) == {
        str(Path(t["run"])) for t in trials
    }
    for (policy, group, turn), row in rows.items():
        own = [t for t in trials if (t["policy"], t["group"]) == (policy, group) and len(t["obeyed"]) >= turn]
        assert row["dialogues"] == len(own)
        if own:
            assert row["share"] == pytest.approx(sum(t["obeyed"][turn - 1] for t in own) / len(own))
    spoken = [bool(m["content"]) for t in trials if t["group"] == "trained" for m in t["messages"][1::2]]
    obeyed = [o for t in trials if t["group"] == "trained" for o in t["obeyed"]]
    assert obeyed == spoken and not any(o for t in trials if t["group"] == "unseen" for o in t["obeyed"])
    by_kind = {(r["policy"], r["group"], r["turn"]): r for r in figures["by_kind"]}
    assert {group for _, group, _ in by_kind} == {"trained: figure", "unseen: figure"}
    assert by_kind["old", "trained: figure", 1]["share"] == rows["old", "trained", 1]["share"]
    assert [r["gain"] for r in figures["everyday"]] == [None, None, 0.0, 0.0], "the same policy, the same draws"
    attention = figures["attention_to_instruction"]
    assert attention["old"] == attention["new"] and 0 < attention["old"][0] <= 1
    for picture in ("consistency.svg", "attention.svg"):
        assert "<svg" in (folder / picture).read_text()
    printed = capsys.readouterr().out
    assert "| old, trained |" in printed and "| attention to the instruction |" in printed


def test_a_context_that_holds_no_dialogue_leaves_no_figure_and_no_picture(run) -> None:
    nothing = dict.fromkeys(("everyday_prompts", "scorer", "world"), "null")
    folder = run(**{"sampling.max_new_tokens": 100_000, **nothing})
    figures = json.loads((folder / "consistency.json").read_text())
    assert {(r["share"], r["dialogues"]) for r in figures["consistency"]} == {(None, 0)}
    assert figures["attention_to_instruction"] == {} and not (folder / "attention.svg").exists()


def test_a_figure_of_no_prompt_is_a_dash() -> None:
    row = {"policy": "old", "figure": "safety", "mean": None, "ci": None, "gain": None, "gain_ci": None}
    assert everyday_table([row]).splitlines()[-1] == "| old | safety | – |  |"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"turns": "[0]"}, "turns: must be 1 or above, got 0"),
        ({"policies": "{}"}, "policies: must name at least one"),
        ({"world": "null"}, "everyday_prompts, scorer, world: name all three or none"),
        ({"policies": '{"x": "{run}/none"}'}, r"policies.x.0: .*none does not exist"),
        ({"checker": "judge"}, "checker: the judge is a server; name it"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(run, tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(**options)
    assert not (tmp_path / "out").exists()
