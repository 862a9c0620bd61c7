"""A stage's door, what of a broken-off attempt is taken over, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import pytest

from rlhf.configuration import parse_config
from rlhf.errors import InputError, SuspiciousError
from rlhf.lifetime import RUN_MARK
from rlhf.stage import (
    Effect,
    ExistingPath,
    InputPath,
    KeepingConfig,
    Kept,
    Stage,
    StageConfig,
    digest,
    inputs_of,
    on_main_process,
    open_stage,
    options_of,
    package_versions,
)
from rlhf.stage.digests import FileDigests, signature_of


@dataclass(frozen=True)
class Sizes:
    """Sizes.

    Args:
        rate: decides.
        micro: rounds.
    """

    rate: float = 0.1
    micro: Annotated[int, Effect.ROUNDING] = 8


@dataclass(frozen=True, kw_only=True)
class Config(KeepingConfig):
    """A stage.

    Args:
        source: read.
        other: read, if given.
        many: all read.
        named: all read.
        number: decides.
        sizes: some of each.
    """

    source: InputPath
    other: InputPath | None = None
    many: tuple[InputPath, ...] = ()
    named: dict[str, InputPath] = field(default_factory=dict)
    number: int = 1
    sizes: Sizes = field(default_factory=Sizes)


Make = Callable[..., Stage]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The stage of options given, over files that are there."""
    for name in ("source", "two"):
        (tmp_path / name).write_text(name)

    def stage(**options: Any) -> Stage:
        given = {"output": tmp_path / "out", "source": tmp_path / "source"} | options
        return open_stage(parse_config(Config, [part for n, v in given.items() for part in (f"--{n}", str(v))]))

    return stage


def kinds(stage: Stage) -> tuple[Kept, Kept]:
    """Two kinds: samples depend on the source and the number; states on everything."""
    values, rounding = options_of(stage.config, stage.inputs)
    samples = Kept("samples", "drawn answers", ["source"], {"number": values["number"]})
    beside = ("metrics.jsonl", "board")
    return samples, Kept("resume", "training states", [*stage.inputs], values, rounding, beside, "step-*")


def attempt(stage: Stage, *, states: bool = True, finish: bool = False) -> dict[str, list[str]]:
    """Adds work of both kinds and breaks off, unless `finish`; what the attempt found there."""
    found: dict[str, list[str]] = {}
    try:
        with stage.work(None, *kinds(stage)) as folder:
            for name, pattern in (("samples", "*.jsonl"), ("resume", "step-*")):
                found[name] = sorted(path.name for path in (folder / name).glob(pattern))
            assert not (folder / "rest").exists()
            found["metrics"] = (
                (folder / "metrics.jsonl").read_text().split() if (folder / "metrics.jsonl").exists() else []
            )
            (folder / "samples" / f"{len(found['samples'])}.jsonl").write_text("an answer")
            if states:
                (folder / "resume" / f"step-{len(found['resume'])}").mkdir()
            with (folder / "metrics.jsonl").open("a") as stream:
                stream.write("line\n")
            (folder / "rest").mkdir()
            (folder / "link").symlink_to(folder / "rest", target_is_directory=True)
            if not finish:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert not stage.output.exists()
    return found


def test_inputs_come_from_the_fields_types(make: Make, tmp_path: Path) -> None:
    source, two = tmp_path / "source", tmp_path / "two"
    stage = make(many=json.dumps([str(two), str(source)]), named=json.dumps({"a": str(two)}))
    assert stage.inputs == {"source": source, "many.0": two, "many.1": source, "named.a": two}
    assert inputs_of(stage.config) == stage.inputs
    for options, words in (
        ({"other": tmp_path / "none"}, "other: .*none does not exist"),
        ({"many": '["none"]'}, r"many\.0: none does not exist"),
        ({"named": '{"a": "none"}'}, r"named\.a: none does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            make(**options)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out exists already"):
        make()


@dataclass(frozen=True, kw_only=True)
class FolderConfig(StageConfig):
    """A stage that reads two files of a folder.

    Args:
        data: their folder.
    """

    data: Annotated[Path, ExistingPath("a.json", "b.jsonl")]


def test_files_inside_a_folder_are_inputs_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    config = FolderConfig(output=tmp_path / "out", data=tmp_path)
    with pytest.raises(InputError, match=r"^data\.b\.jsonl: .*b\.jsonl does not exist"):
        open_stage(config)
    (tmp_path / "b.jsonl").write_text("")
    assert open_stage(config).inputs == {"data.a.json": tmp_path / "a.json", "data.b.jsonl": tmp_path / "b.jsonl"}


def test_options_that_decide_leave_out_inputs_and_where_it_writes(make: Make) -> None:
    stage = make(fresh="true")
    values, rounding = options_of(stage.config, stage.inputs)
    expected = {"other": None, "named": {}, "number": 1, "sizes.rate": 0.1, "sizes.micro": 8}
    expected["chat_template_kwargs"] = {}
    assert (values, rounding) == (expected, {"sizes.micro"})


def test_all_kinds_outlive_broken_attempts_and_go_when_it_is_finished(make: Make) -> None:
    assert attempt(make()) == {"samples": [], "resume": [], "metrics": []}
    assert attempt(make()) == {"samples": ["0.jsonl"], "resume": ["step-0"], "metrics": ["line"]}
    last = make()
    found = attempt(last, finish=True)
    assert (found["samples"], found["resume"]) == (["0.jsonl", "1.jsonl"], ["step-0", "step-1"])
    assert sorted(path.name for path in last.output.iterdir()) == ["link", "metrics.jsonl", "rest", "stage.json"]
    assert sorted(path.name for path in last.output.parent.iterdir()) == ["out", "source", "two"]


def test_what_changes_no_result_goes_on_and_is_said(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt(make())
    (tmp_path / "source").rename(tmp_path / "moved")
    assert attempt(make(source=tmp_path / "moved"))["resume"] == ["step-0"], "a path is not what is read there"
    assert capsys.readouterr().err == ""
    options = {"source": tmp_path / "moved", "sizes.micro": 2}
    assert attempt(make(**options))["resume"] == ["step-0", "step-1"]
    said = capsys.readouterr().err
    assert "out: goes on with the training states in" in said and "sizes.micro was 8, now 2" in said
    assert "the same up to rounding, no longer bit for bit" in said and "drawn answers" not in said
    monkeypatch.setattr("rlhf.stage.kept.package_versions", lambda: {"torch": "9"})
    stage = make(**options)
    assert len(attempt(stage, finish=True)["resume"]) == 3
    assert "torch was " in capsys.readouterr().err
    record = json.loads((stage.output / "stage.json").read_text())
    assert len(record["went_on"]) == 2 and "drawn answers" in record["went_on"][0]


@pytest.mark.parametrize("change", ["rate", "number", "source"])
def test_what_changes_the_result_is_refused_until_it_is_to_be_fresh(
    make: Make, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt(make())
    options = {"rate": {"sizes.rate": 0.5}, "number": {"number": 2}, "source": {}}[change]
    if change == "source":
        (tmp_path / "source").write_text("another")
    words = {
        "rate": r"^sizes\.rate: the training states .* were made with 0\.1, now it is 0\.5; .*--fresh true",
        "number": r"^number: the drawn answers .* were made with 1, now it is 2; .*--fresh true",
        "source": r"^source: it is not what the drawn answers .* were made with; .*--fresh true",
    }[change]
    for _ in range(2):
        with pytest.raises(InputError, match=words):
            attempt(make(**options))
    found = attempt(make(fresh="true", **options))
    assert found["samples"] == (["0.jsonl"] if change == "rate" else []), "what fits is taken over"
    assert found["resume"] == [] and found["metrics"] == [], "metrics go with their states"
    assert "dropped" in capsys.readouterr().err
    assert len(attempt(make(**options))["resume"]) == 1


def test_work_of_before_an_option_was_there_goes_on_where_it_is_null(make: Make) -> None:
    attempt(make())
    for file in make().folder.glob("*/origin.json"):
        origin = json.loads(file.read_text())
        origin["values"].pop("other", None)
        file.write_text(json.dumps(origin))
    assert attempt(make())["resume"] == ["step-0"]


def test_without_work_there_is_nothing_to_refuse(make: Make) -> None:
    attempt(make(), states=False)
    assert attempt(make(**{"sizes.rate": 0.5}))["samples"] == ["0.jsonl"]


def test_work_of_another_recipe_is_not_emptied(make: Make) -> None:
    attempt(make())
    with pytest.raises(InputError, match="holds work of another recipe's"), make().work(None):
        pass
    assert (make().folder / "resume" / "step-0").is_dir()


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"values": [1]}', "[" * 5000])
def test_an_origin_that_cannot_be_read_is_not_taken_for_ours(make: Make, text: str) -> None:
    attempt(make())
    (make().folder / "resume" / "origin.json").write_text(text)
    with pytest.raises(InputError, match=r"^origin\.json: the training states"):
        attempt(make())


@pytest.mark.parametrize("kind", ["link", "foreign", "file"])
def test_a_partial_folder_that_is_not_ours_is_never_emptied(make: Make, tmp_path: Path, kind: str) -> None:
    mine, partial = tmp_path / "mine", tmp_path / "out.partial"
    mine.mkdir()
    (mine / "thesis").write_text("years of work")
    if kind == "link":
        partial.symlink_to(mine)
    elif kind == "foreign":
        mine.rename(partial)
    else:
        partial.write_text("x")
    with pytest.raises(InputError, match=r"output: .*out\.partial (is a link|was not made by|is a file)"):
        make()
    assert kind == "file" or (partial / "thesis").read_text() == "years of work"


def test_one_process_at_a_time_works_in_a_folder(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.stage.held.PATIENCE", 0.0)
    first, second = make(), make()
    with first.work() as folder:
        (folder / "hours.txt").write_text("of work")
        with (
            pytest.raises(InputError, match=r"output: another process is at work in .*out\.partial; let it end"),
            second.work(),
        ):
            pass
        assert (folder / "hours.txt").exists()
    assert (first.output / "hours.txt").exists()


def test_what_is_finished_while_another_waits_is_not_begun_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make(), make()
    work = first.work()
    work.__enter__()
    monkeypatch.setattr("rlhf.stage.held.time.sleep", lambda seconds: work.__exit__(None, None, None))
    with pytest.raises(InputError, match="another process has finished or moved"), second.work():
        pass
    assert (first.output / "stage.json").exists() and not second.folder.exists()


def test_a_stage_that_is_refused_leaves_no_folder(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.stage.stage.take_over", lambda *parts, **more: (_ for _ in ()).throw(InputError("no")))
    stage = make()
    with pytest.raises(InputError, match="no"), stage.work():
        pass
    assert not stage.folder.exists()


def test_a_link_inside_is_removed_and_not_followed(make: Make, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").touch()
    attempt(make())
    (make().folder / "tensorboard").symlink_to(tmp_path / "mine")
    attempt(make())
    assert (tmp_path / "mine" / "thesis").exists() and not (make().folder / "tensorboard").exists()


@on_main_process
def record(stage: Stage, rows: list[dict[str, int]], *, shown: str) -> None:
    """What a recipe writes at its end."""
    stage.write_json("figures.json", {"a": 1}, shown=shown)
    stage.write_rows("rows.jsonl", rows)
    (stage.folder / "page.html").write_text("page")
    stage.closing.rows(len(rows))


@pytest.mark.parametrize("rank", [0, 1])
def test_the_main_process_alone_records_and_shows(
    make: Make, rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    stage = make()
    with stage.work():
        stage.folder.mkdir(exist_ok=True)
        record(stage, [{"b": 2}, {"b": 3}], shown="| a table |")
        written = sorted(path.name for path in stage.folder.iterdir() if path.name != "attempt.json")
    assert written == ([] if rank else ["figures.json", "page.html", "rows.jsonl"])
    assert capsys.readouterr().out == ("" if rank else "| a table |\n")
    assert stage.closing.used == (None if rank else 2)


def test_a_stage_of_one_process_refuses_a_launch_of_several(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make().config
    assert open_stage(config, one_process=True).config == config
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"runs in one process; start it with `python`"):
        open_stage(config, one_process=True)


def test_the_closing_block(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    stage = make()
    with stage.work():
        stage.write_json("figures.json", {"a": 1})
        stage.write_rows("rows.jsonl", [{"a": 1}])
        stage.closing.rows(7, {"too long": 2, "empty": 0})
        stage.closing.figures(reward=0.51239, steps=3, loss=float("nan"))
        stage.closing.show(["a row of a table   1.0"])
        stage.closing.suspect(["it trained on 7 rows"])
        stage.closing.suspect(["it trained on 7 rows"])
    closing = json.loads((stage.output / "stage.json").read_text())["closing"]
    assert closing == {
        "made": ["figures.json", "rows.jsonl"],
        "rows_used": 7,
        "left_out": {"too long": 2},
        "figures": {"reward": 0.51239, "steps": 3, "loss": None},
        "suspicious": ["it trained on 7 rows"],
    }
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"{stage.output}: finished in 0:0")
    assert lines[1:] == [
        "  made        figures.json, rows.jsonl",
        "  rows        7 used; left out: 2 too long",
        "  figures     reward 0.5124, steps 3, loss None",
        "    a row of a table   1.0",
        "  suspicious: it trained on 7 rows",
    ]


def test_strict_makes_suspicion_a_failure_and_loses_nothing(make: Make, tmp_path: Path) -> None:
    for suspicious in (False, True):
        stage = make(strict="true", output=tmp_path / f"out{suspicious}")
        try:
            with stage.work() as folder:
                (folder / "checkpoint").mkdir()
                stage.closing.suspect(["it is odd"] if suspicious else [])
        except SuspiciousError as error:
            assert suspicious and error.exit_code == 3 and "it is odd" in str(error)
        assert stage.output.exists() is not suspicious
    aside = tmp_path / "outTrue.suspicious"
    assert sorted(path.name for path in aside.iterdir()) == ["checkpoint", "stage.json"]
    with pytest.raises(InputError, match="look at it, then move it"):
        make(strict="true", output=tmp_path / "outTrue")


@pytest.mark.parametrize("moment", ["write_json", "replace", "write_whole"])
def test_killed_at_its_very_start_or_end_the_folder_is_still_ours(
    make: Make, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    def begun(file: Path, content: Any) -> None:
        file.with_name(file.name + ".partial").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment == "write_whole":
            patch.setattr("rlhf.stage.kept.write_whole", begun)
        else:
            patch.setattr("rlhf.stage.stage." + {"write_json": "write_json", "replace": "os.replace"}[moment], kill)
        with make().work() as folder:
            (folder / "made").touch()
    stage = make()
    assert any(stage.folder.iterdir())
    with stage.work():
        pass
    assert [path.name for path in stage.output.iterdir()] == ["stage.json"]


def test_what_the_driver_knows_is_not_read_again(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is known by its files' sizes, times and inodes; one that is another is read."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("large")
    known = FileDigests(tmp_path)
    known.learn(tmp_path / "model", "of an earlier stage", signature_of(tmp_path / "model"))
    known.save()
    monkeypatch.setenv(RUN_MARK, str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def digests(output: str) -> dict[str, str]:
        with make(source=Path("source"), other=Path("model"), output=tmp_path / output).work():
            pass
        record = json.loads((tmp_path / output / "stage.json").read_text())
        return {name: entry["digest"] for name, entry in record["inputs"].items()}

    assert digests("first") == {"source": digest(tmp_path / "source"), "other": "of an earlier stage"}
    (tmp_path / "model" / "weights").write_text("other")
    assert digests("second")["other"] == digest(tmp_path / "model")


def test_versions_are_read_of_the_packages_that_decide_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, each stage's end read what every installed package says of itself: half of the time of a small stage."""
    wanted = {name: metadata.version(name) for name in ("rlhf", "torch", "transformers")}

    def every(**_: object) -> None:
        raise AssertionError("all that is installed is read")

    monkeypatch.setattr(metadata, "distributions", every)
    assert package_versions().items() >= wanted.items() and "pytest" not in package_versions()
    monkeypatch.setattr("rlhf.stage.files.PACKAGES", ("torch", "no-such-package"))
    assert package_versions() == {"torch": wanted["torch"]}
