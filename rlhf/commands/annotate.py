"""`rlhf annotate`: what is judged, by whom, and what comes out of it, from the command line's options."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.commands import Command, add_template_kwargs
from rlhf.conversation import give_kwargs
from rlhf.errors import InputError

if TYPE_CHECKING:
    from rlhf.annotation.comparison import Comparison, Given
    from rlhf.annotation.human_evaluation import HumanEvaluation
    from rlhf.annotation.protocol import Outcome
    from rlhf.annotation.sides import Side
    from rlhf.annotation.writing import Mode, Writing
    from rlhf.sampling.chat import ServerConfig


EXPORTS = (
    "preferences",
    "judgements",
    "demonstrations",
    "attempts",
    "adversarial",
    "safe-answers",
    "argilla",
    "label-studio",
)
"""Rows that `--export` writes: named here too, as every command of `rlhf` would wait for the rooms that write them."""


def add_to(command: Command) -> None:
    """Add the command."""
    text = "people judge pairs of answers on a page of this machine; every judgement is kept at once"
    add_options(command("annotate", annotate, text))


class _HelpFormatter(argparse.HelpFormatter):
    """Of options that take several words, shows the words as they are said."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=27)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        several = action.nargs in ("+", "*") and isinstance(action.metavar, str)
        return str(action.metavar) if several else super()._format_args(action, default_metavar)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `rlhf annotate`."""
    parser.usage, parser.formatter_class = f"{parser.prog} [WHAT] [options]", _HelpFormatter
    text = "a run, a file of pairs, a .sqlite store; or a folder for what people write or compare"
    parser.add_argument("what", metavar="WHAT", type=Path, nargs="?", help=text)
    parser.add_argument("--figures", action="store_true", help="tables of what is there so far, and end")

    group = parser.add_argument_group("the page")
    group.add_argument("--port", metavar="N", type=int, default=8642, help="default: 8642; 0: any that is free")
    group.add_argument("--guidelines", metavar="FILE", type=Path, help="Markdown, shown there; default: our own")
    group.add_argument(
        "--labels", metavar="N", type=int, help="judgements a pair; default: as before, or 1, with --compare 3"
    )
    group.add_argument("--gold", metavar="FILE", type=Path, help="preference rows that everybody is tried with")
    group.add_argument("--gold-every", metavar="N", type=int, default=10, help="after N judgements; default: 10")

    group = parser.add_argument_group("out and in")
    group.add_argument("--export", metavar="FILE", type=Path, help="write what was judged or written, and end")
    text = f"of these rows: {', '.join(EXPORTS)}"
    group.add_argument("--rows", metavar="KIND", choices=EXPORTS, help=text)
    text = "judgements: JSONL, Argilla's or Label Studio's"
    group.add_argument("--import", dest="bring_in", metavar="FILE", type=Path, help=text)

    text = "a MODEL is a checkpoint's folder, or URL#NAME of one that is served"
    group = parser.add_argument_group("writing", text)
    modes = group.add_mutually_exclusive_group()
    text = "prompts; two models answer, or one twice"
    modes.add_argument("--write", nargs="+", metavar="MODEL [MODEL]", help=text)
    modes.add_argument("--demonstrate", action="store_true", help="prompts with the answers that should be given")
    text = "prompts against this model's guidelines"
    modes.add_argument("--red-team", metavar="MODEL", help=text)
    group.add_argument("--round", metavar="NAME", help="of the red team, e.g. the model's version")
    text = "of a model's answer; default: 512"
    group.add_argument("--max-new-tokens", metavar="N", type=int, default=512, help=text)
    add_template_kwargs(group, "the chat template of a model that answers here, also with --compare")

    text = "which of two models answers better, blind, on seven points"
    group = parser.add_argument_group("human evaluation", text)
    text = (
        "two of: a version of the run (default: the newest and the first), a folder of recipes/evaluation/evaluate.py, "
        "a file of answers, a MODEL, or `people`: the answers that SFT held out"
    )
    group.add_argument("--compare", nargs="*", metavar="[SIDE [SIDE]]", help=text)
    group.add_argument("--prompts", metavar="N", type=int, help="so many of the prompts, drawn; default: all")
    text = "a served judge model rates, too; KEY: environment variable of its key; may stand several times"
    group.add_argument("--judge", nargs="+", action="append", default=[], metavar="URL MODEL [KEY]", help=text)


def annotate(arguments: argparse.Namespace) -> None:
    """Do what the options say."""
    from rlhf.annotation.exchange import bring_in
    from rlhf.annotation.page.serve import export, find_store, read_pairs, serve
    from rlhf.annotation.store import Store

    if not 0 <= arguments.port < 65536:
        raise InputError(f"port: must lie between 0 and 65535, got {arguments.port}")
    if arguments.compare is not None:
        give_kwargs(arguments.chat_template_kwargs)
        compare(arguments)
        return
    for name in ("prompts", "judge"):
        if getattr(arguments, name):
            raise InputError(f"{name}: goes with --compare A B")
    if arguments.what is None:
        raise InputError("what: name the folder of a run, a .sqlite store or a file of pairs, or --compare A B")
    require_one_job(arguments)
    give_kwargs(arguments.chat_template_kwargs)
    if arguments.figures:
        print_figures(find_store(arguments.what))
    elif arguments.export is not None:
        count = export(find_store(arguments.what, arguments.labels), arguments.export, arguments.rows or "preferences")
        print(f"{count} rows in {arguments.export}")
    elif arguments.write or arguments.demonstrate or arguments.red_team:
        writing, store = writing_of(arguments), _store_to_write(arguments.what)
        serve(store, port=arguments.port, guidelines=arguments.guidelines, writing=writing)
    elif arguments.bring_in is not None:
        with Store(find_store(arguments.what, arguments.labels)) as kept:
            new, late = bring_in(kept, arguments.bring_in)
        print(f"{new} judgements are new")
        if late:
            print(f"{late} came too late, as their pairs had all they wanted; --labels N makes room for more")
    else:
        store = find_store(arguments.what, arguments.labels)
        if arguments.gold is not None:
            if arguments.gold_every < 1:
                raise InputError(f"gold-every: must be at least 1, got {arguments.gold_every}")
            with Store(store) as kept:
                kept.add_gold(read_pairs(arguments.gold, chosen=True), arguments.gold_every)
        serve(store, port=arguments.port, guidelines=arguments.guidelines)


def require_one_job(arguments: argparse.Namespace) -> None:
    """InputError where an option would be ignored beside another."""
    given = vars(arguments) | {"import": arguments.bring_in}
    jobs = [n for n in ("figures", "export", "import", "write", "demonstrate", "red_team") if given[n]]
    if len(jobs) > 1:
        raise InputError(f"{jobs[1]}: does not go with {jobs[0]}; give a command for each".replace("_", "-"))
    for name, job in (("rows", "export"), ("round", "red_team")):
        if given[name] is not None and jobs != [job]:
            raise InputError(f"{name}: goes with --{job}".replace("_", "-"))
    if arguments.chat_template_kwargs and jobs not in (["write"], ["red_team"]):
        raise InputError("chat-template-kwargs: goes with --write, --red-team or --compare, where a model answers")
    if arguments.gold is not None and jobs:
        raise InputError(f"gold: goes with a page of pairs, not with {jobs[0]}".replace("_", "-"))


def writing_of(arguments: argparse.Namespace) -> Writing:
    """What is written on the page, with the models that answer; they are checked, and servers asked for theirs, before
    any is loaded."""
    from rlhf.annotation.sides import model_of
    from rlhf.annotation.writing import Answering, Writing
    from rlhf.sampling.chat import open_chat
    from rlhf.sampling.protocol import SamplingParams

    if arguments.demonstrate:
        return Writing("demonstrate")
    mode: Mode = "write" if arguments.write else "red-team"
    names = arguments.write or [arguments.red_team]
    if len(names) > 2:
        raise InputError(f"write: two models answer at most, got {len(names)}; name the newest two")
    if mode == "red-team" and not (arguments.round or "").strip():
        raise InputError("round: must be given, e.g. --round v1; its rates are compared over rounds")
    sources = [model_of(mode, name) for name in names]
    params = SamplingParams(max_new_tokens=arguments.max_new_tokens)
    for source in sources:
        if source.server is not None:
            with open_chat(source.server, 1, params, f"{mode}.server"):
                pass

    import torch

    from rlhf.sampling.opening import open_sampler

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samplers = [open_sampler(source, device, field=mode) for source in sources]
    return Writing(mode, Answering(samplers, [source.name for source in sources], params), arguments.round or "")


def print_figures(path: Path) -> None:
    """Tables of a store: its annotators, as the owner's page has them; and the red team's rounds, where there are any:
    violations by prompt, and by person and hour."""
    from rlhf.annotation.owner import annotator_figures
    from rlhf.annotation.store import Store
    from rlhf.annotation.writing import written_rows
    from rlhf.evaluation.safety.red_team import Attempt, round_figures
    from rlhf.report.drawing.tables import as_text
    from rlhf.report.pages.human_evaluation import annotator_table
    from rlhf.report.pages.red_team import round_table

    with Store(path) as store:
        attempts = [Attempt(**row) for row in written_rows(store, "attempts")]
        annotators = annotator_figures(store)
    if not attempts and not annotators:
        raise InputError(f"figures: nobody has judged or attempted anything in {path} yet")
    if annotators:
        print(as_text(annotator_table(annotators)))
    if attempts:
        print(as_text(round_table(round_figures(attempts))))


def _store_to_write(what: Path) -> Path:
    if what.is_file() and what.suffix != ".sqlite":
        raise InputError(f"what: {what} is a file; name a folder or a .sqlite store for what is written")
    return what if what.suffix == ".sqlite" else what / "labels.sqlite"


def compare(arguments: argparse.Namespace) -> None:
    """Human evaluation of two models: judges first, then the page for people; or the figures alone."""
    from rlhf.annotation.comparison import BATCH, RATERS, judge_comparison, open_comparison
    from rlhf.annotation.page.serve import serve
    from rlhf.annotation.sides import compared, sides_of
    from rlhf.annotation.store import Store
    from rlhf.sampling.chat import require_panel

    for name in ("labels", "prompts"):
        given = getattr(arguments, name)
        if given is not None and given < 1:
            raise InputError(f"{name}: must be at least 1, got {given}")
    if arguments.export:
        raise InputError("export: ratings are no preferences to train on; --figures writes what they say")
    if arguments.what is not None and (arguments.what.is_file() or arguments.what.suffix == ".sqlite"):
        raise InputError(f"what: {arguments.what} must be a folder, for the ratings and the figures of the comparison")
    judges = [_judge(words) for words in arguments.judge]
    require_panel("judge", judges)
    sides = sides_of(arguments.what, arguments.compare)
    folder = _folder_of(arguments.what, sides)
    comparison = compared(sides, folder, arguments.prompts, arguments.max_new_tokens)
    path = folder / "labels.sqlite"
    with Store(path) as store:
        raters = arguments.labels or store.labels(BATCH) or RATERS
        before = store.progress(BATCH).kept
        open_comparison(store, comparison, raters)
        aside = before - store.progress(BATCH).kept
        for server in judges:
            print(f"asking judge {server.model} …", flush=True)
            for sentence in judge_comparison(store, server).suspicious:
                print(f"suspicious: {sentence}")
        figures = write_figures(store, comparison, folder)
    said = f"{len(comparison.pairs)} pairs to rate by {raters} raters each"
    said += f", {len(comparison.decided)} decided without one" if comparison.decided else ""
    said += f", {comparison.unmatched} prompts that one model alone answered" if comparison.unmatched else ""
    said += f"; {aside} ratings were of other pairs, and are set aside until these are compared again" if aside else ""
    print(f"{' against '.join(comparison.names)}: {said}")
    if arguments.figures or not comparison.pairs:
        _print(figures, folder)
    else:
        print("to write the figures at any time: the same command with --figures")
        serve(path, port=arguments.port, guidelines=arguments.guidelines)


def _judge(words: list[str]) -> ServerConfig:
    from rlhf.sampling.chat import ServerConfig

    if len(words) not in (2, 3):
        raise InputError(f"judge: URL, MODEL, and the environment variable of its key if it has one, got {words}")
    try:
        return ServerConfig(url=words[0], model=words[1], api_key_env=words[2] if len(words) == 3 else None)
    except InputError as error:
        raise InputError(f"judge.{error}") from None


def write_figures(store: object, comparison: Comparison, folder: Path) -> HumanEvaluation:
    """Write human_evaluation.json and the page index.html of what was rated so far, and return the figures."""
    from rlhf.annotation.human_evaluation import FILE, human_evaluation
    from rlhf.annotation.store import Store
    from rlhf.report.drawing.page import write_page
    from rlhf.report.pages.human_evaluation import build_human_page

    assert isinstance(store, Store)
    figures = human_evaluation(store, comparison, gold_outcome)
    write_page(folder / FILE, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    build_human_page(figures, folder / "index.html")
    return figures


def gold_outcome(a: Given, b: Given) -> Outcome:
    """By the simulated world's gold, noise-free: a difference that its annotator calls negligible is a tie."""
    from rlhf.simulation.annotator import difference, strength_of
    from rlhf.simulation.gold import Verdict

    one, other = (Verdict(**(side.gold or {})) for side in (a, b))
    felt = difference(one, other, a.domain)
    return "tie" if strength_of(felt) == "negligibly" else "a" if felt > 0 else "b"


def _folder_of(what: Path | None, sides: tuple[Side, Side]) -> Path:
    """Of the ratings and figures: in the run that is named, or that both belong to, where its report finds it; the
    folder that is named; else one in the working directory."""
    from rlhf.annotation.sides import is_run

    name = "_vs_".join(Path(side.name).name for side in sides)
    if what is not None:
        return what / "human_evaluation" / name if is_run(what) else what
    places = [side.answers for side in sides if side.answers is not None]
    runs = {next((up for up in place.resolve().parents if is_run(up)), None) for place in places}
    run = runs.pop() if len(runs) == 1 and len(places) == 2 else None
    return run / "human_evaluation" / name if run is not None else Path(f"human_evaluation_{name}")


def _print(figures: HumanEvaluation, folder: Path) -> None:
    from rlhf.report.drawing.tables import as_text
    from rlhf.report.pages.human_evaluation import human_sentence, human_table

    print(as_text(human_table(figures)))
    print(human_sentence(figures))
    print(f"written: {folder / 'human_evaluation.json'}, {folder / 'index.html'}")
