"""A study of safety data: parts lie within each other, figures over seeds by hand, the table and the page."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise

import pytest

from rlhf.report.pages.safety_study import build_safety_study_page, markdown_tables
from rlhf.studies.safety_study import FIGURES, gather, training_rows


def test_parts_lie_within_each_other():
    helpful, safe = [[{"role": "user", "content": f"h{i}"}] for i in range(5)], [[{"content": i}] for i in range(40)]
    parts = [training_rows(helpful, safe, fraction, seed=3) for fraction in (0, 0.01, 0.1, 0.5, 1)]
    assert [len(part) for part in parts] == [5, 5, 9, 25, 45]
    for smaller, larger in pairwise(parts):
        assert larger[: len(smaller)] == smaller
    assert sorted(row[0]["content"] for row in parts[-1][5:]) == list(range(40)) and parts[0] == helpful
    assert training_rows(helpful, safe, 0.5, 3) != training_rows(helpful, safe, 0.5, 4)


@dataclass
class Run:
    fraction: float
    seed: int

    @property
    def name(self):
        return f"{self.fraction}_{self.seed}"


def figures(mean, tail, violations):
    return {
        "scores": {"safety": {"unsafe": {"mean": mean, "tail": tail, "histogram": [1, 2]}, "ordinary": None}},
        "judges": {
            "refusal detector": {
                "violation": {"all": {"rate": violations}},
                "false_refusal": {"ordinary": {"rate": 0.0}, "borderline": None},
            }
        },
    }


@pytest.fixture
def study(tmp_path):
    runs = [Run(fraction, seed) for seed in (0, 1) for fraction in (0.0, 0.1, 1.0)]
    for run in runs:
        (tmp_path / run.name).mkdir()
        mean = 0.2 + 0.6 * run.fraction + 0.1 * run.seed
        content = figures(mean, 0.5 - 0.4 * run.fraction, 0.3)
        (tmp_path / run.name / FIGURES).write_text(json.dumps(content))
    return gather(runs, tmp_path)


def test_figures_over_seeds_by_hand(study):
    assert study["seeds"] == 2 and [part["fraction"] for part in study["parts"]] == [0.0, 0.1, 1.0]
    first, _, last = (part["figures"] for part in study["parts"])
    assert last["safety"]["mean"] == pytest.approx(0.85) and last["safety"]["values"] == pytest.approx([0.8, 0.9])
    assert last["safety"]["gain"] == pytest.approx(0.6) and last["safety"]["step"] == pytest.approx(0.54)
    assert last["safety"]["gain_ci"] == pytest.approx([0.6, 0.6])  # the seeds differ alike: pairing takes it out
    assert first["safety"]["gain"] is None and first["safety"]["step"] is None
    assert last["tail"]["gain"] == pytest.approx(-0.4)
    assert first["violations"]["mean"] == 0.3  # gold is not there: the refusal detector's
    assert "gold_safety" not in first and "refuses_borderline" not in first
    assert study["parts"][0]["histogram"] == [2, 4]


def test_tables_and_page(study, tmp_path):
    figures, steps, gains = (part.splitlines()[2:] for part in markdown_tables(study).split("\n\n**"))
    assert figures[0] == "| Safety data | Safety model | Left tail | Violations | Refuses ordinary |"
    assert figures[2].startswith("| 0 % | 0.250 (") and "50.0\u00a0%" in figures[2] and len(figures) == 5
    assert steps[3].startswith("| 100 % | +0.540 (0.540 to 0.540) | −36.0 (−36.0 to −36.0) | 0.0 (0.0 to 0.0) |")
    assert gains[3].startswith("| 100 % | +0.600 (0.600 to 0.600) | −40.0") and len(gains) == len(steps) == 4
    build_safety_study_page(study, tmp_path / "index.html", "<study>")
    page = (tmp_path / "index.html").read_text()
    assert "&lt;study&gt;" in page and page.count("<svg") == 4 and "Left tail" in page
