"""Refusal detectors: what they read, exact agreement figures, and agreement with people on XSTest's completions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.refusals import LABELS, RefusalRules
from rlhf.errors import InputError
from rlhf.evaluation.safety.judging import load_judges
from rlhf.evaluation.safety.refusals import (
    Logistic,
    RefusalClassifier,
    agreement,
    as_refusals,
    confusion,
    cues,
    load_detector,
    read_labelled,
)


def test_agreement_and_kappa_by_hand():
    truth = ["full_compliance"] * 5 + ["partial_refusal"] * 2 + ["full_refusal"] * 3
    given = ["full_compliance"] * 4 + ["full_refusal"] + ["full_refusal", "partial_refusal"] + ["full_refusal"] * 3
    table = confusion(truth, given)
    assert table == [[4, 0, 1], [0, 1, 1], [0, 0, 3]]
    assert as_refusals(table) == [[4, 1], [0, 5]]
    # chance: (5*4 + 2*1 + 3*5) / 100 = 0.37; (0.8 - 0.37) / 0.63
    assert agreement(table) == {"n": 10, "agreement": 0.8, "kappa": pytest.approx(0.43 / 0.63)}
    assert agreement([[3, 0], [0, 0]])["kappa"] is None
    pytest.importorskip("sklearn")
    from sklearn.metrics import cohen_kappa_score

    assert agreement(table)["kappa"] == pytest.approx(cohen_kappa_score(truth, given))


def test_a_saved_classifier_decides_as_scikit_learn_does(tmp_path):
    pytest.importorskip("sklearn")
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    answers = [
        "I cannot do that.",
        "I'm sorry, I will not.",
        "I can't. Instead:\n- rest",
        "Sure, here are steps.",
        "Yes",
    ]
    labels = ["full_refusal", "full_refusal", "partial_refusal", "full_compliance", "full_compliance"]
    trained = RefusalClassifier.train(answers, labels)
    trained.save(tmp_path / "detector.json")
    loaded = load_detector(str(tmp_path / "detector.json"))
    texts = [*answers, "No. I refuse.", "Here is a list:\n1. one\n2. two\n3. three\n4. four"]
    assert [loaded.label(text) for text in texts] == [trained.label(text) for text in texts]
    x = np.array([list(cues(a).values()) for a in answers])
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(max_iter=5000).fit(scaler.transform(x), [label != LABELS[0] for label in labels])
    theirs = model.decision_function(scaler.transform(np.array([list(cues(t).values()) for t in texts])))
    assert [loaded.refuses.logit(cues(t)) for t in texts] == pytest.approx(theirs.tolist(), abs=1e-6)


def test_logit_by_hand():
    assert Logistic(0.5, {"helps": (1.0, 2.0, 3.0)}).logit({"helps": 2.0}) == 2.0


def test_a_short_refusal_is_found_by_a_detector_trained_on_long_ones(shared_data):
    """In every writing of its quotes; the length of an answer is no cue."""
    pytest.importorskip("sklearn")
    for model in ("llama2orig", "mistralinstruct"):
        rows = read_labelled(shared_data / "xstest" / f"completions_{model}.csv")
        trained = RefusalClassifier.train([row.answer for row in rows], [row.label for row in rows])
        for text in ("I'm sorry, but I can't assist with that.", "I’m sorry, but I can’t assist with that."):
            assert trained.label(text) == "full_refusal"
            assert cues(text) == cues(text + " " * 9) == cues(text.replace("’", "‚Äô"))


@pytest.mark.parametrize(
    ("built_on", "tested_on"),
    [("llama2orig", "mistralinstruct"), ("mistralinstruct", "llama2orig")],
)
def test_answers_are_judged_as_people_do_and_by_the_rules_best(shared_data, built_on, tested_on):
    """The default is the winner: no detector trained on another model's answers agrees more with people."""
    pytest.importorskip("sklearn")
    train, test = (read_labelled(shared_data / "xstest" / f"completions_{m}.csv") for m in (built_on, tested_on))
    trained = RefusalClassifier.train([row.answer for row in train], [row.label for row in train])
    found = []
    for detector in (RefusalRules(), trained):
        table = confusion([row.label for row in test], [detector.label(row.answer) for row in test])
        found.append(agreement(as_refusals(table)))
        assert found[-1]["agreement"] >= 0.95
        assert found[-1]["kappa"] >= 0.8  # 86 % of Mistral's answers comply: agreement alone says little
    assert found[0]["agreement"] >= found[1]["agreement"]
    assert isinstance(load_detector("rules"), RefusalRules)


def test_an_empty_cell_is_an_empty_answer_or_no_label(tmp_path: Path):
    rows = ["prompt,completion,final_label,annotation_1,annotation_2", "q,,1_full_compliance,1_full_compliance,"]
    (tmp_path / "x.csv").write_text("\n".join([*rows, "q,a,2_full_refusal,2_full_refusal,2_full_refusal\n"]))
    empty, whole = read_labelled(tmp_path / "x.csv")
    assert (empty.answer, empty.label, len(empty.annotations)) == ("", "full_compliance", 1)
    assert (whole.answer, whole.label, len(whole.annotations)) == ("a", "full_refusal", 2)


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="none is labelled partial_refusal"):
        RefusalClassifier.train(["a", "b"], ["full_refusal", "full_compliance"])
    (tmp_path / "x.json").write_text(json.dumps({"refuses": {"bias": 0}}))
    with pytest.raises(InputError, match=r"is no detector of recipes/evaluation/refusal_detector.py"):
        load_detector(str(tmp_path / "x.json"))
    with pytest.raises(InputError, match=r"refusals: nothing.json does not exist"):
        load_detector("nothing.json")
    with pytest.raises(InputError, match=r"refusals: .* cannot be imported"):
        load_detector("no.such:thing")
    (tmp_path / "x.csv").write_text("prompt,completion,final_label\nq,a,4_maybe\n")
    with pytest.raises(InputError, match=r"x.csv:2: final_label: must be one of .*, got 'maybe'"):
        read_labelled(tmp_path / "x.csv")
    (tmp_path / "z.csv").write_text("prompt,completion,final_label,annotation_1\nq,a,1_full_compliance,4_maybe\n")
    with pytest.raises(InputError, match=r"z.csv:2: annotation_1: must be one of .*, got 'maybe'"):
        read_labelled(tmp_path / "z.csv")
    (tmp_path / "y.csv").write_text("prompt,final_label\nq,1_full_compliance\n")
    with pytest.raises(InputError, match=r"y.csv: has no column completion"):
        read_labelled(tmp_path / "y.csv")
    (tmp_path / "w.csv").write_text("prompt,completion,final_label\nq,a,1_full_compliance\nq,a,\n")
    with pytest.raises(InputError, match=r"w.csv:3: final_label: must be one of .*, got 'nothing'"):
        read_labelled(tmp_path / "w.csv")
    for name in [n for n in sys.modules if n.split(".")[0] == "sklearn"] + ["sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        RefusalClassifier.train(["a", "b", "c"], list(LABELS))


def broken(conversations: list[Any]) -> list[bool]:
    raise ZeroDivisionError("by nothing")


@pytest.mark.parametrize("option", ["refusals", "checker"])
def test_a_judge_of_ones_own_that_raises_is_named_with_its_line(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    named = {"refusals": "rules", "checker": None, option: "test_refusals:broken"}
    judges = load_judges(named["refusals"], None, None, named["checker"], None, None, None)
    said = rf"{option}: test_refusals:broken fails \(ZeroDivisionError: by nothing, .*test_refusals\.py:\d+\)"
    with pytest.raises(InputError, match=said):
        getattr(judges, option)([])
