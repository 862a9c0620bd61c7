"""Two rewards and the gate: tags and a low safety score decide, and a bad reward function is named."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator

from rlhf.conversation import Conversation
from rlhf.data.rows import Prompt
from rlhf.errors import InputError
from rlhf.rewards.distributed import score_answers
from rlhf.rewards.gate import gated_rewards

TALK: Conversation = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_tag_and_threshold_decide() -> None:
    helpfulness = torch.tensor([1.0, 2.0, 3.0, 4.0])
    safety = torch.tensor([logit(0.1499), logit(0.1501), logit(0.9), logit(0.01)])
    got = gated_rewards(
        [TALK] * 4, ["helpfulness", "helpfulness", "safety", "safety"], lambda c: helpfulness, lambda c: safety
    )
    assert got.used_safety.tolist() == [True, False, True, True]
    torch.testing.assert_close(got.reward, torch.stack([safety[0], helpfulness[1], safety[2], safety[3]]))
    assert got.helpfulness.tolist() == helpfulness.tolist() and got.safety.tolist() == safety.tolist()


def test_a_bad_reward_function_is_named() -> None:
    def broken(conversations: object) -> torch.Tensor:
        return torch.zeros(1, 2)

    with pytest.raises(InputError, match=r"safety \(broken\)"):
        gated_rewards([TALK] * 2, ["safety"] * 2, lambda c: torch.zeros(2), broken)
    with pytest.raises(ValueError, match="2 conversations but 1 tags"):
        gated_rewards([TALK] * 2, ["safety"], broken, broken)


def test_both_functions_are_asked_also_where_the_first_refuses() -> None:
    """Under ZeRO-3 a call gathers weights, which takes every process: one that leaves safety out stops the others."""
    asked = []

    def refuses(conversations: object) -> torch.Tensor:
        raise InputError("messages: the last turn takes 500 tokens")

    def safety(conversations: Sequence[Conversation]) -> torch.Tensor:
        asked.append(len(conversations))
        return torch.zeros(len(conversations))

    prompts = [Prompt(f"p{i}", TALK[:1]) for i in range(3)]
    with pytest.raises(InputError, match="the last turn takes 500 tokens"):
        score_answers(prompts, ["a", "b", "c"], refuses, safety, Accelerator(cpu=True))
    assert asked == [3]
