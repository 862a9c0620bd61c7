"""Accuracy by bins, unsafe recall, calibration and baselines: by hand, by simulation, and on real preferences."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.conversation import Conversation, Renderer
from rlhf.data.loading import load_preferences
from rlhf.data.rows import Preference
from rlhf.data.splitting import first_turn
from rlhf.errors import InputError
from rlhf.evaluation.reward_models.baselines import BagOfWords, answer_length, baseline_figures, baseline_scores
from rlhf.evaluation.reward_models.calibration import histogram, score_by_quality
from rlhf.evaluation.reward_models.pair_scores import PairScore, score_pairs
from rlhf.evaluation.reward_models.preference_figures import (
    accuracy_figures,
    length_bin,
    paired_gain,
    reward_figures,
    unsafe_recall,
)
from rlhf.intervals import wilson
from rlhf.models.policy import load_tokenizer
from rlhf.models.reward_model import RewardModel
from rlhf.rewards.scoring import RewardModelFunction
from rlhf.rewards.training.accuracy import longer_wins
from rlhf.rewards.training.reliability import reliability


def row(number: int, chosen: str, rejected: str, **fields: Any) -> Preference:
    return Preference(str(number), [{"role": "user", "content": f"q{number}"}], chosen, rejected, **fields)


class Counting:
    """Scores an answer by the number that it is, and counts its calls."""

    calls = 0

    def __call__(self, conversations: Sequence[Conversation]) -> torch.Tensor:
        self.calls += 1
        return torch.tensor([float(c[-1]["content"]) for c in conversations])


def test_each_answer_is_scored_once() -> None:
    reward = Counting()
    pairs = score_pairs(reward, [row(0, "2", "1"), row(1, "1", "3"), row(2, "1.0", "1.00")])
    assert reward.calls == 1
    assert [(p.chosen, p.rejected, p.hit) for p in pairs] == [(2, 1, 1), (1, 3, 0), (1, 1, 0.5)]
    assert pairs[1].difference == -2 and pairs[0].chosen_logit is None and score_pairs(reward, []) == []


def test_a_model_with_a_safety_head_gives_both(tiny_policy_path: Path) -> None:
    model = RewardModel.from_policy(tiny_policy_path, safety_head=True, seed=0).eval()
    reward = RewardModelFunction(model, Renderer(load_tokenizer(tiny_policy_path)), batch_tokens=64)
    rows = [row(0, "the river of velda is mora", "no"), row(1, "hello", "please ask a doctor or your own guide")]
    pairs = score_pairs(reward, rows)
    for i, which in enumerate(("chosen", "rejected")):
        conversations = [r.conversation(which) for r in rows]  # type: ignore[arg-type]
        expected = reward(conversations)
        assert [p[i] for p in pairs] == pytest.approx(expected.tolist(), abs=1e-5)
        for pair, rendered in zip(pairs, reward.renderer.dialogues(conversations), strict=True):
            ids = torch.tensor([rendered.input_ids])
            logit = model(ids, torch.ones_like(ids)).safety_logit
            assert logit is not None and pair[2 + i] == pytest.approx(logit.item(), abs=1e-5)


def test_accuracy_by_every_bin() -> None:
    rows = [
        row(0, "a" * 100, "b" * 91, strength="better", chosen_safe=True, rejected_safe=True, source="x"),
        row(1, "a" * 100, "b" * 89, strength="better", chosen_safe=True, rejected_safe=False, source="x"),
        row(2, "a", "b" * 20, strength="significantly", chosen_safe=False, rejected_safe=False, source="y"),
        row(3, "aaa", "b", chosen_safe=True),
    ]
    scores = [PairScore(1, 0), PairScore(0, 1), PairScore(1, 0), PairScore(1, 1)]
    assert [length_bin(r) for r in rows] == ["matched", "longer_chosen", "shorter_chosen", "longer_chosen"]
    got = accuracy_figures(rows, scores)
    assert got["pairs"] == 4 and got["accuracy"] == 2.5 / 4 and got["ci"] == pytest.approx(wilson(2.5 / 4, 4).ci)

    def accuracies(key: str) -> list[tuple[str, int, float]]:
        return [(name, share["pairs"], share["accuracy"]) for name, share in got[key].items()]

    assert accuracies("by_strength") == [("significantly", 1, 1.0), ("better", 2, 0.5)]
    safety = [("chosen_safe_other_unsafe", 1, 0.0), ("both_safe", 1, 1.0), ("both_unsafe", 1, 1.0)]
    assert accuracies("by_safety") == safety
    assert accuracies("by_source") == [("x", 2, 0.5), ("y", 1, 1.0)]
    assert accuracies("by_length") == [("shorter_chosen", 1, 1.0), ("matched", 1, 1.0), ("longer_chosen", 2, 0.25)]
    assert got["prefers_longer"] == {"pairs": 4, "share": 1.5 / 4}


def test_groups_are_the_domains() -> None:
    rows = [row(0, "2", "1"), row(1, "1", "2", domain="safety"), row(2, "3", "1", domain="safety")]
    got = reward_figures(rows, score_pairs(Counting(), rows), [(0.9, 0.1), (0.2, 0.1), (1.0, 0.0)])
    assert {name: (figures["pairs"], figures["accuracy"]) for name, figures in got.items()} == {
        "all": (3, pytest.approx(2 / 3)),
        "helpfulness": (1, 1.0),
        "safety": (2, 0.5),
    }
    assert [p["grade"] for p in got["helpfulness"]["calibration"]["score_by_quality"]] == [1, 7]
    assert got["all"]["unsafe_recall"] is None
    json.dumps(got)


def test_unsafe_recall_counts_answers_strictly_below_one_half() -> None:
    rows = [
        row(0, "a", "b", chosen_safe=True, rejected_safe=False),
        row(1, "a", "b", chosen_safe=False, rejected_safe=False),
        row(2, "a", "b", chosen_safe=True),
        row(3, "a", "b"),
    ]
    scores = [
        PairScore(1.0, -1.0, 3.0, 3.0),
        PairScore(0.0, -0.1, -3.0, -3.0),
        PairScore(-2.0, 5.0, 3.0, 3.0),
        PairScore(-9.0, -9.0, -9.0, -9.0),
    ]
    got = unsafe_recall(rows, scores)
    assert got is not None and (got["unsafe_answers"], got["safe_answers"]) == (3, 2)
    assert got["score"]["recall"] == pytest.approx(2 / 3) and got["score"]["safe_flagged"] == 0.5
    assert got["score"]["recall_ci"] == pytest.approx(wilson(2 / 3, 3).ci)
    assert got["safety_head"]["recall"] == pytest.approx(2 / 3) and got["safety_head"]["safe_flagged"] == 0.0
    plain = unsafe_recall(rows, [PairScore(p.chosen, p.rejected) for p in scores])
    assert plain is not None and plain["safety_head"] is None and plain["score"] == got["score"]


def test_matched_recall_flags_a_tenth_of_the_safe_answers_wherever_zero_lies() -> None:
    rows = [row(i, "a", "b", chosen_safe=True, rejected_safe=False) for i in range(20)]
    scores = [PairScore(float(i), i - 1.5) for i in range(20)]  # two safe answers below 2, and of the unsafe four
    shifted = [PairScore(pair.chosen - 50, pair.rejected - 50) for pair in scores]
    for some in (scores, shifted):
        got = unsafe_recall(rows, some)
        assert got is not None and got["score"]["matched_recall"] == 4 / 20
        assert got["score"]["matched_recall_ci"] == pytest.approx(wilson(4 / 20, 20).ci)
    unsafe = unsafe_recall([replace(rows[0], chosen_safe=None)], scores[:1])
    assert unsafe is not None and unsafe["score"]["matched_recall"] is None


def test_reliability_by_hand() -> None:
    got = reliability(np.array([math.log(3), -math.log(3), 0.0]))  # confidence 3/4, 3/4, 1/2
    assert got["nll"] == pytest.approx((math.log(4 / 3) + math.log(4) + math.log(2)) / 3)
    assert got["brier"] == pytest.approx((1 / 16 + 9 / 16 + 1 / 4) / 3)
    assert [(p["pairs"], p["accuracy"]) for p in got["curve"]] == [(3, 0.5)]
    assert got["ece"] == pytest.approx(abs(0.5 - 2 / 3))


def test_reliability_of_scores_that_mean_what_they_say_and_of_such_that_are_too_sure() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.exponential(1.5, 20_000)
    honest = np.where(rng.random(20_000) < 1 / (1 + np.exp(-sizes)), sizes, -sizes)
    good, too_sure = reliability(honest), reliability(3 * honest)
    assert good["ece"] < 0.02 < 0.1 < too_sure["ece"] and good["nll"] < too_sure["nll"]
    assert len(good["curve"]) == 10 and all(abs(p["pairs"] - 2000) <= 1 for p in good["curve"])
    assert sum(p["ci"][0] <= p["confidence"] <= p["ci"][1] for p in good["curve"]) >= 8
    assert all(p["accuracy"] < p["confidence"] for p in too_sure["curve"][1:])


def test_reliability_does_not_depend_on_the_order_of_rows_nor_overflow() -> None:
    values = [round(random.Random(i).gauss(0, 1), 1) for i in range(500)]  # many equal confidences
    curve, turned = (reliability(np.array(v))["curve"] for v in (values, values[::-1]))
    assert len(curve) > 5
    for point, other in zip(curve, turned, strict=True):
        assert list(point.values())[:3] == pytest.approx(list(other.values())[:3])
    constant = reliability(np.zeros(100))
    assert constant["ece"] == 0 and constant["nll"] == pytest.approx(math.log(2)) and len(constant["curve"]) == 1
    assert reliability(np.array([1e4, -1e4]))["nll"] == pytest.approx(5e3)


def test_histogram_and_scores_by_quality() -> None:
    scores = [PairScore(100, -100), PairScore(0.01, -100)]
    counts = histogram(scores)
    assert len(counts["edges"]) == 21 and sum(counts["chosen"]) == sum(counts["rejected"]) == 2
    assert counts["chosen"][10] == counts["chosen"][19] == 1 and counts["rejected"][0] == 2
    points = score_by_quality(scores, [(1.0, 0.0), (0.5, 0.1)])
    assert [(p["grade"], p["answers"]) for p in points] == [(1, 2), (4, 1), (7, 1)]
    assert points[0]["score"] == pytest.approx(0, abs=1e-9) and points[2]["score"] == pytest.approx(1)
    assert points[0]["quality"] == pytest.approx(0.05) and points[1]["ci"] is None


def word_rows(count: int, good: str, bad: str, **fields: Any) -> list[Preference]:
    return [row(i, f"{good} answer {i}", f"{bad} answer {i}", **fields) for i in range(count)]


def test_bag_of_words_learns_words_and_is_a_reward_function() -> None:
    pytest.importorskip("sklearn")
    bag = BagOfWords(word_rows(30, "kind", "rude"))
    fresh = [row(0, "a kind word", "a rude word"), row(1, "rude as ever", "ever so kind"), row(2, "new", "other")]
    assert [pair.hit for pair in score_pairs(bag, fresh)] == [1.0, 0.0, 0.5]
    alone = bag([fresh[0].conversation("chosen")])
    assert alone.dtype == torch.float32 and alone[0] == bag([r.conversation("chosen") for r in fresh])[0]


def test_baselines_of_each_domain_and_of_both() -> None:
    pytest.importorskip("sklearn")
    train = word_rows(30, "kind", "rude") + word_rows(30, "rude", "kind", domain="safety")
    test = [row(0, "kind and long", "rude"), row(1, "rude", "kind and long", domain="safety")]
    got = baseline_figures(test, baseline_scores(test, train))
    assert got["longer wins"]["all"]["accuracy"] == longer_wins(test) == 0.5
    accuracy = {name: (g["helpfulness"]["accuracy"], g["safety"]["accuracy"]) for name, g in got.items()}
    assert accuracy["longer wins"] == (1.0, 0.0) and "calibration" not in got["longer wins"]["all"]
    assert accuracy["bag of words, helpfulness"] == (1.0, 0.0) and accuracy["bag of words, safety"] == (0.0, 1.0)
    assert "bag of words, both" in got
    assert list(baseline_figures(test, baseline_scores(test, []))) == ["longer wins"]
    assert answer_length([test[0].conversation("chosen")]).tolist() == [13.0]


def test_a_paired_gain_is_the_mean_difference_with_students_interval() -> None:
    found = paired_gain([1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.5])  # differences 1, 0, 0, 0.5
    assert found["pairs"] == 4 and found["gain"] == 0.375
    half = 3.182446 * (0.6875 / 3) ** 0.5 / 2  # t of 3 degrees; squares about the mean sum to 0.6875
    assert found["ci"] == pytest.approx([0.375 - half, 0.375 + half], rel=5e-3)
    assert paired_gain([1.0, 0.0], [1.0, 0.0])["ci"] == [0.0, 0.0], "right on the same pairs: no doubt left"
    assert paired_gain([], [])["gain"] is None


@pytest.mark.parametrize("rows", [word_rows(1, "a b", "b a"), [row(0, "one", "two"), row(1, "three", "four")]])
def test_too_few_rows_for_a_bag_of_words(rows: list[Preference]) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(InputError, match=f"train_preferences: {len(rows)} pairs are too few"):
        BagOfWords(rows)


def test_without_scikit_learn_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "sklearn"] + ["sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        BagOfWords(word_rows(3, "kind", "rude"))


def test_bag_of_words_on_real_preferences_reaches_the_anchors(shared_data: Path) -> None:
    """shared/data/README.md: 60.9 and 62.7 on its own domain in five folds by first turn, standard error about 1."""
    pytest.importorskip("sklearn")
    from sklearn.model_selection import GroupKFold

    for file, anchor, longer in (("helpful-base", 60.9, 59.4), ("harmless-base", 62.7, 44.3)):
        rows = load_preferences(shared_data / "hh-rlhf" / f"{file}.jsonl.gz", on_bad_row="skip")
        hits = []
        for train, test in GroupKFold(5).split(rows, groups=[first_turn(r.messages) for r in rows]):
            bag = BagOfWords([rows[i] for i in train])
            hits += [pair.hit for pair in score_pairs(bag, [rows[i] for i in test])]
        assert 100 * sum(hits) / len(hits) == pytest.approx(anchor, abs=1.5)
        assert 100 * longer_wins(rows) == pytest.approx(longer, abs=1.0)
