"""`rlhf new | plan | run | report | verify | compare`: a run, from its folder to its figures."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rlhf.commands import Command, add_template_kwargs
from rlhf.errors import InputError
from rlhf.paths import why_no_file

if TYPE_CHECKING:
    from rlhf.evaluation.policies.versions import VersionFigures
    from rlhf.report.run.tables import Figure

TABLE: tuple[Figure, ...] = (
    "gold_helpfulness",
    "gold_safety",
    "violation_rate",
    "false_refusal_rate",
    "win_rate_vs_sft",
    "kl_from_sft",
    "mean_length",
    "referee_score",
)


def add_to(command: Command) -> None:
    """Add the commands."""
    added = command("new", new, "a run's folder from your chat model and files: its plan, and settings sized to both")
    added.add_argument("run", type=Path, help="folder to write")
    model = "a folder, a hub name that is fetched, a GGUF file, or an adapter"
    added.add_argument("--chat", type=Path, metavar="MODEL", help=f"chat model to start from: {model}")
    added.add_argument("--base", type=Path, metavar="MODEL", help="in its place a base model, of which --sft makes one")
    added.add_argument("--sft", nargs="+", default=(), metavar="FILE", help="dialogues for it: files or hub names")
    added.add_argument(
        "--prompts", nargs="+", default=(), metavar="FILE", help="files or hub names; default: the pairs'"
    )
    for part in ("validation", "test"):
        added.add_argument(
            f"--{part}-prompts", nargs="+", default=(), metavar="FILE", help="held out; default: split off"
        )
    added.add_argument("--preferences", nargs="+", default=(), metavar="FILE", help="pairs for helpfulness")
    added.add_argument("--safety-preferences", nargs="+", default=(), metavar="FILE", help="pairs for safety")
    added.add_argument(
        "--referee-preferences", nargs="+", default=(), metavar="FILE", help="pairs for a judge that trains nothing"
    )
    added.add_argument("--system", help="a system message for every dialogue that has none, e.g. to keep answers short")
    added.add_argument("--reward", help="in place of --preferences: a reward-model folder, or package.module:function")
    added.add_argument("--safety-reward", help="in place of --safety-preferences: the same for safety")
    added.add_argument("--versions", type=int, default=3, help="how many; default: 3")
    added.add_argument("--no-ppo", action="store_true", help="leave out PPO at the end of the last version")
    add_template_kwargs(added, "the model's chat template, for every stage")
    added = command(
        "plan",
        lambda a: plan([*_plan_of(a), *a.more], commands=a.commands),
        "the stages of a run, which are finished, and how long the others take; options as for "
        "recipes/iterative_rlhf.py",
    )
    added.add_argument("--commands", action="store_true", help="below each stage the whole command that runs it")
    added.add_argument("run", type=Path, nargs="?", help="its folder")
    added.add_argument("--config", type=Path, help="the YAML file of a plan, in its place")
    added = command(
        "run",
        lambda a: run([*_plan_of(a), *a.more]),
        "start a run, or go on with it; options as for recipes/iterative_rlhf.py",
    )
    added.add_argument("run", type=Path, nargs="?", help="its folder")
    added.add_argument("--config", type=Path, help="the YAML file of a plan, in its place")
    added = command(
        "report", lambda a: report(a.folders, a.panel, a.serve, a.port), "a page of a run, or of stages made by hand"
    )
    added.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="folder",
        help="of a run: its report/index.html; of several runs, or of stages",
    )
    added.add_argument("--panel", action="append", default=[], help="package.module:function of panels of your own")
    added.add_argument(
        "--serve", action="store_true", help="show it in a browser of this machine while the run goes on"
    )
    added.add_argument("--port", type=int, default=0, help="of --serve; default: any free one")
    added = command(
        "verify",
        lambda a: verify_run(a.run),
        "are all files of the finished stages, the pools and the summary what they were?",
    )
    added.add_argument("run", type=Path)
    added = command("compare", lambda a: compare(*a.runs), "two runs' figures side by side")
    added.add_argument("runs", nargs=2, type=Path, metavar="run")


def new(arguments: argparse.Namespace) -> None:
    """Write a run's folder (`rlhf.start.new`) and say what it is made of."""
    from rlhf.start.new import Request, new_run
    from rlhf.start.times import what_it_takes

    request = Request(
        run=arguments.run,
        chat=arguments.chat,
        base=arguments.base,
        sft=tuple(arguments.sft),
        prompts=tuple(arguments.prompts),
        validation_prompts=tuple(arguments.validation_prompts),
        test_prompts=tuple(arguments.test_prompts),
        helpfulness_preferences=tuple(arguments.preferences),
        safety_preferences=tuple(arguments.safety_preferences),
        referee_preferences=tuple(arguments.referee_preferences),
        system=arguments.system,
        helpfulness=arguments.reward,
        safety=arguments.safety_reward,
        versions=arguments.versions,
        ppo=not arguments.no_ppo,
        chat_template_kwargs=arguments.chat_template_kwargs,
    )
    *looked, written, following = new_run(request)
    print("\n".join(looked), flush=True)
    print("\n".join([*what_it_takes(arguments.run), written, following]))


def _plan_of(arguments: argparse.Namespace) -> list[str]:
    """The options that say what the plan is, where the run's folder is named: its file, or what its driver recorded."""
    if (arguments.run is None) == ("--config" not in arguments.more):
        raise InputError("run: name the folder of a run, or the YAML file of a plan with --config")
    if arguments.run is None:
        return []
    file = arguments.run / "plan.yaml"
    from rlhf.iteration.summary import RECORD, recorded_options

    if not file.is_file() and (arguments.run / RECORD).exists():  # begun from a plan elsewhere
        return [*recorded_options(arguments.run), "--run", str(arguments.run)]
    if not file.is_file():
        shown = shlex.quote(str(arguments.run))
        raise InputError(f"run: {file} {why_no_file(file)}; `rlhf new {shown} --chat MODEL …` writes it")
    if not any(word.partition("=")[0] == "--run" for word in arguments.more):
        _refuse_plan_of_another(arguments.run, file)
    return ["--config", str(file)]


def _refuse_plan_of_another(run: Path, file: Path) -> None:
    """InputError where a plan works in another folder than the one it lies in, as one that was copied or moved."""
    import yaml

    from rlhf.strict_yaml import LOADER

    try:
        content = yaml.load(file.read_text(encoding="utf-8"), LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # its reader tells
        return
    named = content.get("run") if isinstance(content, dict) else None
    if isinstance(named, str) and Path(named).resolve() != run.resolve():
        raise InputError(
            f"run: {file} is the plan of {named}, and would work there, not in {run}; if it was copied or moved, name "
            f"{run} in its lines run and configs; if not, give the command from the folder that its paths are seen from"
        )


def run(options: Sequence[str]) -> None:
    """Start the driver, as recipes/iterative_rlhf.py does."""
    from rlhf.configuration import parse_config
    from rlhf.iteration.config import IterativeConfig
    from rlhf.start.run import run_plan

    run_plan(parse_config(IterativeConfig, options))


def plan(options: Sequence[str], *, commands: bool = False) -> None:
    """Print every stage: whether the next start of the driver would run it; the command to run it by hand, if asked."""
    from rlhf.configuration import parse_config
    from rlhf.iteration.checks import check_plan
    from rlhf.iteration.config import IterativeConfig
    from rlhf.iteration.decision import preview
    from rlhf.iteration.disk import require_room
    from rlhf.iteration.hours.forecast import stage_words, total_words
    from rlhf.iteration.ledger import read_ledger
    from rlhf.iteration.plan import make_plan
    from rlhf.iteration.processes.stage_process import by_hand
    from rlhf.metrics import asked_trackers
    from rlhf.start.calibrate import kept
    from rlhf.start.times import memory_words, plan_forecast

    config = parse_config(IterativeConfig, options)
    asked_trackers(config.trackers)
    stages = make_plan(config)
    settings = check_plan(stages)
    states = preview(stages, config.run)
    again = [stage.name for stage, state in zip(stages, states, strict=True) if state.startswith("to run")]
    calibration, records = kept(config), read_ledger(config.run / "ledger.jsonl")
    found = plan_forecast(config, stages, settings, calibration, records, again)
    for stage, state in zip(stages, states, strict=True):
        state = "at work" if stage.name in found.running else state
        asks = "" if state == "finished" else _who_is_asked(settings[stage.name])
        print(f"{stage.name:<24} {state}{stage_words(found, stage.name)}{asks}")
        if commands:
            print(f"    {by_hand(stage)}")
    to_run = [stage.name for stage, state in zip(stages, states, strict=True) if state != "finished"]
    print(f"memory: {memory_words(stages, settings, calibration, records)}")
    print(f"disk: {require_room(stages, to_run, config.run, config.keep)}")
    most = plan_forecast(config, stages, settings, calibration, records, to_run).left
    print(f"hours: {total_words(found, calibration, most)}")


def _who_is_asked(config: Any) -> str:
    """Of a stage that waits for people: where they judge, and how many judgements are there."""
    if getattr(config, "annotator", None) != "people":
        return ""
    from rlhf.annotation.labelling import batch_name
    from rlhf.annotation.people import asked_words

    return f"; {asked_words(batch_name(config.output), config.labels_file)}"


def report(folders: Sequence[Path], panels: Sequence[str] = (), live: bool = False, port: int = 0) -> None:
    """Build the page of what there is of a run, or of stages made by hand, with panels of the user's own.

    live: serve it too, until it is interrupted.
    """
    from rlhf.report import build_report

    if not live:
        print(build_report(*folders, panels=panels))
        return
    from rlhf.report.live import serve_report

    serve_report(lambda: build_report(*folders, panels=panels), port)


def verify_run(run: Path) -> bool:
    """Print what became of the run's files (`rlhf.iteration.verify`); False where they are not all as they were."""
    from rlhf.iteration.verify import verify_run

    _existing_run(run)
    whole = True
    for finding in verify_run(run):
        whole = whole and not finding.problems
        gone = f", {', '.join(finding.removed)} removed (keep)" if finding.removed else ""
        print(f"{finding.name:<24} {'CHANGED' if finding.problems else 'ok'}{gone}")
        for problem in finding.problems:
            print(f"    {problem}")
    print("all as it was" if whole else "not all as it was; a driver that starts makes changed stages again")
    return whole


def compare(first: Path, second: Path) -> None:
    """Print a table of the versions' figures of two runs: first, second, difference."""
    from rlhf.iteration.summary import read_summary

    summaries = [cast("list[VersionFigures]", read_summary(run)["versions"]) for run in (first, second)]
    tables = [{version["name"]: version for version in versions} for versions in summaries]
    names = list(dict.fromkeys([*tables[0], *tables[1]]))
    print(f"{'':<12}{'':<22}{first.name:>12}{second.name:>12}{'difference':>12}")
    for name in names:
        mine, others = (table.get(name) for table in tables)
        for figure in TABLE:
            value = None if mine is None else mine.get(figure)
            other = None if others is None else others.get(figure)
            if value is not None or other is not None:
                gap = other - value if value is not None and other is not None else None
                print(f"{name:<12}{figure:<22}" + "".join(f"{_number(one):>12}" for one in (value, other, gap)))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _existing_run(run: Path) -> None:
    if not (run / "ledger.jsonl").exists():
        raise InputError(f"run: {run} is not the folder of a run (it has no ledger.jsonl)")
