"""What a PPO stage leaves on disk as it goes: the best policy, sample answers, states to go on from. Light.

<stage>/samples.jsonl                     the same held-out prompts' answers at each evaluation
<stage>/resume/best-000020/               the best policy so far; `take_best` makes it <stage>/checkpoint
<stage>/resume/step-000030/               see `rlhf.training.checkpoints`
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.data.rows import Prompt
from rlhf.metrics import keep_before
from rlhf.stage import remove_folder
from rlhf.training.kept import RESUME

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rlhf.ppo.rollout import Rollout
    from rlhf.training.step import Stepper

SAMPLES_FILE = "samples.jsonl"
SAMPLES = 8
"""Held-out answers logged at each evaluation."""


class Saving:
    """Every process makes one and calls its methods together.

    Args:
        folder: the stage's.
        save_policy: writes the policy into the folder it is given; every process calls it.
        keep: this many of the newest states are kept.
    """

    def __init__(
        self,
        folder: Path,
        stepper: Stepper,
        accelerator: Accelerator,
        save_policy: Callable[[Path], None],
        *,
        keep: int = 2,
    ) -> None:
        from rlhf.training.checkpoints import Checkpoints

        self.folder = folder
        self.accelerator = accelerator
        self.save_policy = save_policy
        self.checkpoints = Checkpoints(folder / RESUME, stepper, accelerator, keep=keep)

    def save(self, iteration: int, state: Mapping[str, Any]) -> None:
        """Write the state before `iteration`; best policies that no state and no history names go."""
        self.checkpoints.save(iteration, {"iteration": iteration, **state})
        if self.accelerator.is_main_process:
            named = {self._best(kept["history"]["best_iteration"]) for kept in self.checkpoints.kept()}
            for path in self.folder.glob(f"{RESUME}/best-*"):
                if path not in named:
                    remove_folder(path)
        self.accelerator.wait_for_everyone()

    def restore(self) -> dict[str, Any] | None:
        """Take up the newest state, if there is one, and drop the sample answers that came later."""
        state = self.checkpoints.restore()
        if self.accelerator.is_main_process:
            keep_before(self.folder / SAMPLES_FILE, 0 if state is None else state["iteration"])
        return state

    def keep_best(self, iteration: int) -> None:
        """Save the policy as the best so far."""
        final = self._best(iteration)
        partial = final.with_name(final.name + ".partial")
        if self.accelerator.is_main_process:
            for path in (partial, final):  # of a broken-off attempt
                shutil.rmtree(path, ignore_errors=True)
            final.parent.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        self.save_policy(partial)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            os.replace(partial, final)
        self.accelerator.wait_for_everyone()

    def take_best(self, iteration: int, name: str = "checkpoint") -> None:
        """Make the best policy the stage's own; until the stage is finished it is there under both names."""
        if self.accelerator.is_main_process:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            shutil.copytree(self._best(iteration), self.folder / name, copy_function=_link)
        self.accelerator.wait_for_everyone()

    def log_samples(self, step: int, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> None:
        """Add the first held-out answers of an evaluation, with their scores, to samples.jsonl."""
        if not self.accelerator.is_main_process:
            return
        with (self.folder / SAMPLES_FILE).open("a", encoding="utf-8") as stream:
            for prompt, rollout in list(zip(prompts, rollouts, strict=False))[:SAMPLES]:
                row = {"step": step, "prompt_id": prompt.id, "messages": prompt.messages, "answer": rollout.text}
                row |= {name: getattr(rollout, name) for name in ("finished", "helpfulness", "safety", "reward")}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _best(self, iteration: int) -> Path:
        return self.folder / RESUME / f"best-{iteration:06d}"


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
