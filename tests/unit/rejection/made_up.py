"""A completion with made-up fields."""

from __future__ import annotations

from dataclasses import replace

from rlhf.data.rows import Completion


def completion(prompt: str, version: str, index: int, reward: float, **fields: object) -> Completion:
    row = Completion(
        prompt_id=prompt,
        version=version,
        index=index,
        text=f"answer {version} {index} é",
        token_ids=(5, 6, index),
        logprob=-1.5,
        temperature=1.25,
        finished=True,
        helpfulness=0.25,
        safety=-0.5,
        reward=reward,
        reward_model="judges",
    )
    return replace(row, **fields)  # type: ignore[arg-type]
