"""The tools around a run: `rlhf new | plan | run | report | verify | compare`; for checkpoints: `rlhf average | push`;
for preferences and rewards: `rlhf statistics | verify-reward`; for rows of any kind: `rlhf look | quality-gate`; for
people who judge answers: `rlhf annotate`; to talk to a policy: `rlhf chat`. Training itself is in the recipes:
`rlhf recipe list | run | copy | path`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf.commands import annotate as annotate_command
from rlhf.commands import chat as chat_command
from rlhf.data.layouts.declaration import Kind
from rlhf.data.rows import Domain
from rlhf.errors import InputError, mistakes_in_a_sentence
from rlhf.shipped import listing

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

LONGEST_CONTEXT = 131_072  # tokens, of a tokenizer that does not say how long its model's context is


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; bad input is answered by one sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="rlhf", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, call: Callable[[argparse.Namespace], bool | None], text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        added.set_defaults(call=call)
        return added

    added = command("new", new, "a run's folder from your chat model and files: its plan, and settings sized to both")
    added.add_argument("run", type=Path, help="folder to write")
    added.add_argument("--chat", type=Path, required=True, help="chat checkpoint to start from")
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
    added.add_argument("--reward", help="in their place: a reward-model folder, or package.module:function")
    added.add_argument("--safety-reward", help="the same for safety")
    added.add_argument("--versions", type=int, default=3, help="how many; default: 3")
    added.add_argument("--no-ppo", action="store_true", help="leave out PPO at the end of the last version")
    added.add_argument(
        "--chat-template-kwargs",
        type=_mapping,
        default={},
        metavar="{NAME: VALUE}",
        help="variables of the model's chat template, for every stage, e.g. '{enable_thinking: false}'",
    )
    added = command(
        "plan",
        lambda a: plan([*_plan_of(a), *a.more]),
        "the stages of a run, their commands, and which are finished; options as for recipes/iterative_rlhf.py",
    )
    added.add_argument("run", type=Path, nargs="?", help="folder that `rlhf new` wrote")
    added.add_argument("--config", type=Path, help="the YAML file of a plan, in its place")
    added = command(
        "run",
        lambda a: run([*_plan_of(a), *a.more]),
        "start a run, or go on with it; options as for recipes/iterative_rlhf.py",
    )
    added.add_argument("run", type=Path, nargs="?", help="folder that `rlhf new` wrote")
    added.add_argument("--config", type=Path, help="the YAML file of a plan, in its place")
    added = command("report", lambda a: report(a.folders, a.panel), "a page of a run, or of stages made by hand")
    added.add_argument(
        "folders", nargs="+", type=Path, metavar="folder", help="of a run: its report/index.html; or of stages"
    )
    added.add_argument("--panel", action="append", default=[], help="package.module:function of panels of your own")
    added = command(
        "verify",
        lambda a: verify_run(a.run),
        "are all files of the finished stages, the pools and the summary what they were?",
    )
    added.add_argument("run", type=Path)
    added = command("compare", lambda a: compare(*a.runs), "two runs' figures side by side")
    added.add_argument("runs", nargs=2, type=Path, metavar="run")
    added = command(
        "statistics",
        lambda a: statistics(a.files, a.tokenizer, a.domain),
        "the paper's table of preference sets: comparisons, turns, tokens",
    )
    added.add_argument("files", nargs="+", metavar="file", help="preferences: files, folders or hub names")
    added.add_argument("--tokenizer", required=True, type=Path, help="folder of a saved tokenizer or checkpoint")
    added.add_argument("--domain", choices=("helpfulness", "safety"), help="of PKU-SafeRLHF's comparisons, which one")
    added = command(
        "look",
        lambda a: look(a.rows, a.kind, a.tokenizer),
        "a file's rows as they are read and rendered, counts, lengths, and what is left out and why",
    )
    added.add_argument("rows", metavar="file", help="a file, folder or hub name")
    added.add_argument("--as", dest="kind", choices=("sft", "preferences", "prompts"), help="default: by its layout")
    added.add_argument("--tokenizer", type=Path, help="folder of a saved tokenizer or checkpoint; default: characters")
    added = command(
        "verify-reward", lambda a: verify_reward(a.reward), "does a reward function keep to what the library relies on?"
    )
    added.add_argument("reward", help="a reward-model folder, or package.module:attribute of your own reward function")
    added = command(
        "average",
        lambda a: average(a.checkpoints, a.output, a.weights, a.rank),
        "one reward model, or policy, whose weights are the mean of several ones'",
    )
    added.add_argument("checkpoints", nargs="+", type=Path, metavar="checkpoint")
    added.add_argument("--output", type=Path, required=True)
    added.add_argument("--weights", nargs="+", type=float, help="one a checkpoint; default: all the same")
    added.add_argument("--rank", type=int, help="of the mean of adapters; default: the sum of theirs, without loss")
    added = command(
        "push",
        lambda a: push(a.checkpoint, a.name, a.private, a.base),
        "a checkpoint and its card to the Hugging Face hub",
    )
    added.add_argument("checkpoint", type=Path, help="of a policy or reward model, whole or an adapter")
    added.add_argument("name", help="org/name")
    added.add_argument("--private", action="store_true", help="make the repository private")
    added.add_argument("--base", help="org/name of the model that it came from; default: what its card says")
    added = command(
        "quality-gate",
        lambda a: quality_gate(a.rows, a.output, a.near),
        "are SFT rows consistent, do they follow their instruction, are they new, and no refusals?",
    )
    added.add_argument("rows", help="SFT rows: a file, folder or hub name")
    added.add_argument("--output", type=Path, help="write the rows that pass, as {messages}, to this file")
    added.add_argument("--near", type=float, default=0.8, help="similarity of a near-duplicate; default: 0.8")

    added = command(
        "annotate",
        annotate,
        "people judge pairs of answers on a page of this machine; every judgement is kept at once",
    )
    annotate_command.add_options(added)

    added = command(
        "chat", chat_command.chat, "talk to a policy, or to two side by side, with what rewards say of each answer"
    )
    chat_command.add_options(added)

    added = command("recipe", lambda a: a.call(a), "the recipes and settings that come with the package")
    actions = added.add_subparsers(required=True, metavar="list | run | copy | path")

    def action(name: str, call: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
        one.set_defaults(call=call)
        return one

    action("list", lambda a: print(listing()), "the recipes, and the settings that come with them")
    added = action("run", lambda a: run_recipe_file(a.name, a.options), "run a recipe; what follows its name is for it")
    added.add_argument("name", help="e.g. ppo; `rlhf recipe run ppo --help` has its options")
    added.add_argument("options", nargs=argparse.REMAINDER, help="of the recipe: --config FILE --name value")
    added = action("copy", lambda a: copy_settings(a.name, a.target), "copy a settings file, to change it")
    added.add_argument("name", help="e.g. llama2_13b/ppo, ds_configs/accelerate_zero3")
    added.add_argument("target", type=Path, help="file to write, or a folder")
    added = action(
        "path",
        lambda a: print_path(a.name),
        "where a recipe or a settings file lies: accelerate launch $(rlhf recipe path ppo) --config my_ppo.yaml",
    )
    added.add_argument("name", help="of a recipe, or of settings as for copy")

    words = list(sys.argv[1:] if argv is None else argv)
    own, more = words, []
    if words[:1] in (["plan"], ["run"]) and words[1:2] not in (["-h"], ["--help"]):  # the rest is the driver's own
        named = 2 if words[1:2] and not words[1].startswith("--") else 1
        own, more = words[:named], words[named:]
    arguments = parser.parse_args(own)
    arguments.more = more
    with mistakes_in_a_sentence():
        passed = arguments.call(arguments)
    if passed is not None:
        raise SystemExit(0 if passed else 1)


def _mapping(text: str) -> dict[str, Any]:
    """A mapping in YAML's words, on one line."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"must be names with values, e.g. '{{enable_thinking: false}}', got {text!r}")
    return found


def new(arguments: argparse.Namespace) -> None:
    """Write a run's folder (`rlhf.start.new`) and say what it is made of."""
    from rlhf.start.new import Request, new_run
    from rlhf.start.times import what_it_takes

    request = Request(
        run=arguments.run,
        chat=arguments.chat,
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
    """The option that names the plan's file, where the run's folder is named and not that file itself."""
    if (arguments.run is None) == ("--config" not in arguments.more):
        raise InputError("run: name the folder of a run, or the YAML file of a plan with --config")
    if arguments.run is None:
        return []
    file = arguments.run / "plan.yaml"
    if not file.is_file():
        raise InputError(f"run: {file} does not exist; `rlhf new {arguments.run} --chat MODEL …` writes it")
    return ["--config", str(file)]


def run(options: Sequence[str]) -> None:
    """Start the driver, as recipes/iterative_rlhf.py does."""
    from rlhf.configuration import parse_config
    from rlhf.iteration.config import IterativeConfig
    from rlhf.start.run import run_plan

    run_plan(parse_config(IterativeConfig, options))


def plan(options: Sequence[str]) -> None:
    """Print every stage: whether the next start of the driver would run it, and the command to run it by hand."""
    from rlhf.configuration import parse_config
    from rlhf.iteration.checks import check_plan
    from rlhf.iteration.config import IterativeConfig
    from rlhf.iteration.decision import preview
    from rlhf.iteration.disk import require_room
    from rlhf.iteration.hours.forecast import stage_words, total_words
    from rlhf.iteration.ledger import read_ledger
    from rlhf.iteration.plan import make_plan
    from rlhf.iteration.processes.stage_process import command_of
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
        print(f"{stage.name:<24} {state}{stage_words(found, stage.name)}\n    {shlex.join(command_of(stage))}")
    to_run = [stage.name for stage, state in zip(stages, states, strict=True) if state != "finished"]
    print(f"memory: {memory_words(stages, calibration, records)}")
    print(f"disk: {require_room(stages, to_run, config.run, config.keep)}")
    print(f"hours: {total_words(found, calibration)}")


def report(folders: Sequence[Path], panels: Sequence[str] = ()) -> None:
    """Build the page of what there is of a run, or of stages made by hand, with panels of the user's own."""
    from rlhf.report import build_report

    print(build_report(*folders, panels=panels))


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


def verify_reward(spec: str) -> bool:
    """Print for every check of `rlhf.rewards.contract` whether the reward function passes; False where one does not."""
    from rlhf.rewards.specs import reward_files

    reward_files(reward=spec)

    from rlhf.rewards.contract import check_reward_function
    from rlhf.rewards.loading import load_reward

    findings = check_reward_function(load_reward(spec))
    for name, problem in findings.items():
        print(f"{name:<8} {'ok' if problem is None else f'BROKEN: {problem}'}")
    return not any(findings.values())


def compare(first: Path, second: Path) -> None:
    """Print a table of the versions' figures of two runs: first, second, difference."""
    from rlhf.iteration.summary import read_summary

    tables = [{version["name"]: version for version in read_summary(run)["versions"]} for run in (first, second)]
    names = list(dict.fromkeys([*tables[0], *tables[1]]))
    print(f"{'':<12}{'':<22}{first.name:>12}{second.name:>12}{'difference':>12}")
    for name in names:
        for figure in TABLE:
            values = [table.get(name, {}).get(figure) for table in tables]
            if any(value is not None for value in values):
                gap = values[1] - values[0] if None not in values else None
                print(f"{name:<12}{figure:<22}" + "".join(f"{_number(value):>12}" for value in (*values, gap)))


def statistics(files: Sequence[str], tokenizer: Path, domain: Domain | None) -> None:
    """Print the table in Markdown, a line a set and a total; bad rows are left out and counted on stderr."""
    from rlhf.data.loading import load_preferences

    _existing_tokenizer(tokenizer)
    names = Counter(Path(file).name for file in files)
    sets = {}
    for file in files:
        name = Path(file).name if names[Path(file).name] == 1 else file
        sets[name] = load_preferences(file, domain=domain, on_bad_row="skip")

    from transformers import AutoTokenizer

    from rlhf.data.statistics import statistics_table
    from rlhf.models.checkpoint.pretrained import from_pretrained

    print(statistics_table(sets, from_pretrained(AutoTokenizer, tokenizer, "tokenizer")), end="")


def look(rows: str, kind: Kind | None, tokenizer: Path | None) -> bool:
    """Print rows of a source as the recipes read and render them (`rlhf.data.looking`); False where none is usable."""
    from rlhf.data.looking import look_at, look_text

    renderer = None
    if tokenizer is not None:
        _existing_tokenizer(tokenizer)
        from transformers import AutoTokenizer

        from rlhf.conversation import Renderer
        from rlhf.models.checkpoint.pretrained import from_pretrained

        loaded = from_pretrained(AutoTokenizer, tokenizer, "tokenizer")
        loaded.pad_token = loaded.pad_token or loaded.eos_token  # nothing is padded here
        renderer = Renderer(loaded, min(loaded.model_max_length, LONGEST_CONTEXT))
    found = look_at(rows, kind, renderer)
    print(look_text(found, rows, tokens=renderer is not None, colours=sys.stdout.isatty()))
    return found.rows > 0


def average(checkpoints: Sequence[Path], output: Path, weights: Sequence[float] | None, rank: int | None) -> None:
    """Write the mean of reward models or policies (`rlhf.models.averaging`)."""
    from rlhf.models.averaging import average_checkpoints

    average_checkpoints(checkpoints, output, weights=weights, rank=rank)


def push(checkpoint: Path, name: str, private: bool, base: str | None) -> None:
    """Upload a checkpoint (`rlhf.start.push`) and print its address."""
    from rlhf.start.push import push

    print(push(checkpoint, name, private=private, base=base))


def quality_gate(rows: str, output: Path | None, near: float) -> bool:
    """Print how many rows fail by which check (`rlhf.data.corpus.quality`); False where one does."""
    from rlhf.data.corpus.quality import check_rows, passing_rows, verdict_text
    from rlhf.jsonl import write_rows

    if output is not None and output.exists() and output.resolve() == Path(rows).resolve():
        raise InputError(f"output: {output} is the file that is read; name another one")
    verdict = check_rows(rows, near=near)
    print(verdict_text(verdict))
    if output is not None:
        write_rows(output, passing_rows(rows, verdict))
    return not verdict.failures


def annotate(arguments: argparse.Namespace) -> None:
    """Serve the page, or write what was judged (`rlhf.commands.annotate`)."""
    annotate_command.annotate(arguments)


def run_recipe_file(name: str, options: Sequence[str]) -> None:
    """Become `python <the recipe's file> <options>`: the same process, so that a launcher's signals reach it."""
    from rlhf.shipped import existing_recipe

    file = existing_recipe(name)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(file), *options])


def copy_settings(name: str, target: Path) -> None:
    """Copy a settings file; it opens with what it needs and the line that launches it."""
    from rlhf import shipped

    shipped.copy_settings(name, target)
    print(f"{target}: its first lines say what it needs and how it is launched; change the rest")


def print_path(name: str) -> None:
    """Print the file of a recipe or of settings."""
    from rlhf.shipped import existing_recipe, existing_settings

    print(existing_settings(name) if "/" in name else existing_recipe(name))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _existing_tokenizer(folder: Path) -> None:
    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(f"tokenizer: {folder} has no tokenizer_config.json; name a folder with a saved tokenizer")


def _existing_run(run: Path) -> None:
    if not (run / "ledger.jsonl").exists():
        raise InputError(f"run: {run} is not the folder of a run (it has no ledger.jsonl)")


if __name__ == "__main__":
    main()
