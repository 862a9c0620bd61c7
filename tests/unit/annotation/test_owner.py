"""The owner's page: agreement, gold, pace, by hand; and judgements out to other tools and back."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from rlhf.annotation.exchange import bring_in, labels_of, to_argilla, to_label_studio, user_id, write_exchange
from rlhf.annotation.owner import annotator_figures
from rlhf.annotation.page.app import make_app
from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.scales import EVALUATION, PREFERENCE
from rlhf.annotation.store import Store
from rlhf.annotation.writing import written_rows
from rlhf.commands.annotate import add_options, annotate
from rlhf.errors import InputError
from rlhf.intervals import wilson
from rlhf.jsonl import write_rows


def pairs(count: int, name: str = "p") -> list[Pair]:
    ask = [{"role": "user", "content": "Why?"}]
    return [Pair(ask, f"first {i}", f"second {i}", id=f"{name}{i}") for i in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "labels.sqlite") as store:
        yield store


def judge_all(store: Store, who: str, choice: str = "a", seconds: float = 10.0) -> list[str]:
    """By leases, as the page does, fetching one ahead; the batches that were shown, in their order."""
    shown, batches = store.lease(who), []
    while shown is not None:
        ahead = store.lease(who, after=shown.item)
        store.keep(shown.batch, Judgement(shown.pair.id, who, choice, "better", left="a", seconds=seconds))  # type: ignore[arg-type]
        batches.append(shown.batch)
        shown = ahead
    return batches


def test_gold_is_mixed_among_the_pairs_and_is_no_row(store: Store) -> None:
    store.add_batch("v1", pairs(12), labels=2)
    store.add_gold(pairs(5, "g"), every=3)
    for who in ("ann", "bob"):
        batches = judge_all(store, who)
        assert batches.count("v1") == 12 and 2 <= batches.count("gold") <= 4, batches
        assert "gold gold" not in " ".join(batches) and batches[0] == "v1"
    counts = store.counts("ann")
    assert (counts.wanted, counts.kept) == (24, 24), "gold is in no progress"
    assert store.batches(people=True) == ["v1"]
    store.add_gold(pairs(5, "g"), every=3)
    assert annotator_figures(store)["ann"]["gold"] is not None, "added again it keeps what was judged"


def test_the_figures_by_hand(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.add_batch("v1", pairs(4), labels=3)
    store.add_gold(pairs(1, "g"), every=2)
    judge_all(store, "ann", "a", 30.0)
    judge_all(store, "bob", "a", 30.0)
    judge_all(store, "cyd", "b", 2.0)
    figures = annotator_figures(store)
    ann, cyd = figures["ann"], figures["cyd"]
    # of ann's four choices bob shares all, cyd none: 4 of 8; cyd agrees with nobody
    assert ann["agreement"] == {"hits": 4, "of": 8, "rate": 0.5, "ci": wilson(0.5, 8).ci}
    assert cyd["agreement"] is not None and cyd["agreement"]["hits"] == 0
    assert ann["gold"] is not None and cyd["gold"] is not None
    assert (ann["gold"]["rate"], cyd["gold"]["rate"]) == (1.0, 0.0)
    assert (ann["pace"], cyd["pace"], cyd["median_seconds"]) == ("usual", "fast", 2.0)
    assert cyd["hasty"] is not None and cyd["hasty"]["rate"] == 1.0 and ann["hasty"]["rate"] == 0.0  # type: ignore[index]
    assert (ann["left"]["rate"], cyd["left"]["rate"]) == (1.0, 0.0)  # type: ignore[index]
    assert (ann["judgements"], ann["skipped"]) == (4, 0)
    command(store.path, "--figures")  # the same in the terminal
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("cyd"))
    assert line.split()[:4] == ["cyd", "4", "0", "0.0"] and " fast " in line and "(51.0 to 100.0)" in line


def test_the_owner_has_an_address_of_their_own(store: Store) -> None:
    store.add_batch("v1", pairs(2))
    name = "<b>ann</b>"
    store.keep("v1", Judgement("p0", name, "a", "better", left="a", seconds=3.0))
    client = TestClient(make_app(store, "token", "", owner="owner-token"), base_url="http://127.0.0.1:8642")
    page = client.get("/owner-token/")
    assert page.status_code == 200 and "1 of 2 judgements" in page.text
    assert "&lt;b&gt;ann" in page.text and "<b>ann" not in page.text
    assert list(client.get("/owner-token/figures.json").json()) == [name]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path, headers, status in (
        ("/token/figures.json", {}, 404),  # those who judge see nothing of it
        ("/owner-token/api/next?annotator=ann", {}, 404),
        ("/owner-token/export.jsonl", {}, 404),
        ("/wrong/figures.json", {}, 403),
        ("/owner-token/figures.json", {"host": "evil.example"}, 403),
        ("/owner-token/figures.json", {"origin": "http://evil.example"}, 403),
        ("/owner-token/figures.json", {"sec-fetch-site": "cross-site"}, 403),
        ("/owner-token/file/..\\app.py", {}, 400),
    ):
        assert client.get(path, headers=headers).status_code == status, path
    assert client.post("/owner-token/api/judge", json={}).status_code == 404
    assert "owner-token" not in client.get("/token/").text
    without = TestClient(make_app(store, "token", ""), base_url="http://127.0.0.1:8642")
    assert without.get("/owner-token/").status_code == 403


def command(*options: Any) -> None:
    parser = ArgumentParser()
    add_options(parser)
    annotate(parser.parse_args([str(option) for option in options]))


@pytest.mark.parametrize("tool", ["argilla", "label-studio"])
def test_judgements_go_out_and_come_back_as_they_were(tmp_path: Path, tool: str) -> None:
    said = [
        Judgement("p0", "ann", "a", "significantly", True, False, "a"),
        Judgement("p0", "bob", "b", "negligibly", None, None, "b"),
        Judgement("p1", "ann", "b", "better", True, True, "a"),
    ]
    skip = Judgement("p2", "ann", None, left="a", skipped="why")
    with Store(tmp_path / "labels.sqlite") as store:
        store.add_batch("v1", pairs(3), labels=2)
        store.add_batch("rated", pairs(1), scale=EVALUATION.name)
        for judgement in (*said, skip):
            store.keep("v1", judgement)
        store.keep("rated", Judgement("p0", "ann", "tie", left="a"))
    command(tmp_path, "--rows", tool, "--export", tmp_path / "out.json")
    command(tmp_path, "--import", tmp_path / "out.json")  # where all of it is: the order and the reasons are the tool's
    with Store(tmp_path / "labels.sqlite") as store:
        assert [j for *_, j in store.judged("v1")] == [*said, skip]
    (tmp_path / "there").mkdir()
    with Store(tmp_path / "there" / "labels.sqlite") as other:
        other.add_batch("v1", pairs(3), labels=2)
        other.add_batch("rated", pairs(1), scale=EVALUATION.name)
    for _ in range(2):  # again changes nothing
        command(tmp_path / "there", "--import", tmp_path / "out.json")
    with Store(tmp_path / "there" / "labels.sqlite") as other:
        found = [j for *_, j in other.judged("v1")]
        (tie,) = (j for *_, j in other.judged("rated"))
    names = {name: user_id(name) if tool == "argilla" else name for name in ("ann", "bob")}
    plain = {(j.pair, names[j.annotator], j.choice, j.strength, j.chosen_safe, j.rejected_safe) for j in said}
    kept = {(j.pair, j.annotator, j.choice, j.strength, j.chosen_safe, j.rejected_safe) for j in found if j.choice}
    assert kept == plain and tie.choice == "tie"
    assert [j.pair for j in found if j.choice is None] == ([] if tool == "argilla" else ["p2"])


def test_judgements_go_out_as_jsonl_and_come_back(tmp_path: Path) -> None:
    """All of them, of two people, skips too; what the other store has already, or has no place for, is told."""
    judged = [
        Judgement("p0", "ann", "a", "better", True, False, "b", 3.0),
        Judgement("p1", "ann", None, skipped="unclear", left="a"),
        Judgement("p0", "bob", "b"),
    ]
    file = tmp_path / "judged.jsonl"
    with Store(tmp_path / "one.sqlite") as store:
        store.add_batch("pairs", pairs(2), labels=2)
        for judgement in judged:
            store.keep("pairs", judgement)
        write_rows(file, written_rows(store, "judgements"))
    with Store(tmp_path / "other.sqlite") as store:
        store.add_batch("pairs", pairs(2))
        assert bring_in(store, file) == (2, 1) and bring_in(store, file) == (0, 1)
        assert [judgement for *_, judgement in store.judged("pairs")] == judged[:2]
        write_rows(file, [{"pair": "p9", "annotator": "ann", "choice": "a"}])
        with pytest.raises(InputError, match=r"judged\.jsonl:1: pair: .* has no pair 'p9' in a batch 'pairs'"):
            bring_in(store, file)
        write_rows(file, [{"pair": "p1", "annotator": "ann", "choice": "left"}])
        with pytest.raises(InputError, match=r"judged\.jsonl:1: choice: must be one of a, b, tie or null, got 'left'"):
            bring_in(store, file)


def test_the_formats_are_those_of_the_tools(store: Store, tmp_path: Path) -> None:
    store.add_batch("v1", pairs(1))
    store.keep("v1", Judgement("p0", "ann", "a", "slightly", True, True, "a", 4.0))
    (record,), (task,) = to_argilla(store), to_label_studio(store)
    assert record.keys() == {"id", "fields", "metadata", "suggestions", "responses", "vectors"}
    ((answer,), side) = record["responses"]["choice"], record["responses"]["choice"][0]["value"].split()[0]
    assert answer == {"value": f"{side} slightly", "user_id": user_id("ann")}
    assert record["fields"][side] == "first 0", "the chosen answer, wherever it stands"
    (annotation,) = task["annotations"]
    assert annotation["result"][0] == {
        "from_name": "choice",
        "to_name": "first",
        "type": "choices",
        "value": {"choices": [f"{side} slightly"]},
    }
    assert (annotation["lead_time"], annotation["was_cancelled"]) == (4.0, False)
    assert write_exchange(store, "argilla", tmp_path / "a.json") == 1
    assert len(labels_of(PREFERENCE)) == 8 and labels_of(EVALUATION)[3] == "about the same"


def test_an_export_of_label_studio_s_own_is_read(store: Store, tmp_path: Path) -> None:
    """With the fields that it adds, and users as numbers."""
    store.add_batch("v1", pairs(1))
    (task,) = to_label_studio(store)
    result = {"id": "Dx", "origin": "manual", "from_name": "choice", "to_name": "first", "type": "choices"}
    annotation = {"id": 7, "completed_by": 10, "lead_time": 4.288, "was_cancelled": False, "ground_truth": False}
    annotation["result"] = [result | {"value": {"choices": ["second better"]}}]
    write_rows(tmp_path / "export.jsonl", [task | {"id": 1, "project": 83, "annotations": [annotation]}])
    assert bring_in(store, tmp_path / "export.jsonl") == (1, 0)
    ((*_, kept),) = store.judged("v1")
    assert (kept.annotator, kept.strength, kept.seconds, kept.choice == kept.left) == ("10", "better", 4.288, False)
    for change, message in (
        ({"data": {"batch": "v1", "pair": "p9"}}, "export.jsonl:1: pair: .* has no pair 'p9'"),
        ({"annotations": [{"completed_by": 1}]}, "annotations: cannot be read"),
        (
            {"annotations": [annotation | {"completed_by": 2, "result": [result | {"value": {"choices": ["x"]}}]}]},
            "choice: ",
        ),
        ({"annotations": 3}, "is no judgement"),
    ):
        write_rows(tmp_path / "export.jsonl", [task | change])
        with pytest.raises(InputError, match=message):
            bring_in(store, tmp_path / "export.jsonl")


def test_gold_comes_of_a_file_of_preferences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf.annotation.page import serve

    monkeypatch.setattr(serve, "serve", lambda path, **options: None)
    write_rows(tmp_path / "pairs.jsonl", (pair.to_dict() for pair in pairs(2)))
    ask = [{"role": "user", "content": "Which?"}]
    row = {"id": "g", "messages": ask, "chosen": "right", "rejected": "wrong", "domain": "helpfulness", "source": "me"}
    write_rows(tmp_path / "gold.jsonl", [row])
    command(tmp_path / "pairs.jsonl", "--gold", tmp_path / "gold.jsonl", "--gold-every", 1)
    with Store(tmp_path / "pairs.jsonl.labels.sqlite") as store:
        assert [(pair.a, pair.b) for pair in store.pairs("gold")] == [("right", "wrong")]
        assert sorted(judge_all(store, "ann")) == ["gold", "pairs.jsonl", "pairs.jsonl"]
    for options, message in (
        (("--gold", tmp_path / "pairs.jsonl"), "pairs.jsonl:1: "),
        (("--gold", tmp_path / "gold.jsonl", "--gold-every", 0), "gold-every: "),
        (("--gold", tmp_path / "gold.jsonl", "--export", tmp_path / "x"), "gold: goes with a page of pairs"),
        (("--import", tmp_path / "x", "--export", tmp_path / "y"), "import: does not go with export"),
        (("--demonstrate", "--figures"), "demonstrate: does not go with figures"),
        (("--rows", "argilla"), "rows: goes with --export"),
        (("--rows", "label-studio", "--export", tmp_path / "x.jsonl"), "x.jsonl must end in .json for label-studio"),
        (("--round", "v1"), "round: goes with --red-team"),
    ):
        with pytest.raises(InputError, match=message):
            command(tmp_path / "pairs.jsonl", *options)
