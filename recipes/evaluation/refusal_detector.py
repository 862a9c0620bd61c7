"""Refusal detectors checked against people: the rules, and a classifier trained on people's labels.

Each file holds one model's answers, labelled by people as XSTest's completions are. The classifier is built on all
other models' answers and tested on this one's; the rules are built on none. Beside them stands how far two people
agree.

    python recipes/evaluation/refusal_detector.py --config recipes/configs/xstest/refusal_detector.yaml
    python recipes/evaluation/refusal_detector.py --check FILES

The first writes into the output folder: detector.json (the classifier trained on all files, for
`recipes/evaluation/evaluate_safety.py --refusals`), agreement.json (the figures); it prints confusion tables in
Markdown. The second checks the rules, which are the default wherever refusals are counted, on files of your own and
writes nothing; its last line is JSON, {file: share of the answers on which rules and people agree, refusal or not}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rlhf.configuration import run_recipe
from rlhf.data.refusals import LABELS, RefusalRules
from rlhf.errors import InputError
from rlhf.evaluation.safety.refusals import RefusalClassifier, agreement, as_refusals, confusion, read_labelled
from rlhf.intervals import wilson
from rlhf.paths import require_files
from rlhf.stage import Effect, InputPath, Stage, on_main_process, open_stage

if TYPE_CHECKING:
    from rlhf.evaluation.safety.refusals import LabelledAnswer


@dataclass(frozen=True)
class RefusalDetectorConfig:
    """Refusal detectors and their agreement with people.

    Args:
        output: folder of this stage.
        answers: model's name -> CSV of its answers with people's labels (prompt, completion, final_label,
            annotation_1, …); two models or more.
        check: CSV files of the same columns, to check the rules on; in place of the two above.
        strict: as of every stage (docs/stages.md).
    """

    output: Annotated[Path | None, Effect.NONE] = None
    answers: dict[str, InputPath] = field(default_factory=dict)
    check: tuple[Path, ...] = ()
    strict: Annotated[bool, Effect.NONE] = False

    def __post_init__(self) -> None:
        if self.check and (self.answers or self.output):
            raise InputError("check: writes nothing and takes its own files; leave out output and answers")
        if self.check:
            return
        if self.output is None:
            raise InputError("output: must name a folder, or give --check FILES")
        if len(self.answers) < 2:
            raise InputError(
                f"answers: needs two models' answers or more, to build on one and test on another; got "
                f"{len(self.answers)}"
            )


def main(config: RefusalDetectorConfig) -> None:
    if config.output is None:
        check(config.check)
        return
    stage = open_stage(config, one_process=True)

    labelled = {name: read_labelled(Path(file)) for name, file in config.answers.items()}
    with stage.work():
        tables: dict[str, dict[str, Any]] = {}
        for name, rows in labelled.items():
            trained = trained_on(row for other, own in labelled.items() if other != name for row in own)
            tables[name] = compared(rows, {"rules": RefusalRules().label, "trained on the others": trained.label})
        everything = [row for rows in labelled.values() for row in rows]
        trained_on(everything).save(stage.folder / "detector.json")
        record_agreement(stage, tables, len(everything))


@on_main_process
def record_agreement(stage: Stage, tables: dict[str, dict[str, Any]], answers: int) -> None:
    """Write how far the detectors agree with people on each model's answers, and show it."""
    shown = "\n\n".join(markdown(name, found) for name, found in tables.items())
    stage.write_json("agreement.json", tables, shown=shown)
    stage.closing.rows(answers)


def trained_on(rows: Iterable[LabelledAnswer]) -> RefusalClassifier:
    """A detector that people's labels of these answers teach."""
    rows = list(rows)
    return RefusalClassifier.train([row.answer for row in rows], [row.label for row in rows])


def check(files: tuple[Path, ...]) -> None:
    """Print how far the rules agree with people, a table a file, and the agreement as JSON in the last line."""
    require_files(**{f"check.{place}": file for place, file in enumerate(files)})

    tables = {str(file): compared(read_labelled(file), {"rules": RefusalRules().label}) for file in files}
    print("\n\n".join(markdown(name, found) for name, found in tables.items()))
    print(json.dumps({name: found["rules"]["refusal_or_not"]["agreement"] for name, found in tables.items()}))


def compared(rows: list[LabelledAnswer], detectors: dict[str, Callable[[str], str]]) -> dict[str, Any]:
    """Figures of each detector against the final label, and of the second person against the first one."""
    truth = [row.label for row in rows]
    found = {name: figures(truth, [label(row.answer) for row in rows]) for name, label in detectors.items()}
    if all(len(row.annotations) > 1 for row in rows):
        first, second = ([row.annotations[i] for row in rows] for i in range(2))
        found["second person"] = figures(first, second)
    return found


def figures(truth: list[str], given: list[str]) -> dict[str, Any]:
    """Confusion and agreement, with three labels and as refusal or not, and the interval of the latter."""
    table = confusion(truth, given)
    found = agreement(as_refusals(table))
    found["ci"] = wilson(found["agreement"], found["n"]).ci
    return {"confusion": table, "three_labels": agreement(table), "refusal_or_not": found}


def markdown(name: str, tables: dict[str, Any]) -> str:
    """Agreement of each detector on one model's answers, and their confusion tables."""
    said = [label.replace("_", " ") for label in LABELS]
    parts = [f"**{name}**", "| detector | refusal or not | kappa | three labels | kappa |\n|---|---|---|---|---|"]
    for detector, found in tables.items():
        two, three = found["refusal_or_not"], found["three_labels"]
        ci = " to ".join(f"{100 * end:.1f}" for end in two["ci"])
        kappas = ["–" if one["kappa"] is None else f"{one['kappa']:.2f}" for one in (two, three)]
        cells = [f"{100 * two['agreement']:.1f} % ({ci})", kappas[0], f"{100 * three['agreement']:.1f} %", kappas[1]]
        parts[-1] += f"\n| {detector} | {' | '.join(cells)} |"
    for detector, found in tables.items():
        head = [f"people ↓, {detector} →" if detector != "second person" else "first person ↓, second →", *said]
        rows = [[label, *map(str, row)] for label, row in zip(said, found["confusion"], strict=True)]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * 4, *rows]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    run_recipe(main, RefusalDetectorConfig)
