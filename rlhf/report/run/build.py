"""`report/index.html`: one page that needs no network and no other file, and of scripts its own search alone.

Everything that models or data wrote passes through the template's autoescape; figures are SVG drawn by
`rlhf.report.drawing`. What a run lacks is left out, with a line that says so.
"""

from __future__ import annotations

import shlex
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import InputError
from rlhf.report.drawing.figures import Panel
from rlhf.report.drawing.page import page_template, write_page
from rlhf.report.drawing.text import (
    chance,
    clock,
    first_label,
    in_a_sentence,
    interval,
    number,
    percent,
    signed,
    version_label,
)
from rlhf.report.judgements.batches import batch_panels, batch_table
from rlhf.report.judgements.judges import agreement_table, judge_panels, judge_table
from rlhf.report.pages.human_evaluation import human_panels, human_sentence, human_table, title_of
from rlhf.report.pages.temperature import headline as sweep_headline
from rlhf.report.pages.temperature import sweep_panels, sweep_table
from rlhf.report.run import compared, panels, tables
from rlhf.report.run.folders import Folders, beside
from rlhf.report.run.gains import gain_table
from rlhf.report.run.measured import measured_tables, reward_tables
from rlhf.report.run.own import own_panels
from rlhf.report.run.pooled import branch_table
from rlhf.report.run.ppo import ppo_panels, ppo_warnings
from rlhf.report.run.reading import RunFiles, read_run
from rlhf.report.run.samples import RULE, pick_samples
from rlhf.report.run.search import make_search, policy, script_source
from rlhf.report.run.side_by_side import render_runs
from rlhf.report.run.training import shown_spikes, training_panels

if TYPE_CHECKING:
    from rlhf.evaluation.policies.versions import VersionFigures
    from rlhf.report.run.tables import Figure, Interval
    from rlhf.rewards.training.accuracy import SummarisedReport

REFEREE = "the referee's score"
SAID: Sequence[tuple[str, Figure, Interval]] = (
    ("gold helpfulness", "gold_helpfulness", "gold_helpfulness_ci"),
    ("gold safety", "gold_safety", "gold_safety_ci"),
    (REFEREE, "referee_score", "referee_ci"),
)
KEY_FIGURES: Sequence[tuple[str, Figure, Interval, bool]] = (
    ("Gold helpfulness", "gold_helpfulness", "gold_helpfulness_ci", False),
    ("Gold safety", "gold_safety", "gold_safety_ci", False),
    ("Referee's score", "referee_score", "referee_ci", False),
    ("Wins against {first}", "win_rate_vs_sft", "win_rate_ci", True),
    ("Tokens per answer", "mean_length", "mean_length_ci", False),
)
"""Title, figure, interval, and whether it is a share."""
WORDS = (
    ("gold_helpfulness", tables.GOLD),
    (
        "referee_score",
        "Referee: a reward model that trains nothing, of pairs that no other model has learnt from. Its score is raw: "
        "only differences say something.",
    ),
)
"""Figure of a version, and what the word means that the headline has for it."""
SECTIONS = {
    "rewards": {"helpfulness_reward", "safety_reward"},
    "sampling": {"rejection_sampling", "temperature_sweep"},
    "ppo": {"ppo"},
}
"""Section of the page -> the recipes that it is of; the others are of evaluate."""


def build(*paths: Path, panels: Sequence[str] = ()) -> Path:
    """Write the page of a run, or of stages made by hand, whole or not at all, and return its path.

    Args:
        paths: one run's folder, whose page is its report/index.html; or several runs' or stages' folders, whose page
            lies beside the first one, see `rlhf.report.run.folders.beside`.
        panels: see `rlhf.report.run.own.own_panels`.

    Raises:
        InputError: there is no such folder, or none of a run's files in it, a file of figures is not as a stage writes
            it, or a panel cannot be made.
    """
    with _figures_of_another_shape(paths[0]):
        if Folders.are_runs(paths):
            if panels:
                raise InputError("panel: panels of one's own are of one run; name one run")
            content, page = render_runs(paths), beside(paths) / "index.html"
        else:
            files = read_run(*paths)
            content, page = render(files, own_panels(files, panels)), Folders.of(paths).page
    page.parent.mkdir(exist_ok=True)
    write_page(page, content)
    return page


@contextmanager
def _figures_of_another_shape(folder: Path) -> Iterator[None]:
    """InputError with the line of ours that fails at a figure, which is missing or of another kind than is written."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"report: no page can be made of the figures in {folder} ({type(error).__name__}: {error}, "
            f"{Path(at.filename).name}:{at.lineno}); `rlhf verify` of the run names a file that was changed"
        ) from error


def _awaited(section: str, planned: frozenset[str]) -> bool:
    """Whether a section with nothing in it says so: where its stages are planned, or no plan is known."""
    return not planned or bool(planned & SECTIONS.get(section, {"evaluate"}))


def render(files: RunFiles, own: Sequence[Panel] = ()) -> str:
    """The page as text; `own` are panels of the user's."""
    names = [v["name"] for v in files.versions]
    distribution_panels, change_panels = panels.distribution_panels(files.answers), panels.change_panels(files.answers)
    shift_panels, samples = compared.shift_panels(files.answers), pick_samples(files.answers, files.beside)
    judge = files.versions[-1].get("judge") if files.versions else None
    search = make_search(files.answers, files.beside)
    measured = measured_tables(files.measured)
    there = {
        "versions": files.versions,
        "rewards": files.reward_models,
        "sampling": files.selections or files.sweeps,
        "ppo": files.ppo,
        "scores": distribution_panels or change_panels or shift_panels,
        "answers": samples or search,
    }
    return page_template("run.html.j2").render(
        title=files.title,
        suspicious=[(stage.name, stage.suspicious) for stage in files.stages if stage.suspicious],
        trainings=[(stage.stage, training_panels(stage), shown_spikes(stage)) for stage in files.trainings],
        whole_run=files.whole_run,
        has={name: bool(part) or (files.whole_run and _awaited(name, files.recipes)) for name, part in there.items()},
        headline=headline(files.versions)
        if len(names) > 1 or (files.whole_run and (names or not measured))
        else stages_headline(files),
        facts=facts(files),
        advice=advice(files.versions),
        measured=key_figures(files.versions),
        words=[
            word + (how_right(files.referee) + how_apart(files.settings) if key == "referee_score" else "")
            for key, word in WORDS
            if files.versions and files.versions[-1].get(key) is not None
        ],
        version_table=tables.version_table([*files.versions, *files.branches], files.students)
        if files.versions
        else None,
        gain_table=gain_table([*files.versions, *files.branches]),
        branch_table=branch_table([{**files.answers, **files.beside}], names, [b["name"] for b in files.branches]),
        version_panels=panels.version_panels(files.versions),
        outcome_panels=compared.outcome_panels(files.answers, judge),
        judge_table=judge_table(files.versions),
        judge_agreement=agreement_table(files.versions),
        judge_panels=judge_panels(files.versions),
        batch_table=batch_table(files.batches),
        batch_panels=batch_panels(files.batches),
        measured_tables=measured,
        kind_table=tables.kind_table(files.versions),
        accuracy_table=tables.accuracy_table(files.reward_models, files.referee) if files.reward_models else None,
        across=tables.OTHER_DOMAIN
        if any(m.get("cross_domain_accuracy") is not None for m in files.reward_models)
        else "",
        reward_tables=reward_tables(files.measured),
        gate_table=tables.gate_table(files.versions, files.reward_models),
        gate_panels=panels.gate_panels(files.versions, files.reward_models),
        accuracy_panels=[
            *panels.accuracy_panels(files.reward_models),
            *panels.reliability_panels(files.reward_models),
        ],
        has_strengths=any(m.get("accuracy_by_strength") for m in files.reward_models),
        selection_panels=panels.selection_panels(files.selections),
        selection_table=tables.selection_table(files.selections) if files.selections else None,
        sweeps=[
            (found["version"], sweep_headline(found), sweep_panels(found), sweep_table(found)) for found in files.sweeps
        ],
        ppo=[(stage, ppo_panels(stage), ppo_warnings(stage)) for stage in files.ppo],
        shift_panels=shift_panels,
        distribution_panels=[*distribution_panels, *([tail] if (tail := compared.tail_panel(files.answers)) else [])],
        change_panels=change_panels,
        people=[
            (title_of(found), human_sentence(found), human_table(found), human_panels(found)) for found in files.people
        ],
        own_panels=own,
        first=first_label(names),
        last=version_label(names[-1]) if names else "",
        search=search,
        policy=policy(script_source()) if search else policy(),
        samples=samples,
        rule=RULE.format(first=in_a_sentence(names[0]), last=version_label(names[-1])) if names else "",
        stages=files.stages,
        slowest=max((s.seconds or 0.0 for s in files.stages), default=0.0) or 1.0,
        command=command_of(files),
        config=files.config,
    )


def headline(versions: Sequence[VersionFigures]) -> str:
    """What happened from the first version to the last, in a sentence or two."""
    if len(versions) < 2:
        return "There are not two evaluated versions to compare yet."
    first, last = versions[0], versions[-1]
    says = [
        f"{name} {_moved(before, after, first.get(ci), last.get(ci))}"
        for name, key, ci in SAID
        if (before := first.get(key)) is not None and (after := last.get(key)) is not None
    ]
    gain, gain_ci = last.get("referee_gain"), last.get("referee_gain_ci")
    if gain is not None and gain_ci:  # of the same prompts: it tells more than two intervals
        says = [said for said in says if not said.startswith(REFEREE)]
        says.append(f"{REFEREE} {_changed(gain, gain_ci)} prompt by prompt{chance(gain_ci, 0)}")
        level, level_ci = last.get("referee_gain_equal_length"), last.get("referee_gain_equal_length_ci")
        if level is not None and level_ci and _verb(level, level_ci) != _verb(gain, gain_ci):
            says[-1] += f" (but {_changed(level, level_ci)} between answers of equal length{chance(level_ci, 0)})"
    start, end = in_a_sentence(first["name"]), in_a_sentence(last["name"])
    sentences = [f"From {start} to {end}, {' and '.join(says)}."] if says else []
    if (won := last.get("win_rate_vs_sft")) is not None:
        judge = "" if last.get("gold_helpfulness") is not None else " by the reward models that trained it"
        other = first_label([first["name"]])
        between = last.get("win_rate_ci")
        doubt = f" ({interval(between, 0, share=True)}{chance(between, 0.5)})" if between else ""
        sentences.append(f"{end} wins {percent(won, 0)}{doubt} of comparisons with {other}{judge}.")
    return " ".join(sentences) or f"{len(versions)} versions were evaluated, from {start} to {end}."


def advice(versions: Sequence[VersionFigures]) -> str:
    """What to try where all that is known of the last version's lead may be chance."""
    last: Mapping[str, Any] = versions[-1] if len(versions) > 1 else {}
    known = [(ci, even) for name, even in (("referee_gain_ci", 0.0), ("win_rate_ci", 0.5)) if (ci := last.get(name))]
    if not known or not all(chance(ci, even) for ci, even in known):
        return ""
    return (
        "That anything was gained is not certain. More test prompts make the intervals narrower (max_test_prompts of "
        "prepare_data). What may make the gain larger: more pairs for the reward models, more prompts, more answers to "
        "each (num_samples). See The figures in docs/troubleshooting.md."
    )


def stages_headline(files: RunFiles) -> str:
    """What stages took, those of a run often side by side, and whether all is well with them."""
    stages, spikes = files.stages, sum(len(training.spikes) for training in files.trainings)
    seconds = sum(stage.seconds or 0.0 for stage in stages)
    doubts = sum(len(stage.suspicious) for stage in stages)
    count = "One stage" if len(stages) == 1 else f"{len(stages)} stages"
    doubted = "one thing looks" if doubts == 1 else f"{doubts} things look" if doubts else "nothing looks"
    stand = "a step of training stands" if spikes == 1 else f"{spikes} steps of training stand"
    taken = f"{clock(seconds)} {'of work' if files.seconds else 'in all'}"
    return f"{count}, {taken}; {doubted} wrong" + (f"; {stand} out." if spikes else ".")


def _moved(before: float, after: float, ci: list[float] | None, other: list[float] | None) -> str:
    overlap = not ci or not other or (ci[0] <= other[1] and other[0] <= ci[1])
    verb = "moves" if overlap else "rises" if after > before else "falls"
    return f"{verb} from {number(before, 2)} to {number(after, 2)}" + (
        " (intervals overlap)" if overlap and ci and other else ""
    )


def _changed(gain: float, ci: Sequence[float]) -> str:
    """By how much a mean of differences rises or falls, or moves where that may be chance."""
    if (verb := _verb(gain, ci)) == "falls":
        return f"falls by {number(-gain, 2)} ({interval([-ci[1], -ci[0]], 2)})"
    return f"{verb} by {signed(gain)} ({interval(ci, 2)})"


def _verb(gain: float, ci: Sequence[float]) -> str:
    return "moves" if ci[0] <= 0 <= ci[1] else "rises" if gain > 0 else "falls"


def how_right(referee: SummarisedReport | None) -> str:
    """How often the referee agrees with people, on pairs held out from it: what its verdict is worth."""
    if referee is None or referee.get("accuracy") is None:
        return ""
    ci = referee.get("accuracy_ci")
    sure = f" ({interval(ci, 0, share=True)}{chance(ci, 0.5)})" if ci else ""
    return f" It is right on {percent(referee['accuracy'], 0)}{sure} of the pairs that were held out from it."


def how_apart(settings: Mapping[str, Any]) -> str:
    """What it means that the referee's pairs are of a file that the reward models learn from too."""
    inputs = (settings.get("config") or {}).get("inputs") or {}
    given = {name: inputs.get(f"{name}_preferences") or [] for name in ("helpfulness", "safety", "referee")}
    files = {name: {found} if isinstance(found, str) else set(map(str, found)) for name, found in given.items()}
    if not files["referee"] & (files["helpfulness"] | files["safety"]):
        return ""
    return (
        " Its pairs are other rows of a file that a reward model here learnt from: it has seen none of those, but who "
        "judged them, and on what, is the same. What that file gets wrong, both get wrong."
    )


def key_figures(versions: Sequence[VersionFigures]) -> list[dict[str, str]]:
    """The three or four figures at the top: name, before, after, interval after."""
    if len(versions) < 2:
        return []
    first, last = versions[0], versions[-1]
    found = []
    for title, key, ci, share in KEY_FIGURES:
        name = title.format(first=first_label([first["name"]]))
        before, after = first.get(key), last.get(key)
        if after is None:
            continue
        digits = 1 if key == "mean_length" else 2
        show = percent if share else number
        found.append(
            {
                "name": name,
                "before": "" if before is None else show(before, digits),
                "after": show(after, 0 if share else digits),
                "ci": interval(last.get(ci), 0 if share else digits, share=share),
            }
        )
    return found[:4]


def facts(files: RunFiles) -> list[str]:
    """The line below the headline: time, prompts, seed, commit."""
    config = files.settings.get("config") or {}
    commit = files.settings.get("git_commit")
    prompts = files.versions[-1].get("prompts") if files.versions else None
    done = sum(stage.state == "finished" for stage in files.stages)
    return [
        *(
            _counted(len(found), what)
            for found, what in ((files.versions, "version"), (files.branches, "branch"), (files.students, "student"))
            if found
        ),
        *([f"{done} of {_counted(len(files.stages), 'stage')} finished"] if done < len(files.stages) else []),
        *([_counted(prompts, "test prompt")] if prompts else []),
        *([f"{clock(files.seconds)} in all"] if files.seconds else []),
        *([f"seed {config['seed']}"] if isinstance(config, dict) and "seed" in config else []),
        *([f"commit {str(commit)[:12]}"] if commit else []),
    ]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "es" if what.endswith("ch") else "s")


def command_of(files: RunFiles) -> str | None:
    """The command that makes the run again, from config.yaml; None where there is none."""
    config = files.settings.get("config")
    if not isinstance(config, dict) or "configs" not in config:
        return None
    if (files.path / "plan.yaml").is_file():  # of `rlhf new`, which says all of it
        return shlex.join(["rlhf", "run", str(config.get("run", files.path))])
    options = {name: str(config[name]) for name in ("run", "seed") if config.get(name) is not None}
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    return shlex.join(["rlhf", "run", "--config", f"{config['configs']}/iterative_rlhf.yaml", *given])
