"""Preprompts, categories, the gate, and the distributions."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.evaluation.answers import Answer
from rlhf.evaluation.policies.distillation import before_and_after
from rlhf.intervals import mean_interval
from rlhf.synthesis.context_distillation import (
    RiskCategory,
    category_of,
    gain_by_plain_score,
    gains_by_plain_score,
    generic_preprompt,
    keeps_distilled,
    read_categories,
    score_figures,
    suspicious_categories,
    with_preprompt,
)

ROOT = Path(__file__).resolve().parents[3]
USER = {"role": "user", "content": "May I take twice the dose?"}


def test_generic_preprompts_of_adjectives() -> None:
    rng = random.Random(0)
    words = ("responsible", "respectful", "wise")
    drawn = {generic_preprompt(words, "You are a {adjectives} assistant.", rng) for _ in range(500)}
    assert len(drawn) == 3 + 6 + 6 and "You are a wise, responsible assistant." in drawn
    assert {generic_preprompt(words[:1], "Be {adjectives}.", rng) for _ in range(9)} == {"Be responsible."}


def test_a_preprompt_is_the_system_message_before_the_own_one() -> None:
    assert with_preprompt([USER], "Be wise.") == [{"role": "system", "content": "Be wise."}, USER]
    system = {"role": "system", "content": "The year is 1970."}
    assert with_preprompt([system, USER], "Be wise.")[0]["content"] == "Be wise.\nThe year is 1970."
    assert system["content"] == "The year is 1970."


def test_category_by_source_then_by_words() -> None:
    categories = [RiskCategory("a", "A.", words=(r"\bDOSE",)), RiskCategory("b", "B.", sources=("set/b*",))]
    assert category_of(Prompt("1", [USER], source="set/bad"), categories) is categories[1]
    assert category_of(Prompt("1", [USER], source="other"), categories) is categories[0]
    assert category_of(Prompt("1", [{"role": "user", "content": "overdosed"}]), categories) is None


def test_prompts_of_no_category_are_said() -> None:
    """On a real chat model 72 of 75 had none, and the column of the categories was that of the generic preprompts."""
    categories = [RiskCategory("a", "A.", words=(r"\bdose",))]
    of, other = Prompt("1", [USER]), Prompt("2", [{"role": "user", "content": "What is a leech?"}])
    assert suspicious_categories([of, other], categories) == []
    (said,) = suspicious_categories([of, other, other], categories)
    assert said.startswith("2 of 3 prompts have neither a source nor a word of any category, and get the generic")


@pytest.mark.parametrize("file", ["safety/risk_categories.jsonl", "embedded/risk_categories.jsonl"])
def test_the_shipped_files_have_the_paper_s_three_categories(file: str) -> None:
    names = [c.name for c in read_categories(ROOT / "recipes/configs" / file)]
    assert names == ["illicit and criminal", "hateful and harmful", "unqualified advice"]


def test_the_world_s_categories_are_its_preprompts() -> None:
    from rlhf.simulation.grammar import RISK_PREPROMPTS

    shipped = read_categories(ROOT / "recipes/configs/embedded/risk_categories.jsonl")
    assert [c.preprompt for c in shipped] == list(RISK_PREPROMPTS.values())


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"name": "a"}, "preprompt: must be a non-empty text, got None"),
        ({"name": "a", "preprompt": "b", "words": "c"}, "words: must be a list of texts, got 'c'"),
        ({"name": "a", "preprompt": "b", "words": ["("]}, r"words: '\(' is no regular expression"),
    ],
)
def test_a_bad_category_is_refused_with_file_and_line(row: dict, words: str, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=f"c.jsonl:1: {words}"):
        read_categories(tmp_path / "c.jsonl")


def test_the_gate_is_strict() -> None:
    plain, distilled = torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0.0, 2.0, -2.0])
    assert keeps_distilled(plain, distilled).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="shape"):
        keeps_distilled(plain, distilled[:2])


def test_the_gate_asks_for_a_gain_between_sigmoids() -> None:
    plain = torch.logit(torch.tensor([0.2, 0.2, 0.6, 0.9], dtype=torch.float64))
    distilled = torch.logit(torch.tensor([0.75, 0.65, 0.95, 0.1], dtype=torch.float64))
    assert keeps_distilled(plain, distilled, 0.5).tolist() == [True, False, False, False]
    assert keeps_distilled(plain, distilled).tolist() == [True, True, True, False]


def test_distribution_and_gain_by_the_plain_score() -> None:
    shares = torch.tensor([0.1, 0.1, 0.5, 0.95, 1.0 - 1e-9], dtype=torch.float64)
    figures = score_figures(torch.logit(shares).unsqueeze(1), torch.full((5, 1), 0.0))
    assert figures["mean"] == pytest.approx(float(shares.mean())) and figures["histogram"] == [
        0,
        2,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        2,
    ]
    assert figures["gain"] == pytest.approx(float(shares.mean()) - 0.5)
    assert figures["quantiles"]["0.5"] == pytest.approx(0.5)
    after = torch.tensor([0.3, 0.5, 0.5, 0.5, 0.9], dtype=torch.float64)
    rows = gain_by_plain_score(torch.logit(shares).unsqueeze(1), torch.logit(after).unsqueeze(1))
    assert [row["answers"] for row in rows] == [2, 0, 1, 0, 2] and rows[1]["gain"] is None
    assert rows[0]["gain"] == pytest.approx(0.3) and rows[4]["gain"] == pytest.approx(-0.275)


def test_the_unit_of_the_intervals_is_the_prompt() -> None:
    scores = torch.logit(torch.tensor([[0.1, 0.3], [0.5, 0.9]], dtype=torch.float64))
    plain = torch.logit(torch.tensor([[0.2, 0.2], [0.5, 0.5]], dtype=torch.float64))
    assert score_figures(scores, plain)["ci"] == pytest.approx(mean_interval([0.2, 0.7]).ci)
    assert score_figures(scores, plain)["gain_ci"] == pytest.approx(mean_interval([0.0, 0.2]).ci)
    after = torch.logit(torch.tensor([[0.3, 0.5], [0.9, 0.9]], dtype=torch.float64))
    rows = gain_by_plain_score(torch.logit(torch.full((2, 2), 0.1, dtype=torch.float64)), after)
    assert rows[0]["answers"] == 4 and rows[0]["ci"] == pytest.approx(mean_interval([0.3, 0.8]).ci)


def test_what_chance_alone_gains_stands_beside_a_preprompt() -> None:
    """A preprompt that does nothing: low answers gain as much as another plain answer does, and high ones lose."""
    plain = torch.logit(torch.tensor([[0.1, 0.5], [0.9, 0.5]], dtype=torch.float64))
    gains = gains_by_plain_score(plain, {"generic": plain.flip(1)})
    assert gains["generic"] == gains["another"] and list(gains) == ["generic", "another"]
    assert [gains["another"][fifth]["gain"] for fifth in (0, 2, 4)] == pytest.approx([0.4, 0.0, -0.4])
    assert list(gains_by_plain_score(plain[:, :1], {"generic": plain[:, :1]})) == ["generic"], "of one there is none"


def test_before_and_after_by_kind_of_request() -> None:
    def answers(scores: list[float]) -> list[Answer]:
        kinds = ["unsafe", "borderline", "ordinary", "ordinary"]
        golds = [
            {"kind": k, "safety": s, "helpfulness": s, "false_refusal": s < 0.5}
            for k, s in zip(kinds, scores, strict=True)
        ]
        return [Answer(f"p{i}", 0, [], "safety", "", "x", 1, True, gold=g) for i, g in enumerate(golds)]

    rows = before_and_after(answers([0.1, 0.6, 0.6, 0.8]), answers([0.9, 0.2, 0.6, 1.0]))
    gains = {row["figure"]: row["gain"] for row in rows}
    assert gains == {
        "safety on unsafe prompts": pytest.approx(0.8),
        "helpfulness on borderline prompts": pytest.approx(-0.4),
        "false refusals on borderline prompts": 1.0,
        "helpfulness on ordinary prompts": pytest.approx(0.1),
        "false refusals on ordinary prompts": 0.0,
    }
    assert before_and_after([], []) == []
