"""Human evaluation by the user's door: two models' answers, blind ratings on the page, figures by hand."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi")
from markupsafe import Markup
from starlette.testclient import TestClient

from rlhf.annotation.agreement import gwet
from rlhf.annotation.human_evaluation import turns_of, words_of
from rlhf.annotation.page import serve
from rlhf.annotation.page.app import default_guidelines, make_app
from rlhf.annotation.protocol import Judgement
from rlhf.annotation.scales import EVALUATION, PREFERENCE
from rlhf.annotation.store import Store
from rlhf.commands.annotate import add_options, annotate
from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.intervals import wilson
from rlhf.jsonl import write_rows
from rlhf.report.pages.human_evaluation import human_table
from rlhf.simulation.gold import Verdict

if TYPE_CHECKING:
    from chat_server import ChatServer

SINGLE: Conversation = [{"role": "user", "content": "How so?"}]
MULTI: Conversation = [*SINGLE, {"role": "assistant", "content": "word " * 20}, {"role": "user", "content": "Go on"}]


def gold(helpfulness: float) -> dict[str, Any]:
    return asdict(Verdict(helpfulness, 1.0, False, False, "ordinary", "age", False, 1.0, 1.0, 1.0, 9))


def write_evaluation(folder: Path, name: str, texts: list[str], values: list[float]) -> Path:
    """As recipes/evaluation/evaluate.py leaves it: prompts 0 to 2 single-turn, the others multi-turn."""
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({"name": name}))
    rows = []
    for number, (text, value) in enumerate(zip(texts, values, strict=True)):
        prompt = [{"role": "user", "content": f"Prompt {number}"}, {"role": "assistant", "content": "Yes."}]
        messages = [*prompt, *(SINGLE if number < 3 else MULTI)] if number >= 3 else prompt[:1]
        common = {"prompt_id": f"p{number}", "index": 0, "messages": messages, "domain": "helpfulness"}
        rows.append(common | {"answer": text, "gold": gold(value), "length": 3, "finished": True, "source": "test"})
    write_rows(folder / "answers.jsonl", rows)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    write_evaluation(run / "sft" / "evaluation", "sft", ["s0", "s1", "s2", "same", "s4"], [0.1, 0.5, 0.5, 0.5, 0.9])
    write_evaluation(run / "v1" / "evaluation", "v1", ["w0", "w1", "w2", "same", ""], [0.9, 0.55, 0.1, 0.5, 0.0])
    (run / "ledger.jsonl").write_text("")
    return run


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time, and one test draws them."""
    monkeypatch.setattr("rlhf.report.drawing.figures.draw", lambda *_, **__: Markup("<svg></svg>"))


def command(*options: Any) -> None:
    parser = ArgumentParser()
    add_options(parser)
    annotate(parser.parse_args([str(option) for option in options]))


def rate(store: Store, who: str, points: dict[str, int]) -> None:
    """By the page's own requests, as its script sends them: points by prompt, above 0 for v1 (answers in w)."""
    client = TestClient(make_app(store, "token", ""), base_url="http://127.0.0.1:8642")
    while (pair := client.get(f"/token/api/next?annotator={who}").json()["pair"]) is not None:
        assert pair["scale"] == "evaluation" and "sft" not in json.dumps(pair) and "v1" not in json.dumps(pair)
        given = points[pair["messages"][0]["html"][-6]]
        better = next(side for side in ("left", "right") if ("<p>w" in pair[side]) == (given > 0))
        strength = {1: "slightly", 2: "better", 3: "significantly"}.get(abs(given))
        body = {"choice": better if given else "tie", "strength": strength, "annotator": who, "item": pair["item"]}
        answer = client.post("/token/api/judge", json=body | {"seconds": 1.0})
        assert answer.status_code == 200, answer.text


def test_the_help_fits_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = ArgumentParser("rlhf annotate")
    add_options(parser)
    help = parser.format_help()
    assert help.count("\n") <= 50 and "usage: rlhf annotate [WHAT] [options]\n" in help
    assert "--judge URL MODEL [KEY]" in help and "--write MODEL [MODEL]" in help


def test_what_people_said_elsewhere_counts_as_theirs_and_what_is_set_aside_is_said(run: Path, capsys: Any) -> None:
    """Judgements that are brought in may not say which answer stood left."""
    sides = [run / "v1" / "evaluation", run / "sft" / "evaluation"]
    command("--compare", *sides, "--figures")
    folder = run / "human_evaluation" / "v1_vs_sft"
    with Store(folder / "labels.sqlite") as store:
        pair = store.pairs("comparison")[0].id
        for who in ("ann", "judge m"):
            store.keep("comparison", Judgement(pair, who, "a", "better"))
    command("--compare", *sides, "--figures")
    figures = json.loads((folder / "human_evaluation.json").read_text())
    assert figures["people"] == {"ann": 1} and figures["judges"] == {"judge m": 1} and figures["left"] is None
    assert figures["judge_agreement"]["judge m"]["pairs"] == 1
    assert "set aside" not in capsys.readouterr().out
    command(folder, "--compare", *reversed(sides), "--figures")
    assert (
        "; 2 ratings were of other pairs, and are set aside until these are compared again" in capsys.readouterr().out
    )


def test_the_figures_by_hand(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Five prompts: one tie and one empty answer that nobody sees, three pairs of three raters each."""
    served: list[Path] = []
    monkeypatch.setattr(serve, "serve", lambda path, **options: served.append(path))
    sides = ("--compare", run / "v1" / "evaluation", run / "sft" / "evaluation")
    command(*sides)
    folder = run / "human_evaluation" / "v1_vs_sft"
    assert served == [folder / "labels.sqlite"], "in the run that both belong to"
    assert "3 pairs to rate by 3 raters each, 2 decided without one" in capsys.readouterr().out
    for options, raters in ((("--labels", 4), 4), ((), 4), (("--labels", 3), 3)):
        command(*sides, *options)
        assert f"to rate by {raters} raters each" in capsys.readouterr().out, "as before where nobody says"
    del served[1:]
    with Store(served[0]) as store:
        rate(store, "ann", {"0": 3, "1": 1, "2": -2})
        rate(store, "bob", {"0": 2, "1": 0, "2": -2})
        store.keep("comparison", Judgement(store.pairs("comparison")[0].id, "judge m", "a", "negligibly"))
        rate(store, "cyd", {"1": -1, "2": 2})
    command(*sides, "--figures")
    text = capsys.readouterr().out
    figures = json.loads((folder / "human_evaluation.json").read_text())
    # medians: p0 of 3, 2 and the judge's tie is 2, a win; p1 of 1, 0, -1 a tie; p2 of -2, -2, 2 a loss
    share = lambda hits, n: {"rate": hits / n, "ci": wilson(hits / n, n).ci}  # noqa: E731
    assert figures["all"] == {
        "pairs": 5,
        "win": share(1, 5),
        "tie": share(2, 5),
        "loss": share(2, 5),
        "win_rate": share(2, 5),
    }
    assert (figures["decided"], figures["unrated"], figures["skipped"]) == (2, 0, {})
    assert figures["people"] == {"ann": 3, "bob": 3, "cyd": 2} and figures["judges"] == {"judge m": 1}
    assert {turns: rates["pairs"] for turns, rates in figures["turns"].items()} == {"1": 3, "3": 2}
    assert figures["turns"]["1"]["win"] == share(1, 3)
    assert sum(rates["pairs"] for rates in figures["words"].values()) == 5
    points = [[3, 2, 0], [1, 0, -1], [-2, -2, 2]]
    ac1 = gwet([["tie" if not p else "a" if p > 0 else "b" for p in some] for some in points], ["a", "tie", "b"])
    ac2 = gwet(points, range(-3, 4), "ordinal")
    assert ac1 is not None and ac2 is not None and figures["ac2"]["items"] == 3
    assert [figures[key]["value"] for key in ("ac1", "ac2")] == [ac1.coefficient, ac2.coefficient]
    judged = figures["judge_agreement"]["judge m"]
    assert judged["pairs"] == 1 and judged["same"]["rate"] == 0.0, "it says tie where people say win"
    # gold: p0 by 0.8 a win, p1 by 0.05 negligible, p2 a loss, the same text a tie, the empty answer a loss
    assert figures["gold"]["all"] == figures["all"] and figures["gold_same"] == share(5, 5)
    assert "20.0" in text and "Raters and gold agree" in text
    names = [row[0].text for row in human_table(figures).rows]
    assert names[:6] == [
        "all pairs",
        "all pairs, by gold",
        "turns: 1",
        "turns: 1, by gold",
        "turns: 3",
        "turns: 3, by gold",
    ]
    page = (folder / "index.html").read_text()
    assert "V1 against SFT" in page and "by turns" in page and "win rate by prompt length, raters and gold" in page

    from rlhf.report import build_report

    (run / "summary.json").write_text(json.dumps({"versions": [{"name": "sft"}, {"name": "v1"}]}))
    report = build_report(run).read_text()
    assert "Human evaluation" in report and "V1 against SFT: by prompt length" in report


@pytest.mark.usefixtures("no_figures")
def test_the_scale_is_kept_by_the_store_and_told_by_the_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "serve", lambda path, **options: None)
    command(run / "mine", "--compare", run / "v1" / "evaluation", run / "sft" / "evaluation", "--prompts", 4)
    with Store(run / "mine" / "labels.sqlite") as store:
        assert store.scale("comparison") is EVALUATION
        client = TestClient(make_app(store, "token", ""), base_url="http://127.0.0.1:8642")
        pair = client.get("/token/api/next?annotator=ann").json()["pair"]
        body = {"annotator": "ann", "item": pair["item"], "seconds": 1.0, "choice": "tie"}
        newest = client.post("/token/api/judge", json=body).json()["progress"]["newest"]
        undone = client.post("/token/api/undo", json={"annotator": "ann", "judgement": newest}).json()
        assert undone["was"] == {"choice": "tie", "strength": None}
        store.add_batch("forced", store.pairs("comparison"))
        with pytest.raises(InputError, match="asks for a choice"):
            store.keep("forced", Judgement(store.pairs("forced")[0].id, "ann", "tie"))
        page = client.get("/token/").text
    assert page.count('data-key="7"') == 2 and page.count('data-key="8"') == 1
    assert "About the same" in default_guidelines(EVALUATION)


def test_points_of_both_scales() -> None:
    assert [len(scale.points) for scale in (PREFERENCE, EVALUATION)] == [8, 7]
    assert EVALUATION.ratings == [-3, -2, -1, 0, 1, 2, 3] and PREFERENCE.ratings == [-4, -3, -2, -1, 1, 2, 3, 4]
    unsure = EVALUATION.fit(Judgement("p", "ann", "b", "negligibly", True, True))
    assert (unsure.choice, unsure.strength, unsure.chosen_safe) == ("tie", None, None)
    assert EVALUATION.rating(EVALUATION.fit(Judgement("p", "ann", "b"))) == -1, "no strength: the weakest"
    assert EVALUATION.rating(Judgement("p", "ann", None, skipped="why")) is None


@pytest.mark.parametrize(
    ("words", "name"), [(16, "1 to 16"), (17, "17 to 64"), (256, "65 to 256"), (999, "257 or more")]
)
def test_bins_of_prompt_length(words: int, name: str) -> None:
    messages = [{"role": "user", "content": "w " * words}]
    assert (words_of(messages), turns_of(messages)) == (name, "1")


def test_a_file_of_people_s_answers_serves_and_what_does_not_fit_is_named(run: Path, tmp_path: Path) -> None:
    people = tmp_path / "people.jsonl"
    write_rows(
        people, [{"messages": [{"role": "user", "content": "Prompt 0"}, {"role": "assistant", "content": "Hi"}]}]
    )
    model = run / "v1" / "evaluation"
    command(tmp_path / "out", "--compare", model, people, "--figures")
    assert json.loads((tmp_path / "out" / "human_evaluation.json").read_text())["models"] == ["v1", "people"]
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "user", "content": "Prompt 0"}]}\n')
    write_rows(tmp_path / "other.jsonl", [{"messages": SINGLE, "answer": "x"}])
    twice = ("--judge", "http://here/v1", "m", "--judge", "http://there/v1", "m")
    for options, message in (
        (("--compare", model, tmp_path / "bad.jsonl"), r"bad.jsonl:1: answer: is missing"),
        (("--compare", model, tmp_path / "other.jsonl"), "no prompt in common"),
        (("--compare", model, tmp_path / "none"), "none does not exist"),
        (("--compare", model, people, "--labels", 0), "must be at least 1"),
        (("--compare", model, people, "--export", tmp_path / "x"), "export: "),
        (("--figures", people), r"people.jsonl:1: row: not a preference.* has messages, a and b"),
        (("--compare", model, people, "--judge", "here", "m"), r"judge\.url: must begin with http"),
        (("--compare", model, people, "--judge", "http://here/v1"), "judge: URL, MODEL, and"),
        (("--compare", model, people, *twice), "judge: m stands there twice"),
        (("--compare", model, people, "--judge", "http://here/v1", "m", "NO_KEY"), r"judge\.api_key_env: .* no NO_KEY"),
        ((), "what: name"),
    ):
        with pytest.raises(InputError, match=message):
            command(*options)


@pytest.mark.usefixtures("no_figures")
def test_versions_of_a_run_are_compared_by_their_names(run: Path, capsys: Any) -> None:
    """The newest with the first, where none is named; in the order in which the run evaluated them."""
    write_evaluation(run / "a_student" / "evaluation", "my_1b", ["x"] * 5, [0.5] * 5)
    write_evaluation(run / "a2" / "evaluation", "v2", ["x"] * 5, [0.5] * 5)
    finished = [
        {"event": "finished", "time": 1.0, "stage": f"{name}/evaluation"} for name in ("sft", "v1", "a2", "a_student")
    ]
    write_rows(run / "ledger.jsonl", finished)
    (run / "summary.json").write_text(json.dumps({"versions": [], "students": [{"name": "my_1b"}]}))
    for sides, models in (((), ["v2", "sft"]), (("v1",), ["v1", "sft"])):
        command(run, "--compare", *sides, "--figures")
        figures = json.loads((run / "human_evaluation" / "_vs_".join(models) / "human_evaluation.json").read_text())
        assert figures["models"] == models and figures["unrated"] == 5 - figures["decided"]
    capsys.readouterr()
    for options, message in (
        ((run, "--compare", "v3"), "compare: v3 is no file, no folder and no version of .*: sft, v1, v2"),
        ((run, "--compare", "sft"), "compare: sft would be compared with itself"),
        ((run, "--compare", "v1", "sft", "v2"), "compare: two are compared, got 3"),
        ((run, "--compare", "sft", "people"), "compare: .* has no answers that people wrote"),
        (("--compare", "v1"), "compare: name two models' answers, or the folder of a run"),
    ):
        with pytest.raises(InputError, match=message):
            command(*options)


@pytest.mark.usefixtures("no_figures")
def test_a_model_answers_what_people_answered(
    run: Path, tmp_path: Path, tiny_policy_path: Path, chat_server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's check of its SFT data, blind: by a served model, and by a run's own SFT model."""
    served: list[Path] = []
    monkeypatch.setattr(serve, "serve", lambda path, **options: served.append(path))
    ask = [[{"role": "user", "content": f"Prompt {number}"}] for number in range(6)]
    people = tmp_path / "people.jsonl"
    write_rows(people, ({"messages": [*asked, {"role": "assistant", "content": "sure"}]} for asked in ask))
    gate = (tmp_path / "gate", "--compare", f"{chat_server.url}#tiny", people, "--prompts", 4)
    command(*gate)
    assert len(chat_server.asked) == 4 and served == [tmp_path / "gate" / "labels.sqlite"]
    with Store(served[0]) as store:
        pairs = store.pairs("comparison")
        assert len(pairs) == 4 and all("Prompt" in pair.a and pair.b == "sure" for pair in pairs)
        client = TestClient(make_app(store, "token", ""), base_url="http://127.0.0.1:8642")
        for better in ("b", "b", "a", None):
            shown = client.get("/token/api/next?annotator=ann").json()["pair"]
            side = next((side for side in ("left", "right") if ("sure" in shown[side]) == (better == "b")), None)
            body = {"choice": side, "strength": "better"} if better else {"choice": "tie"}
            assert client.post(
                "/token/api/judge", json={"annotator": "ann", "item": shown["item"], "seconds": 1} | body
            )
    command(*gate, "--figures")
    figures = json.loads((tmp_path / "gate" / "human_evaluation.json").read_text())
    assert len(chat_server.asked) == 4, "answers that are there are not drawn again"
    assert (figures["models"], figures["unmatched"]) == (["tiny", "people"], 0)
    assert figures["all"]["win_rate"] == {"rate": 1.5 / 4, "ci": wilson(1.5 / 4, 4).ci}
    with pytest.raises(InputError, match=r"compare: .*gate/tiny has answers of another model, to other prompts"):
        command(*gate, "--max-new-tokens", 5)

    write_rows(
        run / "sft" / "heldout.jsonl",
        ({"messages": [*asked, {"role": "assistant", "content": "sure"}]} for asked in ask),
    )
    record = {"command": [], "config": {}, "seconds": 1.0, "closing": {}, "inputs": {}}
    record["inputs"] = {"policy": {"path": str(tiny_policy_path), "digest": "x"}}
    (run / "sft" / "evaluation" / "stage.json").write_text(json.dumps(record))
    command(run, "--compare", "sft", "people", "--max-new-tokens", 4, "--figures")
    figures = json.loads((run / "human_evaluation" / "sft_vs_people" / "human_evaluation.json").read_text())
    assert (figures["models"], figures["all"]["pairs"] + figures["unrated"]) == (["sft", "people"], 6)


def test_a_store_of_the_version_before_is_brought_up(tmp_path: Path) -> None:
    import sqlite3

    from rlhf.annotation.store import schema

    path = tmp_path / "labels.sqlite"
    sql = sqlite3.connect(path)
    sql.executescript(schema.SCHEMA.replace(",\n    scale TEXT NOT NULL DEFAULT 'preference'", ""))
    sql.execute("INSERT INTO batches (name, labels, asked) VALUES ('v1', 1, 'people')")
    sql.execute("PRAGMA user_version = 1")
    sql.commit()
    sql.close()
    for _ in range(2):
        with Store(path) as store:
            assert store.batches() == ["v1"] and store.scale("v1") is PREFERENCE
    sqlite3.connect(path).execute("PRAGMA user_version = 99").connection.commit()
    with pytest.raises(InputError, match="is no store of judgements of version"):
        Store(path)
