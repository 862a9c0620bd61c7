"""Whose answers `rlhf annotate --compare` sets side by side: versions of a run, files of answers, people, models.

A model that has no answers yet draws them, to the prompts of the other side. With people's answers there, this is the
paper's check of its SFT data: is the model's answer as good as a person's (section 3.1)?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf.annotation.comparison import Comparison, drawn_of, match, name_of, read_answers, read_object
from rlhf.annotation.drawing import draw_answers
from rlhf.errors import InputError
from rlhf.iteration.ledger import read_ledger
from rlhf.models.checkpoint.folder import is_adapter_checkpoint
from rlhf.paths import model_place
from rlhf.sampling.chat import ServerConfig
from rlhf.sampling.protocol import SamplingParams
from rlhf.sampling.source import PolicyCheck, PolicySource
from rlhf.stage import read_stage_file

LEDGER = "ledger.jsonl"  # what a run's folder is known by
PEOPLE = "people"  # what those are called who wrote the answers of an SFT stage's rows
HELD_OUT = "heldout.jsonl"  # the rows of an SFT stage that it did not train on


@dataclass(frozen=True)
class Side:
    """One of the two.

    Args:
        name: in the figures.
        answers: folder of an evaluation, or a file; None: the model draws them.
        model: who answers.
    """

    name: str
    answers: Path | None = None
    model: PolicySource | None = None


def is_run(folder: Path | None) -> bool:
    """Whether a folder is a run's."""
    return folder is not None and (folder / LEDGER).is_file()


def evaluated_versions(run: Path) -> dict[str, Path]:
    """Version -> folder of its evaluation in a run, the first one first; branches and students are left out."""
    folders = [run / record["stage"] for record in read_ledger(run / LEDGER) if record.get("event") == "finished"]
    folders += [file.parent for pattern in ("*", "*/*") for file in sorted(run.glob(f"{pattern}/evaluation.json"))]
    there = [path for path in dict.fromkeys(folders) if (path / "evaluation.json").exists()]
    versions = {name_of(path): path for path in there if (path / "answers.jsonl").exists()}
    summary = read_object(run / "summary.json")
    for aside in [*summary.get("branches", []), *summary.get("students", [])]:
        versions.pop(aside["name"], None)
    return versions


def sides_of(what: Path | None, texts: Sequence[str]) -> tuple[Side, Side]:
    """The two sides of a comparison.

    Args:
        what: a run's folder, where there is one.
        texts: two of: the name of a version of the run, "people" (who wrote the rows that its SFT held out; a version
            beside them answers anew), a folder or file of answers, a model (`model_of`). In a run one version is
            compared with the first one, and with none named the newest is.

    Raises:
        InputError: they are not two, or one is none of these, or neither has answers.
    """
    run = what if is_run(what) else None
    versions = evaluated_versions(run) if run is not None else {}
    if len(texts) > 2:
        raise InputError(f"compare: two are compared, got {len(texts)}; name two")
    if len(texts) < 2 and run is None:
        raise InputError("compare: name two models' answers, or the folder of a run: rlhf annotate RUN --compare")
    if len(texts) < 2 and len(versions) < 2:
        raise InputError(f"compare: {run} has {len(versions)} evaluated versions, and two are compared; wait for more")
    if len(texts) < 2:
        texts = [*texts, *[[*versions][-1], next(iter(versions))][len(texts) :]]
    a, b = (_side(run, versions, text) for text in texts)
    if a == b:
        raise InputError(f"compare: {a.name} would be compared with itself; name another one beside it")
    if run is not None and PEOPLE in texts:  # a version's evaluation answers other prompts than people did
        a, b = (replace(side, answers=None) if side.model is not None else side for side in (a, b))
    if a.answers is None and b.answers is None:
        raise InputError(
            f"compare: {a.name} and {b.name} would both have to answer, and to nothing; name a file of answers on one "
            "side, such as those that people wrote"
        )
    return (a, b) if a.name != b.name else (replace(a, name=texts[0]), replace(b, name=texts[1]))


def compared(
    sides: tuple[Side, Side], folder: Path, prompts: int | None = None, max_new_tokens: int = 512, seed: int = 0
) -> Comparison:
    """Both sides' answers; those of a model that has none yet are drawn into a folder below `folder`.

    Args:
        prompts: so many alone, drawn by `seed`; None: all.
        max_new_tokens: of an answer that is drawn.
    """
    a, b = sides
    names = a.name, b.name
    if a.answers is not None and b.answers is not None:
        return match(names, read_answers(a.answers), read_answers(b.answers), prompts, seed)
    model, other = (a, b) if a.answers is None else (b, a)
    assert model.model is not None and other.answers is not None, "`sides_of` sees to it"
    there = read_answers(other.answers)
    asked = {key: there[key] for key in drawn_of(list(there), prompts, seed)}
    params = SamplingParams(max_new_tokens=max_new_tokens, seed=seed)
    drawn_in = folder / Path(model.name).name
    draw_answers(drawn_in, list(asked.values()), model.model, params)
    drawn = read_answers(drawn_in)
    return match(names, drawn, asked) if model is a else match(names, asked, drawn)


def model_of(field: str, text: str) -> PolicySource:
    """A model: a checkpoint's folder, a fetched hub name, or URL#NAME of one behind an OpenAI-compatible server.

    It is checked, not loaded.

    Raises:
        InputError: naming the field: it is neither, or not whole.
    """
    if not text.startswith(("http://", "https://")):
        source = PolicySource(checkpoint=model_place(text))
    else:
        url, _, name = text.partition("#")
        if not name:
            raise InputError(f"{field}: {text} needs the model's name behind it, as http://localhost:8000/v1#NAME")
        source = PolicySource(server=ServerConfig(url=url, model=name))
    PolicyCheck().inputs(field, source, None)
    return source


def _side(run: Path | None, versions: dict[str, Path], text: str) -> Side:
    if text in versions:
        return Side(text, versions[text], _policy_of(versions[text]))
    path = Path(text)
    if run is not None and text == PEOPLE:
        held_out = [file for pattern in ("*", "*/*") for file in sorted(run.glob(f"{pattern}/{HELD_OUT}"))]
        if not held_out:
            raise InputError(
                f"compare: {run} has no answers that people wrote (no SFT stage of it held rows out); name a file of "
                "them"
            )
        return Side(PEOPLE, held_out[0])
    if text.startswith(("http://", "https://")) or (path / "config.json").is_file() or is_adapter_checkpoint(path):
        name = text.partition("#")[2] or (path.parent.name if path.name == "checkpoint" else path.name)
        return Side(name, None, model_of("compare", text))
    if run is not None and not path.exists():
        raise InputError(f"compare: {text} is no file, no folder and no version of {run}: {', '.join(versions)}")
    return Side(name_of(path), path)


def _policy_of(evaluation: Path) -> PolicySource | None:
    """The checkpoint that an evaluation measured, where its weights lie on this machine."""
    record = read_stage_file(evaluation)
    found = None if record is None else record["inputs"].get("policy")
    return None if found is None else PolicySource(checkpoint=Path(found["path"]))
