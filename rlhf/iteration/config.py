"""Settings of a whole run. Light: no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhf.conversation.template import check_kwargs
from rlhf.errors import InputError, quoted
from rlhf.imports import import_object
from rlhf.iteration.launching import Launches
from rlhf.iteration.steps import FOLDER_NAME

DEFAULT_STEPS = ("preferences", "rewards", "rejection_sampling", "evaluate")
RESERVED = ("pool", "logs", "report", "config", "chat_model")
"""Folders of a run that are no step's and no version's."""
OF_A_FILE = (".json", ".jsonl", ".yaml", ".yml", ".sqlite", ".partial", ".suspicious")
"""How the names of a run's own files end, and of folders that are not finished."""


@dataclass(frozen=True)
class VersionConfig:
    """One version of the chat model, RLHF-Vn.

    Args:
        name: its folder in the run and its name in the report.
        steps: what makes it, in order; see `rlhf.iteration.steps`.
    """

    name: str
    steps: tuple[Any, ...] = DEFAULT_STEPS

    def __post_init__(self) -> None:
        if not re.fullmatch(FOLDER_NAME, self.name):
            raise InputError(
                f"versions: a name is a folder's name of at most 100 letters, digits, _ . -, got {quoted(self.name)}"
            )
        if not self.steps:
            raise InputError(f"versions: {self.name} has no steps; name some, e.g. [rejection_sampling, evaluate]")


def paper_versions() -> tuple[VersionConfig, ...]:
    """The paper's five (section 3.2.3): rejection sampling up to V4, PPO after it in V5; Ghost Attention after V3."""
    plain = DEFAULT_STEPS
    return (
        VersionConfig("v1", plain),
        VersionConfig("v2", plain),
        VersionConfig("v3", (*plain, "ghost_attention", "evaluate")),
        VersionConfig("v4", plain),
        VersionConfig("v5", (*plain, "ppo", "evaluate")),
    )


@dataclass(frozen=True)
class IterativeConfig:
    """A run: RLHF-V1..Vn, every stage a process (Llama 2 paper, section 3.2.3).

    Args:
        run: folder of the run; the same command with the same folder goes on where it stopped.
        configs: folder of the stages' YAML files, `<recipe>.yaml`.
        inputs: what the run is given, by the name that steps read it under: a file, folder, hub name or import path, or
            a list of them. `policy` is the chat checkpoint to start from, `prompts`, `helpfulness_preferences`,
            `safety_preferences` the data; `helpfulness`, `safety`, `referee` are rewards that are there already.
        start: steps before the first version.
        versions: the versions in order, each {name, steps}; default: the paper's five.
        launch: step, recipe or `default` -> how its stages are started: processes, gpus, machines, an accelerate file,
            mixed_precision, a prefix command, env, retries; see `rlhf.iteration.launching`.
        slots: processes at once, over all stages and machines: as many as there are cores, or GPUs.
        keep: which checkpoints of the versions stay: all, of each artifact the newest, or these and the best policy.
            What goes is said, and nothing that a later step reads goes (`rlhf.iteration.keeping`).
        stalled_minutes: a stage whose log and folder have nothing new for so long is said to stand still; 0: never.
        end_stalled: end such a stage, and with it the run, which the same command then goes on with.
        panels: import paths of panels of your own in the report, `package.module:function` (docs/extend.md).
        seed: decides every draw; version n's stages get seed + 1000 n.
        chat_template_kwargs: of every stage; see docs/templates.md.
        trackers: where every stage's figures go beside metrics.jsonl and TensorBoard, as one group: any tracker of
            accelerate's, e.g. wandb.
        strict: a stage with suspicious lines in its closing block (docs/stages.md) fails, and the run stops there.
        fresh: stages drop what a broken-off attempt left where it was made in another way, which they refuse otherwise.
        quiet: nothing on the terminal but warnings, errors, and at the end where the figures and the report are.
    """

    run: Path
    configs: Path
    inputs: dict[str, Any] = field(default_factory=dict)
    start: tuple[Any, ...] = ()
    versions: tuple[VersionConfig, ...] = field(default_factory=paper_versions)
    launch: dict[str, Any] = field(default_factory=dict)
    slots: int = 2
    keep: Literal["all", "newest", "best"] = "all"
    stalled_minutes: float = 30.0
    end_stalled: bool = False
    panels: tuple[str, ...] = ()
    seed: int = 0
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    trackers: tuple[str, ...] = ()
    strict: bool = False
    fresh: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        names = [version.name for version in self.versions]
        if not names:
            raise InputError("versions: name at least one, e.g. [{name: v1}]")
        for name in names:
            if names.count(name) > 1 or name in RESERVED or name.lower().endswith(OF_A_FILE):
                raise InputError(
                    f"versions: {name!r} is taken already, by another version or by a run's own files; give every "
                    "version a name of its own"
                )
        for name, sources in self.inputs.items():
            listed = sources if isinstance(sources, list | tuple) else [sources]
            if not listed or not all(isinstance(source, str) and source for source in listed):
                raise InputError(f"inputs.{name}: must be a file, folder or name, or a list of them, got {sources!r}")
        for path in self.panels:
            import_object("panels", path)  # not when the run is done
        if self.slots < 1:
            raise InputError(f"slots: must be at least 1, got {self.slots}")
        if self.stalled_minutes < 0:
            raise InputError(f"stalled_minutes: must be 0 (never) or above, got {self.stalled_minutes:g}")
        check_kwargs(self.chat_template_kwargs)
        Launches(self.launch, self.slots)
