"""`rlhf new`: a run's folder with its plan and one YAML file a recipe, ready for `rlhf run`."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf.conversation import LLAMA2_CHAT_TEMPLATE, give_kwargs
from rlhf.data.loading import is_local, load_conversations, load_preferences, load_prompts, untagged
from rlhf.errors import InputError
from rlhf.iteration.steps import read_steps
from rlhf.paths import model_place, require_files, rlhf_command
from rlhf.rewards.specs import reward_files
from rlhf.shipped import RECIPES, find_recipe
from rlhf.start.given import FOLDER, find_model, write_model
from rlhf.start.look import ChatModel, look_at
from rlhf.start.machine import Machine, this_machine
from rlhf.start.sizing import Data, Settings, Sizes, option_tree, settings_for, sizes_for

PLAN_FILE = "plan.yaml"
CONFIG_FOLDER = "config"
SOURCES = (
    "prompts",
    "validation_prompts",
    "test_prompts",
    "helpfulness_preferences",
    "safety_preferences",
    "referee_preferences",
)


@dataclass(frozen=True)
class Request:
    """What a user asks `rlhf new` for.

    Args:
        run: folder of the run; must not exist.
        chat: chat model to start from: a folder, a hub name, a GGUF file or an adapter (`rlhf.start.given`).
        prompts: files or hub names of prompts; none: the preferences' own.
        validation_prompts: held-out prompts of the user's, by which PPO keeps its best policy; none: split off.
        test_prompts: the same, which evaluations answer.
        helpfulness_preferences, safety_preferences: files or hub names of preferences.
        referee_preferences: files or hub names of preferences for a referee: a reward model that trains nothing, and is
            read by evaluations alone.
        system: a system message for every dialogue that has none of its own, in training and in evaluations.
        helpfulness, safety: rewards that are there already, in place of preferences.
        versions: how many; the last one ends with PPO.
        ppo: whether it does.
        chat_template_kwargs: of every stage; see docs/templates.md.
        base: a base model in place of `chat`, in the same forms, which the first stage makes a chat model of.
        sft: files or hub names of the dialogues that it does so with.
    """

    run: Path
    chat: Path | None = None
    prompts: tuple[str, ...] = ()
    validation_prompts: tuple[str, ...] = ()
    test_prompts: tuple[str, ...] = ()
    helpfulness_preferences: tuple[str, ...] = ()
    safety_preferences: tuple[str, ...] = ()
    referee_preferences: tuple[str, ...] = ()
    system: str | None = None
    helpfulness: str | None = None
    safety: str | None = None
    versions: int = 3
    ppo: bool = True
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    base: Path | None = None
    sft: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.chat is None) == (self.base is None):
            raise InputError(
                "chat: name a chat model (--chat MODEL), or a base model and dialogues (--base MODEL --sft FILE …)"
            )
        if (self.base is None) != (not self.sft):
            raise InputError(
                "sft: dialogues (--sft FILE …) make a chat model of a base (--base MODEL); name both or neither"
            )
        if self.run.exists():
            raise InputError(f"run: {self.run} exists already; name another, or go on with `rlhf run {self.shown}`")
        if self.versions < 1:
            raise InputError(f"versions: must be at least 1, got {self.versions}")
        for domain in ("helpfulness", "safety"):
            if getattr(self, domain) is not None and getattr(self, f"{domain}_preferences"):
                raise InputError(f"{domain}: give a reward or preferences to train one on, not both")
        if self.helpfulness is None and not self.helpfulness_preferences:
            raise InputError(
                "preferences: name preferences (--preferences FILE …) or a reward that is there already "
                "(--reward FOLDER or --reward package.module:function)"
            )
        if not (self.prompts or self.helpfulness_preferences or self.safety_preferences):
            raise InputError("prompts: name files of prompts (--prompts FILE …)")

    @property
    def shown(self) -> str:
        """The run's folder as a shell takes it."""
        return shlex.quote(str(self.run))


def new_run(request: Request, machine: Machine | None = None) -> list[str]:
    """Look at the model and the files, write the run's folder, and return what to tell the user, line by line.

    Raises:
        InputError: something named is not there or not what it has to be; then nothing is written.
    """
    machine = machine or this_machine()
    model_field = "chat" if request.base is None else "base"
    given = find_model(model_field, request.chat or request.base or Path())
    for option in (*SOURCES, "sft"):
        for source in getattr(request, option):
            if is_local(source):
                require_files(**{option: untagged(source)})
    request = replace(request, helpfulness=_reward(request.helpfulness), safety=_reward(request.safety))
    reward_files(reward=request.helpfulness, safety_reward=request.safety)
    data = _count(request)
    give_kwargs(request.chat_template_kwargs)
    with tempfile.TemporaryDirectory(dir=_existing_parent(request.run), prefix=".rlhf_new_") as scratch:
        written = Path(scratch) / FOLDER
        words = write_model(given, written)
        template = None if request.base is None else LLAMA2_CHAT_TEMPLATE
        model = look_at(given if words is None else written, template)
        settings = settings_for(model, machine, data)
        if request.system is not None:
            settings["prepare_data"]["system"] = (request.system, "before every dialogue that has no system message")
        plan = _plan(request, machine, sizes_for(model, machine), given if words is None else request.run / FOLDER)
        folder = request.run / CONFIG_FOLDER
        folder.mkdir(parents=True)
        if words is not None:
            written.rename(request.run / FOLDER)
    for recipe in _recipes_of(plan):
        (folder / f"{recipe}.yaml").write_text(_yaml_file(recipe, request, settings.get(recipe, {})), encoding="utf-8")
    (request.run / PLAN_FILE).write_text(_plan_file(plan, request), encoding="utf-8")
    made = [] if words is None else [f"chat      {request.run / FOLDER}: {words}"]
    return [*made, *_summary(request, machine, model, data, settings["prepare_data"])]


def _reward(named: str | None) -> str | None:
    """A reward as the plan names it: of the hub's, its folder in the hub's cache."""
    return named if named is None or ":" in named else str(model_place(named))


def _existing_parent(folder: Path) -> Path:
    return next(parent for parent in folder.absolute().parents if parent.is_dir())


def _count(request: Request) -> Data:
    """How much data there is: one read of every file, whose bad rows are left for the run to count."""
    domains = (request.helpfulness_preferences, request.safety_preferences)
    pairs = [[row for source in sources for row in load_preferences(source, on_bad_row="skip")] for sources in domains]
    counts = [len(rows) for rows in pairs]
    prompts = sum(len(load_prompts(source, on_bad_row="skip")) for source in request.prompts) or sum(counts)
    return Data(
        pairs=max(counts),
        prompts=prompts // request.versions,
        two_domains=all(counts),
        strengths=any(row.strength is not None for rows in pairs for row in rows),
        dialogues=len(load_conversations(request.sft, on_bad_row="skip")),
    )


def _plan(request: Request, machine: Machine, sizes: Sizes, model: Path) -> dict[str, Any]:
    """The content of plan.yaml, of a run that is given the model in this folder."""
    given = {
        "policy" if request.base is None else "base": str(model),
        "sft_data": list(request.sft),
        **{name: list(getattr(request, name)) for name in SOURCES},
        "helpfulness": request.helpfulness,
        "safety": request.safety,
    }
    trained = [f"{domain}_reward" for domain in ("helpfulness", "safety") if given[f"{domain}_preferences"]]
    versions: list[dict[str, Any]] = []
    for number in range(1, request.versions + 1):
        steps = [*(trained if number == 1 else []), "rejection_sampling", "evaluate"]
        if request.ppo and number == request.versions:
            steps += ["ppo", "evaluate"]
        versions.append({"name": f"v{number}", "steps": steps})
    start = ["data", *(["sft"] if request.sft else []), *(["referee"] if request.referee_preferences else [])]
    shared = [*start[1:], *(step for version in versions for step in version["steps"])]
    side_by_side = {"processes": machine.gpus or min(machine.slots, 2)}
    return {
        "run": str(request.run),
        "configs": str(request.run / CONFIG_FOLDER),
        "inputs": {name: value for name, value in given.items() if value},
        "start": start,
        "versions": versions,
        "slots": machine.slots,
        "launch": {
            # a step that is added later, of one's own perhaps, may run in one process only
            "default": {"retries": 1, **({"mixed_precision": "bf16"} if sizes.cpu and machine.bfloat16 else {})},
            **({"data": {"gpus": 0}} if machine.gpus else {}),
            **dict.fromkeys(shared, side_by_side),
        },
        "seed": 0,
        **({"chat_template_kwargs": dict(kwargs)} if (kwargs := request.chat_template_kwargs) else {}),
    }


def _recipes_of(plan: Mapping[str, Any]) -> list[str]:
    steps = [*read_steps(plan["start"], "start")]
    for version in plan["versions"]:
        steps += read_steps(version["steps"], version["name"])
    return list(dict.fromkeys(step.kind.recipe for step in steps))


def _plan_file(plan: Mapping[str, Any], request: Request) -> str:
    notes = {
        "inputs": "what the run is given; policy is the chat model that every version's fine-tuning starts from, base "
        "a model that the step sft makes one of",
        "start": "steps before the first version: the files are split, nothing held out is read by any training",
        "versions": "a version is a list of steps; docs/recipes/iterative_rlhf.md has them all",
        "slots": "processes at once, over all stages: GPUs, or cores",
        "launch": "how each step's stage is started; docs/scale.md has all fields. A failure that is no mistake in "
        "the plan is tried once more",
    }
    if "mixed_precision" in plan["launch"]["default"]:
        notes["launch"] += ". This machine's CPU multiplies faster in bfloat16; mixed_precision: no is float32"
    lines = [
        "# The plan of this run. What is done, what is next and why: rlhf plan " + request.shown,
        "# To start it, or to go on after a stop:                    rlhf run " + request.shown,
    ]
    for name, value in plan.items():
        if name in notes:
            lines.append(f"# {notes[name]}")
        if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
            lines.append(f"{name}:")
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for key, entry in entries:
                text = json.dumps(entry, ensure_ascii=False)
                lines.append(f"  - {text}" if isinstance(value, list) else f"  {key}: {text}")
        else:
            lines.append(f"{name}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _yaml_file(recipe: str, request: Request, settings: Settings) -> str:
    """One recipe's settings, a comment at each value."""
    file = find_recipe(recipe).relative_to(RECIPES.parent).as_posix()
    lines = [
        f"# Settings of {file} in the run {request.run}. The plan adds what it reads and where it writes.",
        f"# All options: rlhf recipe run {recipe} --help",
    ]
    return "\n".join([*lines, *_yaml_lines(option_tree(settings), 0)]) + "\n"


def _yaml_lines(tree: Mapping[str, Any], depth: int) -> list[str]:
    lines = []
    for name, value in tree.items():
        indent = "  " * depth
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", *_yaml_lines(value, depth + 1)]
        else:
            content, why = value
            lines.append(f"{indent}{name}: {_scalar(content)}  # {why}")
    return lines


def _scalar(value: object) -> str:
    """A value as YAML reads it back: 1e-4 would be a text."""
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:g}".partition("e")
        return f"{float(mantissa)}e{exponent}" if exponent else str(value)
    return json.dumps(value)


def _summary(request: Request, machine: Machine, model: ChatModel, data: Data, drawn: Settings) -> list[str]:
    sizes = sizes_for(model, machine)
    how = f"LoRA adapters of rank {sizes.rank}" if sizes.adapter else "whole weights"
    base = ", base in 4 bit" if sizes.nf4 else ""
    limits = {"preferences": "pairs a domain", "prompts": "prompts a version"}
    most = [f"{drawn[f'max_{name}'][0]} {words}" for name, words in limits.items() if f"max_{name}" in drawn]
    few = f"; at most {' and '.join(most)} are used, for a CPU's sake (prepare_data.yaml)" if most else ""
    where = f"{machine.gpus} GPUs of {machine.gpu_memory:.0f} GiB" if machine.gpus else f"{machine.cores} CPU cores"
    if sizes.cpu and machine.bfloat16:
        where += " that multiply in bfloat16, as the stages will"
    return [
        f"model     {model.architecture}, {model.parameters / 1e6:,.0f}M weights in {model.dtype}, "
        f"context {model.context or 'not said'}, answers end with {' or '.join(model.end_tokens)}",
        f"machine   {where}, {machine.memory:.0f} GiB of memory",
        f"data      {data.pairs} pairs in the domain that has more, about {data.prompts} prompts a version{few}",
        f"training  {how}{base} ({sizes.why})",
        *(f"warning   {warning}" for warning in model.warnings),
        f"written   {request.run / PLAN_FILE} and {request.run / CONFIG_FOLDER}/: every value has its reason beside it",
        f"next      {rlhf_command()} plan {request.shown}, then {rlhf_command()} run {request.shown}",
    ]
