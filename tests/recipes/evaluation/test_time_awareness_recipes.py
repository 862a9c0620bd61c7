"""Dated rows are made, trained on and checked for real on the tiny model; bad settings in one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.conversation import Renderer
from rlhf.data.loading import load_conversations
from rlhf.data.suspicion import suspicious_ends
from rlhf.errors import InputError
from rlhf.finetuning.config import FinetuningConfig
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.source import PolicySource
from rlhf.simulation.world import World, WorldConfig
from rlhf.training.config import OptimizerConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes/data"))
sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "recipes/evaluation"))
import evaluate_time_awareness
import sft
import time_awareness
from evaluate_time_awareness import EvaluateTimeAwarenessConfig
from time_awareness import TimeAwarenessConfig


def in_each_run(folder: str) -> PolicySource:
    return PolicySource(checkpoint=Path("{run}", folder))


FACTS = [
    {"question": "what is the river of velda ?", "timeline": {"2001": "mora", "2010": "velda"}},
    {"question": "how long ago did velda paint my goat ?", "timeline": {"1999-05": "{years}"}, "answer": "{value} ."},
]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, FACTS)))
    return tmp_path / "facts.jsonl"


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_own_facts_from_rows_to_figures(
    facts: Path, tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "run" / "rows"
    time_awareness.main(
        TimeAwarenessConfig(
            output=made, facts=facts, first=1998, last="2012-12", rows=24, heldout_facts=0, test_per_fact=3
        )
    )
    assert "24 rows about 2 facts" in capsys.readouterr().out
    assert not (made / "chronicle.jsonl").exists()
    rows = load_conversations(made / "sft.jsonl")
    assert len(rows) == 24 and all(row[-1]["role"] == "assistant" for row in rows)
    assert {row[0]["content"][:9] for row in rows if row[0]["role"] == "system"} == {"Today is "}

    optimizer = OptimizerConfig(epochs=1, batch_size=8, micro_batch_size=8)
    sft.main(
        sft.SftConfig(
            output=tmp_path / "run" / "with",
            policy=tiny_policy_path,
            data=str(made / "sft.jsonl"),
            finetuning=FinetuningConfig(optimizer=optimizer),
        )
    )
    evaluate_time_awareness.main(
        EvaluateTimeAwarenessConfig(
            output=tmp_path / "figures",
            policies={"without": PolicySource(checkpoint=tiny_policy_path), "with": in_each_run("with/checkpoint")},
            test="{run}/rows/test.jsonl",
            runs=(str(tmp_path / "run"),),
            sampling=SamplingParams(temperature=0.0, max_new_tokens=8),
        )
    )
    answers = rows_of(tmp_path / "figures" / "answers.jsonl")
    closing = json.loads((tmp_path / "figures" / "stage.json").read_text())["closing"]
    assert closing["suspicious"] == suspicious_ends(answer["finished"] for answer in answers) != []
    asked = rows_of(made / "test.jsonl")
    assert len(asked) == 2 * 3 + 2 * 3 + 2 and len(answers) == 2 * len(asked)
    assert [a["messages"] for a in answers[: len(asked)]] == [row["messages"] for row in asked]
    figures = json.loads((tmp_path / "figures" / "time_awareness.json").read_text())
    for row in figures:
        own = [a for a in answers if (a["policy"], a["group"]) == (row["policy"], row["group"])]
        own = [a for a in own if row["period"] in ("all", a["period"])]
        assert row["questions"] == len(own) and row["facts"] == len({a["messages"][-1]["content"] for a in own})
    assert "| with, no date |" in capsys.readouterr().out


def test_a_world_writes_its_facts_in_the_form_of_a_user_s(tmp_path: Path) -> None:
    World.make(WorldConfig(towns=3, dated_towns=1)).save(tmp_path / "world.json")
    small = {"rows": 50, "context": "The year is {date}.", "date_format": "%Y"}
    out = tmp_path / "world"
    time_awareness.main(TimeAwarenessConfig(output=out, world=tmp_path / "world.json", chronicle_rows=60, **small))
    assert len(rows_of(out / "facts.jsonl")) == 9 and len(rows_of(out / "chronicle.jsonl")) == 60
    again = tmp_path / "again"
    time_awareness.main(TimeAwarenessConfig(output=again, facts=out / "facts.jsonl", **small))
    for name in ("sft.jsonl", "test.jsonl"):
        assert (again / name).read_text() == (out / name).read_text()


def test_what_is_trained_is_the_answer_alone(facts: Path, tmp_path: Path, tiny_tokenizer: Any) -> None:
    time_awareness.main(
        TimeAwarenessConfig(output=tmp_path / "out", facts=facts, rows=5, heldout_facts=0, undated_share=0)
    )
    for row in load_conversations(tmp_path / "out" / "sft.jsonl"):
        rendered = Renderer(tiny_tokenizer).dialogue(row)
        trained = [i for i, on in zip(rendered.input_ids, rendered.loss_mask, strict=True) if on]
        assert tiny_tokenizer.decode(trained, skip_special_tokens=True).strip() == row[-1]["content"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"facts": None}, "facts, world: name one of them"),
        ({"first": "then"}, "first: 'then' is no date; write 2009"),
        ({"first": "2001", "last": "2001"}, "first, last: first must come before last"),
        ({"context": "Now."}, "context: must contain {date}, got 'Now.'"),
        ({"date_format": "%d %B"}, "date_format: '%d %B' does not tell the year"),
        ({"rows": 0}, "rows: must be at least 1, got 0"),
        ({"heldout_years": 1.0}, "heldout_years: must be 0 or above and below 1, got 1.0"),
    ],
)
def test_bad_settings_are_answered_in_one_sentence(
    facts: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as error:
        time_awareness.main(TimeAwarenessConfig(**{"output": tmp_path / "out", "facts": facts, **options}))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_test_file_of_another_kind_is_named_with_its_line(tmp_path: Path, tiny_policy_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"messages": []}\n')
    config = EvaluateTimeAwarenessConfig(
        output=tmp_path / "out",
        policies={"a": PolicySource(checkpoint=tiny_policy_path)},
        test=str(tmp_path / "test.jsonl"),
    )
    with pytest.raises(InputError, match=r"test.jsonl:1: group: is missing; recipes/data/time_awareness.py writes"):
        evaluate_time_awareness.main(config)
    with pytest.raises(InputError, match="policies: must name at least one"):
        EvaluateTimeAwarenessConfig(output=tmp_path / "out", policies={}, test="test.jsonl")
    for policy, runs in (("sft", ("a", "b")), ("{run}/sft", ("a", "a"))):
        with pytest.raises(InputError, match="runs: the same answers would count 2 times"):
            EvaluateTimeAwarenessConfig(
                output=tmp_path / "out",
                policies={"sft": PolicySource(checkpoint=Path(policy))},
                test="test.jsonl",
                runs=runs,
            )
    EvaluateTimeAwarenessConfig(
        output=tmp_path / "out", policies={"sft": in_each_run("sft")}, test="test.jsonl", runs=("a", "b")
    )
