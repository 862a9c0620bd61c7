"""The driver: order, side by side, what is skipped, what a failure says."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import FakeRun


def test_a_quiet_run_says_what_failed_and_nothing_else(fake_run: FakeRun) -> None:
    fake_run.add("a", text="A")
    fake_run.add("b", "a", mode="crash")
    done = fake_run.drive(quiet=True)
    (line,) = done.stdout.splitlines()
    assert done.returncode == 1 and line.split()[2:4] == ["b", "FAILED"]
    assert "error: b: " in done.stderr and "the numbers do not add up" in done.stderr


def test_stages_run_in_order_and_independent_ones_side_by_side(diamond: FakeRun) -> None:
    done = diamond.drive()
    assert done.returncode == 0, done.stderr
    at = diamond.times()
    assert at["end", "a"] <= min(at["start", "b"], at["start", "c"])
    assert max(at["start", "b"], at["start", "c"]) < min(at["end", "b"], at["end", "c"]), "b and c did not overlap"
    assert max(at["end", "b"], at["end", "c"]) <= at["start", "d"]
    assert diamond.results()["d/out.txt"] == "D 0 B 0 A 0  C 0 A 0 "
    events = [(r["event"], r.get("stage")) for r in diamond.ledger()]
    assert events[0][0] == "begun" and events[-1][0] == "ended"
    assert {s for e, s in events if e == "finished"} == {"a", "b", "c", "d"}
    finished = next(r for r in diamond.ledger() if r["event"] == "finished")
    assert finished["seconds"] > 0.1 and finished["peak_memory_mb"] > 5 and "fake.py" in finished["command"][1]
    assert "--output" in (diamond.here / "run" / "logs" / "a.log").read_text()


def test_one_slot_means_one_after_another(diamond: FakeRun) -> None:
    assert diamond.drive(slots=1).returncode == 0
    at = diamond.times()
    assert at["end", "b"] <= at["start", "c"] or at["end", "c"] <= at["start", "b"]


def test_a_finished_run_is_not_run_again(diamond: FakeRun) -> None:
    diamond.drive()
    again = diamond.drive()
    assert again.returncode == 0
    assert sorted(diamond.traced()) == ["a", "b", "c", "d"]
    assert again.stdout.count("finished earlier") == 4


def test_a_stage_that_fails_when_it_has_written_its_folder_is_not_finished(diamond: FakeRun) -> None:
    """Its folder is whole, so the next start took it for one that a kill had kept out of the ledger."""
    diamond.configure("d", text="D", mode="late")
    for words in ("d: ValueError: the copy elsewhere failed", "it failed when it had written its folder"):
        failed = diamond.drive()
        assert failed.returncode == 1 and words in failed.stderr + failed.stdout
    diamond.configure("d", text="D")
    assert diamond.drive().returncode == 0
    assert diamond.traced().count("d") == 3 and diamond.traced().count("a") == 1


def test_a_step_of_ones_own_makes_what_it_says_or_fails(fake_run: FakeRun) -> None:
    """Nobody reads what the last step makes, so nobody missed it."""
    fake_run.add("a", text="A", makes={"policy": "checkpoint", "notes": "out*.txt"})
    for _ in range(2):
        failed = fake_run.drive()
        assert failed.returncode == 1
        assert "a: it did not write checkpoint, which `makes` in the plan names" in failed.stderr
    assert fake_run.traced() == ["a", "a"]


def test_changed_config_reruns_its_stage_and_what_depends_on_it(diamond: FakeRun) -> None:
    diamond.drive()
    diamond.configure("b", text="B2")
    again = diamond.drive()
    assert again.returncode == 0, again.stderr
    assert sorted(diamond.traced()[4:]) == ["b", "d"]
    assert diamond.results()["d/out.txt"] == "D 0 B2 0 A 0  C 0 A 0 "
    assert "its YAML changed; its old folder is removed" in again.stdout
    assert "its input <run>/b/out.txt changed" in again.stdout


def test_a_stage_runs_again_where_what_it_reads_changed_and_not_what_lies_beside_it(fake_run: FakeRun) -> None:
    """A version more changes what the split writes for versions, and not what reward models are trained on."""
    fake_run.add("a", text="A")
    fake_run.add("b", "a/gpus.txt", text="B")
    fake_run.add("c", "a/out.txt", text="C")
    fake_run.drive()
    fake_run.configure("a", text="A2")
    again = fake_run.drive()
    assert again.returncode == 0, again.stderr
    assert fake_run.traced()[3:] == ["a", "c"]
    assert fake_run.results()["c/out.txt"] == "C 0 A2 0 "


def test_a_comment_in_the_yaml_changes_nothing(diamond: FakeRun) -> None:
    diamond.drive()
    path = diamond.here / "a.yaml"
    path.write_text("# slower\n" + path.read_text())
    diamond.drive()
    assert len(diamond.traced()) == 4


def test_a_missing_or_foreign_folder(diamond: FakeRun) -> None:
    diamond.drive()
    shutil.rmtree(diamond.here / "run" / "c")
    assert diamond.drive().returncode == 0
    assert diamond.traced()[4:] == ["c"], "d's inputs came out the same: it does not run again"
    diamond.add("e", "d")
    (diamond.here / "run" / "e").mkdir()
    refused = diamond.drive()
    assert refused.returncode == 1 and "the ledger does not know" in refused.stderr
    assert (diamond.here / "run" / "e").exists()


def test_a_folder_of_the_user_s_in_a_known_stage_s_place_stands(fake_run: FakeRun) -> None:
    fake_run.add("a", text="A")
    assert fake_run.drive().returncode == 0
    folder = fake_run.here / "run" / "a"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "thesis").write_text("years of work")
    refused = fake_run.drive()
    assert refused.returncode == 1 and f"{folder} has no stage.json, so no stage made it" in refused.stderr
    assert (folder / "thesis").read_text() == "years of work"

    shutil.rmtree(folder)
    fake_run.run_by_hand("a", "--text", "mine")
    refused = fake_run.drive()
    assert refused.returncode == 1 and f"{folder} was made by hand with other options" in refused.stderr
    assert fake_run.results() == {"a/out.txt": "mine 0 "}


@pytest.mark.parametrize("kind", ["link", "foreign", "file"])
def test_what_lies_where_a_stage_is_written_first_is_not_removed(fake_run: FakeRun, tmp_path: Path, kind: str) -> None:
    fake_run.add("a", text="A")
    assert fake_run.drive().returncode == 0
    fake_run.configure("a", text="another")
    mine, partial = tmp_path / "mine", fake_run.here / "run" / "a.partial"
    mine.mkdir()
    (mine / "thesis").write_text("years of work")
    if kind == "link":
        partial.symlink_to(mine)
    elif kind == "foreign":
        mine.rename(partial)
    else:
        partial.write_text("years of work")
    refused = fake_run.drive()
    words = {"link": "is a link", "foreign": "was not made by this stage", "file": "is a file"}[kind]
    assert refused.returncode == 1 and f"{partial} {words}" in refused.stderr, refused.stderr
    assert (partial if kind == "file" else partial / "thesis").read_text() == "years of work"
    assert fake_run.results() == {"a/out.txt": "A 0 "}, "and the finished stage stands"


def test_work_kept_beside_a_finished_stage_outlives_its_replacement(fake_run: FakeRun) -> None:
    fake_run.add("a", text="A", keep=True)
    assert fake_run.drive().returncode == 0
    run = fake_run.here / "run"
    fake_run.configure("a", text="A", keep=True, mode="crash")
    (run / "a").rename(run / "aside")
    assert fake_run.drive().returncode == 1, "it leaves kept work"
    (run / "aside").rename(run / "a")
    fake_run.configure("a", text="another", keep=True)
    again = fake_run.drive()
    assert again.returncode == 0, again.stderr
    assert fake_run.results() == {"a/out.txt": "another 0 "}
    assert (run / "a" / "found.txt").read_text() == "1"


def test_a_finished_folder_that_was_moved_and_linked_is_not_emptied(fake_run: FakeRun, tmp_path: Path) -> None:
    fake_run.add("a", text="A")
    assert fake_run.drive().returncode == 0
    output, moved = fake_run.here / "run" / "a", tmp_path / "moved"
    output.rename(moved)
    output.symlink_to(moved)
    fake_run.configure("a", text="another")
    again = fake_run.drive()
    assert again.returncode == 0, again.stderr
    assert (moved / "out.txt").read_text() == "A 0 " and (output / "out.txt").read_text() == "another 0 "


def test_a_run_that_moved_goes_on(diamond: FakeRun, tmp_path: Path) -> None:
    diamond.drive()
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("run", "fake.py", "drive.py", "plan.json", "a.yaml", "b.yaml", "c.yaml", "d.yaml"):
        shutil.move(diamond.here / name, moved / name)
    diamond.here = moved
    again = diamond.drive()
    assert again.returncode == 0 and again.stdout.count("finished earlier") == 4


def test_failure_names_the_error_the_log_and_the_command(diamond: FakeRun) -> None:
    diamond.configure("b", mode="crash")
    diamond.configure("c", mode="stubborn", seconds=30)
    failed = diamond.drive()
    assert failed.returncode == 1
    assert "ValueError: the numbers do not add up" in failed.stderr
    log = diamond.here / "run" / "logs" / "b.log"
    assert f"log:     {log}" in failed.stderr and "Traceback" in log.read_text()
    assert not diamond.alive(), "the other stage, which ignores SIGTERM, and its child are stopped"
    assert not (diamond.here / "run" / "d").exists()
    failures = {r["stage"]: r["error"] for r in diamond.ledger() if r["event"] == "failed"}
    assert failures == {"b": "ValueError: the numbers do not add up", "c": "stopped: StageFailed"}
    diamond.configure("b", text="B")
    diamond.configure("c", text="C")
    assert diamond.drive().returncode == 0
    assert diamond.traced().count("a") == 1


def test_a_stage_mended_by_hand_is_taken_over(diamond: FakeRun, tmp_path: Path) -> None:
    diamond.configure("b", mode="refuse")
    failed = diamond.drive()
    assert "b: text: must be better" in failed.stderr
    diamond.configure("b", text="B")
    by_hand = shlex.split(next(line for line in failed.stderr.splitlines() if "by hand:" in line).split("by hand:")[1])
    assert Path(by_hand[0]).absolute() == Path(sys.executable), "as it is called from here"
    subprocess.run(by_hand, check=True, env=os.environ | {"TRACE": str(diamond.here / "trace")})
    before = diamond.traced().count("b")
    again = diamond.drive()
    assert again.returncode == 0, again.stderr
    assert diamond.traced().count("b") == before + 1, "its YAML changed since the driver tried: run again"
    shutil.rmtree(diamond.here / "run" / "b")
    subprocess.run(by_hand, check=True, env=os.environ | {"TRACE": str(diamond.here / "trace")})
    before = diamond.traced().count("b")
    again = diamond.drive()
    assert again.returncode == 0 and diamond.traced().count("b") == before
    assert json.loads((diamond.here / "run/b/stage.json").read_text())["command"][2:] == by_hand[2:]


def test_two_drivers_of_one_run(diamond: FakeRun) -> None:
    diamond.configure("a", seconds=1.0, text="A")
    first = diamond.start()
    diamond.wait_for("start", "a")
    second = diamond.drive()
    assert second.returncode == 1 and "another driver is working" in second.stderr
    first.communicate(timeout=600)
    assert first.returncode == 0
