"""The kinds of steps that a plan is made of. A new kind is one declaration in `KINDS`; or one in the user's own plan.

A step is one run of a recipe. What recipes hand to each other are artifacts: files and folders by name, such as the
newest `policy` or all `preferences` so far. A kind says which option of its recipe takes which artifact, and which of
its own files are artifacts for the steps after it:

    KINDS["ppo"] = StepKind("ppo", reads={"policy": "policy", …}, makes={"policy": "checkpoint"})

What an option reads is written as

    policy              the newest of its name
    policy.previous     the newest of the versions before (of the start, in the first version)
    preferences*        all of them so far, as a list
    prompts.earlier*    those that earlier versions had, where each version has its own
    policy.version*     all that this version has made so far, as a list
    safety?             left out where there is none (also policy.previous?, preferences*?)
    selected|sft_data   the first of these names of which there is one

A recipe that keeps to the stage contract can be a step: it takes `--config FILE`, `--output FOLDER` and the options
that the kind names, opens its folder by `rlhf.stage.open_stage`, and draws by its `--seed` alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rlhf.errors import InputError, quoted

FOLDER_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
_NAME = r"[a-z][a-z0-9_]*"
READ = re.compile(rf"(?P<names>{_NAME}(\|{_NAME})*)(?P<which>\.previous|\.earlier\*|\.version\*|\*)?(?P<optional>\?)?")


@dataclass(frozen=True)
class StepKind:
    """What a plan has to know of a recipe.

    Args:
        recipe: name of a recipe of the project, or path of a file of one's own (ending in .py).
        reads: option of the recipe, in which `{policy}` is filled in as below -> the artifact it takes.
        makes: artifact -> where it lies in the step's folder; `{version}` stands for the version that reads it. What
            the step reads all of and makes anew replaces them: the files of the user's that it has split, for example.
        options: options set to a text, in which `{version}`, `{versions}` (all of them, as JSON), `{policy}` (the
            newest policy's name) and `{run}` (the run's folder) are filled in.
        gathers: option -> artifact of files: the option gets a folder of links to all of them so far, each called by
            the version that made it.
        folder: of the step in its version's; default: the kind's name.
        label: joined to the version's name for the policy it makes, where that is not the version's first ("v3_ppo").
        seed: option that takes the seed; None: the recipe draws nothing.
        each: option that takes one by one what it reads all of: a stage for each, in a folder of its own.
        measures: it judges a policy: the start's first, then the newest one and each branch since the last time.
    """

    recipe: str
    reads: Mapping[str, str] = field(default_factory=dict)
    makes: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    gathers: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None
    label: str | None = None
    seed: str | None = "seed"
    each: str | None = None
    measures: bool = False

    def __post_init__(self) -> None:
        for option, text in self.reads.items():
            if READ.fullmatch(text) is None:
                raise InputError(
                    f"reads.{option}: must name an artifact, such as policy, policy.previous, preferences* or safety?, "
                    f"got {text!r}"
                )
        for artifact, place in self.makes.items():
            if Path(place).is_absolute() or ".." in Path(place).parts:
                raise InputError(f"makes.{artifact}: must lie in the step's own folder, e.g. checkpoint, got {place!r}")


_GATED_REWARDS = {"helpfulness": "helpfulness", "safety": "safety?", "gate.threshold_from": "gate?"}
_PREFERENCES = {"preferences": "preferences*", "test_preferences": "test_preferences*"}

KINDS: dict[str, StepKind] = {
    "data": StepKind(
        "prepare_data",
        reads={
            "prompts": "prompts*?",
            "validation_prompts": "validation_prompts*?",
            "test_prompts": "test_prompts*?",
            "helpfulness_preferences": "helpfulness_preferences*?",
            "safety_preferences": "safety_preferences*?",
            "test_preferences": "test_preferences*?",
            "referee_preferences": "referee_preferences*?",
        },
        makes={
            "prompts": "prompts_{version}.jsonl",
            "validation_prompts": "validation_prompts.jsonl",
            "test_prompts": "test_prompts.jsonl",
            "preferences": "preferences_train.jsonl",
            "test_preferences": "preferences_test.jsonl",
            "referee_preferences": "referee_train.jsonl",
            "referee_test_preferences": "referee_test.jsonl",
        },
        options={"versions": "{versions}"},
    ),
    "pretrain": StepKind("pretrain", reads={"data": "pretrain_data"}, makes={"base": "checkpoint"}, folder="base"),
    "sft": StepKind("sft", reads={"policy": "base", "data": "sft_data*"}, makes={"policy": "checkpoint"}, label="sft"),
    "referee": StepKind(
        "helpfulness_reward",
        reads={
            "policy": "start",
            "preferences": "referee_preferences*",
            "test_preferences": "referee_test_preferences*",
        },
        makes={"referee": "checkpoint"},
        options={"other_share": "0.0", "cut_off_share": "0.0"},  # people's pairs of its own domain alone
        folder="referee_reward",
    ),
    "preferences": StepKind(
        "collect_preferences",
        reads={
            "policy": "policy",
            "second_policy": "policy.previous?",
            "prompts": "prompts",
            "test_prompts": "test_prompts",
            "world": "world?",
            "helpfulness": "helpfulness?",
            "safety": "safety?",
        },
        options={"labels": "{run}/labels.sqlite"},
        makes={"preferences": "preferences_train.jsonl", "test_preferences": "preferences_test.jsonl"},
    ),
    "helpfulness_reward": StepKind(
        "helpfulness_reward",
        reads={"policy": "start", "other_preferences": "preferences*", **_PREFERENCES},
        makes={"helpfulness": "checkpoint"},
    ),
    "safety_reward": StepKind(
        "safety_reward",
        reads={"policy": "start", "other_preferences": "preferences*", **_PREFERENCES},
        makes={"safety": "checkpoint"},
    ),
    "evaluate_rewards": StepKind(
        "evaluate_rewards",
        reads={
            "rewards.helpfulness": "helpfulness",
            "rewards.safety": "safety?",
            "rewards.referee": "referee?",
            "test_preferences": "test_preferences*",
            "train_preferences": "preferences*?",
            "world": "world?",
        },
        folder="reward_evaluation",
        seed=None,
    ),
    "sweep": StepKind(
        "temperature_sweep",
        reads={"policy": "policy", "prompts": "prompts", **_GATED_REWARDS},
        makes={"sweep": "sweep.json"},
        folder="temperature_sweep",
    ),
    "gate_sweep": StepKind(
        "gate_sweep",
        reads={"preferences": "test_preferences*", "helpfulness": "helpfulness", "safety": "safety"},
        makes={"gate": "gate_sweep.json"},
        seed=None,
    ),
    "rejection_sampling": StepKind(
        "rejection_sampling",
        reads={
            "policy": "policy",
            "fine_tune_from": "start",
            "prompts": "prompts",
            "earlier_prompts": "prompts.earlier*?",
            "temperature_from": "sweep?",
            "mixed_data": "ghost_attention_rows*?",
            **_GATED_REWARDS,
        },
        makes={"policy": "checkpoint", "completions": "completions.parquet", "selected": "selected.jsonl"},
        options={"version": "{version}"},
        gathers={"pool": "completions"},
    ),
    "ppo": StepKind(
        "ppo",
        reads={"policy": "policy", "prompts": "prompts", "validation_prompts": "validation_prompts", **_GATED_REWARDS},
        makes={"policy": "checkpoint"},
    ),
    "dpo": StepKind("dpo", reads={"policy": "policy", **_PREFERENCES}, makes={"policy": "checkpoint"}),
    "average_policies": StepKind(
        "average_policies",
        reads={"checkpoints": "policy.version*"},
        makes={"policy": "checkpoint"},
        label="average",
        seed=None,
    ),
    "merge_adapter": StepKind(
        "merge_adapter",
        reads={"checkpoint": "policy"},
        makes={"policy": "checkpoint"},
        label="merged",
        seed=None,
    ),
    "students": StepKind(
        "sft",
        reads={"policy": "students*", "data": "selected"},
        makes={"student": "checkpoint"},
        options={"finetuning.train": "last", "finetuning.on_bad_row": "skip"},
        folder="student",
        each="policy",
    ),
    "ghost_attention": StepKind(
        "ghost_attention",
        reads={"policy": "policy", "dialogues": "dialogues", "sft_data": "selected|sft_data?"},
        makes={"policy": "checkpoint", "ghost_attention_rows": "rows.jsonl"},
        label="gatt",
    ),
    "context_distillation": StepKind(
        "context_distillation",
        reads={"policy": "policy", "prompts": "prompts", "safety": "safety", "sft_data": "selected|sft_data?"},
        makes={"policy": "checkpoint"},
        label="distilled",
    ),
    "safety_sft": StepKind(
        "sft", reads={"policy": "policy", "data": "safety_sft_data*"}, makes={"policy": "checkpoint"}
    ),
    "time_awareness": StepKind(
        "sft",
        reads={"policy": "policy", "data": "time_data*"},
        makes={"policy": "checkpoint"},
        label="time",
    ),
    "evaluate": StepKind(
        "evaluate",
        reads={
            "policy": "policy",
            "baseline": "baseline?",
            "baseline_evaluation": "baseline_evaluation?",
            "prompts": "test_prompts",
            "helpfulness": "helpfulness?",
            "safety": "safety?",
            "gate.threshold_from": "gate?",
            "referee": "referee?",
            "world": "world?",
        },
        options={"name": "{policy}"},
        folder="evaluation",
        measures=True,
    ),
    "evaluate_safety": StepKind(
        "evaluate_safety",
        reads={"policy": "policy", "safety": "safety?"},
        options={"name": "{policy}"},
        folder="safety_evaluation",
        measures=True,
    ),
    "evaluate_instructions": StepKind(
        "evaluate_instructions",
        reads={"policy": "policy"},
        options={"name": "{policy}"},
        folder="instruction_evaluation",
        measures=True,
    ),
    "safety_benchmarks": StepKind("safety_benchmarks", reads={"policy": "policy"}, measures=True),
    "leaderboard": StepKind("leaderboard", reads={"models.{policy}": "policy"}, seed=None, measures=True),
    "evaluate_text": StepKind(
        "evaluate_text", reads={"models.{policy}": "policy"}, folder="text_evaluation", measures=True
    ),
}
ALIASES = {"rewards": ("helpfulness_reward", "safety_reward")}
"""Steps by one name."""


@dataclass(frozen=True)
class Step:
    """A kind as one plan uses it: its name and folder there, and the options that the plan sets itself.

    branch: of the policy that it makes beside the others, which no later step reads; empty: there is none.
    """

    name: str
    folder: str
    kind: StepKind
    given: Mapping[str, Any] = field(default_factory=dict)
    config: Path | None = None
    branch: str = ""


def read_steps(entries: Iterable[Any], field_name: str) -> list[Step]:
    """The steps of a list in a plan, each entry in one of these forms:

        ppo                                             a kind
        ppo: {ppo.iterations: 50}                       a kind, and options of its recipe
        evaluate: {policy: {dtype: bfloat16}}           … also of what the plan names: the newest policy, held otherwise
        {step: ppo, config: my.yaml, reads: {policy: start}, options: {…}, name: second_ppo}
        {step: rejection_sampling, branch: random, options: {…}}        a control, measured beside the version
        {recipe: my_recipes/polish.py, reads: {policy: policy}, makes: {policy: checkpoint}}

    Args:
        field_name: of the list, for messages.

    Raises:
        InputError: naming the entry: it has none of these forms, or names no kind.
    """
    return [step for number, entry in enumerate(entries) for step in _steps_of(entry, f"{field_name}[{number}]")]


def _steps_of(entry: Any, where: str) -> list[Step]:
    if isinstance(entry, str):
        return _named(entry, {}, where)
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: must name a step, such as ppo, or be options of one, got {entry!r}")
    if "step" not in entry and "recipe" not in entry:
        if len(entry) != 1 or not isinstance(options := next(iter(entry.values())), Mapping | None):
            raise InputError(f"{where}: must be {{step: {{option: value}}}}, or have a field `step` or `recipe`")
        return _named(str(next(iter(entry))), {"options": options or {}}, where)
    settings = {name: value for name, value in entry.items() if name != "step"}
    if "step" in entry:
        return _named(str(entry["step"]), settings, where)
    kind_fields = {name: settings.pop(name) for name in _KIND_FIELDS if name in settings}
    name = settings.pop("name", None) or Path(str(kind_fields["recipe"])).stem
    return [_step(str(name), _own_kind(kind_fields, where), settings, where, more=_KIND_FIELDS)]


_KIND_FIELDS = tuple(kind_field.name for kind_field in fields(StepKind) if kind_field.name != "options")


def _own_kind(content: Mapping[str, Any], where: str) -> StepKind:
    for name in ("reads", "makes", "gathers"):
        given = content.get(name, {})
        if not isinstance(given, Mapping) or not all(isinstance(text, str) for text in given.values()):
            raise InputError(f"{where}.{name}: must be names with texts, such as {{policy: policy}}, got {given!r}")
    if not isinstance(content.get("measures", False), bool):
        raise InputError(f"{where}.measures: must be true or false, got {content['measures']!r}")
    for name in ("recipe", "folder", "label", "seed", "each"):
        given = content.get(name)
        if not isinstance(given, str) and (given is not None or name == "recipe"):
            raise InputError(f"{where}.{name}: must be a text, got {given!r}")
    try:
        return StepKind(**content)
    except InputError as error:
        raise InputError(f"{where}.{error}") from error


def _named(name: str, settings: Mapping[str, Any], where: str) -> list[Step]:
    if name in ALIASES:
        return [_step(part, KINDS[part], settings, where) for part in ALIASES[name]]
    if name not in KINDS:
        near = difflib.get_close_matches(name, [*KINDS, *ALIASES], 1)
        meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join([*KINDS, *ALIASES])}"
        raise InputError(f"{where}: there is no step {name!r}{meant}")
    return [_step(name, KINDS[name], settings, where)]


def _one_by_one(options: Mapping[str, Any], reads: Mapping[str, str]) -> dict[str, Any]:
    """Options as they are given, but those of a group that the step reads one by one: they add to what it reads.

    With `rejection_sampling: {policy: {rows: 64}}` the policy is still the newest one.
    """
    found: dict[str, Any] = {}
    for option, value in options.items():
        added = isinstance(value, Mapping) and option in reads
        found |= {f"{option}.{name}": part for name, part in value.items()} if added else {option: value}
    return found


def _step(name: str, kind: StepKind, settings: Mapping[str, Any], where: str, more: Iterable[str] = ()) -> Step:
    """A step by its settings; `more` are fields that its entry may have besides, which are read already."""
    known = {"name", "config", "reads", "options", "branch"}
    if unknown := [key for key in settings if key not in known]:
        raise InputError(f"{where}.{unknown[0]}: no such field; there are {', '.join(sorted({*known, *more}))}")
    reads, options = (settings.get(key) or {} for key in ("reads", "options"))
    for key, value in (("reads", reads), ("options", options)):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}.{key}: must be options with values, got {value!r}")
    if odd := [option for option, text in reads.items() if not isinstance(text, str | None)]:
        raise InputError(f"{where}.reads.{odd[0]}: must be a text, such as policy, or null, got {reads[odd[0]]!r}")
    if "output" in options:
        raise InputError(f"{where}.options.output: a step writes into its own folder, which `name` names; leave it out")
    kept = {option: text for option, text in {**kind.reads, **reads}.items() if text is not None}
    options = _one_by_one(options, kept)
    gathers = {option: text for option, text in kind.gathers.items() if reads.get(option, text) is not None}
    kept = {option: text for option, text in kept.items() if option not in options and option not in gathers}
    try:
        kind = replace(kind, reads=kept, gathers=gathers)
    except InputError as error:
        raise InputError(f"{where}.{error}") from error
    own_name, branch = settings.get("name"), str(settings.get("branch") or "")
    folder = str(own_name or branch or kind.folder or name)
    if not re.fullmatch(FOLDER_NAME, folder):
        which = "name" if own_name or not branch else "branch"
        raise InputError(
            f"{where}.{which}: must be a folder's name of at most 100 letters, digits, _ . -, got {quoted(folder)}"
        )
    if branch and "policy" not in kind.makes:
        raise InputError(f"{where}.branch: {name} makes no policy, which is what a branch is; leave the branch out")
    own_config = None if (config := settings.get("config")) is None else Path(str(config))
    return Step(str(own_name or name), folder, kind, dict(options), own_config, branch)
