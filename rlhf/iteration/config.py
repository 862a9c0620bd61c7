"""Settings of a whole run. Light: no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlhf.errors import InputError

RECIPES_OF_A_RUN = (
    "simulated_world",
    "hh_data",
    "pretrain",
    "sft",
    "collect_preferences",
    "helpfulness_reward",
    "safety_reward",
    "temperature_sweep",
    "rejection_sampling",
    "ppo",
    "ghost_attention",
    "evaluate",
)


@dataclass(frozen=True)
class VersionConfig:
    """One version of the chat model, RLHF-Vn.

    Args:
        name: its folder in the run and its name in the report.
        ppo: run PPO on the rejection-sampling checkpoint (paper, section 3.2.3: from V5 on; the demo's last version).
        ghost_attention: run Ghost Attention on what came out (paper, section 3.3: after V3).
    """

    name: str
    ppo: bool = False
    ghost_attention: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise InputError(f"versions: a name is a folder's name of letters, digits, _ . -, got {self.name!r}")


@dataclass(frozen=True)
class IterativeConfig:
    """A run: RLHF-V1..Vn, every stage a process (Llama 2 paper, section 3.2.3).

    Args:
        run: folder of the run; the same command with the same folder goes on where it stopped.
        configs: folder of the stages' YAML files, `<recipe>.yaml`.
        versions: the versions in order, each {name, ppo, ghost_attention}.
        data_recipe: the recipe that writes prompts, conversations and (hh_data) preferences.
        data: passed to the data recipe as its `data` (hh_data: the folder of the four files).
        collect: every version collects preferences from the newest models; false: the data recipe's fixed ones train
            the first version's reward models, which serve all versions.
        referee: train one more reward model on data that no other stage reads, and score every version with it.
        pool: a version selects from its own samples ("last") or from those of all versions so far, rescored ("all").
        sweep: before each version's rejection sampling measure several temperatures; it samples at the best.
        fine_tune_from: each version's fine-tuning starts from the SFT checkpoint ("sft", the paper) or "newest".
        ghost_attention_share: the rows of earlier versions' Ghost Attention are so much of each later rejection
            sampling's fine-tuning, which starts without it and would lose it; 0: they are not mixed in.
        processes: recipe name -> processes of its stages; 1 where not named.
        slots: processes at once, over all stages: the machine's cores, or GPUs.
        seed: decides every draw; version n's stages get seed + 1000 n.
    """

    run: Path
    configs: Path
    versions: tuple[VersionConfig, ...]
    data_recipe: Literal["simulated_world", "hh_data"] = "simulated_world"
    data: Path | None = None
    collect: bool = True
    referee: bool = False
    pool: Literal["last", "all"] = "all"
    sweep: bool = False
    fine_tune_from: Literal["sft", "newest"] = "sft"
    ghost_attention_share: float = 0.2
    processes: dict[str, int] = field(default_factory=dict)
    slots: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        names = [version.name for version in self.versions]
        if not 0 <= self.ghost_attention_share < 1:
            raise InputError(f"ghost_attention_share: must be 0 or above and below 1, got {self.ghost_attention_share}")
        if not names:
            raise InputError("versions: name at least one, e.g. [{name: v1}]")
        reserved = {"data", "base", "sft", "sft_evaluation", "referee_reward", "pool", "logs", "report"}
        for name in names:
            if names.count(name) > 1 or name in reserved:
                raise InputError(f"versions: {name!r} is taken already; give every version a name of its own")
        if self.slots < 1:
            raise InputError(f"slots: must be at least 1, got {self.slots}")
        for recipe, count in self.processes.items():
            if recipe not in RECIPES_OF_A_RUN:
                raise InputError(
                    f"processes: {recipe!r} is no recipe of a run; name some of {', '.join(RECIPES_OF_A_RUN)}"
                )
            if not 1 <= count <= self.slots:
                raise InputError(f"processes: {recipe} must lie between 1 and slots ({self.slots}), got {count}")
        if self.data_recipe == "hh_data" and self.data is None:
            raise InputError("data: hh_data needs the folder of the HH files, e.g. --data ../shared/data/hh-rlhf")
        if self.data_recipe == "simulated_world" and (self.data is not None or self.referee or not self.collect):
            raise InputError("data_recipe: simulated_world takes no data, has no referee and collects its preferences")
        if self.data_recipe == "hh_data" and self.collect:
            raise InputError("collect: hh_data has fixed preferences and no annotator; set collect: false")
