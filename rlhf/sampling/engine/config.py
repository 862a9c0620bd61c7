"""Which inference engine draws, and where it is installed. Light: no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import rlhf
from rlhf.errors import InputError
from rlhf.shorthand import BARE
from rlhf.stage import Effect

ENVIRONMENT = Path(".venv-vllm")
"""Folder of the Python environment that `make vllm` makes."""
OWN_OPTIONS = (
    "model", "host", "port", "uds", "served_model_name", "api_key", "dtype", "max_num_seqs", "enable_lora",
    "lora_modules", "max_lora_rank", "logprobs_mode", "generation_config", "enable_scale_out", "tokens_only",
    "headless", "config", "root_path",
)  # fmt: skip
"""Of `vllm serve`, what follows from the source or must be as it is here."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """An inference engine that the stage starts on the policy, uses and stops.

    Args:
        name: which one; a bare text in this group's place is it.
        environment: folder of the Python environment in which it is installed; null: .venv-vllm in the working
            directory or beside the library, where `make vllm` makes it.
        options: of its command `vllm serve`, with underscores, such as {gpu_memory_utilization: 0.6}.
    """

    name: Annotated[Literal["vllm"], BARE] = "vllm"
    environment: Annotated[Path | None, Effect.NONE] = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option in self.options:
            if option.startswith("-") or "-" in option:
                way_out = option.lstrip("-").replace("-", "_")
                raise InputError(f"options: name it without dashes, {way_out}, got {option}")
            if option.removeprefix("no_") in OWN_OPTIONS:
                raise InputError(f"options: {option} is set by the stage itself; leave it out")

    def command(self, where: str) -> Path:
        """The file of its command.

        Args:
            where: the field of this group, for messages.

        Raises:
            InputError: it is not installed there.
        """
        beside = Path(rlhf.__file__).resolve().parents[1] / ENVIRONMENT
        places = [ENVIRONMENT, beside] if self.environment is None else [self.environment]
        for place in places:
            if (file := place.absolute() / "bin" / self.name).is_file():
                return file
        raise InputError(
            f"{where}: there is no {self.name} in {places[0]}; make that environment by `make vllm`, or name one that "
            f"has it with --{where}.environment FOLDER"
        )


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line: true is a flag, false the flag's opposite, null is left out."""
    words: list[str] = []
    for name, value in options.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{dashed}" if value else f"--no-{dashed}")
        elif isinstance(value, Mapping):
            words += [f"--{dashed}", json.dumps(value)]
        elif isinstance(value, list | tuple):
            words += [f"--{dashed}", *map(str, value)]
        elif value is not None:
            words += [f"--{dashed}", str(value)]
    return words
