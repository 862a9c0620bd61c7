"""The store: nothing lost, nothing twice, no pair over its number; with kills in between and several processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.annotation.protocol import Judgement, Pair
from rlhf.annotation.store import FullError, Progress, Store
from rlhf.errors import InputError


def pairs(count: int) -> list[Pair]:
    return [Pair([{"role": "user", "content": f"Question {i}"}], "one", "two", id=f"p{i}") for i in range(count)]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock):
    with Store(tmp_path / "labels.sqlite", lease_seconds=60, clock=clock) as store:
        yield store


def judge(store: Store, annotator: str, choice: str = "a") -> str | None:
    shown = store.lease(annotator)
    if shown is None:
        return None
    store.keep(shown.batch, Judgement(shown.pair.id, annotator, choice, left=shown.left))  # type: ignore[arg-type]
    return shown.pair.id


def kept(store: Store) -> list[tuple[str, str]]:
    return [(judgement.pair, judgement.annotator) for *_, judgement in store.judged()]


def test_a_judgement_comes_back_as_it_was_kept(store: Store) -> None:
    (pair,) = pairs(1)
    pair = replace(pair, domain="safety", models=("v1", "v2"), part="test")
    store.add_batch("v1", [pair], labels=3)
    given = [
        Judgement(pair.id, "ann", "b", "negligibly", True, False, "a", 2.5),
        Judgement(pair.id, "bob", "a", None, None, True),
        Judgement(pair.id, "cyd", None, skipped="not my field"),
    ]
    assert all(store.keep("v1", judgement) for judgement in given)
    assert [(batch, *rest) for _, batch, *rest in store.judged()] == [("v1", pair, judgement) for judgement in given]
    assert store.progress() == Progress(pairs=1, wanted=3, kept=3, skipped=1, complete=1)
    assert store.annotators() == ["ann", "bob", "cyd"]


def test_pairs_come_in_order_and_stay_the_same_until_they_are_judged(store: Store) -> None:
    store.add_batch("v1", pairs(3))
    assert store.lease("ann") == store.lease("ann")
    assert [judge(store, "ann") for _ in range(4)] == ["p0", "p1", "p2", None]


def test_the_next_pair_is_leased_beside_the_one_in_work(store: Store) -> None:
    store.add_batch("v1", pairs(4))
    first = store.lease("ann")
    assert first is not None
    ahead = store.lease("ann", after=first.item)
    assert ahead is not None and ahead.pair.id == "p1" and store.lease("ann", after=first.item) == ahead
    assert judge(store, "bob") == "p2"
    assert [judge(store, "ann") for _ in range(4)] == ["p0", "p1", "p3", None]


@pytest.mark.parametrize("labels", [1, 2])
def test_no_more_annotators_see_a_pair_than_it_wants(store: Store, clock: Clock, labels: int) -> None:
    store.add_batch("v1", pairs(1), labels=labels)
    names = ["ann", "bob", "cyd"]
    assert [store.lease(name) is not None for name in names] == [i < labels for i in range(3)]
    clock.now += 61  # none of them came back
    assert judge(store, "cyd") == "p0"
    if labels == 1:
        with pytest.raises(FullError, match="'p0'"):
            store.keep("v1", Judgement("p0", "ann", "a"))
        assert kept(store) == [("p0", "cyd")]


def test_leases_are_given_back(store: Store) -> None:
    store.add_batch("v1", pairs(1))
    assert store.lease("ann") is not None and store.lease("bob") is None
    store.release("ann")
    assert store.lease("bob") is not None


def test_the_same_judgement_again_is_kept_once_and_another_is_refused(store: Store) -> None:
    store.add_batch("v1", pairs(1), labels=2)
    judgement = Judgement("p0", "ann", "a", "better", seconds=2.0)
    assert [store.keep("v1", judgement), store.keep("v1", replace(judgement, seconds=9.0))] == [True, False]
    with pytest.raises(InputError, match="take that back first"):
        store.keep("v1", replace(judgement, choice="b"))
    assert kept(store) == [("p0", "ann")]


def test_undo_goes_back_one_by_one_and_keeps_the_history(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with Store(path) as store:
        store.add_batch("v1", pairs(3))
        for _ in range(3):
            judge(store, "ann")
    for expected in ("p2", "p1"):  # each after a restart
        with Store(path) as store:
            newest = store.counts("ann").newest
            for _ in range(2):  # a page that asks again takes back nothing more
                undone = store.undo("ann", number=newest)
                assert undone is not None and undone[0].pair.id == undone[1].pair == expected
    with Store(path) as store:
        assert kept(store) == [("p0", "ann")] and store.undo("bob") is None
        assert [judge(store, "ann", "b") for _ in range(3)] == ["p1", "p2", None]
        assert [judgement.choice for *_, judgement in store.judged()] == ["a", "b", "b"]
    history = sqlite3.connect(path).execute("SELECT count(*), count(undone_at) FROM judgements").fetchone()
    assert history == (5, 2)


def test_an_undone_pair_is_free_for_others_when_its_annotator_leaves(store: Store, clock: Clock) -> None:
    store.add_batch("v1", pairs(1))
    judge(store, "ann")
    assert store.undo("ann") is not None and store.lease("bob") is None
    clock.now += 61
    assert judge(store, "bob") == "p0"


def test_left_and_right_are_drawn_and_never_change(store: Store) -> None:
    store.add_batch("v1", pairs(400), labels=2)
    sides = {}
    for name in ("ann", "bob"):
        sides[name] = []
        while (shown := store.lease(name)) is not None:
            store.keep("v1", Judgement(shown.pair.id, name, "a", left=shown.left))
            sides[name].append(shown.left)
        assert sides[name] == [judgement.left for *_, judgement in store.judged(annotator=name)]
        assert 150 < sides[name].count("a") < 250
    assert 150 < sum(a == b for a, b in zip(sides["ann"], sides["bob"], strict=True)) < 250


def test_a_batch_added_again_changes_nothing_and_other_pairs_withdraw_the_old_ones(store: Store) -> None:
    assert [store.add_batch("v1", pairs(3)) for _ in range(2)] == [3, 0]
    judge(store, "ann")
    judge(store, "ann")
    assert store.add_batch("v1", pairs(5)[1:]) == 2
    assert [pair.id for pair in store.pairs("v1")] == ["p1", "p2", "p3", "p4"]
    assert kept(store) == [("p1", "ann")], "p0's judgement is of a pair that is withdrawn"
    assert [judge(store, "ann") for _ in range(4)] == ["p2", "p3", "p4", None]
    store.add_batch("v1", pairs(5))
    assert kept(store)[0] == ("p0", "ann"), "and it is back with its pair"


def test_a_batch_begins_anew_where_others_are_asked(store: Store) -> None:
    store.add_batch("v1", pairs(2), asked="judge 7B")
    store.keep("v1", Judgement("p0", "judge", "a"))
    assert store.lease("ann") is None, "a machine's batch"
    assert store.add_batch("v1", pairs(2)) == 2 and store.progress("v1").kept == 0
    assert store.batches() == ["v1 #1", "v1"] and store.progress("v1 #1").kept == 1
    assert [judge(store, "ann") for _ in range(3)] == ["p0", "p1", None]


def test_a_batch_can_want_more_judgements_later(store: Store) -> None:
    store.add_batch("v1", pairs(1))
    assert [judge(store, "ann"), judge(store, "bob")] == ["p0", None]
    store.add_batch("v1", pairs(1), labels=2)
    assert [judge(store, "ann"), judge(store, "bob"), judge(store, "cyd")] == [None, "p0", None]


def test_batches_stay_apart(store: Store) -> None:
    store.add_batch("v1", pairs(2))
    store.add_batch("v2", pairs(1))
    assert store.batches() == ["v1", "v2"]
    shown = store.lease("ann", batch="v2")
    assert shown is not None and shown.batch == "v2"
    store.keep("v2", Judgement(shown.pair.id, "ann", "a"))
    assert store.progress("v1") == Progress(2, 2, 0, 0, 0) and store.progress("v2") == Progress(1, 1, 1, 0, 1)
    assert [pair.id for pair in store.unjudged("v1", "ann")] == ["p0", "p1"]
    assert list(store.unjudged("v2", "ann")) == []


def test_annotators_that_are_no_people_are_given_what_is_left(store: Store) -> None:
    store.add_batch("v1", pairs(600), labels=2)
    for _ in range(2):
        judge(store, "ann")
    given = store.unjudged("v1", "machine")
    for pair in given:
        store.keep("v1", Judgement(pair.id, "machine", "b"))
    assert store.progress(annotator="machine").kept == 600
    assert [pair.id for pair in store.unjudged("v1", "ann")] == [f"p{i}" for i in range(2, 600)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.add_batch("v1", []), "batch: "),
        (lambda s: s.add_batch("v1", pairs(1), labels=0), "labels: "),
        (lambda s: s.add_batch("v1", [*pairs(2), pairs(1)[0]]), "id: 'p0'"),
        (lambda s: s.add_batch("old", [replace(pairs(1)[0], a="else")]), "id: 'p0' is another pair"),
        (lambda s: s.pairs("v9"), "batch: .* has no batch 'v9'; it has old"),
        (lambda s: s.keep("old", Judgement("p9", "ann", "a")), "pair: .*'p9'"),
        (lambda s: s.lease(" "), "annotator: "),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(store: Store, call, message: str) -> None:
    store.add_batch("old", pairs(1))
    with pytest.raises(InputError, match=message):
        call(store)
    assert store.batches() == ["old"] and store.progress() == Progress(1, 1, 0, 0, 0)


def test_another_file_is_named_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text.sqlite"
    text.write_text("these are my notes, and no database at all\n" * 50)
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).execute("CREATE TABLE mine (a)").connection.commit()
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(InputError, match=f"{path.name}: is no store"):
            Store(path)
        assert path.read_bytes() == before
    with pytest.raises(InputError, match="cannot be written"):
        Store(text / "below" / "labels.sqlite")


def test_only_its_owner_may_read_it(store: Store) -> None:
    assert store.path.stat().st_mode & 0o077 == 0


def test_a_setting_is_made_once(tmp_path: Path) -> None:
    for value in ("first", "second"):
        with Store(tmp_path / "labels.sqlite") as store:
            assert store.setting("token", lambda value=value: value) == "first"  # type: ignore[misc]


WORKER = """
import sys
from rlhf.annotation.protocol import Judgement
from rlhf.annotation.store import Store
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Store(path) as store:
    while count and (shown := store.lease(name)) is not None:
        store.keep(shown.batch, Judgement(shown.pair.id, name, "a", left=shown.left))
        print(shown.pair.id, flush=True)
        count -= 1
"""


def worker(path: Path, name: str, count: int = 10**9) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_kill_costs_nothing_and_nothing_doubles(tmp_path: Path) -> None:
    """Whatever a process said it had kept before it was killed is there, once, and the next goes on behind it."""
    path = tmp_path / "labels.sqlite"
    with Store(path) as store:
        store.add_batch("v1", pairs(3000))
    said: list[str] = []
    for _ in range(3):
        process = worker(path, "ann")
        assert process.stdout is not None
        said += [process.stdout.readline().strip() for _ in range(40)]
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.read().split()
        process.wait()
    with Store(path) as store:
        found = [pair for pair, _ in kept(store)]
        assert found == [f"p{i}" for i in range(len(found))], "in order, none twice, none left out"
        assert set(said) <= set(found) and len(found) - len(said) <= 3, "a kill may fall between keeping and saying"
        assert judge(store, "ann") == f"p{len(found)}"


def test_several_processes_at_once_fill_every_place_and_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with Store(path) as store:
        store.add_batch("v1", pairs(60), labels=2)
    processes = [worker(path, name) for name in ("ann", "bob", "cyd")]
    assert [process.wait() for process in processes] == [0, 0, 0]
    with Store(path) as store:
        for name in ("ann", "bob", "cyd"):  # a place that was leased when they looked
            store.release(name)
            while judge(store, name):
                pass
        found = kept(store)
        assert len(found) == len(set(found)) == 120
        assert set(Counter(pair for pair, _ in found).values()) == {2}
