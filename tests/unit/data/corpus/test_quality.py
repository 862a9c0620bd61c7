"""The quality gate: what each check must keep and must drop, alone and on real rows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from rlhf.data.corpus.duplicates import (
    _FACTORS,
    _OFFSETS,
    _PRIME,
    Signatures,
    exact_key,
    near_duplicates,
    signature,
)
from rlhf.data.corpus.instructions import count_units, instructions_in
from rlhf.data.corpus.quality import check_rows, passing_rows, verdict_text
from rlhf.data.loading import load_conversations
from rlhf.errors import InputError
from rlhf.jsonl import read_rows, write_rows

# Instructions


@pytest.mark.parametrize(
    ("request_text", "good", "bad"),
    [
        ("Describe it in at most 5 words.", "It is a red car", "It is a very red car"),
        ("Describe it in less than 5 words.", "a red car", "It is a red car"),
        ("Use no more than 5 words.", "It is a red car", "It is a very red car"),
        ("Describe it in 20 words.", "word " * 22, "word " * 23),
        ("Use at least three words.", "one two three", "one two"),
        ("Write 300+ words about tea.", "tea " * 300, "tea " * 299),
        ("Answer with 3 words or less.", "a b c", "a b c d"),
        ("Summarize it in one sentence.", "Dr. Who met the U.S. team vs. them.", "Is it? No. It is not."),
        ("Write exactly two paragraphs.", "one\n\ntwo", "one"),
        ("Give exactly 2 bullet points.", "Here:\n* a\n* b", "* a\n* b\n* c"),
        ("Tell me, without using commas, what it is.", "It is red and big", "It is red, and big"),
        ("Don’t use any commas.", "red", "red,"),
        ("Reply in JSON.", '```json\n{"a": 1}\n```', "{a: 1}"),
        ("Write the poem in all caps.", "A ROSE IS RED, 1", "A rose"),
        ("Your response should be in all lowercase.", "a rose", "A rose"),
        ("Wrap your entire response in double quotation marks.", '"so"', "so"),
        ("Give a one-word answer.", "Paris.", "It is Paris."),
        ("Answer yes or no: is it red?", "Yes, it is.", "It is."),
        ('Be sure to include the word "river".', "A River runs", "A lake"),
        ('Do not use the word "river".', "A lake; rivers", "The river!"),
        ("Don't mention the word 'river'.", "A lake", "a river"),
    ],
)
def test_instructions_that_are_followed_and_not(request_text, good, bad):
    (instruction,) = instructions_in(request_text)
    assert instruction.followed(good) and not instruction.followed(bad)


@pytest.mark.parametrize(
    "request_text",
    [
        "What is the meaning of the word 'river'?",
        "Each line should contain exactly one sentence.",
        "How many words are there in English?",
        "I learned about it in two paragraphs of text in lower case.",
        "The company, styled in all lowercase, was founded in 1998.",
        "Use at least 4 words in capital letters.",
        "Why do people use commas?",
        "What is JSON?",
        'Mention the word "tea" at least 5 times.',
    ],
)
def test_what_is_no_instruction(request_text):
    assert instructions_in(request_text) == []


def test_units_of_an_answer():
    answer = "First line. It's 3.5 m, e.g. here!\n\n- one\n2) two\n\nEnd"
    assert {u: count_units(answer, u) for u in ("words", "sentences", "paragraphs", "bullet points")} == {
        "words": 13,  # 3.5 and e.g. are two each, as in IFEval
        "sentences": 3,
        "paragraphs": 3,
        "bullet points": 2,
    }


IFEVAL = {
    "length_constraints:number_words": "words",
    "length_constraints:number_sentences": "sentences",
    "length_constraints:number_paragraphs": "paragraphs",
    "detectable_format:number_bullet_lists": "bullet points",
    "punctuation:no_comma": "commas",
    "detectable_format:json_format": "JSON",
    "change_case:english_capital": "capitals",
    "change_case:english_lowercase": "lower case",
    "keywords:forbidden_words": "left-out words",
    "keywords:existence": "words to use",
    "startend:quotation": "quotation marks",
}


def test_instructions_found_in_ifeval_s_prompts(shared_data):
    """Of the kinds that both know, two thirds are found, and what is found is asked.

    Five are found that IFEval labels otherwise: four say "N paragraphs" with a rule for one of them, one "10 words".
    """
    found = asked = beyond = 0
    for _, row in read_rows(shared_data / "ifeval" / "input_data_270.jsonl"):
        labels = {IFEVAL[name] for name in row["instruction_id_list"] if name in IFEVAL}
        kinds = {instruction.kind for instruction in instructions_in(row["prompt"])}
        asked, found, beyond = asked + len(labels), found + len(labels & kinds), beyond + len(kinds - labels)
    print(f"IFEval: {found} of {asked} instructions found, {beyond} beyond its labels")
    assert found >= 2 / 3 * asked and beyond <= 5


# Duplicates


def test_an_exact_key_knows_only_words():
    assert exact_key("Hello,  World!") == exact_key("hello world")
    assert exact_key("hello world") != exact_key("world hello")


def test_signatures_estimate_the_jaccard_similarity():
    draw = random.Random(0)
    words = [f"w{draw.randrange(500)}" for _ in range(300)]
    for changed in (0, 5, 30, 100):
        other = [f"x{i}" if i < changed else word for i, word in enumerate(words)]
        one, two = ({tuple(ws[i : i + 3]) for i in range(298)} for ws in (words, other))
        estimate = float((signature(" ".join(words)) == signature(" ".join(other))).mean())
        assert estimate == pytest.approx(len(one & two) / len(one | two), abs=0.15)


@pytest.mark.parametrize("words", [0, 1, 2, 3, 300, 10_000])
def test_a_signature_is_the_least_of_each_hash(words):
    """By the remainder itself, over all shingles at once."""
    text = " ".join(str(i * i % 7919) for i in range(words))
    told = text.split()
    shingles = {" ".join(told[i : i + 3]) for i in range(max(1, words - 2))}
    least = [
        min((int(a) * (zlib.crc32(s.encode()) % int(_PRIME)) + int(b)) % int(_PRIME) for s in shingles)
        for a, b in zip(_FACTORS[::10], _OFFSETS[::10], strict=True)
    ]
    assert signature(text)[::10].tolist() == least


def near(*columns, threshold=0.8):
    matrices = []
    for column in columns:
        signatures = Signatures()
        for text in column:
            signatures.add(text)
        matrices.append(signatures.matrix())
    return near_duplicates(*matrices, threshold=threshold)


LONG = "the quick brown fox jumps over the lazy dog and then it runs away into the deep dark forest where owls live "


def test_near_duplicates_keep_the_first():
    texts = [LONG * 2 + "a b c", "something else", LONG * 2 + "d", "something else", LONG]
    assert near(texts, threshold=0.7) == {2: 0, 3: 1, 4: 0}
    assert near(texts, ["q"] * 3 + ["another question", "q"], threshold=0.7) == {2: 0, 4: 0}
    assert near([]) == {}


def test_a_row_is_compared_with_kept_rows_only():
    """A chain a ~ b ~ c where a and c differ: b goes, c stays."""
    words = [f"w{i}" for i in range(100)]
    a, b, c = (" ".join(words[i : i + 60]) for i in (0, 8, 16))
    assert near([a, b, c], threshold=0.7) == {1: 0}
    assert near([b, a, c], threshold=0.7) == {1: 0, 2: 0}


def test_near_duplicates_are_found_like_by_brute_force():
    draw = np.random.default_rng(0)
    texts = []
    for _ in range(40):
        words = [f"w{i}" for i in draw.integers(0, 1000, 60)]
        for changed in (0, 2, 40):
            texts.append(" ".join(words[: 60 - changed] + [f"y{i}" for i in draw.integers(0, 1000, changed)]))
    all_signatures = np.stack([signature(text) for text in texts])
    alike = (all_signatures[:, None] == all_signatures[None]).mean(axis=2) >= 0.8
    kept: list[int] = []
    for number in range(len(texts)):
        if not alike[number, kept].any():
            kept.append(number)
    assert set(range(len(texts))) - set(near(texts)) == set(kept) and 40 < len(kept) < 120


# The gate


def rows():
    user = {"role": "user", "content": "Name a river in one word."}
    return [
        {"messages": [user, {"role": "assistant", "content": "Mora"}], "id": "a", "source": "s", "more": 1},
        {"messages": [user, user]},
        {"messages": [user, {"role": "assistant", "content": " "}]},
        {"messages": [user]},
        {"prompt": "Give a one-word answer: which river?", "completion": "It is the Mora."},
        {"instruction": "Who are you?", "context": "", "response": "As an AI, I can’t tell you."},
        {"instruction": "Who  are you?", "input": "", "output": "I have no name!"},
        {"instruction": "Who are you", "context": "", "response": "I have no name"},
        {"prompt": "Tell me of foxes, please do", "completion": LONG * 2},
        {"prompt": "Tell me of foxes, please do", "completion": LONG * 2 + "still"},
        {"prompt": "What jumps?", "completion": LONG * 2},
    ]


def test_each_check_drops_its_rows(tmp_path):
    write_rows(tmp_path / "rows.jsonl", rows())
    verdict = check_rows(tmp_path / "rows.jsonl")
    assert [(f.number, f.check, f.why) for f in verdict.failures if f.check != "dialogue"] == [
        (5, "instruction", "one word"),
        (6, "refusal", "i cannot tell; as an ai"),
        (8, "duplicate", "of row 7"),
        (10, "near-duplicate", "of row 9"),
    ]
    assert [f.number for f in verdict.failures if f.check == "dialogue"] == [2, 3, 4]
    assert verdict.counts() == {"dialogue": 3, "instruction": 1, "refusal": 1, "duplicate": 1, "near-duplicate": 1}
    assert (verdict.rows, verdict.passed) == (11, 4)
    assert verdict.instructions == {"words": (2, 1)}
    kept = list(passing_rows(tmp_path / "rows.jsonl", verdict))
    assert kept[0] == {"id": "a", "source": "s", "messages": rows()[0]["messages"]}
    assert [row["messages"][-1]["content"][:9] for row in kept] == ["Mora", "I have no", "the quick", "the quick"]
    text = verdict_text(verdict)
    assert "row 5: one word" in text and "passed" in text


def test_ones_own_refusals(tmp_path):
    write_rows(tmp_path / "rows.jsonl", rows()[:1])
    verdict = check_rows(tmp_path / "rows.jsonl", refuses=lambda answer: "a river" if answer == "Mora" else None)
    assert [(f.check, f.why) for f in verdict.failures] == [("refusal", "a river")]


@pytest.mark.parametrize("value", [0, 1.1])
def test_a_similarity_that_is_none(tmp_path, value):
    with pytest.raises(InputError, match="near"):
        check_rows(tmp_path / "rows.jsonl", near=value)


def test_passing_rows_read_as_the_rows_themselves_do(tmp_path):
    """SFT sees the same dialogue, whether the gate stood before it or not."""
    write_rows(tmp_path / "rows.jsonl", [{"instruction": "Do it", "context": "here", "response": "done"}])
    write_rows(tmp_path / "kept.jsonl", passing_rows(tmp_path / "rows.jsonl", check_rows(tmp_path / "rows.jsonl")))
    kept = load_conversations(tmp_path / "kept.jsonl")
    assert kept == load_conversations(tmp_path / "rows.jsonl") and len(kept) == 1


def test_the_command(tmp_path):
    write_rows(tmp_path / "rows.jsonl", rows())
    command = [sys.executable, "-m", "rlhf.cli", "quality-gate"]
    given = [str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "kept.jsonl")]
    done = subprocess.run([*command, *given], capture_output=True, text=True)
    assert done.returncode == 1 and "near-duplicate" in done.stdout, done.stderr
    assert len(load_conversations(tmp_path / "kept.jsonl")) == 4
    assert subprocess.run([*command, str(tmp_path / "kept.jsonl")], capture_output=True).returncode == 0
    for named in (given[0], f"{given[0]}#safety"):
        over_itself = subprocess.run([*command, named, "--output", given[0]], capture_output=True, text=True)
        assert over_itself.returncode == 2 and "is the file that is read" in over_itself.stderr
    assert [row for _, row in read_rows(given[0])] == rows()
    refused = subprocess.run([*command, "nowhere.jsonl"], capture_output=True, text=True)
    assert refused.returncode == 2 and "there is no such file" in refused.stderr


def leaves(node, path):
    path = [*path, {"role": {"prompter": "user"}.get(node["role"], "assistant"), "content": node["text"]}]
    if node["role"] == "assistant" and not node["replies"]:
        yield path
    for reply in node["replies"]:
        yield from leaves(reply, path)


def test_real_rows(shared_data: Path, tmp_path):
    """Dolly, OASST and Self-Instruct: most rows pass, and what fails was looked at."""
    dolly = check_rows(shared_data / "dolly" / "dolly_387.jsonl")
    assert dolly.counts() == {"dialogue": 0, "instruction": 0, "refusal": 1, "duplicate": 1, "near-duplicate": 0}

    trees = [row["prompt"] for _, row in read_rows(shared_data / "oasst" / "en_100_tree.jsonl")]
    write_rows(tmp_path / "oasst.jsonl", ({"messages": path} for tree in trees for path in leaves(tree, [])))
    oasst = check_rows(tmp_path / "oasst.jsonl")
    assert oasst.counts()["dialogue"] == oasst.counts()["instruction"] == 0 and oasst.passed > 0.95 * oasst.rows

    tasks = [json.loads(line) for line in (shared_data / "self_instruct" / "seed_tasks.jsonl").open()]
    write_rows(tmp_path / "tasks.jsonl", ({"instruction": t["instruction"], **t["instances"][0]} for t in tasks))
    assert check_rows(tmp_path / "tasks.jsonl").passed == 173  # two ask for personal information and are refused
