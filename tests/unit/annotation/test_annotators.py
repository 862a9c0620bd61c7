"""People who are waited for, a file that is filled in, a batch's figures; and what `rlhf annotate` is given."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf import cli
from rlhf.annotation.filled_in import BLANK, FilledIn
from rlhf.annotation.labelling import batch_figures, label_batch, preferences_of, require_complete
from rlhf.annotation.page.serve import find_store, read_pairs
from rlhf.annotation.people import People
from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.registry import asked_of, make_annotator
from rlhf.annotation.store import Store
from rlhf.data.loading import load_preferences
from rlhf.errors import InputError
from rlhf.jsonl import read_rows, write_rows


def pairs(count: int) -> list[Pair]:
    return [Pair([{"role": "user", "content": f"Question {i}"}], "one", "two", id=f"p{i}") for i in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "labels.sqlite") as store:
        yield store


class Time:
    """Whenever somebody sleeps, the next thing happens."""

    def __init__(self, *events: Any) -> None:
        self.now, self.events = 0.0, list(events)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.events:
            self.events.pop(0)()


def test_people_are_waited_for_and_what_they_take_back_stays_taken_back(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add_batch("v1", pairs(2))
    time = Time(
        lambda: store.keep("v1", Judgement("p0", "ann", "a")),
        lambda: store.undo("ann"),
        lambda: store.keep("v1", Judgement("p0", "ann", "b")),
        lambda: store.keep("v1", Judgement("p1", "ann", None, skipped="unclear")),
    )
    people = People(store.path, "v1", clock=time.clock, sleep=time.sleep)
    label_batch(store, "v1", people)
    require_complete(store, "v1")
    assert not time.events and [row.chosen for rows in preferences_of(store, "v1").values() for row in rows] == ["two"]
    said = capsys.readouterr().err
    where = f"they give them with: rlhf annotate {store.path.parent}\n"
    assert said == f"waits for people: 0 of 2 judgements of v1; {where}", "once a minute, not at every look"


def test_at_the_deadline_the_batch_is_taken_as_it_is(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.add_batch("v1", pairs(3))
    store.keep("v1", Judgement("p1", "ann", "a"))
    time = Time()
    for _ in range(2):  # a stage that is started again does not wait anew
        people = People(store.path, "v1", hours=1.0, poll_seconds=1800.0, clock=time.clock, sleep=time.sleep)
        label_batch(store, "v1", people)
        assert time.now == 3600.0
    require_complete(store, "v1")
    assert list(preferences_of(store, "v1")) == ["p1"]
    said = capsys.readouterr().err
    assert (
        f"waits for people: 1 of 3 judgements of v1; they give them with: rlhf annotate {store.path.parent}, " in said
    )
    assert ", within 1.0 hours\n" in said and ", within 0.5 hours\n" in said and "2 pairs stay unjudged" in said


def test_a_file_is_filled_in_and_given_back(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.add_batch("v1", pairs(4), asked=FilledIn.asked)
    file = tmp_path / "to_judge.jsonl"
    label_batch(store, "v1", FilledIn(file, store.path, "v1"))
    assert "4 pairs wait" in capsys.readouterr().err
    with pytest.raises(InputError, match="4 of 4 pairs"):
        require_complete(store, "v1")
    rows = [row for _, row in read_rows(file)]
    for row in rows[:2]:  # always the answer "two", wherever it stands
        side, other = ("first", "second") if row["first"] == "two" else ("second", "first")
        row |= {"choice": side, "strength": "better", f"{side}_safe": True, f"{other}_safe": False, "annotator": "ann"}
    rows[2]["skipped"] = "unclear"
    write_rows(file, rows)
    before = file.read_text()
    label_batch(store, "v1", FilledIn(file, store.path, "v1"))
    assert "1 pairs wait" in capsys.readouterr().err and file.read_text() == before
    kept = [judgement for *_, judgement in store.judged("v1")]
    expected = [("p0", "ann", "b", "better", True, False), ("p1", "ann", "b", "better", True, False)]
    assert [(j.pair, j.annotator, j.choice, j.strength, j.chosen_safe, j.rejected_safe) for j in kept[:2]] == expected
    assert kept[2].skipped == "unclear" and len(kept) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": "left"}, "choice: "),
        ({"choice": ""}, "choice: "),
        ({"strength": "very"}, "strength: "),
        ({"first_safe": "y"}, "first_safe: must be true, false or null, got 'y'"),
        ({"second_safe": 1}, "second_safe: must be true, false or null, got 1"),
        ({"first_safe": False, "second_safe": True}, "first_safe, second_safe: an unsafe answer cannot be chosen"),
        ({"skipped": "dull"}, "choice, skipped: choose an answer, or say in skipped why .*; not both"),
        ({"choice": None, "skipped": True}, "skipped: must be a text"),
        ({"pair": 7}, "pair: must be the name that the line was written with, got 7"),
        ({"pair": None}, "pair: must be "),
        ({"first": "another answer"}, "first: is not the text that was written here"),
        ({"messages": [{"role": "user", "content": "Another question"}]}, "messages: is not the text"),
    ],
)
def test_a_line_that_is_filled_in_wrongly_is_named(
    store: Store, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    store.add_batch("v1", pairs(2), asked=FilledIn.asked)
    file = tmp_path / "to_judge.jsonl"
    label_batch(store, "v1", FilledIn(file, store.path, "v1"))
    rows = [row for _, row in read_rows(file)]
    rows[1] |= {"choice": "first"} | change
    write_rows(file, rows)
    with pytest.raises(InputError, match=rf"to_judge\.jsonl:2: {message}"):
        label_batch(store, "v1", FilledIn(file, store.path, "v1"))


def filled(file: Path, *changes: dict[str, Any]) -> None:
    """Write the file again, its lines changed one by one."""
    rows = [row for _, row in read_rows(file)]
    write_rows(file, [row | change for row, change in zip(rows, changes, strict=True)])


def chosen(store: Store) -> dict[tuple[str, str], str]:
    """(pair, annotator) -> the answer that stood first or second in the file, for what the store has kept."""
    sides = {True: "first", False: "second"}
    return {(j.pair, j.annotator): sides[j.choice == j.left] for *_, j in store.judged("v1") if j.choice}


def test_what_is_changed_in_a_file_that_was_given_back_counts(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add_batch("v1", pairs(3), asked=FilledIn.asked)
    file = tmp_path / "to_judge.jsonl"
    annotator = FilledIn(file, store.path, "v1")
    label_batch(store, "v1", annotator)
    filled(file, {"choice": "first"}, {"choice": "first"}, {})
    label_batch(store, "v1", annotator)
    capsys.readouterr()
    filled(file, {"choice": "second"}, {"choice": None}, {"choice": "first"})
    for said in (f"{file}: 1 judgements have changed; as they are now, they count\n", ""):
        label_batch(store, "v1", annotator)
        assert chosen(store) == {("p0", "file"): "second", ("p1", "file"): "first", ("p2", "file"): "first"}
        assert capsys.readouterr().err == said
    require_complete(store, "v1")


def test_lines_of_a_file_that_count_for_nothing_are_said(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add_batch("v1", pairs(2), asked=FilledIn.asked)
    file = tmp_path / "to_judge.jsonl"
    annotator = FilledIn(file, store.path, "v1")
    label_batch(store, "v1", annotator)
    rows = [row | {"choice": "first", "first": f"{row['first']} \n"} for _, row in read_rows(file)]
    capsys.readouterr()
    write_rows(file, [*rows, rows[0], rows[0] | BLANK, rows[1] | {"pair": "of another batch"}])
    label_batch(store, "v1", annotator)
    assert capsys.readouterr().err == (
        f"{file}: 1 lines that are filled in name no pair of this batch; they count for nothing\n"
    )
    write_rows(file, [*rows, rows[0] | {"annotator": "bob"}])
    label_batch(store, "v1", annotator)
    assert "1 lines come too late: others have judged their pairs" in capsys.readouterr().err
    write_rows(file, [*rows, rows[0] | {"choice": "second"}])
    with pytest.raises(InputError, match=r"to_judge\.jsonl:3: pair: file judges it otherwise in line 1; leave one"):
        label_batch(store, "v1", annotator)
    assert chosen(store) == {("p0", "file"): "first", ("p1", "file"): "first"}


def test_a_pair_that_wants_two_judgements_has_two_lines_in_a_file(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add_batch("v1", pairs(2), labels=2, asked=FilledIn.asked)
    file = tmp_path / "to_judge.jsonl"
    annotator = FilledIn(file, store.path, "v1")
    label_batch(store, "v1", annotator)
    assert [row["pair"] for _, row in read_rows(file)] == ["p0", "p0", "p1", "p1"]
    said = capsys.readouterr().err
    assert "2 pairs wait for " in said and "or skipped, from 2 annotators each, by their names in annotator" in said
    bob = {"choice": "second", "annotator": "bob"}
    filled(file, {"choice": "first"}, {}, {"choice": "first"}, bob)
    label_batch(store, "v1", annotator)
    assert "1 pairs wait for " in capsys.readouterr().err
    filled(file, {}, bob, {}, {})
    label_batch(store, "v1", annotator)
    require_complete(store, "v1")
    assert chosen(store) == {(pair, who): side for pair in ("p0", "p1") for who, side in
                             (("file", "first"), ("bob", "second"))}  # fmt: skip
    assert len(list(read_rows(file))) == 4


def test_lines_that_a_file_lacks_are_added_behind_a_last_line_that_does_not_end(store: Store, tmp_path: Path) -> None:
    store.add_batch("v1", pairs(3), asked=FilledIn.asked)
    file = tmp_path / "to_judge.jsonl"
    annotator = FilledIn(file, store.path, "v1")
    label_batch(store, "v1", annotator)
    rows = [row for _, row in read_rows(file)]
    file.write_text("\n".join(json.dumps(row | {"choice": "first"}) for row in rows[:2]))
    label_batch(store, "v1", annotator)
    assert [row["choice"] for _, row in read_rows(file)] == ["first", "first", None]
    assert len(chosen(store)) == 2


def test_a_file_to_be_filled_in_is_jsonl(tmp_path: Path) -> None:
    for name in (tmp_path / "to_judge.csv", tmp_path / "to_judge.jsonl.gz", 7):
        with pytest.raises(InputError, match=r"annotator_options.file: must be a file.*, got "):
            make_annotator("file", {"file": name}, store=tmp_path / "labels.sqlite", batch="v1")


@pytest.mark.parametrize(
    ("name", "option", "value", "says"),
    [
        ("proxy", "safe_above", "x", "must be a number, got 'x'"),
        ("proxy", "safe_above", math.nan, "must be a number, got nan"),
        ("proxy", "safe_above", math.inf, "must be a number, got inf"),
        ("proxy", "reward", 7, "must be a text, got 7"),
        ("proxy", "rows", True, "must be a whole number, got True"),
        ("people", "hours", "soon", "must be a number, got 'soon'"),
        ("people", "hours", math.nan, "must be a number, got nan"),
        ("judge", "max_new_tokens", "many", "must be a whole number, got 'many'"),
        ("judge", "ties", "yes", "must be true or false, got 'yes'"),
        ("judge", "name", 5, "must be a text, got 5"),
    ],
)
def test_an_option_of_another_kind_is_one_sentence(
    name: str, option: str, value: Any, says: str, tmp_path: Path
) -> None:
    needed = {
        "proxy": {"reward": "rlhf.rewards.examples:Brevity", "safety": "rlhf.rewards.examples:Brevity"},
        "judge": {"judges": [{"url": "http://localhost:1/v1", "model": "m"}]},
        "people": {},
    }[name]
    make_annotator(name, needed, store=tmp_path / "labels.sqlite", batch="v1")
    with pytest.raises(InputError, match=f"annotator_options.{option}: {says}"):
        make_annotator(name, needed | {option: value}, store=tmp_path / "labels.sqlite", batch="v1")


class Own:
    """Gives what it is made with."""

    name = "own"

    def __init__(self, given: Any) -> None:
        self.given = given

    def judge(self, pairs: Iterable[Pair]) -> Any:
        return self.given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "annotator: own must yield its judgements, got None"),
        ([None], "annotator: own must yield rlhf.annotation.protocol.Judgement, got None"),
        ([{"pair": "p0", "choice": "a"}], "own must yield rlhf.annotation.protocol.Judgement, got {'choice'"),
        (
            [Judgement("p9", "own", "a")],
            r"annotator: own gives a judgement that cannot be kept \(pair: batch 'v1' .* 'p9'",
        ),
        (
            [Judgement("p0", "own", "tie")],
            r"annotator: own gives a judgement that cannot be kept \(choice: this pair asks",
        ),
        (
            [Judgement("p0", "own", "a"), Judgement("p0", "own", "b")],
            "annotator: own judges pair 'p0' twice, and differently",
        ),
    ],
)
def test_what_an_annotator_gives_that_is_no_judgement_of_the_batch_is_one_sentence(
    store: Store, given: Any, message: str
) -> None:
    store.add_batch("v1", pairs(2), asked="own")
    with pytest.raises(InputError, match=message):
        label_batch(store, "v1", Own(given))


def test_a_batch_s_figures(store: Store) -> None:
    store.add_batch("v1", pairs(3), labels=2)
    given = [
        Judgement("p0", "ann", "a", "better", True, False, "a", 2.0),
        Judgement("p0", "bob", "a", "slightly", True, True, "b", 8.0),
        Judgement("p1", "ann", "a", "better", False, False, "a", 4.0),
        Judgement("p1", "bob", "b", "better", True, True, "b", 6.0),
        Judgement("p2", "ann", None, skipped="unclear", seconds=30.0),
    ]
    for judgement in given:
        store.keep("v1", judgement)
    figures = batch_figures(store, "v1")
    assert (figures["pairs"], figures["complete"], figures["judgements"], figures["skipped"]) == (
        3,
        2,
        4,
        {"unclear": 1},
    )
    assert figures["strengths"] == {"significantly": 0.0, "better": 0.75, "slightly": 0.25, "negligibly": 0.0}
    assert figures["safety"] == {"chosen_safe_only": 0.25, "both_safe": 0.5, "both_unsafe": 0.25}
    assert (figures["agreement"]["pairs"], figures["agreement"]["rate"]) == (2, 0.5)
    assert (figures["left_chosen"]["pairs"], figures["left_chosen"]["rate"]) == (4, 0.75)
    assert figures["annotators"]["bob"] == {"judgements": 2, "skipped": 0, "median_seconds": 8.0}
    assert [row.id for rows in preferences_of(store, "v1").values() for row in rows] == [
        "p0-ann",
        "p0-bob",
        "p1-ann",
        "p1-bob",
    ]
    json.dumps(figures)


class Options:
    name = "options"

    def __init__(self, file: Path, seed: int, loud: bool = False) -> None:
        self.file, self.seed, self.loud = file, seed, loud

    def judge(self, pairs: Iterable[Pair]) -> Iterator[Judgement]:
        yield from ()


def test_an_annotator_of_one_s_own_gets_its_options_and_what_decides_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    file = tmp_path / "file"
    file.write_text("one")
    name = "test_annotators:Options"
    made = make_annotator(name, {"file": str(file), "loud": True}, seed=3, store=tmp_path, world=None)
    assert (made.file, made.seed, made.loud) == (file, 3, True)  # type: ignore[attr-defined]

    def asked(seed: int = 3, **options: Any) -> str:
        return asked_of(made, name, {"file": str(file), **options}, seed=seed)

    first = asked()
    assert asked() == first and len({first, asked(seed=4), asked(loud=True)}) == 3
    file.write_text("two")
    assert asked() != first
    people = make_annotator("people", {"hours": 2.0}, store=tmp_path / "s", batch="v1", seed=1)
    assert asked_of(people, "people", {"hours": 2.0}, seed=1) == "people"


def test_the_page_finds_the_store_of_a_run_and_makes_that_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    write_rows(file, (pair.to_dict() for pair in pairs(2)))
    path = find_store(file, labels=2)
    with Store(path) as store:
        assert path.name == "pairs.jsonl.labels.sqlite" and store.progress().wanted == 4
        store.keep("pairs.jsonl", Judgement("p0", "ann", "a"))
    write_rows(file, (pair.to_dict() for pair in pairs(3)))
    with Store(find_store(file, labels=2)) as store:
        assert store.progress().wanted == 6 and store.progress().kept == 1
    assert find_store(path) == find_store(tmp_path) == path == find_store(file)
    with Store(path) as store:
        assert store.progress().wanted == 6, "where nobody says how many, it stays as it was"
    with Store(tmp_path / "labels.sqlite"), pytest.raises(InputError, match="has 2 stores"):
        find_store(tmp_path)


def test_preferences_of_any_layout_are_pairs_to_be_judged_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "hh.jsonl"
    ask = [{"role": "user", "content": "Hi"}]
    talk = "\n\nHuman: Hi\n\nAssistant: "
    rows = [{"chosen": f"{talk}one", "rejected": f"{talk}two"}, {"chosen": talk, "rejected": f"{talk}two"}]
    write_rows(file, [*rows, {"messages": ask, "chosen": "three", "rejected": "four", "id": 7}])
    found = read_pairs(Path(f"{file}#safety"))
    assert found == [Pair(ask, "one", "two", "safety"), Pair(ask, "three", "four", "safety", "7")]
    assert "skipped 1 of 3 rows: 1 x chosen: must be a non-empty text" in capsys.readouterr().err
    with Store(find_store(Path(f"{file}#safety"))) as store:
        assert [pair.domain for pair in store.pairs("hh.jsonl")] == ["safety", "safety"]
    write_rows(file, rows[1:])
    with pytest.raises(InputError, match=r"hh.jsonl:1: chosen: must be .*; a pair that nobody judged has messages, a"):
        read_pairs(file)
    write_rows(file, [pair.to_dict() for pair in pairs(1)])
    with pytest.raises(InputError, match=r"hh.jsonl:1: row: not a preference"):
        read_pairs(file, chosen=True)


def test_a_pair_that_a_file_has_twice_is_judged_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sets have such rows; before, they were refused by a name that stands in no file."""
    file, ask = tmp_path / "pairs.jsonl", [{"role": "user", "content": "Hi"}]
    preference = {"messages": ask, "chosen": "one", "rejected": "two"}
    for rows in ([preference] * 2, [{"messages": ask, "a": "one", "b": "two"}] * 2):
        write_rows(file, rows)
        assert read_pairs(file) == [Pair(ask, "one", "two")]
        assert "skipped 1 of 2 rows: 1 x the same pair stands there before" in capsys.readouterr().err
    write_rows(file, [{**preference, "id": 7}, {**preference, "id": 7, "chosen": "three"}])
    with pytest.raises(InputError, match="id: '7' names two pairs"):
        find_store(file)


def test_the_command_line_says_in_one_sentence_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    write_rows(bad, [pairs(1)[0].to_dict(), {"messages": [], "a": "x", "b": "y"}])
    text = tmp_path / "pairs.sqlite"
    text.write_text("no database " * 100)
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(bad)], "bad.jsonl:2: messages"),
        ([str(text), "--port", "0"], "pairs.sqlite: is no store"),
        ([str(tmp_path / "empty")], "empty: no judgements are asked for here"),
        ([str(tmp_path / "nowhere")], "nowhere: there is no such file"),
        ([str(bad), "--port", "70000"], "port: must lie between"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["annotate", *arguments])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.startswith("error: ") and message in said and said.count("\n") == 1


def test_judgements_are_exported_as_preference_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = tmp_path / "pairs.jsonl", tmp_path / "rows.jsonl"
    write_rows(file, (pair.to_dict() for pair in pairs(2)))
    with Store(find_store(file)) as store:
        store.keep("pairs.jsonl", Judgement("p1", "ann", "b", "slightly", True, True))
    cli.main(["annotate", str(file), "--export", str(output)])
    assert "1 rows in" in capsys.readouterr().out
    (row,) = load_preferences(output)
    assert (row.id, row.chosen, row.strength, row.chosen_safe, row.source) == ("p1", "two", "slightly", True, "ann")
    with pytest.raises(SystemExit):
        cli.main(["annotate", str(file), "--export", str(output)])
