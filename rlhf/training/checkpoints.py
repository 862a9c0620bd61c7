"""States from which a training that was killed goes on as if nothing had been: written beside, renamed, the last kept.

    <folder>/step-000010/    weights.safetensors  optimizer.pt  random-<rank>.pt  state.json    only ever whole
    <folder>/step-000020/    deepspeed/           random-<rank>.pt  state.json                  the same under DeepSpeed

state.json has the digest of every other file, and its own: what the disk changed is not gone on from. A state whose
weights or moments are not finite is neither written nor taken up.

A state holds what is trained (frozen weights come from where they came from), the optimizer, the random states of each
process and what the caller's loop needs (state.json). On the same machine with as many processes the run ends bit for
bit where it would have ended; with another number of processes the same up to rounding and to what dropout draws. The
files are for this purpose and this library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file

from rlhf.errors import InputError
from rlhf.jsonl import read_json
from rlhf.stage import digest, remove_folder
from rlhf.training.finite import require_finite
from rlhf.training.step import Stepper

STATE_FILE = "state.json"
COUNTERS = ("steps", "skipped", "skipped_in_a_row")


class Checkpoints:
    """The newest states of one training. Every process makes one and calls its methods together.

    Args:
        folder: for the states alone; the same for all processes.
        keep: this many of the newest states stay.
    """

    def __init__(self, folder: Path, stepper: Stepper, accelerator: Accelerator, *, keep: int = 2) -> None:
        self.folder = folder
        self.stepper = stepper
        self.accelerator = accelerator
        self.keep = keep

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the state before `step`.

        Args:
            step: the caller's own count, above that of every state there.
            state: of plain JSON types, the same on every process; floats come back bit for bit.

        Raises:
            InputError: a weight or a moment is not finite; nothing is written.
        """
        require_finite(
            _tensors(self.stepper), f"the state before step {step}", "start again with a lower learning rate"
        )
        final = self.folder / f"step-{step:06d}"
        partial = final.with_name(final.name + ".partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        _save_training(self.stepper, partial, self.accelerator)
        torch.save(_random_state(), partial / f"random-{self.accelerator.process_index}.pt")
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            counters = {name: getattr(self.stepper, name) for name in COUNTERS}
            files = {str(path.relative_to(partial)): digest(path) for path in _files(partial)}
            content = {"counters": counters, "state": state, "files": files}
            text = json.dumps(content | {"digest": _digest(content)})
            (partial / STATE_FILE).write_text(text, encoding="utf-8")
            os.replace(partial, final)
            for old in self._found()[: -self.keep]:
                remove_folder(old)
        self.accelerator.wait_for_everyone()

    def restore(self) -> dict[str, Any] | None:
        """Take up the newest state and return what `save` was given; None: there is none, and nothing was changed.

        A process that the run which wrote it did not have keeps its own random state.

        Raises:
            InputError: a file of it cannot be read, is not what was written, or holds what is not finite.
        """
        found = self._found()
        if not found:
            return None
        newest = found[-1]
        try:
            content = _read_state(newest)
            if changed := self._changed_file(newest, content["files"]):
                raise ValueError(f"{changed} is not what was written")
            _load_training(self.stepper, newest)
            require_finite(_tensors(self.stepper), newest.name, "it is of no use")
            random_file = newest / f"random-{self.accelerator.process_index}.pt"
            if random_file.exists():
                _set_random_state(torch.load(random_file, weights_only=True))
        except Exception as error:  # safetensors, torch's unpickler and json raise many kinds, all about the files
            why = " ".join(str(error).split())[:120]
            way_out = "go on from the state before it" if len(found) > 1 else "start the training again"
            raise InputError(f"kept work: {newest} cannot be read ({why}); remove that folder to {way_out}") from error
        for name, value in content["counters"].items():
            setattr(self.stepper, name, value)
        state: dict[str, Any] = content["state"]
        return state

    def _changed_file(self, folder: Path, files: Mapping[str, str]) -> str | None:
        """The file that is not as it was written, the same on every process; the main one reads them all."""
        changed = None
        if self.accelerator.is_main_process:
            present = {str(path.relative_to(folder)) for path in _files(folder)}
            wrong = (name for name in files if name not in present or digest(folder / name) != files[name])
            changed = next(wrong, None)
        if self.accelerator.num_processes > 1:
            said = [changed]
            broadcast_object_list(said)
            changed = said[0]
        return changed

    def kept(self) -> list[dict[str, Any]]:
        """What `save` was given for each state that is there, the oldest first."""
        return [_read_state(path)["state"] for path in self._found()]

    def _found(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if not path.name.endswith(".partial"))


def _files(folder: Path) -> list[Path]:
    """All of a state's, without state.json."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != STATE_FILE)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read_state(folder: Path) -> dict[str, Any]:
    """{counters, state, files}; ValueError where it is not what was written."""
    content = read_json(folder / STATE_FILE)
    if not isinstance(content, dict):
        raise ValueError(f"{STATE_FILE} is no object")
    written = content.pop("digest", None)
    if written is None and "files" not in content:  # of an earlier release
        return content | {"files": {}}
    if written != _digest(content):
        raise ValueError(f"{STATE_FILE} is not what was written")
    return content


def _tensors(stepper: Stepper) -> Iterator[tuple[str, torch.Tensor]]:
    """What is trained, and the optimizer's moments where it is not divided."""
    yield from _trained(stepper)
    if not stepper.deepspeed:
        for number, moments in stepper.optimizer.state_dict()["state"].items():
            yield from ((f"{name} {number}", value) for name, value in moments.items() if torch.is_tensor(value))


def _save_training(stepper: Stepper, folder: Path, accelerator: Accelerator) -> None:
    if stepper.deepspeed:
        stepper.model.save_checkpoint(folder, tag="deepspeed", save_latest=False, exclude_frozen_parameters=True)
    elif accelerator.is_main_process:
        save_file({name: p.detach().contiguous() for name, p in _trained(stepper)}, folder / "weights.safetensors")
        torch.save(stepper.optimizer.state_dict(), folder / "optimizer.pt")


def _load_training(stepper: Stepper, folder: Path) -> None:
    if stepper.deepspeed:
        stepper.model.load_checkpoint(folder, tag="deepspeed", load_module_strict=False, load_lr_scheduler_states=False)
        return
    weights = load_file(folder / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in _trained(stepper):
            parameter.copy_(weights[name])
    state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    for group in state["param_groups"]:  # of an earlier release's, or of another machine's, AdamW
        group["fused"] = stepper.optimizer.defaults["fused"]
    stepper.optimizer.load_state_dict(state)


def _trained(stepper: Stepper) -> list[tuple[str, torch.nn.Parameter]]:
    """Name and weight of all that is trained, the same for any number of processes; tied weights once."""
    model = stepper.accelerator.unwrap_model(stepper.model)
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.tensor(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.is_tensor(state["cuda"]) and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
