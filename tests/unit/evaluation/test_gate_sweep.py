"""The gate's threshold: precision and recall by hand and by scikit-learn; which answers are labelled."""

from __future__ import annotations

import random

import pytest

from rlhf.data.rows import Preference
from rlhf.errors import InputError
from rlhf.evaluation.gate_sweep import correlation, labelled_answers, tension, threshold_sweep

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
