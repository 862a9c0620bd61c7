"""The HH split: nothing held out is read anywhere."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from rlhf.conversation import check_conversation
from rlhf.data.loading import load_conversations, load_preferences, load_pretraining, load_prompts
from rlhf.data.splitting import first_turn
from rlhf.errors import InputError
from rlhf.jsonl import read_rows, write_rows

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "data" / "hh_data.py"
spec = importlib.util.spec_from_file_location("hh_data", RECIPE)
hh_data = importlib.util.module_from_spec(spec)
sys.modules["hh_data"] = hh_data
spec.loader.exec_module(hh_data)

TRAINING = ["pretrain", "sft", "preferences_train", "referee_train", "prompts"]
TRAINING += ["preferences_helpfulness_train", "preferences_safety_train"]
HELD_OUT = ["preferences_test", "referee_test", "validation_prompts", "test_prompts"]
HELD_OUT += ["preferences_helpfulness_test", "preferences_safety_test"]


def dialogue(*turns):
    marks = ("Human", "Assistant")
    return "".join(f"\n\n{marks[i % 2]}: {turn}" for i, turn in enumerate(turns))


@pytest.fixture
def made(tmp_path):
    """Four small files whose first turns repeat within and between them, and what the recipe makes of them."""
    for number, name in enumerate(hh_data.FILES):
        rows = [
            {
                "chosen": dialogue(f"Question {i % 60}", f"yes {number}", f"and {i}", f"good {i}"),
                "rejected": dialogue(f"Question {i % 60}", f"yes {number}", f"and {i}", f"bad {i}"),
            }
            for i in range(120)
        ]
        rows.append({"chosen": dialogue("same", "a"), "rejected": dialogue("same", "a")})
        rows.append({"chosen": dialogue("long", "a" * 90), "rejected": dialogue("long", "b")})
        write_rows(tmp_path / f"{name}.jsonl.gz", rows)
    output = tmp_path / "data"
    config = hh_data.HHDataConfig(
        output=output,
        data=tmp_path,
        test_share=0.2,
        validation_share=0.2,
        max_characters=60,
        max_prompts=21,
        max_test_prompts=0,
    )
    hh_data.main(config)
    return output


def first_turns(folder, names):
    rows = [row for name in names for _, row in read_rows(folder / f"{name}.jsonl")]
    return {first_turn(row["messages"]) for row in rows}


def test_no_first_turn_is_read_and_held_out(made):
    train, held_out = first_turns(made, TRAINING), first_turns(made, HELD_OUT)
    assert not train & held_out and train | held_out == {f"question {i}" for i in range(60)}
    assert not first_turns(made, ["validation_prompts"]) & first_turns(made, ["test_prompts"])


def test_every_file_loads_as_what_it_is(made):
    assert load_pretraining(made / "pretrain.jsonl") == load_conversations(made / "pretrain.jsonl")
    for messages in load_conversations(made / "sft.jsonl"):
        check_conversation(messages, last="assistant")
        assert messages[-1]["content"].startswith("good")
    for domain, source in (("helpfulness", "helpful-base"), ("safety", "harmless-base")):
        for part in ("train", "test"):
            rows = load_preferences(made / f"preferences_{domain}_{part}.jsonl")
            assert {(row.domain, row.source) for row in rows} == {(domain, source)}
            assert all(row in load_preferences(made / f"preferences_{part}.jsonl") for row in rows)
    referee = load_preferences(made / "referee_train.jsonl")
    assert {row.source for row in referee} == {"helpful-online", "helpful-rejection-sampled"}


def test_prompts_are_drawn_evenly_and_tagged(made):
    prompts = load_prompts(made / "prompts.jsonl")
    domains = [prompt.domain for prompt in prompts]
    assert len(prompts) == 21 and abs(domains.count("safety") - domains.count("helpfulness")) == 1
    train = {row.id: row for row in load_preferences(made / "preferences_train.jsonl")}
    assert all(train[prompt.id].messages == prompt.messages for prompt in prompts)


def test_counts_are_those_of_the_files(made):
    split = json.loads((made / "split.json").read_text())
    for name, count in split["written"].items():
        assert count == len(list(read_rows(made / f"{name}.jsonl")))
    reasons = {"chosen, rejected: the two answers are identical": 1, "last turn above 60 characters": 1}
    assert split["left_out"] == dict.fromkeys(hh_data.FILES, reasons)
    assert sum(n for part in split["rows"].values() for n in part.values()) == 480
    closing = json.loads((made / "stage.json").read_text())["closing"]
    assert (closing["rows_used"], closing["left_out"]) == (480, dict.fromkeys(reasons, len(hh_data.FILES)))


def test_the_same_seed_writes_the_same_bytes(made, tmp_path):
    for seed, same in ((0, True), (1, False)):
        output = tmp_path / f"again{seed}"
        config = hh_data.HHDataConfig(
            output=output,
            data=tmp_path,
            test_share=0.2,
            validation_share=0.2,
            max_characters=60,
            max_prompts=21,
            seed=seed,
        )
        hh_data.main(config)
        for name in ("pretrain.jsonl", "prompts.jsonl"):
            assert ((output / name).read_bytes() == (made / name).read_bytes()) is same


def test_what_it_refuses(tmp_path):
    config = hh_data.HHDataConfig(output=tmp_path / "out", data=tmp_path)
    with pytest.raises(InputError, match=r"has no helpful-base\.jsonl\.gz; name the folder of the four HH files"):
        hh_data.main(config)
    assert not (tmp_path / "out.partial").exists()
    for change, sentence in [
        ({"test_share": 0.0}, "test_share: must lie between 0 and 1"),
        ({"test_share": 0.6, "validation_share": 0.5}, "must leave rows to train on"),
        ({"max_prompts": -1}, "max_prompts: must be 0"),
    ]:
        with pytest.raises(InputError, match=sentence):
            hh_data.HHDataConfig(output=tmp_path, data=tmp_path, **change)


def test_the_real_files(shared_data, tmp_path):
    hh_data.main(hh_data.HHDataConfig(output=tmp_path / "data", data=shared_data / "hh-rlhf", max_characters=0))
    split = json.loads((tmp_path / "data" / "split.json").read_text())
    assert sum(n for part in split["rows"].values() for n in part.values()) == 1858 + 1828 + 1129 + 2717
    train, held_out = first_turns(tmp_path / "data", TRAINING), first_turns(tmp_path / "data", HELD_OUT)
    assert not train & held_out
