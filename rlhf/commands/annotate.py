"""`rlhf annotate`: what is judged, by whom, and what comes out of it, from the command line's options."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import InputError

if TYPE_CHECKING:
    from rlhf.annotation.comparison import Comparison, Given
    from rlhf.annotation.human_evaluation import HumanEvaluation
    from rlhf.annotation.protocol import Outcome


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `rlhf annotate`."""
    parser.add_argument(
        "what",
        type=Path,
        nargs="?",
        help="folder of a run that asks people, a .sqlite store, or a file of pairs; with --compare the folder for its "
        "ratings and figures",
    )
    parser.add_argument("--port", type=int, default=8642, help="of this machine; default: 8642, 0: any that is free")
    parser.add_argument("--guidelines", type=Path, help="Markdown file, shown beside the pairs; default: our own")
    parser.add_argument(
        "--labels", type=int, help="judgements that each pair wants; default: 1, and 3 raters with --compare"
    )
    parser.add_argument("--export", type=Path, help="write the judgements as preference rows to this file, and end")
    group = parser.add_argument_group("human evaluation", "which of two models answers better, blind, on seven points")
    group.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="answers of two models to the same prompts: stage folders of recipes/evaluation/evaluate.py, or files",
    )
    group.add_argument("--prompts", type=int, metavar="N", help="so many of the prompts, drawn; default: all")
    group.add_argument(
        "--judge",
        nargs=2,
        action="append",
        default=[],
        metavar=("URL", "MODEL"),
        help="a judge model behind an OpenAI-compatible server takes one rater's place; may stand several times",
    )
    group.add_argument("--figures", action="store_true", help="write the figures of what is rated so far, and end")


def annotate(arguments: argparse.Namespace) -> None:
    """Do what the options say."""
    from rlhf.annotation.page.serve import export, find_store, serve

    if not 0 <= arguments.port < 65536:
        raise InputError(f"port: must lie between 0 and 65535, got {arguments.port}")
    if arguments.compare:
        compare(arguments)
        return
    for name in ("prompts", "judge", "figures"):
        if getattr(arguments, name):
            raise InputError(f"{name}: goes with --compare A B")
    if arguments.what is None:
        raise InputError("what: name the folder of a run, a .sqlite store or a file of pairs, or --compare A B")
    store = find_store(arguments.what, arguments.labels)
    if arguments.export is None:
        serve(store, port=arguments.port, guidelines=arguments.guidelines)
    else:
        print(f"{export(store, arguments.export)} judgements in {arguments.export}")


def compare(arguments: argparse.Namespace) -> None:
    """Human evaluation of two models: judges first, then the page for people; or the figures alone."""
    from rlhf.annotation.comparison import RATERS, judge_comparison, open_comparison, read_comparison
    from rlhf.annotation.page.serve import serve
    from rlhf.annotation.store import Store

    raters = RATERS if arguments.labels is None else arguments.labels
    if raters < 1 or (arguments.prompts is not None and arguments.prompts < 1):
        raise InputError("labels, prompts: must be at least 1")
    if arguments.export:
        raise InputError("export: ratings are no preferences to train on; --figures writes what they say")
    comparison = read_comparison(*arguments.compare, arguments.prompts)
    folder = arguments.what or _folder_of(arguments.compare, comparison.names)
    path = folder / "labels.sqlite"
    if folder.is_file() or folder.suffix == ".sqlite":
        raise InputError(f"what: {folder} must be a folder, for the ratings and the figures of the comparison")
    with Store(path) as store:
        open_comparison(store, comparison, raters)
        for url, model in arguments.judge:
            print(f"asking {judge_comparison(store, url, model)} …", flush=True)
        figures = write_figures(store, comparison, folder)
    said = f"{len(comparison.pairs)} pairs to rate by {raters} raters each"
    said += f", {len(comparison.decided)} decided without one" if comparison.decided else ""
    said += f", {comparison.unmatched} prompts that one model alone answered" if comparison.unmatched else ""
    print(f"{' against '.join(comparison.names)}: {said}")
    if arguments.figures or not comparison.pairs:
        _print(figures, folder)
    else:
        print("to write the figures at any time: the same command with --figures")
        serve(path, port=arguments.port, guidelines=arguments.guidelines)


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

    felt = difference(*(Verdict(**side.gold) for side in (a, b) if side.gold), a.domain)
    return "tie" if strength_of(felt) == "negligibly" else "a" if felt > 0 else "b"


def _folder_of(sides: list[Path], names: tuple[str, str]) -> Path:
    """In the run that both belong to, where its report finds it; else in the working directory."""
    name = "_vs_".join(Path(name).name for name in names)
    runs = [next((up for up in side.resolve().parents if (up / "ledger.jsonl").is_file()), None) for side in sides]
    if runs[0] is not None and runs[0] == runs[1]:
        return runs[0] / "human_evaluation" / name
    return Path(f"human_evaluation_{name}")


def _print(figures: HumanEvaluation, folder: Path) -> None:
    from rlhf.report.drawing.tables import as_text
    from rlhf.report.pages.human_evaluation import human_sentence, human_table

    print(as_text(human_table(figures)))
    print(human_sentence(figures))
    print(f"written: {folder / 'human_evaluation.json'}, {folder / 'index.html'}")
