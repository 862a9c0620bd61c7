"""Several runs on one page: all of a version together, each run a line, no score of a run's own models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fake_run import write_run

from rlhf.errors import InputError
from rlhf.report import build_report
from rlhf.report.run.folders import beside
from rlhf.report.run.reading import read_run
from rlhf.report.run.side_by_side import headline, runs_panels, runs_table


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("seeds")
    shorter = ("sft", "v1", "v3_ppo")
    return [write_run(folder / "one", seed=1), write_run(folder / "two", versions=shorter, seed=2)]


def test_the_page_lies_beside_the_first_run(seeds: list[Path]) -> None:
    page = build_report(*seeds)
    assert page == seeds[0].with_name("one_and_two.report") / "index.html"
    text = page.read_text()
    assert "V3 + PPO of 2 runs: gold helpfulness" in text and ">two<" in text and "eferee's score" not in text


def test_no_two_pages_share_a_place(tmp_path: Path) -> None:
    """Before, the page of A and C lay where that of A and B did, and overwrote it."""
    a, b, c, elsewhere = (tmp_path / name for name in ("a", "b", "c", "there/b"))
    many = [tmp_path / f"seed{number}" for number in range(40)]
    pages = [beside(paths) for paths in ([a], [a, b], [a, c], [a, b, c], [a, elsewhere], [a, *many], [a, *many[1:]])]
    assert len(set(pages)) == len(pages) and {page.parent for page in pages} == {tmp_path}
    assert [page.name for page in pages[:4]] == ["a.report", "a_and_b.report", "a_and_c.report", "a_and_b_and_c.report"]
    assert all(len(page.name) < 200 for page in pages) and beside([a, elsewhere]) == pages[4]


def test_what_looks_wrong_in_a_run_stands_above_the_figures(seeds: list[Path], tmp_path: Path) -> None:
    runs = [shutil.copytree(seed, tmp_path / seed.name) for seed in seeds]
    (runs[1] / "v1" / "evaluation" / "stage.json").write_text('{"closing": {"suspicious": ["half is <cut>"]}}')
    text = build_report(*runs).read_text()
    assert "<b>two, v1/evaluation</b>: half is &lt;cut&gt;" in text
    assert text.index("half is") < text.index('id="versions"') and text.count("knows the truth") == 1
    assert "What looks wrong" not in build_report(*seeds).read_text()


def test_rows_and_lines_are_the_runs_own_figures(seeds: list[Path]) -> None:
    runs = {path.name: read_run(path) for path in seeds}
    table = runs_table(runs)
    assert [(row[0].text, row[0].small) for row in table.rows] == [
        ("SFT", "one"), ("SFT", "two"), ("V1", "one"), ("V1", "two"), ("V2", "one"), ("V3", "one"),
        ("V3 + PPO", "one"), ("V3 + PPO", "two"),
    ]  # fmt: skip
    helpfulness = [title for title, _ in table.heads].index("Gold helpfulness")
    assert table.rows[3][helpfulness].text == f"{runs['two'].versions[1]['gold_helpfulness']:.3f}"
    assert not {"Referee", "Reward over the start"} & {title for title, _ in table.heads}
    ends = sorted(run.versions[-1]["gold_safety"] for run in runs.values())
    assert f"gold safety {ends[0]:.2f} to {ends[1]:.2f}" in headline(runs)
    panels = {panel.title: panel for panel in runs_panels(runs)}
    assert [label for label, _ in panels["Gold safety"].legend] == ["one", "two"]


def test_versions_of_one_run_alone_stand_where_that_run_has_them(seeds: list[Path]) -> None:
    """Before, they stood behind the first run's last one, and the line of the other went back and forth."""
    whole, shorter = (read_run(path) for path in seeds)
    for runs in ({"short": shorter, "whole": whole}, {"whole": whole, "short": shorter}):
        rows = dict.fromkeys(row[0].text for row in runs_table(runs).rows)
        assert list(rows) == ["SFT", "V1", "V2", "V3", "V3 + PPO"]


def test_students_have_rows_and_other_prompts_are_said(seeds: list[Path], tmp_path: Path) -> None:
    """Before, students were left out, and worlds of their own lay apart by "chance in the training" alone."""
    runs = [shutil.copytree(seed, tmp_path / seed.name) for seed in seeds]
    summary = json.loads((runs[1] / "summary.json").read_text())
    (runs[1] / "summary.json").write_text(json.dumps(summary | {"students": [{"name": "v1_small"}]}))
    last = runs_table({path.name: read_run(path) for path in runs}).rows[-1]
    assert (last[0].text, last[0].small) == ("student small of V1", "two")
    same, other = "chance in the training, or a setting that differs", "the runs did not answer the same prompts"
    assert same in (page := build_report(*runs).read_text()) and other not in page
    answers = runs[1] / "sft_evaluation" / "answers.jsonl"
    answers.write_text(answers.read_text().replace('"content": "', '"content": "Hello. '))
    assert other in (page := build_report(*runs).read_text()) and same not in page and "are not pooled" in page


def test_what_is_no_pair_of_runs_is_refused(seeds: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run: .*one is named twice"):
        build_report(seeds[0], seeds[0])
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "stage.json").write_text("{}")
    with pytest.raises(InputError, match="name runs alone, or stages alone"):
        build_report(tmp_path / "stage", seeds[0])
    (tmp_path / "one").mkdir()
    with pytest.raises(InputError, match=r"no summary\.json, ledger\.jsonl or finished stage"):
        build_report(seeds[0], tmp_path / "one")
    with pytest.raises(InputError, match="panel: panels of one's own are of one run"):
        build_report(*seeds, panels=["mine:panel"])
