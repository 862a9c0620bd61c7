"""From one config to the list of stages: which recipe, with which options, reading what, writing where. Pure.

The list is in an order in which the stages could run one after another; what may run side by side follows from
`inputs`: a stage can start when the folders that its inputs lie in are there.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf.configuration import to_plain
from rlhf.data.suspicion import START
from rlhf.errors import InputError
from rlhf.iteration.artifacts import Artifact, given_artifacts
from rlhf.iteration.config import IterativeConfig
from rlhf.iteration.launching import Launch, Launches
from rlhf.iteration.steps import ALIASES, FOLDER_NAME, KINDS, READ, Step, read_steps
from rlhf.shipped import RECIPES as RECIPES
from rlhf.shipped import find_recipe


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a run.

    Args:
        name: its folder below the run.
        recipe: name of the recipe, a file `<recipe>.py` somewhere in recipes/, or path of a file of the user's.
        config_file: the YAML that the recipe reads; None: a recipe of the user's, whose options the plan gives alone.
        overrides: options after it on the command line, without the dashes.
        inputs: paths that must exist before it starts: in another stage's folder, or from outside the run.
        output: the stage's folder.
        launch: how it is started.
        links: link -> file, made before it starts.
        step: name of its step in the plan.
        makes: artifact -> where it lies in the folder.
        student: name of the student that it trains or measures.
        branch: the same of a branch, a policy beside the version that no later step reads.
    """

    name: str
    recipe: str
    config_file: Path | None
    overrides: Mapping[str, str]
    inputs: tuple[Path, ...]
    output: Path
    launch: Launch = field(default_factory=Launch)
    links: tuple[tuple[Path, Path], ...] = ()
    step: str = ""
    makes: Mapping[str, str] = field(default_factory=dict)
    student: str = ""
    branch: str = ""

    @property
    def processes(self) -> int:
        """How many processes run it."""
        return self.launch.processes

    @property
    def version(self) -> str | None:
        """The version that the stage belongs to; None: it comes before them."""
        version, slash, _ = self.name.partition("/")
        return version if slash else None

    @property
    def arguments(self) -> list[str]:
        """What follows the recipe on the command line."""
        given = [part for name, value in self.overrides.items() for part in (f"--{name}", value)]
        return [*([] if self.config_file is None else ["--config", str(self.config_file)]), *given]


def recipe_file(stage: PlannedStage, recipes: Path = RECIPES) -> Path:
    """The file of a stage's recipe: one of the project's, or the user's own."""
    return Path(stage.recipe) if stage.recipe.endswith(".py") else find_recipe(stage.recipe, recipes)


def maker_of(path: Path, stages: Iterable[PlannedStage]) -> PlannedStage | None:
    """The stage in whose folder `path` lies; None: it comes from outside."""
    inside = f"{path}{os.sep}"
    return next((stage for stage in stages if inside.startswith(f"{stage.output}{os.sep}")), None)


def dependencies(stages: Sequence[PlannedStage]) -> dict[str, tuple[str, ...]]:
    """Stage name -> names of the stages that make its inputs."""
    makers = {stage.name: [maker_of(path, stages) for path in stage.inputs] for stage in stages}
    return {name: tuple(dict.fromkeys(m.name for m in found if m is not None)) for name, found in makers.items()}


def start_order(stages: Sequence[PlannedStage], slots: int) -> list[PlannedStage]:
    """The stages as the driver starts them once they can: those that the longest chain of others waits for first.

    Where there is never room for two at once, in the plan's own order: nothing is gained by another, and a version is
    measured before the next one begins.
    """
    if sum(sorted(stage.processes for stage in stages)[:2]) > slots:
        return list(stages)
    needs = dependencies(stages)
    waiting = dict.fromkeys(needs, 0)
    for stage in reversed(stages):
        for name in needs[stage.name]:
            waiting[name] = max(waiting[name], waiting[stage.name] + 1)
    return sorted(stages, key=lambda stage: -waiting[stage.name])


def make_plan(config: IterativeConfig) -> list[PlannedStage]:
    """All stages of a run, each after those it reads from: the steps of `config.start`, then those of each version.

    The policy that stands at the end of the start is the artifact `start`: what fine-tunings and reward models start
    from, and what every evaluation is against. It is measured itself before the first measurement of a version. A step
    that measures does so to the branches too that were made since the one before, and an evaluation to the students
    trained since, each first as it was given.

    Raises:
        InputError: a step reads an artifact that nothing before it makes, two steps have one folder, or an input of the
            run is read by no step.
    """
    return _Planner(config).plan()


@dataclass(frozen=True)
class _Branch:
    """A policy beside its version: its name, the folder of the stage that makes it, and itself."""

    name: str
    folder: str
    policy: Artifact


class _Planner:
    """Walks through the steps of one config; remembers every artifact so far, and the newest policy's name."""

    def __init__(self, config: IterativeConfig) -> None:
        self.config = config
        self.launches = Launches(config.launch, config.slots)
        self.stages: list[PlannedStage] = []
        self.made = {name: given_artifacts(name, sources) for name, sources in config.inputs.items()}
        self.made[START] = self.made.get("policy", [])
        self.unread = set(config.inputs) - {"policy"}
        self.read: set[str] = set()  # names of artifacts
        self.own: dict[str, str] = {}  # artifact that a step of the user's makes -> the step's folder
        self.version = ""
        self.policy_name = self.start_name = START
        self.policy_folder = ""  # of the newest policy's step
        self.students: list[tuple[PlannedStage, Artifact]] = []  # trained since the last evaluation, and from what
        self.measured: set[str] = set()  # students that are evaluated as they were given
        self.branches: list[_Branch] = []

    def plan(self) -> list[PlannedStage]:
        for step in read_steps(self.config.start, "start"):
            if step.branch:
                raise InputError(f"start: the branch {step.branch} belongs to a version; name it in a version's steps")
            self._add(step, step.folder, self.config.seed)
            if "policy" in step.kind.makes:
                self.policy_name, self.policy_folder = step.kind.label or step.name, step.folder
                self.made[START] = self.made["policy"][-1:]
        self.start_name = self.policy_name
        for number, version in enumerate(self.config.versions, start=1):
            self.version, named = version.name, False
            for step in read_steps(version.steps, f"versions.{version.name}.steps"):
                if step.kind.measures or step.kind.recipe == "evaluate":
                    self._measure(step)
                elif step.kind.each in step.kind.reads:
                    self._add_each(step, f"{version.name}/{step.folder}", self.config.seed + 1000 * number)
                elif step.branch:
                    self._add_branch(step, f"{version.name}/{step.folder}", self.config.seed + 1000 * number)
                else:
                    self._add(step, f"{version.name}/{step.folder}", self.config.seed + 1000 * number)
                    if "policy" in step.kind.makes:
                        label = f"{version.name}_{step.kind.label or step.name}"
                        self.policy_name = label if named else version.name
                        self.policy_folder, named = step.folder, True
        self._refuse_strange_names()
        return self.stages

    def _refuse_strange_names(self) -> None:
        """InputError for an input that no step reads, here or in another plan, for the launch of no step, and for what
        a step of the user's makes that no step reads, but for its spelling."""
        known = {*KINDS, *ALIASES, *(kind.recipe for kind in KINDS.values())}
        known |= {name for stage in self.stages for name in (stage.step, stage.recipe)}
        if strange := sorted(self.launches.names - known):
            near = difflib.get_close_matches(strange[0], known, 1)
            meant = f"did you mean {near[0]}?" if near else f"name some of default, {', '.join(sorted(known))}"
            raise InputError(f"launch: {strange[0]!r} is no step or recipe; {meant}")
        texts = [text for kind in KINDS.values() for text in kind.reads.values()]
        readable = {name for text in texts if (m := READ.fullmatch(text)) for name in m["names"].split("|")}
        if strange := sorted(self.unread - readable):
            near = difflib.get_close_matches(strange[0], readable, 1)
            raise InputError(
                f"inputs: no step of the plan reads {strange[0]}; "
                + (f"did you mean {near[0]}?" if near else "leave it out, or add its step")
            )
        for artifact in self.own.keys() - readable - self.read:
            if near := difflib.get_close_matches(artifact, readable, 1, cutoff=0.8):
                raise InputError(f"{self.own[artifact]}: makes.{artifact}: no step reads that; did you mean {near[0]}?")

    def _measure(self, step: Step) -> None:
        """Plan a measurement of the newest policy; before the first one, that of the start, which it is set against."""
        evaluates = step.kind.recipe == "evaluate"
        of_start = f"{self.start_name}_{step.folder}"
        there = {stage.name for stage in self.stages}
        if first := "baseline" not in self.made if evaluates else of_start not in there:
            newest = self.made["policy"], self.policy_name
            self.made["policy"], self.policy_name = self.made[START], self.start_name
            self._add(step, of_start, self.config.seed)
            self.made["policy"], self.policy_name = newest
            if evaluates:
                self.made["baseline"] = self.made[START]
                self.made["baseline_evaluation"] = [Artifact(self.stages[-1].output)]
        branches = [branch for branch in self.branches if f"{branch.folder}_{step.folder}" not in there]
        prefix = "" if self.policy_name == self.version else f"{self.policy_folder}_"
        name = f"{self.version}/{prefix}{step.folder}"
        again = (branches or (evaluates and self.students)) and name in there
        if not again and not (first and self.policy_name == self.start_name):
            self._add(step, name, self.config.seed)
        self._measure_branches(step, branches)
        if evaluates:
            self._evaluate_students(step)

    def _measure_branches(self, step: Step, branches: Sequence[_Branch]) -> None:
        """Plan the same measurement of branches."""
        made, policy_name = self.made, self.policy_name
        for branch in branches:
            self.made, self.policy_name = {**made, "policy": [branch.policy]}, branch.name
            self._add(step, f"{branch.folder}_{step.folder}", self.config.seed, branch=branch.name)
        self.made, self.policy_name = made, policy_name

    def _add_branch(self, step: Step, name: str, seed: int) -> None:
        """Plan a stage that makes a policy beside the version's, by the version's seed: no later step reads of it."""
        made, label = self.made, f"{self.version}_{step.branch}"
        self.made = dict(made)
        self._add(step, name, seed, branch=label)
        self.branches.append(_Branch(label, name, self.made["policy"][-1]))
        self.made = made

    def _evaluate_students(self, step: Step) -> None:
        """Plan an evaluation of each new student beside the policy's: against the start too, without a KL from it."""
        made, policy_name = self.made, self.policy_name
        for stage, given in self.students:
            trained = Artifact(stage.output / next(iter(stage.makes.values())))
            asked = [(f"{self.version}_{stage.student}", stage.name, trained)]
            if str(given.place) not in self.measured:
                asked.insert(0, (stage.student, f"{stage.step}_{stage.student}", given))
            self.measured.add(str(given.place))
            for label, folder, policy in asked:
                self.made = {name: found for name, found in made.items() if name != "baseline"} | {"policy": [policy]}
                self.policy_name = label
                self._add(step, f"{folder}_{step.folder}", self.config.seed, student=stage.student)
        self.made, self.policy_name, self.students = made, policy_name, []

    def _add_each(self, step: Step, name: str, seed: int) -> None:
        """Plan a stage for each of what the step reads one by one, called after the folder that it is in."""
        assert step.kind.each is not None
        each: dict[str, Artifact] = {}
        for artifact in self._read(step.kind.reads[step.kind.each], f"{name}: {step.kind.each}"):
            place = Path(artifact.place)
            called = place.parent.name if place.name == "checkpoint" else place.name
            if re.fullmatch(FOLDER_NAME, called) is None or called in each:
                other = f", as {each[called].place} is" if called in each else ""
                raise InputError(f"{name}: {place} is called {called!r}{other}; give it a folder's name of its own")
            each[called] = replace(artifact, listed=False)
        for called, artifact in each.items():
            self._add(step, f"{name}_{called}", seed, one=artifact, student=called)
            if "student" in step.kind.makes:
                self.students.append((self.stages[-1], artifact))

    def _add(
        self,
        step: Step,
        name: str,
        seed: int,
        *,
        one: Artifact | None = None,
        student: str = "",
        branch: str = "",
    ) -> None:
        """Plan a stage. Options that are paths are its inputs; those that read nothing are left out.

        Args:
            one: what the option `each` of the kind takes.
            student, branch: see `PlannedStage`.
        """
        kind, output = step.kind, self.config.run / name
        if any(f"{name}/".startswith(f"{stage.name}/") or stage.name.startswith(f"{name}/") for stage in self.stages):
            raise InputError(
                f"versions: two steps would write {name}, or one inside the other; give one of them another name"
            )
        values: dict[str, Any] = {"output": str(output)}
        inputs: list[Path] = [Path(kind.recipe)] if kind.recipe.endswith(".py") else []
        for option, text in kind.reads.items():
            alone = one is not None and option == kind.each
            if found := [one] if one is not None and alone else self._read(text, f"{name}: {option}"):
                several = "*" in text and not alone
                values[self._filled(option)] = [a.text for a in found] if several else found[0].text
                inputs += [a.place for a in found if isinstance(a.place, Path)]
        folders = {
            option: self.config.run / self.version / (f"{step.folder}_{option}" if step.branch else option)
            for option in kind.gathers
        }
        links = tuple(link for o, artifact in kind.gathers.items() for link in self._links(folders[o], artifact))
        inputs += [target for _, target in links]
        values |= {option: str(folder) for option, folder in folders.items() if links}
        filled = {option: self._filled(text, branch) for option, text in kind.options.items()}
        values |= filled | dict(step.given)
        texts = [value for value in step.given.values() if isinstance(value, str) and value]
        inputs += [Path(text) for text in texts if os.path.exists(text)]  # which a text too long for a name does not
        if self.config.chat_template_kwargs:
            values.setdefault("chat_template_kwargs", self.config.chat_template_kwargs)
        if kind.seed is not None:
            values.setdefault(kind.seed, seed)
        aside = f".{student}" if one else f".{step.branch}" if step.branch else ""
        self.stages.append(
            PlannedStage(
                name=name,
                recipe=kind.recipe,
                config_file=self._config_file(step),
                overrides={option: _text(value) for option, value in values.items()},
                inputs=tuple(dict.fromkeys(inputs)),
                output=output,
                launch=self.launches.of(step.name, kind.recipe),
                links=links,
                step=step.name,
                makes={f"{artifact}{aside}": place for artifact, place in kind.makes.items()},
                student=student,
                branch=branch,
            )
        )
        if kind.recipe.endswith(".py"):
            self.own |= {artifact: name for artifact in kind.makes if artifact not in self.own}
        for artifact, place in kind.makes.items():
            replaces = f"{artifact}*" in {text.removesuffix("?") for text in kind.reads.values()}
            before = [] if replaces else self.made.get(artifact, [])
            self.made[artifact] = [*before, Artifact(output / place, self.version)]

    def _config_file(self, step: Step) -> Path | None:
        """The step's own, or the one in `configs` that is called after its recipe; which one of the user's may lack."""
        file = self.config.configs / f"{Path(step.kind.recipe).stem}.yaml"
        return step.config or (None if step.kind.recipe.endswith(".py") and not file.is_file() else file)

    def _read(self, text: str, where: str) -> list[Artifact]:
        """The artifacts that an option takes; the placeholder in their names is filled in."""
        match = READ.fullmatch(text)
        assert match is not None, text
        names, which = match["names"].split("|"), match["which"]
        self.unread.difference_update(names)
        self.read.update(names)
        name = next((name for name in names if self.made.get(name)), names[0])
        found = self.made.get(name, [])
        if which == ".earlier*":
            earlier = [version.name for version in self.config.versions]
            earlier = earlier[: earlier.index(self.version)] if self.version else []
            return [a.of_version(name) for a in found[-1:] for name in earlier if a.of_version(name) != a]
        if which == ".previous":
            found = [artifact for artifact in found if artifact.version != found[-1].version]
        if which == ".version*":
            found = [artifact for artifact in found if artifact.version == self.version]
        if which is None and found and found[-1].listed:
            raise InputError(f"inputs.{name}: {where} takes one, got {len(found)}; name one, or join them in one file")
        found = found if which in ("*", ".version*") else found[-1:]
        if not found and not match["optional"]:
            raise InputError(
                f"{where} needs {name}, which no step before it makes; give it in inputs, or leave the step out"
            )
        return [artifact.of_version(self.version) for artifact in found]

    def _links(self, folder: Path, artifact: str) -> list[tuple[Path, Path]]:
        found = [(a, a.place) for a in self.made.get(artifact, [])]
        return [(folder / f"{a.version}{place.suffix}", place) for a, place in found if isinstance(place, Path)]

    def _filled(self, text: str, branch: str = "") -> str:
        """With what the placeholders stand for; `{version}` is the branch's name where there is one."""
        versions = json.dumps([version.name for version in self.config.versions])
        filled = {"{version}": branch or self.version, "{versions}": versions, "{policy}": self.policy_name}
        filled["{run}"] = str(self.config.run)
        for placeholder, value in filled.items():
            text = text.replace(placeholder, value)
        return text


def _text(value: Any) -> str:
    """A value as its option takes it on the command line."""
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(to_plain(value))
