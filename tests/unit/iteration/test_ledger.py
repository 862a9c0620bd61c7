"""The ledger, what it makes of a cut line, and whether a stage has to run."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest

from rlhf.errors import InputError
from rlhf.iteration.decision import ADDRESS, Decision, decide, difference, preview, stage_key
from rlhf.iteration.ledger import LOCK, Ledger, is_driven, output_digest, read_ledger, wall_seconds
from rlhf.iteration.plan import PlannedStage
from rlhf.iteration.summary import read_summary
from rlhf.iteration.verify import verify_run
from rlhf.sampling.chat import ServerConfig
from rlhf.shorthand import BARE, hints_of
from rlhf.stage import Effect, ExistingPath, InputPath, StageConfig, digest, open_stage
from rlhf.stage.digests import FileDigests


@dataclass(frozen=True)
class Held:
    """A group that a bare text stands for."""

    weights: Annotated[Path, BARE, ExistingPath()]
    adapter: InputPath


@dataclass(frozen=True, kw_only=True)
class Reading(StageConfig):
    """Of a stage that reads three files."""

    instructions: InputPath
    policy: Held


@pytest.fixture
def stage(tmp_path: Path) -> PlannedStage:
    (tmp_path / "sft.yaml").write_text("text: a\n")
    output = tmp_path / "run" / "sft"
    return PlannedStage("sft", "sft", tmp_path / "sft.yaml", {"output": str(output), "seed": "0"}, (), output)


def finish(stage: PlannedStage, monkeypatch: pytest.MonkeyPatch, content: str = "x") -> None:
    """As the stage's recipe would."""
    monkeypatch.setattr("sys.argv", ["recipes/sft.py", *stage.arguments])
    with open_stage(StageConfig(output=stage.output)).work() as folder:
        (folder / "out.txt").write_text(content)
        (folder / "metrics.jsonl").write_text(f'{{"seconds": {id(folder)}}}\n')


def test_records_come_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    ledger.append("started", "sft", key={"recipe": "sft"})
    ledger.append("finished", "sft", seconds=1.5)
    ledger.append("skipped", "sft")
    assert [r["event"] for r in read_ledger(ledger.path)] == ["started", "finished", "skipped"]
    last = Ledger(ledger.path).last("sft")
    assert last is not None and last["event"] == "finished" and last["seconds"] == 1.5
    assert ledger.last("base") is None


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_cut_last_line_is_left_out_and_written_over(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.append("started", "é")
    whole = path.read_bytes()
    ledger.append("finished", "é")
    path.write_bytes(whole + path.read_bytes()[len(whole) :][:kept])
    assert [r["event"] for r in read_ledger(path)][:1] == ["started"]
    again = Ledger(path)
    again.append("failed", "é")
    assert [r["event"] for r in read_ledger(path)] == ["started", "failed"]


def test_a_line_broken_elsewhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"event": "begun", "time": 1}\n{"event": \n{"event": "ended", "time": 2}\n')
    with pytest.raises(InputError, match=r"ledger.jsonl:2: not a line of JSON"):
        Ledger(path)


NO_EVENTS = ["[1]", '"begun"', "3", "{}", '{"event": 3, "time": 1}', '{"event": "begun"}']
NO_EVENTS += ['{"event": "begun", "time": NaN}', '{"event": "begun", "time": true}', '{"event": "started", "time": 1}']
NO_EVENTS += [
    json.dumps({"event": event, "time": 1, "stage": "a", **wrong})
    for event, wrong in (
        ("started", {"stage": ["a"]}),
        ("finished", {"files": ["x"]}),
        ("finished", {"key": "x"}),
        ("finished", {"seconds": "long"}),
        ("removed", {}),
    )
]


@pytest.mark.parametrize("line", NO_EVENTS)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(f'{{"event": "begun", "time": 1}}\n{line}\n')
    with pytest.raises(InputError, match=r"ledger.jsonl:2: no event with its time and parts; mend or remove that line"):
        read_ledger(path)


@pytest.mark.parametrize(
    "text",
    [
        *("", "config: 3\n", "config: [1]\n", "config: &a {x: *a}\n", "config: {seed: !!set {1}}\n"),
        *(f"config: {'[' * 3000}", "config: {run: \udcff}\n", None),
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_a_run_whose_config_is_damaged_is_verified_all_the_same(tmp_path: Path, text: str | None) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append("finished", "sft", files={}, seconds=1.0)
    ledger.append("ended", finished=1, stages=1)
    (tmp_path / "sft").mkdir()
    config = tmp_path / "config.yaml"
    os.mkfifo(config) if text is None else config.write_text(text, encoding="utf-8", errors="surrogateescape")
    *_, last = verify_run(tmp_path)
    assert last.name == "config.yaml" and last.problems[0].startswith("the plan cannot be read: ")


def test_a_pipe_in_a_file_s_place_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("ledger.jsonl", "summary.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"ledger\.jsonl: is a pipe or a device, and no ledger"):
        read_ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(InputError, match=r"summary\.json is no summary of a run"):
        read_summary(tmp_path)


def test_wall_time_of_all_attempts() -> None:
    times = [("begun", 10), ("started", 11), ("finished", 15), ("begun", 100), ("finished", 101), ("ended", 103)]
    records = [{"event": event, "time": float(time)} for event, time in times]
    assert wall_seconds(records) == 5 + 3
    assert wall_seconds([]) == 0


def test_a_clock_that_is_set_back_adds_nothing() -> None:
    times = [("begun", 10), ("started", 11), ("finished", -3_452_400), ("ended", -3_452_398), ("begun", 20)]
    assert wall_seconds([{"event": event, "time": float(time)} for event, time in times]) == 1 + 2


def test_keys_tell_what_changed(stage: PlannedStage, tmp_path: Path) -> None:
    run = tmp_path / "run"
    old = stage_key(stage, run, {str(run / "data" / "sft.jsonl"): "1"})
    assert old["overrides"]["output"] == "<run>/sft" and list(old["inputs"]) == ["<run>/data/sft.jsonl"]
    assert difference(old, old) is None
    assert difference(old, stage_key(stage, run, {str(run / "data" / "sft.jsonl"): "2"})) == (
        "its input <run>/data/sft.jsonl changed"
    )
    assert difference(old, stage_key(stage, run, {})) == "its input <run>/data/sft.jsonl changed"
    changed = replace(stage, overrides={**stage.overrides, "seed": "1"})
    assert difference(old, stage_key(changed, run, {str(run / "data" / "sft.jsonl"): "1"})) == "--seed changed"
    stage.config_file.write_text("text: b\n")
    assert difference(old, stage_key(stage, run, {str(run / "data" / "sft.jsonl"): "1"})) == "its YAML changed"


def test_a_server_at_another_address_changes_nothing_and_another_model_does(
    stage: PlannedStage, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def key(yaml: str, **overrides: str) -> dict[str, Any]:
        assert stage.config_file is not None
        stage.config_file.write_text(yaml)
        return stage_key(replace(stage, overrides={**stage.overrides, **overrides}), run, {})

    written = "judge: {{url: {}, model: {}, seeds: {}}}\npolicy: {{server: {{url: {}, concurrency: 4, model: m}}}}\n"
    old = key(written.format("http://a/v1", "j", "true", "http://a/v1"))
    assert difference(old, key(written.format("http://b/v1", "j", "true", "http://c/v1"))) is None
    for changed in (("http://a/v1", "k", "true", "http://a/v1"), ("http://a/v1", "j", "false", "http://a/v1")):
        assert difference(old, key(written.format(*changed))) == "its YAML changed"
    assert difference({**old, "config": old["written"]}, old) is None, "a ledger of before held the whole file"

    given = {"judge": '{"url": "http://a/v1", "model": "j"}', "policy.server.url": "http://a/v1", "text": "{a"}
    given |= {"judges": '[{"url": "http://a/v1", "model": "j"}]'}
    given |= {"annotator_options": '{"judges": [{"url": "http://a/v1", "model": "j"}]}'}
    old = key("", **given)
    assert difference(old, key("", **{name: text.replace("//a", "//b") for name, text in given.items()})) is None
    for option in ("judge", "judges", "annotator_options"):
        other = key("", **{**given, option: given[option].replace('"j"', '"k"')})
        assert difference(old, other) == f"--{option} changed"
    assert difference(old, key("", **{**given, "text": "{b"})) == "--text changed"


def test_the_words_of_an_address_are_those_that_change_no_answer() -> None:
    hints = hints_of(ServerConfig, notes=True)
    assert tuple(name for name, hint in hints.items() if Effect.NONE in getattr(hint, "__metadata__", ())) == ADDRESS


def _files(stage: PlannedStage) -> dict[str, str]:
    return FileDigests(stage.output.parent).of_folder(stage.output)


def _made(stage: PlannedStage) -> str:
    return output_digest(_files(stage))


def _decide(stage: PlannedStage, key: dict[str, Any], last: dict[str, Any] | None) -> Decision:
    return decide(stage, key, last, FileDigests(stage.output.parent))


def test_digest_of_a_stage_leaves_out_what_holds_times(
    stage: PlannedStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(stage, monkeypatch)
    first = _made(stage)
    other = replace(stage, output=tmp_path / "other")
    finish(other, monkeypatch)
    assert _made(other) == first
    (other.output / "out.txt").rename(other.output / "out2.txt")
    assert _made(other) != first


def test_decisions(stage: PlannedStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    key = stage_key(stage, run, {})
    assert _decide(stage, key, None).action == "run"
    started = {"event": "started", "stage": "sft", "key": key}
    assert _decide(stage, key, started).reason == "it did not finish"
    finish(stage, monkeypatch)
    with pytest.raises(InputError, match="the ledger does not know"):
        _decide(stage, key, None)
    assert _decide(stage, key, started).action == "adopt"
    finished = started | {
        "event": "finished",
        "stage_file": digest(stage.output / "stage.json"),
        "files": _files(stage),
    }
    assert _decide(stage, key, finished).action == "skip"
    assert _decide(stage, key | {"config": "other"}, finished).reason == "its YAML changed"
    assert _decide(stage, key, finished | {"stage_file": "other"}).action == "adopt", "run again by hand"
    other = replace(stage, overrides={**stage.overrides, "seed": "5"})
    changed = stage_key(other, run, {})
    command = ["python", "sft.py", *stage.arguments]
    assert _decide(other, changed, started | {"command": command}).reason == "--seed changed", (
        "killed before the record"
    )
    with pytest.raises(InputError, match="was made by hand with other options"):
        _decide(other, changed, finished | {"stage_file": "other"})
    for damaged in ("{", "[]", '{"command": []}'):
        (stage.output / "stage.json").write_text(damaged)
        assert _decide(stage, key, finished).reason == "its stage.json cannot be read"
    (stage.output / "stage.json").unlink()
    with pytest.raises(InputError, match=r"has no stage.json, so no stage made it"):
        _decide(stage, key, finished)


def test_a_file_that_the_yaml_names_counts_by_its_content(stage: PlannedStage, tmp_path: Path) -> None:
    """The plan names the inputs that it hands over; the others are in the stage's own record."""
    instructions, policy, adapter = tmp_path / "instructions.jsonl", tmp_path / "policy", tmp_path / "adapter"
    for file in (instructions, policy, adapter):
        file.write_text("one")
    given = replace(stage, overrides={**stage.overrides, "policy": str(policy)})
    with open_stage(Reading(output=stage.output, instructions=instructions, policy=Held(policy, adapter))).work():
        pass
    key = stage_key(given, tmp_path / "run", {})
    finished = {
        "event": "finished",
        "key": key,
        "stage_file": digest(stage.output / "stage.json"),
        "files": _files(stage),
    }
    assert _decide(given, key, finished).action == "skip"
    policy.write_text("others")
    assert _decide(given, key, finished).action == "skip", "an input of the plan: the key knows it"
    for file in (instructions, adapter):
        file.write_text("two")
        assert _decide(given, key, finished).reason == f"its input {file} changed"
        file.write_text("one")
    instructions.unlink()
    assert _decide(given, key, finished).action == "skip", "gone: what came of it is still what it was"


def test_preview_says_what_a_driver_would_do(
    stage: PlannedStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    reader = PlannedStage("ppo", "sft", stage.config_file, {}, (stage.output / "out.txt",), run / "ppo")
    assert preview([stage, reader], run) == ["to run", "to run, after sft"]
    finish(stage, monkeypatch)
    record = {"key": stage_key(stage, run, {}), "output": "1", "stage_file": digest(stage.output / "stage.json")}
    record["files"] = _files(stage)
    Ledger(run / "ledger.jsonl").append("finished", "sft", **record)
    assert preview([stage, reader], run) == ["finished", "to run"]
    shutil.copytree(stage.output, reader.output)
    Ledger(run / "ledger.jsonl").append("finished", "ppo", **record)
    kept = (stage.output / "out.txt").read_text()
    (stage.output / "out.txt").write_text("other words")
    assert preview([stage, reader], run)[1] == "finished, and runs again if what it reads of sft comes out another"
    (stage.output / "out.txt").write_text(kept)
    shutil.rmtree(reader.output)
    (stage.output / "out.txt").write_text("other words")
    assert preview([stage, reader], run) == ["to run: its out.txt is changed", "to run, after sft"]
    stage.config_file.write_text("text: b\n")
    assert preview([stage, reader], run) == ["to run: its YAML changed", "to run, after sft"]


def test_a_run_is_driven_while_its_lock_is_held(tmp_path: Path) -> None:
    import fcntl

    assert not is_driven(tmp_path)
    with (tmp_path / LOCK).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert is_driven(tmp_path)
    assert not is_driven(tmp_path)
