"""A model's answers to the prompts of a file of answers, drawn to be compared with these.

Where people wrote the file, this is the paper's check of its SFT data: is the model's answer as good as a person's
(section 3.1)?
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.conversation import given_kwargs
from rlhf.errors import InputError
from rlhf.jsonl import write_rows
from rlhf.stage import digest, write_json

if TYPE_CHECKING:
    from rlhf.annotation.comparison import Given
    from rlhf.sampling.protocol import SamplingParams
    from rlhf.sampling.source import PolicySource


def draw_answers(folder: Path, asked: Sequence[Given], source: PolicySource, params: SamplingParams) -> None:
    """Write folder/answers.jsonl, a row {messages, domain, answer} for each of `asked`.

    Answers are kept as they come: the same call later goes on with them, or leaves the whole file as it is.

    Args:
        asked: whose prompts are answered.
        source: the model.
        params: how its answers are drawn.

    Raises:
        InputError: the folder has answers that were drawn otherwise, or the model cannot answer.
    """
    prompts = [given.messages for given in asked]
    model = source.name if source.checkpoint is None else digest(source.checkpoint)
    prompt_digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
    kwargs = {"chat_template_kwargs": given_kwargs()} if given_kwargs() else {}
    origin = json.loads(json.dumps({"model": model, "prompts": prompt_digest, **asdict(params), **kwargs}))
    told, file = folder / "origin.json", folder / "answers.jsonl"
    if told.exists() and json.loads(told.read_text(encoding="utf-8")) != origin:
        raise InputError(
            f"compare: {folder} has answers of another model, to other prompts, or drawn otherwise; remove it to draw "
            "anew, or name another folder for this comparison"
        )
    if file.exists():
        return
    from rlhf.sampling.multi_process import sample_distributed
    from rlhf.sampling.opening import open_sampler
    from rlhf.training.accelerator import make_accelerator

    accelerator = make_accelerator()
    sampler = open_sampler(source, accelerator.device, field="compare")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(told, origin)
    drawn = sample_distributed(sampler, prompts, 1, params, accelerator, shards=folder / "samples")
    rows = (
        {"messages": given.messages, "domain": given.domain, "answer": sample.text}
        for given, (sample,) in zip(asked, drawn, strict=True)
    )
    partial = file.with_suffix(".partial")
    write_rows(partial, rows)
    partial.replace(file)
