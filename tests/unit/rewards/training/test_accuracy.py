"""Accuracy figures: ties, strengths, length, and the rows of each domain."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.conversation import Conversation
from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.intervals import wilson
from rlhf.rewards.training.accuracy import (
    accuracy_report,
    heldout_report,
    longer_wins,
    preference_accuracy,
    suspicious_accuracy,
)
from rlhf.rewards.training.cut_off import cut_off_figures
from rlhf.rewards.training.pairs import Pair
from rlhf.rewards.training.rows import RewardRows, local_files, seen_prompts
from rlhf.rewards.training.rows import load_reward_rows as load_and_keep
from rlhf.rewards.training.table import PairTable


def row(number: int, chosen: str, rejected: str, **fields: Any) -> Preference:
    return Preference(str(number), [{"role": "user", "content": f"q{number}"}], chosen, rejected, **fields)


def table(rows: Iterable[Preference], whole: Sequence[Preference] | None = None) -> PairTable:
    return PairTable.of([Pair(one, [1], [2]) for one in rows], whole)


def load_reward_rows(*arguments: Any, **options: Any) -> RewardRows:
    return load_and_keep(*arguments, lambda part, field, rows: (table(rows), Counter()), **options)


def rows_of(pairs: PairTable) -> list[Preference]:
    return [pair.preference for pair in pairs]


def by_content(conversations: Sequence[Conversation]) -> torch.Tensor:
    return torch.tensor([float(c[-1]["content"]) for c in conversations])


def test_accuracy_overall_by_strength_and_ties() -> None:
    rows = [
        row(0, "2", "1", strength="significantly"),
        row(1, "3", "1", strength="significantly"),
        row(2, "1", "2", strength="slightly"),
        row(3, "1.0", "1.00", strength="slightly"),
        row(4, "5", "4"),
    ]
    got = preference_accuracy(by_content, rows)
    assert got["pairs"] == 5 and got["accuracy"] == pytest.approx(3.5 / 5)
    assert got["accuracy_ci"] == pytest.approx(wilson(0.7, 5).ci)
    assert list(got["accuracy_by_strength"]) == ["significantly", "slightly"]
    assert got["accuracy_by_strength"]["significantly"] == {
        "accuracy": 1.0,
        "pairs": 2,
        "ci": pytest.approx(wilson(1.0, 2).ci),
    }
    assert got["accuracy_by_strength"]["slightly"]["accuracy"] == 0.25
    assert preference_accuracy(by_content, [])["accuracy"] is None


def test_longer_wins_and_the_report() -> None:
    own = [row(0, "111", "2"), row(1, "1", "22"), row(2, "3", "4")]
    assert longer_wins(own) == 0.5 and longer_wins([]) is None
    report = accuracy_report(by_content, own, [row(3, "1", "9")], "safety")
    assert report["domain"] == "safety" and report["pairs"] == 3 and report["longer_wins"] == 0.5
    assert report["accuracy"] == pytest.approx(1 / 3) and report["cross_domain_accuracy"] == 0.0
    json.dumps(report)
    assert accuracy_report(by_content, own, [], "safety")["cross_domain_accuracy"] is None


def test_a_reward_function_that_breaks_is_named() -> None:
    with pytest.raises(InputError, match="nan_reward"):

        def nan_reward(conversations: Sequence[Conversation]) -> torch.Tensor:
            return torch.full((len(conversations),), float("nan"))

        preference_accuracy(nan_reward, [row(0, "1", "2")])


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_rows_go_to_their_domain_and_untagged_files_to_the_fields(tmp_path: Path) -> None:
    both = write(
        tmp_path / "both.jsonl",
        [row(0, "a", "b").to_dict(), row(1, "a", "b", domain="safety").to_dict(), row(2, "c", "d").to_dict()],
    )
    hh = [{"chosen": "\n\nHuman: q0\n\nAssistant: yes", "rejected": "\n\nHuman: q0\n\nAssistant: no"}]
    untagged = write(tmp_path / "hh.jsonl", hh)
    got = load_reward_rows("helpfulness", [both], [both, untagged], [untagged, both])
    own, others, test, test_other = map(rows_of, (got.own, got.other, got.test, got.test_other))
    assert [r.chosen for r in own] == ["a", "c"] and [r.chosen for r in others] == ["a", "yes"]
    assert [r.chosen for r in test] == ["yes", "a", "c"] and [r.id for r in test_other] == ["1"]
    safety = load_reward_rows("safety", [untagged], [], [])
    assert [r.domain for r in rows_of(safety.own)] == ["safety"] and not safety.other and not safety.test
    assert seen_prompts(test, own) == got.test.seen_in(got.own) == 3
    assert seen_prompts(test_other, own) == got.test_other.seen_in(got.own) == 0
    only = write(tmp_path / "only.jsonl", [row(0, "a", "b").to_dict()])
    with pytest.raises(InputError, match="no row of domain safety"):
        load_reward_rows("safety", [only], [], [])


def test_no_row_counts_as_helpfulness_and_as_safety(tmp_path: Path) -> None:
    hh = [{"chosen": "\n\nHuman: q0\n\nAssistant: yes", "rejected": "\n\nHuman: q0\n\nAssistant: no"}]
    file = str(write(tmp_path / "hh.jsonl", hh))
    with pytest.raises(InputError, match=r"hh.jsonl stands in preferences too, .*by .*#helpfulness"):
        load_reward_rows("helpfulness", [file], [file], [])
    with pytest.raises(InputError, match="would count as helpfulness and again as safety"):
        load_reward_rows("safety", [f"{file}#safety"], [f"{file}#helpfulness"], [])
    tagged = f"{file}#safety"
    got = load_reward_rows("safety", [tagged], [tagged], [tagged])
    assert [r.domain for r in rows_of(got.own) + rows_of(got.test)] == ["safety", "safety"] and not got.other
    assert got.skipped["other_preferences"][tagged] == {"of domain safety": 1}
    assert local_files(preferences=[tagged]) == {"preferences.0": Path(file)}


def test_sources_that_are_files_must_exist(tmp_path: Path) -> None:
    there = write(tmp_path / "a.jsonl", [])
    assert local_files(preferences=[str(there), "Org/name:train"]) == {"preferences.0": there}
    with pytest.raises(InputError, match=r"test_preferences: .* does not exist"):
        local_files(test_preferences=[tmp_path / "missing.jsonl"])


def test_a_file_of_rows_with_and_without_a_domain_is_refused(tmp_path: Path) -> None:
    tagged, bare = row(0, "a", "b", domain="safety").to_dict(), row(1, "c", "d").to_dict()
    del bare["domain"]
    shp = {"history": "q", "human_ref_A": "x", "human_ref_B": "y", "labels": 1, "domain": "askbaking_test"}
    for rows in ([bare, tagged], [tagged, bare], [shp, tagged]):
        mixed = write(tmp_path / "mixed.jsonl", rows)
        with pytest.raises(InputError, match=r"mixed.jsonl:2: this row (names a|has no) domain, unlike row 1"):
            load_reward_rows("helpfulness", [mixed], [], [])
    broken = write(tmp_path / "broken.jsonl", [{"text": "no preference"}, tagged])
    kept = load_reward_rows("safety", [broken], [], [], on_bad_row="skip")
    assert [r.id for r in rows_of(kept.own)] == ["0"]


def test_a_first_turn_is_seen_whatever_its_case_and_spaces() -> None:
    """The key by which `split_by_first_turn` parts rows: what it calls one turn must not be called unseen here."""
    train, test = row(0, "a", "b"), row(1, "a", "b")
    train.messages[0]["content"], test.messages[0]["content"] = "How  are you?", "how are you?"
    assert seen_prompts([test], [train]) == table([test]).seen_in(table([train])) == 1


def test_held_out_rows_in_the_other_domain_s_training_rows_are_counted() -> None:
    test = [row(0, "1", "2"), row(1, "2", "1"), row(2, "3", "1")]
    own, other = table([row(9, "5", "6")], [row(0, "5", "6")]), table([row(2, "7", "8", domain="safety")])
    cut = table([row(9, "1", "2"), row(9, "2", "1"), row(9, "3", "1")], whole=test)
    report = heldout_report(by_content, "helpfulness", RewardRows("helpfulness", own, other, cut, table([]), {}), 0.0)
    assert report["test_prompts_in_training"] == 2 and report["pairs"] == 3 and report["training_pairs"] == 1


def test_rows_of_a_folder_keep_their_domain(tmp_path: Path) -> None:
    rows = [row(0, "a", "b", domain="safety").to_dict(), row(1, "c", "d").to_dict()]
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", rows)
    got = load_reward_rows("helpfulness", [tmp_path / "set"], [tmp_path / "set"], [])
    assert [r.chosen for r in rows_of(got.own)] == ["c"] and [r.chosen for r in rows_of(got.other)] == ["a"]


def test_what_a_cut_gains_is_of_whole_long_answers() -> None:
    """By a reward that likes what does not end as a sentence does, by a half a missing word."""
    text = "One two three four five six seven eight nine ten eleven twelve."

    finished: list[bool] = []

    def likes_cut(conversations: Sequence[Conversation]) -> torch.Tensor:
        finished.extend(conversation[-1].get("finished", True) for conversation in conversations)
        return torch.tensor([0.5 * (12 - len(c[-1]["content"].split())) for c in conversations])

    rows = [row(0, text, "no"), row(1, "Short. Yes.", "no"), row(2, text + " So they", "no"), row(3, text, "no")]
    whole = likes_cut([row.conversation("chosen") for row in rows]).tolist()
    assert cut_off_figures(likes_cut, rows, whole) == {"cut_off_gain": 2.0, "cut_off_ci": [2.0, 2.0]}
    assert finished == [True] * 4 + [False] * 2, "as a sampler leaves them"
    assert cut_off_figures(likes_cut, rows[1:3], whole[1:3]) == {"cut_off_gain": None, "cut_off_ci": None}


SOUND = {
    "accuracy": 0.4,
    "accuracy_ci": (0.3, 0.5),
    "longer_wins": 0.5,
    "pairs": 10,
    "test_prompts_in_training": 0,
    "cut_off_gain": 0.2,
    "cut_off_ci": [0.0, 0.4],
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, None),
        ({"accuracy_ci": (0.3, 0.49)}, "it prefers the rejected answer: held-out accuracy 40.0%"),
        ({"accuracy": None, "accuracy_ci": None}, None),
        ({"accuracy_ci": (0.3, 0.6), "longer_wins": 0.6}, None),
        ({"accuracy_ci": (0.3, 0.59), "longer_wins": 0.6}, "counting characters does better (60.0% prefer the longer"),
        ({"accuracy_ci": (0.3, 0.59), "longer_wins": 0.4}, "counting characters does better (40.0% prefer the longer"),
        ({"longer_wins": None}, None),
        ({"cut_off_gain": None, "cut_off_ci": None}, None),
        ({"cut_off_ci": [0.01, 0.39]}, "an answer that is cut off in the middle of a sentence scores 0.20 more than"),
        ({"test_prompts_in_training": 1}, "the accuracy flatters: 1 of 10 held-out rows have a prompt"),
    ],
)
def test_an_accuracy_below_a_coin_or_a_length_counter_is_suspicious(
    change: dict[str, Any], sentence: str | None
) -> None:
    found = suspicious_accuracy(SOUND | change)
    assert len(found) == (sentence is not None) and all(line.startswith(str(sentence)) for line in found)
