"""The reward models' scores of some conversations, and the one reward that the paper combines them into.

torch is loaded when called.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf.conversation import Conversation
from rlhf.data.rows import Domain, Prompt
from rlhf.models.checkpoint.context import TooLong
from rlhf.rewards.config import GateConfig
from rlhf.rewards.loading import load_reward
from rlhf.rewards.origin import read_origin
from rlhf.rewards.protocol import RewardFunction
from rlhf.rewards.suspicion import suspicious_scoring

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


@dataclass(frozen=True)
class Gate:
    """The gate's figures: its threshold, after the sigmoid, and the raw scores that count as 0."""

    threshold: float = GateConfig.threshold
    helpfulness_origin: float = 0.0
    safety_origin: float = 0.0
    swept_origin: float | None = None
    """The safety model's when the threshold was chosen; None: by nobody, or with no origin."""


@dataclass(frozen=True)
class GatedRewards:
    """All (n,) on the CPU.

    `helpfulness` and `safety` are raw scores (float32; safety None without a safety model), `reward` the one taken,
    less its origin; `used_safety` (bool): it is the safety score; `too_long` (bool): a model saw it cut.
    """

    helpfulness: Tensor
    safety: Tensor | None
    reward: Tensor
    used_safety: Tensor
    too_long: Tensor


@dataclass(frozen=True)
class GatedReward:
    """One reward from a helpfulness model and, where there is one, a safety model behind the gate.

    Paper, section 3.2.3: R_c (`rlhf.objectives.reward.gate`). Without a safety model helpfulness alone is the reward,
    of every prompt.

    Args:
        helpfulness: scores conversations.
        safety: the same; None: there is none, and no gate.
        gate: its threshold and the scores' origins.
        too_long: what becomes of an answer that a reward model's context does not hold.
    """

    helpfulness: RewardFunction
    safety: RewardFunction | None = None
    gate: Gate = Gate()
    too_long: TooLong = "cut"

    @classmethod
    def load(
        cls,
        helpfulness: str | os.PathLike[str],
        safety: str | os.PathLike[str] | None,
        gate: GateConfig,
        *,
        too_long: TooLong = "cut",
        accelerator: Accelerator | None = None,
    ) -> GatedReward:
        """What the recipes' options name; see `rlhf.rewards.loading.load_reward`, and `read_gate`."""
        first = load_reward(helpfulness, accelerator=accelerator)
        second = None if safety is None else load_reward(safety, accelerator=accelerator)
        return cls(first, second, read_gate(gate, helpfulness, safety), too_long)

    def __call__(self, conversations: Sequence[Conversation], tags: Sequence[Domain]) -> GatedRewards:
        """Score with all models and gate.

        Args:
            conversations: n dialogues that end with the answer.
            tags: the prompts' domains; "safety" takes the safety score always.

        Raises:
            InputError: a reward function gave scores of wrong shape or not finite; a dialogue is too long for one, and
                `too_long` refuses that.
            ValueError: not one tag a conversation.
        """
        import torch

        from rlhf.rewards.scoring import ask_all, name_of, refuse_cut, were_too_long

        if len(tags) != len(conversations):
            raise ValueError(f"GatedReward: {len(conversations)} conversations but {len(tags)} tags")
        functions = {f"helpfulness ({name_of(self.helpfulness)})": self.helpfulness}
        if self.safety is not None:
            functions[f"safety ({name_of(self.safety)})"] = self.safety
        scores = ask_all(functions, conversations)
        cut = [were_too_long(function, len(conversations)) for function in functions.values()]
        for name, own in zip(functions, cut, strict=True):
            if self.too_long == "refuse":
                refuse_cut(name, own)
        safety = None if self.safety is None else scores[1]
        return GatedRewards(scores[0], safety, *self.gated(scores[0], safety, tags), torch.stack(cut).any(0))

    def gated(self, helpfulness: Tensor, safety: Tensor | None, tags: Sequence[Domain]) -> tuple[Tensor, Tensor]:
        """Of raw scores, (n,) each, the reward that the gate takes, and whether it is the safety score.

        Args:
            safety: None without a safety model.
            tags: see `__call__`.
        """
        import torch

        from rlhf.objectives.reward import gate

        lead = helpfulness - self.gate.helpfulness_origin
        if safety is None:
            return lead, torch.zeros(len(tags), dtype=torch.bool)
        tagged = torch.tensor([tag == "safety" for tag in tags], dtype=torch.bool)
        return gate(lead, safety - self.gate.safety_origin, tagged, self.gate.threshold)

    def counts_as_finished(self, ended: bool, was_cut: bool) -> bool:
        """Whether an answer came to its end: one that a model saw cut did not, where `too_long` is "unfinished"."""
        return ended and not (was_cut and self.too_long == "unfinished")

    def suspicious(self) -> list[str]:
        """A sentence for each of the two that had to cut most of what it scored so far, and for another's threshold."""
        found = suspicious_scoring(helpfulness=self.helpfulness, safety=self.safety)
        swept, origin = self.gate.swept_origin, self.gate.safety_origin
        if swept is not None and not math.isclose(swept, origin, rel_tol=1e-6):
            found.append(
                f"the gate's threshold was chosen for another safety model (origin {swept:.4g}, this one's is "
                f"{origin:.4g}); sweep again with this one, and name its gate_sweep.json in gate.threshold_from"
            )
        return found

    def refuse_broken(self, prompts: Sequence[Prompt]) -> None:
        """Score a short answer to the first two prompts: a broken reward fails here, before hours of sampling."""
        tried = prompts[:2]
        self([prompt.answered("Yes.") for prompt in tried], [prompt.domain for prompt in tried])

    def of_parts(self, prompts: Sequence[Prompt]) -> Callable[[Sequence[int], Sequence[str]], Tensor]:
        """The function of (numbers of prompts, parts of answers to them) that early rejection asks."""

        def score(numbers: Sequence[int], parts: Sequence[str]) -> Tensor:
            asked = [prompts[number] for number in numbers]
            dialogues = [prompt.answered(part) for prompt, part in zip(asked, parts, strict=True)]
            return self(dialogues, [prompt.domain for prompt in asked]).reward

        return score


def read_gate(
    config: GateConfig, helpfulness: str | os.PathLike[str] | None, safety: str | os.PathLike[str] | None
) -> Gate:
    """The gate's figures: the threshold of a sweep where one is named, the origins of the reward models."""
    if not config.centre:
        return Gate(config.resolved_threshold())
    threshold = config.resolved_threshold()
    return Gate(threshold, read_origin(helpfulness), read_origin(safety), config.swept_origin())
