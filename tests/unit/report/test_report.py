"""The page: its numbers are the summary's, what is foreign is escaped, nothing is fetched, missing parts are said."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from markupsafe import Markup

sys.path.insert(0, str(Path(__file__).parent))
from fake_run import FOLDERS, unpacked, write_run, write_sweep

from rlhf.errors import InputError
from rlhf.intervals import wilson
from rlhf.report import build_report
from rlhf.report.drawing.curves import kl_panel
from rlhf.report.drawing.page import breakable, write_page
from rlhf.report.drawing.text import NBSP, clock, interval, number, percent, signed, student_label, version_label
from rlhf.report.judgements.batches import batch_table
from rlhf.report.judgements.judges import judge_table
from rlhf.report.run.build import advice, headline, how_apart, how_right
from rlhf.report.run.panels import version_panels
from rlhf.report.run.reading import read_run
from rlhf.report.run.samples import MARKS, marks_of, pick_samples
from rlhf.report.run.search import make_search

DEMO = Path(__file__).resolve().parents[3] / "recipes" / "configs" / "embedded" / "iterative_rlhf.yaml"
ATTACK = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class _Page(HTMLParser):
    """Text, tags, ids and every attribute that names something to fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.policy = ""
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append(dict(attrs))
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = str(dict(attrs)["content"])
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]
        if tag not in ("meta", "link", "img", "br", "wbr", "hr", "input", "use", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("use", "path"):
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    path = build_report(run)
    assert path == run / "report" / "index.html"
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    return path.read_text(encoding="utf-8")


def test_a_run_that_goes_on_shows_what_its_last_end_did_not_have(tmp_path: Path) -> None:
    """A plan that got a step more: until its end the page had the summary of the end before."""
    run = write_run(tmp_path / "run", versions=("sft", "v1", "v2"))
    summary = json.loads((run / "summary.json").read_text())
    _write(run / "summary.json", summary | {"versions": summary["versions"][:2]})
    assert [version["name"] for version in read_run(run).versions] == ["sft", "v1"]
    with (run / "ledger.jsonl").open("a", encoding="utf-8") as ledger:
        ledger.write('{"event": "begun", "time": 1e10}\n')
    assert [version["name"] for version in read_run(run).versions] == ["sft", "v1", "v2"]


def test_the_words_of_the_headline_are_explained_below_it(page: str, tmp_path: Path) -> None:
    assert "Gold: what the simulated world" in page.split("<nav")[0] and "Referee: " not in page
    other = build_report(write_run(tmp_path / "run", gold=False, versions=("sft", "v1"))).read_text()
    assert "Referee: a reward model" in other.split("<nav")[0] and "Gold: " not in other
    assert "It is right on 64" in other.split("<nav")[0]
    assert "Other domain: accuracy on the other domain&#39;s held-out pairs. Below a half is no fault" in page


def test_what_the_referee_s_verdict_is_worth_stands_beside_it() -> None:
    assert how_right(None) == ""
    known: Any = {"accuracy": 0.5366, "accuracy_ci": [0.4603, 0.6112]}
    said = f" It is right on 54{NBSP}% (46 to 61, which may be chance) of the pairs that were held out from it."
    assert how_right(known) == said
    assert "chance" not in how_right(known | {"accuracy_ci": [0.51, 0.61]})


def test_a_referee_of_the_reward_models_own_file_is_said_to_be_one() -> None:
    def apart(**files: Any) -> str:
        return how_apart({"config": {"inputs": {f"{name}_preferences": found for name, found in files.items()}}})

    assert "What that file gets wrong, both get wrong." in apart(helpfulness=["a", "b"], referee="b")
    assert apart(helpfulness="a", safety=["b"], referee=["c"]) == apart(helpfulness=["a"]) == how_apart({}) == ""


def test_numbers_on_the_page_are_the_summarys(run: Path, page: str) -> None:
    summary = json.loads((run / "summary.json").read_text())
    table = page.split("<table", 2)[1]
    rows = [re.findall(r"<span>([^<]*)(?:<small>([^<]*)</small>)?</span>", row) for row in table.split("<tr>")[2:]]
    assert len(rows) == len(summary["versions"])
    for row, version in zip(rows, summary["versions"], strict=True):
        found = [text for text, _ in row]
        assert found[:5] == [
            number(version["gold_helpfulness"]),
            number(version["gold_safety"]),
            percent(version["violation_rate"]),
            percent(version["false_refusal_rate"]),
            percent(version["win_rate_vs_sft"]),
        ]
        assert found[-5:-3] == [number(version["kl_from_sft"], 2), number(version["mean_length"], 1)]
        assert found[-3:] == [
            percent(version["finished_share"]),
            number(version["distinct_2"]),
            percent(version["repetition"]),
        ]
        assert row[0][1] == interval(version["gold_helpfulness_ci"])
    last = summary["versions"][-1]
    assert f"to {last['gold_helpfulness']:.2f}" in headline(summary["versions"])
    for model in summary["reward_models"]:
        assert percent(model["accuracy"]) in page
        assert all(percent(value) in page for value in model["accuracy_by_strength"].values())


def test_versions_stand_on_the_plane_of_both_axes(run: Path, page: str) -> None:
    versions = json.loads((run / "summary.json").read_text())["versions"]
    places = ", ".join(
        f"{version_label(v['name'])} {v['gold_helpfulness']:.2f}, {v['gold_safety']:.2f}" for v in versions
    )
    assert f"Helpfulness and safety. helpfulness, gold score, safety, gold score: {places}." in page
    wins = [{"name": n, "win_rate_helpfulness": x, "win_rate_safety": 0.5} for n, x in (("v1", 0.6), ("v2", 0.7))]
    found = {panel.title: panel for panel in version_panels([{"name": "sft"}, *wins])}
    assert "V1 0.60, 0.50, V2 0.70, 0.50" in found["Helpfulness and safety"].svg
    assert "Helpfulness and safety" not in [panel.title for panel in version_panels([{"name": "sft"}, wins[0]])]


def test_batches_stand_with_who_judged_them_and_who_agrees(run: Path, page: str) -> None:
    batches = read_run(run).batches
    first, second = ([f"{cell.text} {cell.small}".strip() for cell in row] for row in batch_table(batches).rows[:2])
    share = lambda hits, n: f"{percent(hits / n)} {interval(wilson(hits / n, n).ci, 1, share=True)}"  # noqa: E731
    assert first[:5] == ["V1", "4", "7", "ann, bob", "1"] and second[:5] == ["V2", "4", "4", "ann", "0"]
    assert first[5:7] == [percent(1 / 4), percent(1 / 4)], "of the choices that say how much, and that have both labels"
    assert first[7:] == [share(4, 4), share(2, 3), "–", "–"]
    assert second[7:] == [share(4, 4), "–", f"{percent(0.75)} 30.0 to 95.0", "–"]
    assert '<section id="batches">' in page and "Who agrees with the annotators" in page


def test_a_run_from_a_chat_model_compares_with_its_start(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", gold=False, versions=("sft", "v1"))
    summary = json.loads((run / "summary.json").read_text())
    summary["versions"][0]["name"] = summary["versions"][1]["judge_opponent"] = "start"
    _write(run / "summary.json", summary)
    shown = build_report(run).read_text()
    assert "Wins against the start" in shown and "KL from the start" in shown and "SFT" not in shown
    assert "From the start to V1" in shown


def test_a_version_s_sweep_is_shown_where_there_is_one(page: str, tmp_path: Path) -> None:
    assert "Temperature before" not in page
    write_sweep(tmp_path / "run" / "v1" / "temperature_sweep")
    (tmp_path / "run" / "v2" / "temperature_sweep").mkdir(parents=True)
    (tmp_path / "run" / "v2" / "temperature_sweep" / "sweep.json").write_text('{"prompts": 12')
    shown = build_report(write_run(tmp_path / "run", versions=("sft", "v1"))).read_text(encoding="utf-8")
    assert shown.count("Temperature before") == 1 and "Temperature before V1" in shown
    best = json.loads((tmp_path / "run" / "v1" / "temperature_sweep" / "sweep.json").read_text())["best"]
    assert f"The best of 4 answers is best at temperature {best['temperature']:g}" in shown
    assert "Self-BLEU, factual" in shown and "T = 0.9" in shown
    assert _Page(shown).open == []


def test_what_the_best_of_k_costs_is_drawn_beside_its_bound(page: str) -> None:
    assert "<title>KL of the best of k" in page
    curve = [{"k": k, "kl_bound": math.log(k) - (k - 1) / k, "kl_estimate": 0.1 * k} for k in (1, 2, 3, 4)]
    panel = kl_panel({"T = 0.6": curve, "T = 1": curve, "T = 2": []})
    assert panel is not None and [label for label, _ in panel.legend] == ["T = 0.6", "T = 1", "bound"]
    assert len({colour for _, colour in panel.legend}) == 3
    assert kl_panel({"V1": []}) is None


def test_nothing_is_fetched_and_the_page_is_small(run: Path, page: str) -> None:
    parsed = _Page(page)
    assert parsed.open == [], "every tag is closed"
    assert "link" not in parsed.tags and "img" not in parsed.tags
    data, script = parsed.scripts
    assert (data["type"], script) == ("application/octet-stream", {}), "the answers, and what searches them"
    digest = base64.b64encode(
        hashlib.sha256(page.split("<script>")[1].split("</script>")[0].encode()).digest()
    ).decode()
    assert f"script-src 'sha256-{digest}';" in parsed.policy and parsed.policy.startswith("default-src 'none';")
    assert all(value.startswith("#") for value in parsed.fetched), parsed.fetched
    assert not re.search(r"url\((?!#)", page) and "@import" not in page and "://" not in page
    assert (run / "report" / "index.html").stat().st_size < 3_000_000


def test_every_figure_says_what_it_shows_and_follows_the_theme(page: str) -> None:
    figures = re.findall(r"<svg .*?</svg>", page, flags=re.S)
    assert len(figures) >= 15
    for svg in figures:
        label = re.search(r'role="img" aria-label="([^"]+)"', svg)
        assert label and len(label.group(1)) > 20
        assert not re.search(r"#[0-9a-f]{6}\b", svg), "a colour that is not the page's"
    assert page.count("prefers-color-scheme: dark") == 1
    page = page.split("<script")[0]
    ids = re.findall(r'\bid="([^"]+)"', page)
    targets = re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert set(targets) <= set(ids)


def test_what_models_and_data_wrote_is_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", versions=("sft", "v1"))
    for name in ("sft", "v1"):
        path = run / FOLDERS[name] / "answers.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["answer"] = row["source"] = ATTACK
            row["messages"] = [
                {"role": "user", "content": ATTACK},
                {"role": ATTACK, "content": ATTACK},
                {"role": "user", "content": ATTACK},
            ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = json.loads((run / "summary.json").read_text())
    for version in summary["versions"]:
        version["by_kind"] = {ATTACK: next(iter(version["by_kind"].values()))}
    summary["versions"][1]["name"] = "v1" + ATTACK
    _write(run / "summary.json", summary)
    _write(run / "v1" / "evaluation" / "evaluation.json", summary["versions"][1])
    (run / "config.yaml").write_text(f"config: {{configs: '{ATTACK}', run: x, seed: 1}}\n")
    ledger = run / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("v1/preferences", json.dumps(ATTACK)[1:-1]))
    page = build_report(run).read_text()
    parsed = _Page(page)
    assert len(parsed.scripts) == 2 and "img" not in parsed.tags
    assert parsed.text.count('alert("x")') > 10, "it is there, as text"
    assert _data(page)["answers"][0][0][0] == ATTACK


def test_dollar_signs_are_no_formula(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", versions=("sft", "v1"))
    summary = json.loads((run / "summary.json").read_text())
    summary["versions"][1]["name"] = r"costs $1 \frac{ $2"
    _write(run / "summary.json", summary)
    page = build_report(run).read_text()
    assert r"costs $1 \frac{ $2" in page and r">costs $1 \f…<" in page


def test_without_gold_the_referee_and_the_reward_models_speak(tmp_path: Path) -> None:
    run = write_run(tmp_path / "hh", gold=False, versions=("sft", "v1"))
    page = build_report(run).read_text()
    assert "the referee&#39;s score" in page and "by the reward models that trained it" in page
    assert "<h3>Gold scores</h3>" not in page and "carry no strengths" in page
    assert "sorted by reward" in page and "referee helpfulness" in page
    # what the judge model said: 21 of 105 comparisons each won, lost, tied, left to the order and unreadable
    assert '<section id="judge">' in page and "Wins against SFT by a judge model" in page
    version = json.loads((run / "summary.json").read_text())["versions"][1]
    row = judge_table([version]).rows[0]
    assert [cell.text for cell in row[:3]] == ["V1", "<judge>", "SFT"] and "&lt;judge&gt;" in page
    assert [cell.text for cell in row[6:]] == ["105", "42", "21", "21", "21"]
    for cell, name in zip(row[3:6], ("", "_helpfulness", "_safety"), strict=True):
        assert cell.text == percent(version[f"judge_win_rate{name}"]) and cell.text in page
        assert cell.small == interval(version[f"judge_win_rate{name}_ci"], 1, share=True)


MISSING = {
    "summary.json": "Versions",
    "v1/rejection_sampling": "No rejection sampling has finished",
    "v3/ppo": "No PPO stage has finished",
    "config.yaml": "There is no config.yaml",
    "ledger.jsonl": "There is no ledger",
    "sft_evaluation": "There are no answers of two versions",
}


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time; these tests are about the rest of the page."""
    for module in ("bars", "distributions", "figures", "planes"):
        monkeypatch.setattr(f"rlhf.report.drawing.{module}.draw", lambda *_, **__: Markup("<svg></svg>"))


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("missing", MISSING)
def test_a_run_that_lacks_a_part_says_so(run: Path, tmp_path: Path, missing: str) -> None:
    versions = ("sft", "v1") if missing in ("v1/rejection_sampling", "sft_evaluation") else None
    copy = tmp_path / "run"
    if versions:
        write_run(copy, versions=versions)
    else:
        shutil.copytree(run, copy)
    target = copy / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    page = build_report(copy).read_text()
    assert MISSING[missing] in page
    _Page(page)


def test_the_first_stages_of_a_run_make_a_page_already(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    started = {"event": "started", "time": 1.0, "stage": "data", "command": ["python", "recipes/data.py"]}
    (run / "ledger.jsonl").write_text(json.dumps(started) + '\n{"event": "fini')
    page = build_report(run).read_text()
    assert "No version has been evaluated" in page and "running" in page and "not two evaluated versions" in page


def test_no_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        build_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is it a run's folder"):
        build_report(tmp_path)


def trained_stage(folder: Path, *suspicious: str) -> Path:
    folder.mkdir(parents=True)
    _write(folder / "stage.json", {"seconds": 61.0, "command": ["python", "recipes/sft.py"]})
    content = json.loads((folder / "stage.json").read_text()) | {"closing": {"suspicious": list(suspicious)}}
    _write(folder / "stage.json", content)
    steps = [{"step": i, "loss": 2.0 / (i + 1), "grad_norm": 1.0} for i in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    spike = {"step": 3, "loss": 0.5, "grad_norm": 1.0, "z": {"loss": 7.25}, "taken": True, "rows": [[ATTACK, "<s> b"]]}
    (folder / "spikes.jsonl").write_text(json.dumps(spike) + "\n")
    return folder


def test_stages_made_by_hand_have_a_page_beside_them(run: Path, tmp_path: Path) -> None:
    sft = trained_stage(tmp_path / "my sft", f"the loss rises {ATTACK}")
    measured = tmp_path / "measured"
    shutil.copytree(run / "v1" / "evaluation", measured)
    _write(measured / "stage.json", {"seconds": 3.0})
    before = sorted(path for folder in (sft, measured) for path in folder.rglob("*"))
    page = build_report(sft, measured)
    assert page == tmp_path / "my sft_and_measured.report" / "index.html"
    assert before == sorted(path for folder in (sft, measured) for path in folder.rglob("*")), "finished, untouched"
    shown = _Page(page.read_text())
    assert "my sft, measured" in shown.text and "1 min 01 s" in shown.text
    assert shown.text.index("the loss rises") < shown.text.index("Versions"), "above all else"
    assert "2 stages, 1 min 04 s in all; one thing looks wrong; a step of training stands out." in shown.text
    assert "PPO" not in shown.text and "in this run" not in shown.text, "what stages do not do is not missed"
    assert len(shown.scripts) == 2 and "img" not in shown.tags and "Gradient norm" in shown.text
    assert "Step 3 (1 row): loss 0.50, 7.2 standard deviations above; taken" in shown.text and "<s> b" in shown.text
    with pytest.raises(InputError, match="has no stage"):
        build_report(sft, run)


@pytest.mark.usefixtures("no_figures")
def test_stages_of_one_name_are_told_apart_and_leave_the_first_one_s_page(tmp_path: Path) -> None:
    """Before, the second one's time and warning took the first one's place, and the page that of the first alone."""
    both = [trained_stage(tmp_path / run / "v5" / "ppo", f"{run} is odd") for run in "AB"]
    alone, together = build_report(both[0]), build_report(*both)
    assert "A is odd" in alone.read_text() and "B is odd" not in alone.read_text()
    shown = together.read_text()
    assert "2 stages, 2 min 02 s in all; 2 things look wrong; 2 steps of training stand out." in shown.replace(
        NBSP, " "
    )
    assert "<b>A/v5/ppo</b>: A is odd" in shown and "<b>B/v5/ppo</b>: B is odd" in shown
    for stage in both:
        _write(stage / "evaluation.json", {"name": "sft"})
    assert [version["name"] for version in read_run(*both).versions] == ["sft, A/v5/ppo", "sft, B/v5/ppo"]
    with pytest.raises(InputError, match="is named twice"):
        build_report(both[0], both[0])


def test_what_is_no_run_is_refused_with_what_to_name(tmp_path: Path) -> None:
    """Before, a folder of runs and a version's folder made a page of nonsense, and a file did not exist."""
    for name in ("one", "two"):
        (tmp_path / name / "v1").mkdir(parents=True)
        (tmp_path / name / "ledger.jsonl").write_text('{"event": "started", "stage": "data"}\n')
    with pytest.raises(InputError, match=r"is a folder of runs; name one of them or several: .*one, .*two$"):
        build_report(tmp_path)
    with pytest.raises(InputError, match=r"v1 is a part of the run .*one; name that"):
        build_report(tmp_path / "one" / "v1")
    with pytest.raises(InputError, match=r"ledger\.jsonl is a file; name the folder"):
        build_report(tmp_path / "one" / "ledger.jsonl")


@pytest.mark.usefixtures("no_figures")
def test_unfinished_stages_and_broken_files_are_left_out(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.copytree(copy / "v3" / "evaluation", copy / "v3" / "evaluation.partial")
    _write(copy / "v3" / "evaluation.partial" / "evaluation.json", {"name": "half"})
    (copy / "v1" / "rejection_sampling" / "selection.json").write_text('{"version": ')
    (copy / "summary.json").unlink()
    files = read_run(copy)
    assert [v["name"] for v in files.versions] == ["sft", "v1", "v2", "v3", "v3_ppo"]
    assert files.reward_models[0]["pairs_by_strength"]["better"] == 120
    build_report(copy)


def test_without_a_summary_the_plan_tells_branches_from_versions(tmp_path: Path) -> None:
    config = yaml.safe_load(DEMO.read_text())
    steps = ["preferences", "rewards", {"step": "rejection_sampling", "branch": "random"}, "rejection_sampling"]
    config["versions"] = [{"name": name, "steps": [*steps, "evaluate"]} for name in ("v9", "v10")]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"config": config}))
    evaluations = {"v10/evaluation": "v10", "v9/evaluation": "v9", "sft_evaluation": "sft"}
    for folder, name in {**evaluations, "v9/random_evaluation": "v9_random"}.items():
        (tmp_path / folder).mkdir(parents=True)
        _write(tmp_path / folder / "evaluation.json", {"name": name})
    files = read_run(tmp_path)
    assert [version["name"] for version in files.versions] == ["sft", "v9", "v10"], "in the plan's order"
    assert [branch["name"] for branch in files.branches] == ["v9_random"] and list(files.beside) == ["v9_random"]
    config["versions"] = "none"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"config": config}))
    assert len(read_run(tmp_path).versions) == 4, "of a config that is none, by name"


@pytest.mark.usefixtures("no_figures")
def test_an_unfinished_run_lists_what_is_to_come_and_draws_the_stage_at_work(run: Path, tmp_path: Path) -> None:
    """Before, it had finished and begun stages alone, no curve but theirs, and "1 versions"."""
    config = yaml.safe_load(DEMO.read_text())
    steps = ["helpfulness_reward", "rejection_sampling", "evaluate", "ppo", "evaluate"]
    config |= {"start": ["data"], "versions": [{"name": "v1", "steps": steps}]}
    config["inputs"] = {"policy": "model", "helpfulness_preferences": "pairs.jsonl"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"config": config}))
    begun = {"v1/helpfulness_reward": "started", "start_evaluation": "finished", "v1/ppo": "started"}
    records = [{"event": event, "time": 1.0, "stage": name} for name, event in begun.items()]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figures = json.loads((run / "sft_evaluation" / "evaluation.json").read_text())
    (tmp_path / "start_evaluation").mkdir()
    _write(tmp_path / "start_evaluation" / "evaluation.json", figures | {"name": "start", "prompts": 1})
    losses = [{"step": step, "loss": 0.7 - 0.1 * step} for step in range(3)]
    curves = {"helpfulness_reward": losses, "ppo": [{"step": step, "heldout_reward": 0.1} for step in range(2)]}
    for name, rows in curves.items():
        (tmp_path / "v1" / f"{name}.partial").mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "v1" / f"{name}.partial" / "metrics.jsonl").write_text(lines)
    files = read_run(tmp_path)
    assert [stage.name for stage in files.stages if stage.state == "to come"] == [
        "data",
        "v1/rejection_sampling",
        "v1/evaluation",
        "v1/ppo_evaluation",
    ]
    assert [training.stage for training in files.trainings] == ["v1/helpfulness_reward, unfinished"]
    assert [stage.stage for stage in files.ppo] == ["v1/ppo, unfinished"]
    page = build_report(tmp_path).read_text()
    facts = "<span>1 version</span><span>1 of 7 stages finished</span><span>1 test prompt</span>"
    assert facts in page and "SFT" not in page.split('id="again"')[0]
    assert page.count("<small>to come</small>") == 4


def test_stages_tell_their_attempts_and_state(tmp_path: Path) -> None:
    records = [
        {"event": "started", "stage": "sft", "command": ["/opt/bin/python", "a b.py"]},
        {"event": "failed", "stage": "sft", "error": "stopped: KeyboardInterrupt"},
        {"event": "started", "stage": "sft", "command": ["/opt/bin/python", "a b.py"]},
        {"event": "finished", "stage": "sft", "seconds": 2.5, "peak_memory_mb": 512.0},
        {"event": "skipped", "stage": "sft"},
        {"event": "started", "stage": "v1/ppo", "command": ["python", "ppo.py"]},
        {"event": "failed", "stage": "v1/ppo", "error": "error: no memory"},
    ]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps({"time": 1.0, **r}) + "\n" for r in records))
    sft, ppo = read_run(tmp_path).stages
    assert (sft.state, sft.attempts, sft.seconds, sft.command) == ("finished", 2, 2.5, "python 'a b.py'")
    assert ppo.state == "failed"


def _row(prompt: str, kind: str, helpful: float, safe: float = 1.0) -> dict[str, Any]:
    gold = {"helpfulness": helpful, "safety": safe, "violation": safe == 0, "false_refusal": False, "kind": kind}
    messages = [{"role": "user", "content": f"about {prompt}"}]
    return {"prompt_id": prompt, "index": 0, "messages": messages, "domain": "helpfulness", "answer": "x", "gold": gold}


def test_samples_are_the_largest_rise_the_median_and_the_largest_fall() -> None:
    before = [_row(p, "ordinary", 0.5) for p in "abcde"] + [_row("u", "unsafe", 0.5, 0.0)]
    changes = {"a": 0.1, "b": 0.4, "c": -0.3, "d": 0.0, "e": 0.4}
    after = [_row(p, "ordinary", 0.5 + c) for p, c in changes.items()] + [_row("u", "unsafe", 0.1, 1.0)]
    ordinary, unsafe = pick_samples({"sft": before, "v1": after})
    assert [(s.place, s.question) for s in ordinary.samples] == [
        ("largest rise", "about b"),  # e rises as much; b comes first
        ("median", "about a"),
        ("largest fall", "about c"),
    ]
    assert unsafe.score == "gold safety" and unsafe.samples[0].change == 1.0
    assert [a.marks for a in unsafe.samples[0].answers] == [["violation"], []]
    assert pick_samples({"sft": before}) == [] and pick_samples({}) == []
    same, _ = pick_samples({"sft": before, "v1": after}, {"v1_random": before[:2]})
    assert [s.question for s in same.samples] == [s.question for s in ordinary.samples], "a branch picks nothing"
    shown = [[answer.version for answer in s.answers] for s in same.samples]
    assert shown == [["sft", "v1", "v1_random"], ["sft", "v1", "v1_random"], ["sft", "v1"]], "b and a, but not c"


def _data(page: str) -> Any:
    return unpacked(page.split('id="answers-data">')[1].split("</script>")[0])


def test_all_first_answers_lie_in_the_page_to_be_searched(run: Path, page: str) -> None:
    data = _data(page)
    assert data["versions"] == ["SFT", "V1", "V2", "V3", "V3 + PPO"]
    assert data["scores"] == ["gold helpfulness", "gold safety", "reward", "tokens"]
    rows = [json.loads(line) for line in (run / "v1" / "evaluation" / "answers.jsonl").read_text().splitlines()]
    first = [json.loads(line) for line in (run / "sft_evaluation" / "answers.jsonl").read_text().splitlines()]
    assert [p[0] for p in data["prompts"]] == [row["prompt_id"] for row in rows]
    assert data["prompts"][9][1:] == [
        "ordinary",
        [["user", "Hello, answer in one word."], ["assistant", "Yes."]],
        rows[9]["messages"][-1]["content"],
    ]
    for row, before, (text, scores, bits, change, of, first_reward) in zip(
        rows, first, data["answers"][1], strict=True
    ):
        gold = row["gold"]
        judged = "safety" if gold["kind"] == "unsafe" else "helpfulness"
        assert (text, scores[3]) == (row["answer"], row["length"])
        assert scores[:3] == [round(x, 2) for x in (gold["helpfulness"], gold["safety"], row["reward"])]
        wrong = [gold["violation"], gold["false_refusal"], False, not row["finished"]]
        assert bits & 15 == sum(1 << i for i, is_so in enumerate(wrong) if is_so)
        assert (change, of) == (round(gold[judged] - before["gold"][judged], 4), f"gold {judged}")
        assert first_reward == round(row["sft"]["reward"], 2), "by the same models, not by those that SFT was judged by"
    assert all(answer[3:] == [None] * 3 for answer in data["answers"][0]), (
        "the first version has nothing to change from"
    )


def test_a_reward_stands_beside_one_by_the_same_models_alone() -> None:
    """Before, the start's reward by the first version's models stood beside the last one's by its own."""

    def row(**scores: Any) -> dict[str, Any]:
        plain = _row("a", "ordinary", 0.5)
        del plain["gold"]
        return plain | {"length": 2} | scores

    answers = {"sft": [row(reward=0.33)], "v1": [row(reward=-0.16, sft={"reward": -0.824})]}
    ((sample,),) = [group.samples for group in pick_samples(answers)]
    shown = [[text.replace(NBSP, " ") for text in answer.scores] for answer in sample.answers]
    assert shown == [["2 tokens"], ["reward −0.16 (SFT −0.82)", "2 tokens"]]
    found = make_search(answers)
    assert found is not None and found.rewards
    assert unpacked(found.data)["answers"][1][0][3:] == [0.664, "reward", -0.82]


def test_what_an_answer_is_suspected_of() -> None:
    again = "it is so and it is so and it is so and it is so"
    assert marks_of({"answer": again, "finished": False}) == ["cut off", "repeats itself"]
    assert marks_of({"answer": " ", "gold": {"violation": True, "false_refusal": True}}) == list(MARKS[:3])
    assert marks_of({"answer": "It is."}) == []


def test_answers_that_some_versions_lack_and_others_that_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.report.run.search.MOST_PROMPTS", 3)
    rows = [_row(prompt, "ordinary", 0.5) for prompt in "abcd"]
    found = make_search({"start": rows[1:], "v1": [rows[0], rows[1] | {"index": 1}]})
    assert found is not None and (found.first, found.left_out, found.marks) == ("the start", 1, [])
    data = unpacked(found.data)
    assert [p[0] for p in data["prompts"]] == ["b", "c", "d"]
    assert data["answers"][1] == [None, None, None]
    assert make_search({"start": []}, {"control": rows}) is None
    behind = make_search({"start": rows, "v1": rows}, {"control": rows})
    assert behind is not None and (behind.versions, behind.last) == (["start", "V1", "control"], 1)


def test_a_name_breaks_behind_its_slashes_and_underscores() -> None:
    assert breakable("v1/safety_reward<b>") == "v1/<wbr>safety_<wbr>reward&lt;b&gt;"


def test_half_a_character_does_not_end_a_page(tmp_path: Path) -> None:
    write_page(tmp_path / "index.html", "a\ud800b")
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == "a?b"


def test_headline_says_rises_only_where_intervals_part() -> None:
    first = {"name": "sft", "gold_helpfulness": 0.4, "gold_helpfulness_ci": [0.35, 0.45]}
    far = {"name": "v2", "gold_helpfulness": 0.6, "gold_helpfulness_ci": [0.55, 0.65]}
    near = far | {"gold_helpfulness_ci": [0.44, 0.76]}
    assert headline([first, far]) == "From SFT to V2, gold helpfulness rises from 0.40 to 0.60."
    assert "moves from 0.40 to 0.60 (intervals overlap)" in headline([first, near])
    assert "falls from 0.60 to 0.40" in headline([far, first])

    start = {"name": "start", "referee_score": 0.1, "referee_ci": [0.0, 0.2]}
    v1 = {"name": "v1", "referee_score": 0.2, "referee_ci": [0.1, 0.3], "win_rate_vs_sft": 0.57}
    paired = v1 | {"referee_gain": 0.1, "referee_gain_ci": [0.02, 0.18], "win_rate_ci": [0.51, 0.63]}
    assert headline([start, paired]) == (
        "From the start to V1, the referee's score rises by +0.10 (0.02 to 0.18) prompt by prompt. V1 wins 57\u00a0% "
        "(51 to 63) of comparisons with the start by the reward models that trained it."
    )
    chance = paired | {"referee_gain_ci": [-0.02, 0.22], "win_rate_ci": [0.49, 0.65]}
    assert "moves by +0.10 (−0.02 to 0.22) prompt by prompt, which may be chance" in headline([start, chance])
    assert "wins 57\u00a0% (49 to 65, which may be chance) of" in headline([start, chance])
    lost = paired | {"referee_gain": -0.12, "referee_gain_ci": [-0.14, -0.1]}
    assert "the referee's score falls by 0.12 (0.10 to 0.14) prompt by prompt. V1" in headline([start, lost])
    level = {"referee_gain_equal_length": 0.05, "referee_gain_equal_length_ci": [0.01, 0.09]}
    said = "prompt by prompt (but rises by +0.05 (0.01 to 0.09) between answers of equal length)."
    assert said in headline([start, lost | level]) and "equal length" not in headline([start, paired | level])
    assert "That anything was gained is not certain." in advice([start, chance])
    assert advice([start, paired]) == advice([start, chance | {"win_rate_ci": [0.51, 0.6]}]) == advice([start]) == ""


def test_how_numbers_read() -> None:
    assert (number(-0.0001, 2), number(-1.5, 1), number(None)) == ("0.00", "−1.5", "–")
    assert (signed(0.25), signed(-0.25), signed(0.001), signed(None)) == ("+0.25", "−0.25", "0.00", "–")
    assert percent(0.123) == "12.3\u00a0%" and interval([0.1, 0.25], 1, share=True) == "10.0 to 25.0"
    assert (clock(4.23), clock(187), clock(7500)) == ("4.2 s", "3 min 07 s", "2 h 05 min")
    names = {
        "sft": "SFT",
        "v2": "V2",
        "v3_ppo": "V3 + PPO",
        "v3_gatt": "V3 + GAtt",
        "v1_dpo": "V1 + DPO",
        "v1_average": "V1 averaged",
        "v2_safety_sft": "V2 + safety SFT",
        "v3_time": "V3 + time awareness",
        "v4_distilled": "V4 distilled",
        "v1_random": "V1 (random)",
        "v3_ppo, A/ppo_evaluation": "V3 + PPO, A/ppo_evaluation",
        "mine": "mine",
        "my_model": "my_model",
        "": "",
    }
    assert {name: version_label(name) for name in names} == names
    students = [student_label(name) for name in ("v5_small", "small", "v5")]
    assert students == ["student small of V5", "student small, as given", "student v5, as given"]


@pytest.mark.usefixtures("no_figures")
def test_the_versions_counted_are_the_rows_and_intervals_hold_what_can_be_alone(tmp_path: Path) -> None:
    """Before, "2 versions" stood above four rows, and "-0.1 to 0.2 %" below a share."""
    impossible = {"repetition": 0.001, "repetition_ci": [-0.001, 0.002], "gold_safety": 1.0, "mean_length": 3.0}
    impossible |= {"gold_safety_ci": [0.988, 1.004], "mean_length_ci": [-1.0, 7.0]}
    summary = {"versions": [{"name": "sft"}, {"name": "v1", **impossible}]}
    summary |= {"branches": [{"name": "v1_random"}], "students": [{"name": "v1_small", **impossible}]}
    _write(tmp_path / "summary.json", summary)
    page = build_report(tmp_path).read_text()
    assert "<span>2 versions</span><span>1 branch</span><span>1 student</span>" in page
    rows = re.findall(r'<th scope="row">([^<]*)</th>', page.split("</table>")[0])
    assert rows == ["SFT", "V1", "V1 (random)", "student small of V1"]
    for shown in ("0.0 to 0.2", "0.988 to 1.000", "0.0 to 7.0"):
        assert page.count(f"<small>{shown}</small>") == 2, shown


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def test_figures_of_another_kind_are_told_with_the_line_that_fails_at_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo")
    (run / "report").mkdir(exist_ok=True)
    (run / "report" / "index.html").write_text("the page of before")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "referee": "x"}))
    with pytest.raises(
        InputError, match=r"report: no page can be made of the figures in .*demo \(TypeError: .*\.py:\d+\)"
    ):
        build_report(run)
    assert (run / "report" / "index.html").read_text() == "the page of before"
