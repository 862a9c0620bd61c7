"""The gate's threshold: precision and recall by hand and by scikit-learn; which answers are labelled."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.evaluation.answers import Answer
from rlhf.evaluation.policies.versions import gate_figures
from rlhf.evaluation.reward_models.gate_sweep import (
    choose_threshold,
    correlation,
    labelled_answers,
    tension,
    threshold_sweep,
)
from rlhf.rewards.gate import Gate

ASK = [{"role": "user", "content": "q"}]


def test_a_sweep_by_hand():
    [low, edge, high] = threshold_sweep([0.1, 0.15, 0.3, 0.9], [True, False, True, False], [0.15, 0.16, 0.05])
    assert (low["flagged"], low["precision"], low["recall"], low["safe_flagged"]) == (1, 1.0, 0.5, 0.0)  # strict
    assert (edge["flagged"], edge["precision"], edge["recall"], edge["safe_flagged"]) == (2, 0.5, 0.5, 0.5)
    assert (high["flagged"], high["precision"], high["precision_ci"], high["recall"]) == (0, None, None, 0.0)


def test_as_scikit_learn_has_it():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(0)
    unsafe = [rng.random() < 0.3 for _ in range(300)]
    scores = [min(1.0, max(0.0, rng.gauss(0.3 if u else 0.7, 0.25))) for u in unsafe]
    for row in threshold_sweep(scores, unsafe):
        flagged = [score < row["threshold"] for score in scores]
        assert row["recall"] == pytest.approx(metrics.recall_score(unsafe, flagged))
        if any(flagged):
            assert row["precision"] == pytest.approx(metrics.precision_score(unsafe, flagged))


def test_tension_and_correlation():
    found = tension([0.2, 0.4, 0.9], [0.9, 0.7, 0.1], [False, False, True])
    assert found["safe"]["answers"] == 2 and found["safe"]["helpfulness"]["mean"] == pytest.approx(0.3)
    assert found["safe"]["correlation"] == pytest.approx(-1.0)
    assert found["unsafe"] == {
        "answers": 1,
        "helpfulness": {"mean": 0.9, "ci": None},
        "safety": {"mean": 0.1, "ci": None},
        "correlation": None,
    }
    assert correlation([1, 2, 3], [1, 2, 4]) == pytest.approx(0.9819805)


def test_each_labelled_answer_counts_once():
    rows = [
        Preference("1", ASK, "no", "yes", chosen_safe=True, rejected_safe=False),
        Preference("2", ASK, "no", "maybe", chosen_safe=True, rejected_safe=None),
    ]
    conversations, unsafe = labelled_answers(rows)
    assert [c[-1]["content"] for c in conversations] == ["no", "yes"] and unsafe == [False, True]
    with pytest.raises(InputError, match="labelled unsafe"):
        labelled_answers([rows[1]])


def test_the_highest_threshold_as_precise_as_asked_for_is_chosen() -> None:
    """Precision 1 at 0.1, 2/3 at 0.2, 3/4 at 0.4, 3/5 at 0.9: it need not fall with the threshold."""
    scores, unsafe = [0.05, 0.15, 0.18, 0.3, 0.8, 0.95], [True, True, False, True, False, False]
    sweep = threshold_sweep(scores, unsafe, [0.9, 0.1, 0.2, 0.4])
    chosen = [choose_threshold(sweep, wanted)["threshold"] for wanted in (0.89, 0.75, 0.7, 0.6, 0.1)]
    assert chosen == [0.1, 0.4, 0.4, 0.9, 0.9]
    assert choose_threshold(threshold_sweep(scores, [not u for u in unsafe], [0.1, 0.2, 0.4]), 0.9)["threshold"] == 0.2
    assert choose_threshold(threshold_sweep(scores, unsafe, [0.01, 0.02]), 0.9)["threshold"] == 0.01


def test_the_gate_s_precision_and_recall_by_gold_are_a_version_s_figures() -> None:
    """V1 of a demo: 26 answers to helpful prompts below the threshold, one of them a violation."""

    def answer(domain: str, safety: float, violation: bool) -> Answer:
        gold = {"helpfulness": 0.5, "safety": 0.5, "violation": violation, "false_refusal": False, "kind": "ordinary"}
        return Answer("p", 0, [], domain, "", "a", 1, True, safety=safety, gold=gold)  # type: ignore[arg-type]

    answers = [answer("helpfulness", -2.0 if i < 26 else 1.0, i == 0) for i in range(260)]
    answers += [answer("safety", -2.0, True)] * 10
    found = gate_figures(answers, Gate())
    assert (found["threshold"], found["safety_origin"]) == (0.15, 0.0)
    own = found["helpfulness"]
    assert (own["answers"], own["flagged"], own["share"]) == (260, 26, 0.1)
    assert own["precision"] == 1 / 26 and own["recall"] == 1.0
    assert found["all"]["flagged"] == 36 and found["all"]["precision"] == 11 / 36
    moved = gate_figures(answers, Gate(safety_origin=-1.0))["helpfulness"]  # -2 is 1 below the origin: sigmoid 0.27
    assert moved["flagged"] == 0 and moved["precision"] is None
    no_gold = gate_figures([replace(a, gold=None) for a in answers], Gate())["all"]
    assert no_gold["flagged"] == 36 and no_gold["precision"] is no_gold["recall"] is None
