"""`rlhf plan | report | verify | compare | average`: the tools around a run. Training itself is in the recipes."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.errors import InputError

TABLE = (
    "gold_helpfulness",
    "gold_safety",
    "violation_rate",
    "false_refusal_rate",
    "win_rate_vs_sft",
    "kl_from_sft",
    "mean_length",
    "referee_score",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; bad input is answered by one sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="rlhf", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    text = "the stages of a run, their commands, and which are finished; options as for recipes/iterative_rlhf.py"
    commands.add_parser("plan", help=text).add_argument("--config", type=Path, required=True)
    commands.add_parser("report", help="write report/index.html of a run").add_argument("run", type=Path)
    verify = commands.add_parser("verify", help="are the files of the finished stages still what they were?")
    verify.add_argument("run", type=Path)
    compared = commands.add_parser("compare", help="two runs' figures side by side")
    compared.add_argument("runs", nargs=2, type=Path, metavar="run")
    average = commands.add_parser("average", help="one reward model whose weights are the mean of several ones'")
    average.add_argument("checkpoints", nargs="+", type=Path, metavar="checkpoint")
    average.add_argument("--output", type=Path, required=True)
    average.add_argument("--weights", nargs="+", type=float, help="one a checkpoint; default: all the same")
    average.add_argument("--rank", type=int, help="of the mean of adapters; default: the sum of theirs, without loss")
    arguments, more = parser.parse_known_args(argv)
    if more and arguments.command != "plan":
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    try:
        if arguments.command == "plan":
            plan(["--config", str(arguments.config), *more])
        elif arguments.command == "report":
            report(arguments.run)
        elif arguments.command == "verify":
            raise SystemExit(0 if verify_run(arguments.run) else 1)
        elif arguments.command == "compare":
            compare(*arguments.runs)
        else:
            from rlhf.models.averaging import average_reward_models

            average_reward_models(
                arguments.checkpoints, arguments.output, weights=arguments.weights, rank=arguments.rank
            )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def plan(options: Sequence[str]) -> None:
    """Print every stage: whether the next start of the driver would run it, and the command to run it by hand."""
    from rlhf.configuration import parse_config
    from rlhf.iteration.checks import check_plan
    from rlhf.iteration.config import IterativeConfig
    from rlhf.iteration.decision import preview
    from rlhf.iteration.plan import make_plan
    from rlhf.iteration.processes import command_of

    config = parse_config(IterativeConfig, options)
    stages = make_plan(config)
    check_plan(stages)
    for stage, state in zip(stages, preview(stages, config.run), strict=True):
        print(f"{stage.name:<24} {state}\n    {shlex.join(command_of(stage))}")


def report(run: Path) -> None:
    """Build the report of what there is of a run."""
    from rlhf.report import build_report

    _existing_run(run)
    print(build_report(run))


def verify_run(run: Path) -> bool:
    """Print for every finished stage whether its files have the digest in the ledger; False where one has not."""
    from rlhf.iteration.ledger import last_record, output_digest, read_ledger

    _existing_run(run)
    records = read_ledger(run / "ledger.jsonl")
    newest = [last_record(records, name) for name in dict.fromkeys(r["stage"] for r in records if "stage" in r)]
    finished = [record for record in newest if record is not None and record["event"] == "finished"]
    whole = True
    for record in finished:
        folder = run / record["stage"]
        state = "MISSING" if not folder.exists() else "ok" if output_digest(folder) == record["output"] else "CHANGED"
        whole = whole and state == "ok"
        print(f"{record['stage']:<24} {state}")
    print(f"{len(finished)} finished stages, " + ("all as they were" if whole else "not all as they were"))
    return whole


def compare(first: Path, second: Path) -> None:
    """Print a table of the versions' figures of two runs: first, second, difference."""
    tables = [{version["name"]: version for version in _summary(run)["versions"]} for run in (first, second)]
    names = list(dict.fromkeys([*tables[0], *tables[1]]))
    print(f"{'':<12}{'':<22}{first.name:>12}{second.name:>12}{'difference':>12}")
    for name in names:
        for figure in TABLE:
            values = [table.get(name, {}).get(figure) for table in tables]
            if any(value is not None for value in values):
                gap = values[1] - values[0] if None not in values else None
                print(f"{name:<12}{figure:<22}" + "".join(f"{_number(value):>12}" for value in (*values, gap)))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _existing_run(run: Path) -> None:
    if not (run / "ledger.jsonl").exists():
        raise InputError(f"run: {run} is not the folder of a run (it has no ledger.jsonl)")


def _summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    if not path.exists():
        raise InputError(f"run: {path} does not exist; the run writes it when its last stage is finished")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    main()
