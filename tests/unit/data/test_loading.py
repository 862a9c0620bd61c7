"""Every format and every container, read into the row types; the real files as they are."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections import Counter

import pytest

from rlhf.data.formats import parse_hh
from rlhf.data.loading import load_conversations, load_preferences, load_pretraining, load_prompts, load_texts
from rlhf.data.rows import Preference, Prompt
from rlhf.errors import InputError
from rlhf.jsonl import read_rows, write_rows

HELLO = {"role": "user", "content": "hello ?"}
SYSTEM = {"role": "system", "content": "be kind"}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def jsonl(tmp_path):
    def write(*rows, name="rows.jsonl"):
        write_rows(tmp_path / name, rows)
        return tmp_path / name

    return write


OURS = {
    "id": "x1",
    "messages": [HELLO],
    "chosen": "hi",
    "rejected": "no",
    "strength": "slightly",
    "chosen_safe": True,
    "rejected_safe": False,
    "domain": "safety",
    "source": "me",
}
PREFERENCE_FORMATS = {
    "ours": OURS,
    "hh": {
        "chosen": "\n\nHuman: hello ?\n\nAssistant: hi",
        "rejected": "\n\nHuman: hello ?\n\nAssistant: no",
    },
    "trl plain": {"prompt": "hello ?", "chosen": "hi", "rejected": "no"},
    "trl plain with an HH prompt": {"prompt": "\n\nHuman: hello ?\n\nAssistant:", "chosen": "hi", "rejected": "no"},
    "trl conversational": {"prompt": [HELLO], "chosen": [said("hi")], "rejected": [said("no")]},
    "trl implicit prompt": {"chosen": [HELLO, said("hi")], "rejected": [HELLO, said("no")]},
    "prompt text beside whole dialogues": {
        "prompt": "hello ?",
        "chosen": [HELLO, said("hi")],
        "rejected": [HELLO, said("no")],
    },
}


@pytest.mark.parametrize("row", PREFERENCE_FORMATS.values(), ids=PREFERENCE_FORMATS)
def test_preferences_of_each_format(jsonl, row):
    (read,) = load_preferences(jsonl(row))
    assert (read.messages, read.chosen, read.rejected) == ([HELLO], "hi", "no")
    if row is OURS:
        assert read.to_dict() == OURS
    else:
        assert (read.id, read.source, read.domain, read.strength) == ("rows:1", "rows", "helpfulness", None)


def test_domain_replaces_the_tag(jsonl):
    path = jsonl({**OURS, "domain": "helpfulness"})
    assert load_preferences(path, domain="safety")[0].domain == "safety"
    assert load_prompts(jsonl({"prompt": "a"}, name="p.jsonl"), domain="safety")[0].domain == "safety"


def test_system_messages_and_several_turns(jsonl):
    before = [SYSTEM, HELLO, said("yes"), {"role": "user", "content": "more"}]
    path = jsonl({"chosen": [*before, said("a")], "rejected": [*before, said("b")]})
    assert load_preferences(path)[0].messages == before


def test_hh_turns_are_stripped_and_doubled_marks_joined():
    text = "\n\nHuman: a\nb \n\nAssistant: c\n\nAssistant: d\n\nHuman: e\n\nAssistant:"
    assert [(m["role"], m["content"]) for m in parse_hh(text)] == [
        ("user", "a\nb"),
        ("assistant", "c\n\nd"),
        ("user", "e"),
        ("assistant", ""),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hello ?"},
        {"prompt": [HELLO]},
        {"messages": [HELLO]},
        {"text": "hello ?"},
        {"prompt": "\n\nHuman: hello ?\n\nAssistant:"},
        "hello ?",
    ],
)
def test_prompts_of_each_format(tmp_path, row):
    (tmp_path / "p.json").write_text(json.dumps([row]), encoding="utf-8")
    assert load_prompts(tmp_path / "p.json") == [Prompt("p:1", [HELLO], "helpfulness", "p")]


def test_prompts_as_lines_of_text(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\n two \n", encoding="utf-8")
    assert [(p.id, p.messages[0]["content"]) for p in load_prompts(tmp_path / "p.txt")] == [
        ("p:1", "one"),
        ("p:3", "two"),
    ]


def test_numbers_as_ids_are_kept(jsonl):
    assert [p.id for p in load_prompts(jsonl({"id": 7, "prompt": "a"}, {"id": 8, "prompt": "b"}))] == ["7", "8"]


def test_conversations_of_each_format(jsonl):
    dialogue = [HELLO, said("hi")]
    path = jsonl(
        {"messages": dialogue},
        {"prompt": "hello ?", "completion": "hi"},
        {"prompt": [HELLO], "completion": [said("hi")]},
    )
    assert load_conversations(path) == [dialogue] * 3


def test_dolly_and_alpaca_rows_and_the_best_path_of_a_tree(jsonl):
    def node(role, text, rank, *replies):
        return {"role": role, "text": text, "rank": rank, "replies": list(replies)}

    worse, best = node("assistant", "no", 1), node("assistant", "hi", 0, node("prompter", "and ?", None))
    path = jsonl(
        {"instruction": "hello ?", "context": "", "response": "hi", "category": "open_qa"},
        {"instruction": "hello ?", "context": "a text", "response": "hi"},
        {"instruction": "hello ?", "input": "a text", "output": "hi"},
        {"message_tree_id": "1", "prompt": node("prompter", "hello ?", None, worse, best)},
    )
    about = [{"role": "user", "content": "a text\n\nhello ?"}, said("hi")]
    assert load_conversations(path) == [[HELLO, said("hi")], about, about, [HELLO, said("hi")]]
    with pytest.raises(InputError, match=r"message 2 \(assistant\) must have a non-empty text"):
        load_conversations(jsonl({"instruction": "hello ?", "response": ""}))


def test_real_dolly_and_open_assistant_rows_are_read(shared_data):
    assert len(load_conversations(shared_data / "dolly/dolly_387.jsonl", on_bad_row="skip")) == 387
    trees = load_conversations(shared_data / "oasst/en_100_tree.jsonl")
    assert len(trees) == 100 and max(map(len, trees)) > 2


def test_texts_and_pretraining_rows(jsonl):
    path = jsonl({"text": "once"}, {"text": "twice"})
    assert load_texts(path) == load_pretraining(path) == ["once", "twice"]
    mixed = jsonl({"text": "once"}, {"messages": [HELLO, said("hi")]}, name="m.jsonl")
    assert load_pretraining(mixed) == ["once", [HELLO, said("hi")]]


ASKED = [{"role": "user", "content": "a <|eot_id|> ?"}]


@pytest.mark.parametrize(
    ("load", "row", "marks"),
    [
        (load_conversations, {"messages": [*ASKED, said("b</s>")]}, "</s>, <|eot_id|>"),
        (load_pretraining, {"messages": [*ASKED, said("b</s>")]}, "</s>, <|eot_id|>"),
        (load_preferences, {"prompt": ASKED, "chosen": "b [/INST]", "rejected": "c <b>"}, "<|eot_id|>, [/INST]"),
        (load_prompts, {"prompt": ASKED}, "<|eot_id|>"),
        (load_texts, {"text": "a <|im_end|>"}, "<|im_end|>"),
    ],
)
def test_marks_of_chat_formats_in_rows_are_counted_by_name(jsonl, capsys, load, row, marks):
    """They were read, as text or as tokens, without a word."""
    load(jsonl(row))
    assert f"1 of 1 rows spell out marks of chat formats ({marks}), which are read as text" in capsys.readouterr().err


def test_every_container_gives_the_same_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"prompt": f'say {i}, "é"\n?', "chosen": "hi", "rejected": "no"} for i in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "r.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "r.json").write_text(json.dumps(rows), encoding="utf-8")
    with gzip.open(tmp_path / "r.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(lines)
    with (tmp_path / "r.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "chosen", "rejected", "strength"])
        writer.writeheader()
        writer.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    expected = [(row["prompt"].strip(), "hi") for row in rows]
    for name in ("r.jsonl", "r.json", "r.jsonl.gz", "r.csv", "r.parquet"):
        read = load_preferences(tmp_path / name)
        assert [(p.messages[0]["content"], p.chosen) for p in read] == expected, name
        assert read[0].source == "r" and read[0].strength is None
    assert [p.id for p in load_preferences(tmp_path / "r.parquet")] == ["r:1", "r:2", "r:3"]


def test_written_rows_come_back(tmp_path):
    rows = [{"a": "é\u2028"}, {"a": 2}]
    for name in ("x/r.jsonl", "r.jsonl.gz"):
        assert write_rows(tmp_path / name, iter(rows)) == 2
        assert list(read_rows(tmp_path / name)) == [(1, rows[0]), (2, rows[1])]
    first = (tmp_path / "r.jsonl.gz").read_bytes()
    write_rows(tmp_path / "r.jsonl.gz", rows)
    assert (tmp_path / "r.jsonl.gz").read_bytes() == first


def test_local_files_need_no_datasets_package(jsonl, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(load_preferences(jsonl(OURS))) == 1


def test_hub_names_go_through_datasets(monkeypatch):
    import datasets

    calls = []

    def load(path, name=None, data_dir=None, revision=None, split=None):
        calls.append((path, name, data_dir, revision, split))
        return datasets.Dataset.from_list([PREFERENCE_FORMATS["hh"]])

    def configurations(path, revision=None):
        return ["axis", "comparisons"] if path.startswith("openai") and revision is None else ["default"]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", configurations)
    assert load_preferences("org/name")[0] == Preference("name:1", [HELLO], "hi", "no", source="name")
    for source, call in [
        ("org/name", ("org/name", None, None, None, "train")),
        ("org/name:test[:5]", ("org/name", None, None, None, "test[:5]")),
        ("Anthropic/hh-rlhf/helpful-base:train", ("Anthropic/hh-rlhf", None, "helpful-base", None, "train")),
        ("openai/x/comparisons", ("openai/x", "comparisons", None, None, "train")),
        ("openai/x/y@refs/convert/parquet:test", ("openai/x", None, "y", "refs/convert/parquet", "test")),
        ("org/name@v1.0", ("org/name", None, None, "v1.0", "train")),
    ]:
        load_preferences(source)
        assert calls[-1] == call


def test_a_local_folder_of_datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mine"
    write_rows(folder / "train.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    assert [p.id for p in load_prompts(folder)] == ["mine:1", "mine:2"]


def test_a_folder_that_datasets_cannot_read_is_one_sentence_and_no_traceback(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "ledger.jsonl").write_text('3\n"x"\n{"event": 1}\n[]\n')
    with pytest.raises(InputError, match="rows: `datasets` cannot load it"):
        load_preferences(tmp_path / "rows")
    assert not caplog.records


def test_a_configuration_of_a_real_data_set(tmp_path, monkeypatch):
    """Through `datasets` itself: its name among the set's configurations is one, any other name a folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    for file, prompt in [("a/train.jsonl", "of a"), ("b/validation.jsonl", "of b")]:
        write_rows(tmp_path / "org" / "set" / file, [{"prompt": prompt}])
    configurations = [
        f"- {{config_name: {n}, data_files: {f}/*.jsonl}}" for n, f in (("comparisons", "b"), ("axis", "a"))
    ]
    (tmp_path / "org" / "set" / "README.md").write_text("\n".join(["---", "configs:", *configurations, "---", ""]))
    texts = [load_prompts(f"org/set/{part}")[0].messages[0]["content"] for part in ("comparisons", "axis", "a")]
    assert texts == ["of b", "of a", "of a"]


HH = {  # rows, usable ones, reasons of the others
    "helpful-base": (1862, 1858, {"identical": 1, "empty": 3}),
    "harmless-base": (1832, 1828, {"empty": 4}),
    "helpful-online": (1137, 1129, {"identical": 2, "empty": 4, "part": 2}),
    "helpful-rejection-sampled": (2749, 2717, {"identical": 32}),
}


@pytest.mark.parametrize("name", HH)
def test_real_hh_files(shared_data, name, capsys):
    total, usable, bad = HH[name]
    skipped = Counter()
    rows = load_preferences(shared_data / "hh-rlhf" / f"{name}.jsonl.gz", on_bad_row="skip", skipped=skipped)
    kinds = Counter()
    for reason, count in skipped.items():
        kinds["identical" if "identical" in reason else "empty" if "non-empty" in reason else "part"] += count
    assert (len(rows), len(rows) + skipped.total(), dict(kinds)) == (usable, total, bad)
    assert f"skipped {total - usable} of {total} rows" in capsys.readouterr().err
    assert all(row.messages[-1]["role"] == "user" and row.chosen != row.rejected for row in rows)


def test_real_hh_row(shared_data):
    first = load_preferences(shared_data / "hh-rlhf" / "helpful-base.jsonl.gz", on_bad_row="skip")[0]
    question = "Do you know why turkeys became the official food of thanksgiving?"
    assert first.messages == [{"role": "user", "content": question}]
    assert first.chosen.startswith("To be honest, I don’t know anything") and first.id == "helpful-base:1"


def test_real_prompt_lists(shared_data):
    assert len(load_prompts(shared_data / "xstest" / "prompts.csv", domain="safety")) == 250
