"""What of a broken-off attempt is taken over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf.iteration.config import VersionConfig
from rlhf.stage import Kept, open_stage

KEPT = Kept("work", inputs=("source",), values={"seed": 1, "range": (0, 2)})


@pytest.fixture
def attempt(tmp_path: Path):
    """An attempt at the stage; returns what it found in the kept folder. It breaks off unless `finish`."""
    (tmp_path / "source").write_text("one")
    (tmp_path / "other").write_text("one")

    def start(keep: Kept | None, finish: bool = False) -> list[str]:
        found: list[str] = []
        try:
            inputs = {name: tmp_path / name for name in ("source", "other")}
            with open_stage(tmp_path / "out", VersionConfig("any"), inputs, keep=keep) as folder:
                assert [path.name for path in folder.iterdir()] == (["work"] if keep else [])
                if keep is not None:
                    found += sorted(path.name for path in (folder / "work").glob("part*"))
                    (folder / "work" / f"part{len(found)}").touch()
                (folder / "rest").mkdir()
                (folder / "rest.json").touch()
                (folder / "link").symlink_to(folder / "rest", target_is_directory=True)
                if not finish:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert not (tmp_path / "out").exists()
        return found

    return start


def test_the_kept_folder_outlives_broken_attempts_only(attempt, tmp_path: Path) -> None:
    assert [attempt(KEPT), attempt(KEPT), attempt(KEPT)] == [[], ["part0"], ["part0", "part1"]]
    (tmp_path / "other").write_text("two")
    assert attempt(KEPT, finish=True) == ["part0", "part1", "part2"], "an input that does not decide it may change"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["link", "rest", "rest.json", "stage.json"]


def test_what_lies_beside_the_kept_folder_outlives_them_and_the_stage(tmp_path: Path) -> None:
    keep = replace(KEPT, inputs=(), beside=("metrics.jsonl", "board"))
    for attempt in range(3):
        try:
            with open_stage(tmp_path / "out", VersionConfig("any"), {}, keep=keep) as folder:
                (folder / "board").mkdir(exist_ok=True)
                (folder / "rest").touch()
                with (folder / "metrics.jsonl").open("a") as stream:
                    stream.write(f"{attempt}\n")
                if attempt < 2:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == "0\n1\n2\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "board",
        "metrics.jsonl",
        "rest",
        "stage.json",
    ]
    with pytest.raises(KeyboardInterrupt), open_stage(tmp_path / "two", VersionConfig("any"), {}, keep=keep) as folder:
        (folder / "metrics.jsonl").write_text("of other values")
        raise KeyboardInterrupt
    with open_stage(tmp_path / "two", VersionConfig("any"), {}, keep=replace(keep, values={"seed": 2})) as folder:
        assert not (folder / "metrics.jsonl").exists()


@pytest.mark.parametrize("change", ["input", "value", "packages", "half an origin", "nothing kept"])
def test_another_origin_starts_empty(attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    keep: Any = KEPT
    attempt(keep)
    if change == "input":
        (tmp_path / "source").write_text("two")
    elif change == "value":
        keep = replace(KEPT, values={"seed": 2, "range": (0, 2)})
    elif change == "packages":
        monkeypatch.setattr("rlhf.stage.package_versions", lambda: {"torch": "another"})
    elif change == "half an origin":
        file = tmp_path / "out.partial" / "work" / "origin.json"
        file.write_text(file.read_text()[:20])
    else:
        attempt(None)
    assert attempt(keep) == []
