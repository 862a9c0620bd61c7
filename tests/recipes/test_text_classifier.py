"""A classifier of texts is trained for real, judges for ToxiGen's and BOLD's runners, and is loaded by transformers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.configuration import parse_config
from rlhf.errors import InputError
from rlhf.finetuning.classifier import read_labelled_texts
from rlhf.jsonl import write_rows
from rlhf.models.text_judges import TextClassifier

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes/evaluation"))
import safety_benchmarks
import text_classifier
from safety_benchmarks import SafetyBenchmarksConfig
from text_classifier import TextClassifierConfig


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    """Two labels that one word tells apart."""
    files = {}
    for label, word in (("rough", "goat"), ("kind", "doctor")):
        lines = [f"{a} {b} {word}" for a in ("what", "how", "please", "hello", "sure") for b in "abcdefgh"]
        (tmp_path / f"{label}.txt").write_text("\n".join(lines))
        files[label] = str(tmp_path / f"{label}.txt")
    return files


def run(recipe: Any, config_class: Any, **options: Any) -> None:
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    recipe.main(parse_config(config_class, given))


def test_from_labelled_texts_to_the_runners(
    texts: dict[str, str], tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"optimizer.batch_size": 8, "optimizer.epochs": 12, "optimizer.learning_rate": 3e-3}
    run(
        text_classifier,
        TextClassifierConfig,
        output=tmp_path / "judge",
        model=tiny_policy_path,
        data=json.dumps(texts),
        **sizes,
    )
    figures = json.loads((tmp_path / "judge" / "agreement.json").read_text())
    printed = capsys.readouterr()
    assert "texts are cut to" not in printed.err
    rows = [json.loads(line) for line in (tmp_path / "judge" / "heldout.jsonl").read_text().splitlines()]
    assert figures["n"] == len(rows) == sum(map(sum, figures["confusion"]))
    assert figures["agreement"] == sum(row["label"] == row["judged"] for row in rows) / len(rows)
    assert figures["agreement"] > 0.9 > figures["most_frequent"], "one word tells the labels apart"
    assert all(("goat" in row["text"]) == (row["label"] == "rough") for row in rows)
    assert f"of {len(rows)} held-out texts" in printed.out

    from transformers import pipeline

    plain = pipeline("text-classification", str(tmp_path / "judge" / "checkpoint"), device="cpu")
    own = TextClassifier(str(tmp_path / "judge" / "checkpoint"))
    for said, row, p in zip(
        plain([row["text"] for row in rows]), rows, own.probabilities([r["text"] for r in rows], "rough"), strict=True
    ):
        assert said["label"] == row["judged"]
        assert said["score"] == pytest.approx(float(p if said["label"] == "rough" else 1 - p), abs=1e-5)

    (tmp_path / "toxigen").mkdir()
    (tmp_path / "toxigen" / "neutral_women_1k.txt").write_text("- hello\\n-\n- sure\\n-\n")
    (tmp_path / "x_prompt.json").write_text(json.dumps({"guides": {"A": ["what is a guide "]}}))
    judge = str(tmp_path / "judge" / "checkpoint")
    run(
        safety_benchmarks,
        SafetyBenchmarksConfig,
        output=tmp_path / "figures",
        policy=tiny_policy_path,
        template="plain",
        toxigen=tmp_path / "toxigen",
        bold=json.dumps([str(tmp_path / "x_prompt.json")]),
        **{"toxicity.classifier": judge, "toxicity.label": "rough"},
        **{"sentiment.classifier": judge, "sentiment.label": "kind", "sentiment.opposite": "rough"},
        **{"sampling.max_new_tokens": 6},
    )
    found = [json.loads(line) for line in (tmp_path / "figures" / "generations.jsonl").read_text().splitlines()]
    toxic, bold = found[:2], found[2]
    assert [row["toxic"] for row in toxic] == pytest.approx(
        own.probabilities([row["text"] for row in toxic], "rough").tolist(), abs=1e-5
    )
    whole = [f"{bold['prompt']} {bold['text']}"]
    expected = own.probabilities(whole, "kind") - own.probabilities(whole, "rough")
    assert bold["sentiment"] == pytest.approx(float(expected), abs=1e-5)


def test_texts_that_the_model_does_not_hold_are_counted(
    texts: dict[str, str], tiny_policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path(texts["kind"]).open("a") as stream:
        stream.write("".join(f"\n{number} {'a b c d ' * 700} doctor" for number in range(12)))
    given = {"model": tiny_policy_path, "data": json.dumps(texts), "optimizer.batch_size": 64, "optimizer.epochs": 1}
    run(text_classifier, TextClassifierConfig, output=tmp_path / "judge", **given)
    assert re.search(
        r"^data: \d+ of \d+ texts are cut to the \d+ tokens that the model reads$", capsys.readouterr().err, re.M
    )


def test_texts_of_rows_prompts_and_pairs_each_once(tmp_path: Path) -> None:
    ask = [{"role": "user", "content": "first"}]
    later = [*ask, {"role": "assistant", "content": "no"}, {"role": "user", "content": "second"}]
    write_rows(tmp_path / "texts.jsonl", [{"text": "one"}, {"text": "one"}, {"text": "both"}])
    write_rows(tmp_path / "prompts.jsonl", [{"id": "a", "messages": later}, {"prompt": "both"}])
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "third", "chosen": "yes", "rejected": "no"}])
    sources = {name: str(tmp_path / f"{name}.jsonl") for name in ("texts", "prompts", "pairs")}
    assert read_labelled_texts(sources) == {"one": "texts", "first": "prompts", "third": "pairs"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": '{"only": "a.txt"}'}, "data: needs the texts of two labels or more"),
        ({"heldout_share": 1}, "heldout_share: must lie between 0 and 1, got 1"),
        ({"data": '{"a": "none.txt", "b": "none.txt"}'}, "data.a: none.txt does not exist"),
        ({"heldout_share": 1e-9}, "heldout_share: no text is held out; raise it or give more texts"),
        ({"heldout_share": 0.999999}, "all of its texts are held out, none is left to train on; give more of them"),
    ],
)
def test_bad_settings_are_answered_in_one_sentence(
    texts: dict[str, str], tiny_policy_path: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    given = {"output": tmp_path / "out", "model": tiny_policy_path, "data": json.dumps(texts), **options}
    with pytest.raises(InputError) as error:
        run(text_classifier, TextClassifierConfig, **given)
    assert words in str(error.value) and not (tmp_path / "out").exists()
