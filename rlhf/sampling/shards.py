"""Answers on disk while they are being drawn, so that a killed run goes on where it stopped.

    <folder>/0.jsonl  1.jsonl  …      one file a process, one line a prompt: its position and its answers

Lines are only ever added. A kill can leave half a line at a file's end: it is dropped, and its prompt drawn again. Of
two lines for one prompt the first counts, files taken in the order of their numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.configuration import to_plain
from rlhf.conversation import Conversation
from rlhf.errors import InputError
from rlhf.sampling.protocol import Sample, SamplingParams
from rlhf.stage import Kept, Stage, options_of

FOLDER = "samples"


def read_shards(folder: str | os.PathLike[str]) -> dict[int, list[Sample]]:
    """The answers by the position of their prompt; none where there is no such folder.

    Raises:
        InputError: naming file and line that is whole but no line of a shard.
    """
    answers: dict[int, list[Sample]] = {}
    for file in sorted(Path(folder).glob("*.jsonl"), key=lambda file: int(file.stem)):
        for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line)
                drawn = [Sample(**{**sample, "token_ids": tuple(sample["token_ids"])}) for sample in row["samples"]]
                answers.setdefault(row["prompt"], drawn)
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{file}:{number}: is no line of answers; remove {folder} to draw all again") from None
    return answers


class ShardWriter:
    """Adds to one process's file; half a line at its end is cut off first."""

    def __init__(self, folder: str | os.PathLike[str], process: int) -> None:
        file = Path(folder) / f"{process}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = file.open("ab+")
        self._stream.seek(0)
        self._stream.truncate(self._stream.read().rfind(b"\n") + 1)

    def write(self, prompt: int, samples: Sequence[Sample]) -> None:
        """Add a prompt's answers: once written they outlive this process."""
        row = {"prompt": prompt, "samples": [asdict(sample) for sample in samples]}
        self._stream.write(json.dumps(row).encode() + b"\n")
        self._stream.flush()


def kept_samples(
    prompts: Sequence[Conversation],
    num_samples: int,
    params: SamplingParams,
    stage: Stage,
    *policies: str,
    inputs: Sequence[str] = (),
    **others: Any,
) -> Kept:
    """The stage's folder of shards, taken over by an attempt that would draw the same answers.

    They are decided by the prompts, the way of drawing, the policies (their checkpoints' content, how they are held),
    the stage's further inputs that `inputs` names, and `others` (plain JSON types).

    Args:
        policies: names of the config's fields that hold the sources.
    """
    asked = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]
    drawn = {f"sampling.{name}": value for name, value in asdict(params).items()}
    options, rounding = options_of(stage.config, stage.inputs)
    held = {name: to_plain(value) for name, value in options.items() if name.split(".")[0] in policies}
    read = [name for name in stage.inputs if name.split(".")[0] in policies or name in inputs]
    held |= {name: value for name, value in options.items() if name.startswith("chat_template_kwargs.")}
    values = {"prompts": asked, "num_samples": num_samples, **drawn, **held, **others}
    return Kept(FOLDER, "drawn answers", inputs=read, values=values, rounding=rounding & held.keys(), pattern="**/*")
