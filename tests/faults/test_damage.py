"""What a finished stage made is known to be what the next one reads; a stage that stands still is told."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import FakeRun

EXPECTED = {
    "a/out.txt": "A 0 ",
    "b/out.txt": "B 0 A 0 ",
    "c/out.txt": "C 0 A 0 ",
    "d/out.txt": "D 0 B 0 A 0  C 0 A 0 ",
}


def flip_in_silence(run: Path, name: str) -> None:
    """Flip a bit as a disk does: neither size nor times tell. (The kernel lets nobody set a ctime: the driver's memory
    of it is changed instead.)"""
    file = run / name
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    known = json.loads((run / ".digests.json").read_text())
    status = file.stat()
    known[name][0] = [[".", status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]]
    (run / ".digests.json").write_text(json.dumps(known))


def test_a_flipped_bit_is_found_before_another_stage_reads_it(diamond: FakeRun) -> None:
    assert diamond.drive().returncode == 0
    flip_in_silence(diamond.here / "run", "a/out.txt")
    diamond.configure("b", text="B2")
    again = diamond.drive()
    assert again.returncode == 0, again.stderr
    assert "started again: its out.txt is changed; its old folder is removed" in again.stdout
    assert sorted(diamond.traced()[4:]) == ["a", "b", "d"], "c made its result of a good a, and a came out the same"
    assert diamond.results() == {**EXPECTED, "b/out.txt": "B2 0 A 0 ", "d/out.txt": "D 0 B2 0 A 0  C 0 A 0 "}


@pytest.mark.parametrize("stage", ["a", "d"])
def test_a_file_that_was_cut_off_is_made_again(diamond: FakeRun, stage: str) -> None:
    diamond.drive()
    os.truncate(diamond.here / "run" / stage / "out.txt", 2)
    (diamond.here / "run" / "c" / "notes.txt").write_text("mine: a file beside is no damage")
    again = diamond.drive()
    assert again.returncode == 0 and diamond.traced()[4:] == [stage]
    assert "its out.txt is changed" in again.stdout and diamond.results() == EXPECTED


def test_a_missing_file_is_made_again(diamond: FakeRun) -> None:
    diamond.drive()
    (diamond.here / "run" / "b" / "out.txt").unlink()
    again = diamond.drive()
    assert again.returncode == 0 and diamond.traced()[4:] == ["b"]
    assert "its out.txt is missing" in again.stdout and diamond.results() == EXPECTED


def test_a_stage_that_waits_or_stands_still_is_told(diamond: FakeRun) -> None:
    diamond.configure("a", text="A", seconds=300, mode="asks")
    driver = diamond.start(stalled_minutes=0.01)
    assert driver.stdout is not None
    said: dict[str, str] = {}
    while len(said) < 2:  # in either order: on a busy machine a stage stands still before its first word
        line = next(driver.stdout)
        said |= {what: line for what in ("waits for people", "stands still") if what in line}
    assert said["waits for people"].endswith(" waits for people: 0 of 2 judgements\n")
    assert "nothing new in its log or folder for 0.01 minutes; see" in said["stands still"]
    assert "a.log" in said["stands still"]
    driver.terminate()
    driver.communicate(timeout=600)


def test_a_stage_that_stands_still_is_ended_by_option(diamond: FakeRun) -> None:
    diamond.configure("a", text="A", seconds=300)
    ended = diamond.drive(stalled_minutes=0.01, end_stalled=True)
    assert ended.returncode == 1 and not diamond.alive()
    assert "a: stands still: nothing new in its log or folder for 0.01 minutes (end_stalled)" in ended.stderr
    diamond.configure("a", text="A")
    assert diamond.drive().returncode == 0 and diamond.results() == EXPECTED
