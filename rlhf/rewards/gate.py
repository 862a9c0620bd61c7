"""Both reward models' scores of some conversations, and the one reward that the paper combines them into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.conversation import Conversation
from rlhf.data.rows import Domain, Prompt
from rlhf.objectives.reward import gate
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.scoring import ask_all, name_of


@dataclass(frozen=True)
class GatedRewards:
    """All (n,) on the CPU: two raw scores and the reward taken (float32), and where it is the safety score (bool)."""

    helpfulness: Tensor
    safety: Tensor
    reward: Tensor
    used_safety: Tensor


def gated_rewards(
    conversations: Sequence[Conversation],
    tags: Sequence[Domain],
    helpfulness: RewardFunction,
    safety: RewardFunction,
) -> GatedRewards:
    """Score with both models and gate (paper, section 3.2.3: R_c; `rlhf.objectives.reward.gate`).

    Args:
        conversations: n dialogues that end with the answer.
        tags: the prompts' domains; "safety" takes the safety score always.

    Raises:
        InputError: a reward function gave scores of wrong shape or not finite.
        ValueError: not one tag a conversation.
    """
    if len(tags) != len(conversations):
        raise ValueError(f"gated_rewards: {len(conversations)} conversations but {len(tags)} tags")
    names = f"helpfulness ({name_of(helpfulness)})", f"safety ({name_of(safety)})"
    functions = dict(zip(names, (helpfulness, safety), strict=True))
    helpfulness_scores, safety_scores = ask_all(functions, conversations)
    tagged = torch.tensor([tag == "safety" for tag in tags], dtype=torch.bool)
    reward, used_safety = gate(helpfulness_scores, safety_scores, tagged)
    return GatedRewards(helpfulness_scores, safety_scores, reward, used_safety)


def refuse_broken_rewards(prompts: Sequence[Prompt], helpfulness: RewardFunction, safety: RewardFunction) -> None:
    """Score a short answer to the first two prompts: a reward of wrong shape fails here, before hours of sampling."""
    tried = prompts[:2]
    answers: list[Conversation] = [[*prompt.messages, {"role": "assistant", "content": "Yes."}] for prompt in tried]
    gated_rewards(answers, [prompt.domain for prompt in tried], helpfulness, safety)


def part_rewards(
    prompts: Sequence[Prompt], helpfulness: RewardFunction, safety: RewardFunction
) -> Callable[[Sequence[int], Sequence[str]], Tensor]:
    """The function of (numbers of prompts, parts of answers to them) that early rejection asks: their gated rewards."""

    def score(numbers: Sequence[int], parts: Sequence[str]) -> Tensor:
        asked = [prompts[number] for number in numbers]
        dialogues = [prompt.answered(part) for prompt, part in zip(asked, parts, strict=True)]
        return gated_rewards(dialogues, [prompt.domain for prompt in asked], helpfulness, safety).reward

    return score
