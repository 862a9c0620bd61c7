"""Recipes as a user starts them: `accelerate launch` with a shipped file of ds_configs and a shipped recipe config.

Each runs in an empty folder that is not the repository's, on the tiny model. What a file of ds_configs says for GPUs
runs here on the CPU: `--num_processes 2` is all that changes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ready_python import ReadyPython

from rlhf.iteration.plan import find_recipe

ROOT = Path(__file__).resolve().parents[2]
COLD = ("ppo", "accelerate_cpu_zero3.yaml")
WORDS = ("river", "goat", "doctor", "guide", "word", "mora", "velda", "paint", "hello")


@dataclass
class Door:
    """A folder with rows for every recipe, a tiny policy and two reward models; `launch` starts a recipe in it.

    Without `settings`, and under those of `COLD`, Python itself starts everything; else what it imports of others is
    ready (`ready_python`).
    """

    here: Path
    policy: Path
    rewards: Path
    ready: ReadyPython

    def launch(self, settings: str | None, recipe: str, config: str, **options: object) -> Path:
        """Run a recipe to its end, on two processes or, without `settings`, plainly on one; returns its folder."""
        output = self.here / f"{recipe}_{(settings or 'one').removesuffix('.yaml')}"
        cold = settings is None or (recipe, settings) == COLD
        launcher, script = ([sys.executable], []) if cold else (self.ready.python, self.ready.script)
        if settings is not None:
            file = str(ROOT / "ds_configs" / settings)
            launcher = [*launcher, "-m", "accelerate.commands.launch", "--config_file", file, "--num_processes", "2"]
            launcher += ["--main_process_port", str(free_port()), *script]
        given = {"output": output, **{name.replace("__", "."): value for name, value in options.items()}}
        more = [part for name, value in given.items() for part in (f"--{name}", as_option(value))]
        files = [str(find_recipe(recipe)), "--config", str(ROOT / "recipes" / "configs" / config)]
        working_folder = self.here / f"empty_{output.name}"
        working_folder.mkdir()
        done = subprocess.run(
            [*launcher, *files, *more],
            cwd=working_folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        assert not list(working_folder.iterdir()), "nothing is written but the output"
        return output

    def rows(self, name: str) -> Path:
        return self.here / f"{name}.jsonl"


def as_option(value: object) -> str:
    return str(value) if isinstance(value, (str, Path, int, float)) else json.dumps(value, default=str)


def environment() -> Mapping[str, str]:
    """The user's: nothing of ours but one thread a process. PYTHONPATH stands for an installed package."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "PYTEST_", "DS_"))}
    return {**mine, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def write_rows(here: Path) -> None:
    """Rows of every kind that a training recipe reads."""
    files = {
        "texts": [{"text": f"the {a} of {b} is my own {b}"} for a in WORDS for b in WORDS],
        "chats": [{"messages": chat(f"what is the {a} {b} ?", f"the {b} of {a}")} for a in WORDS for b in WORDS[:3]],
        "dialogues": [
            {"messages": chat(f"what is the {a} ?", f"the {b} of {a}", f"and the {b} ?", "mora")}
            for a in WORDS
            for b in WORDS[:2]
        ],
        "prompts": [
            {
                "id": f"p{i}",
                "messages": chat(f"what is the {word} ?"),
                "domain": "safety" if i % 3 == 0 else "helpfulness",
                "source": "world/unsafe",
            }
            for i, word in enumerate(WORDS)
        ],
        "preferences": [
            {
                "id": f"{domain}{i}",
                "messages": chat(f"what is the {word} ?"),
                "chosen": f"the {word} of velda",
                "rejected": "no",
                "strength": "better",
                "chosen_safe": True,
                "rejected_safe": i % 2 == 0,
                "domain": domain,
            }
            for domain in ("helpfulness", "safety")
            for i, word in enumerate(WORDS)
        ],
    }
    for name, rows in files.items():
        (here / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, word in (("rough", "goat"), ("kind", "doctor")):
        (here / f"{name}.txt").write_text("\n".join(f"{a} {b} {word}" for a in WORDS for b in "abc"))
