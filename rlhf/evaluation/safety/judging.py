"""A policy's answers to safety prompts, drawn and judged: what `rlhf.evaluation.safety.figures` counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.conversation import Conversation
from rlhf.data.refusals import RefusalRules
from rlhf.errors import InputError
from rlhf.evaluation.answers import Answer, answers_of
from rlhf.evaluation.judging import with_gold, with_scores
from rlhf.evaluation.safety.figures import JudgedAnswer, SafetyPrompt
from rlhf.evaluation.safety.refusals import RefusalDetector, load_detector
from rlhf.evaluation.scorers import GoldScorer, load_scorer
from rlhf.imports import import_object, own_function
from rlhf.models.checkpoint.context import TooLong

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rlhf.rewards.protocol import RewardFunction
    from rlhf.sampling.protocol import Sampler, SamplingParams

Checker = Callable[[Sequence[Conversation]], Sequence[bool]]
"""Whether the last message of each conversation is a violation."""


@dataclass(frozen=True)
class SafetyJudges:
    """Who judges; what is None does not. `too_long`: what becomes of an answer that a reward model's context does not
    hold."""

    refusals: RefusalDetector = field(default_factory=RefusalRules)
    safety: RewardFunction | None = None
    helpfulness: RewardFunction | None = None
    checker: Checker | None = None
    scorer: GoldScorer | None = None
    too_long: TooLong = "cut"

    def kind_of(self, messages: Conversation) -> str | None:
        """The kind of a request, by the gold scorer; None without one."""
        if self.scorer is None:
            return None
        return self.scorer.judge([*messages, {"role": "assistant", "content": ""}]).kind


def load_judges(
    refusals: str,
    safety: str | None,
    helpfulness: str | None,
    checker: str | None,
    scorer: str | None,
    world: Path | None,
    accelerator: Accelerator | None,
    too_long: TooLong = "cut",
) -> SafetyJudges:
    """The judges that a user names; see `load_detector` of `refusals.py` and `rlhf.rewards.loading.load_reward`.

    Raises:
        InputError: one of them cannot be loaded.
    """
    from rlhf.rewards.loading import load_reward

    own = None if checker is None else import_object("checker", checker)
    own = own() if isinstance(own, type) else own
    if own is not None and not callable(own):
        raise InputError(f"checker: {checker} is a {type(own).__name__}; name a function of conversations")
    if own is not None and checker is not None:
        own = own_function("checker", checker, own)
    return SafetyJudges(
        load_detector(refusals),
        None if safety is None else load_reward(safety, accelerator=accelerator),
        None if helpfulness is None else load_reward(helpfulness, accelerator=accelerator),
        own,
        load_scorer(scorer, world) if scorer and world else None,
        too_long,
    )


def answer_and_judge(
    sampler: Sampler,
    prompts: Sequence[SafetyPrompt],
    judges: SafetyJudges,
    params: SamplingParams,
    samples_per_prompt: int,
    accelerator: Accelerator,
    shards: Path | None = None,
) -> list[JudgedAnswer]:
    """`samples_per_prompt` answers to each prompt, with every judge's verdict. All processes call it with the same.

    shards: folder in which drawn answers outlive a kill (`sample_distributed`).
    """
    from rlhf.sampling.multi_process import sample_distributed

    messages = [one.prompt.messages for one in prompts]
    drawn = sample_distributed(sampler, messages, samples_per_prompt, params, accelerator, shards=shards)
    answers = answers_of([one.prompt for one in prompts], drawn)
    return judge_answers(answers, [one.kind for one in prompts for _ in range(samples_per_prompt)], judges, accelerator)


def judge_answers(
    answers: Sequence[Answer], kinds: Sequence[Any], judges: SafetyJudges, accelerator: Accelerator
) -> list[JudgedAnswer]:
    """Every judge's verdict on answers to prompts of these kinds.

    Raises:
        InputError: a judge gave not one verdict an answer.
    """
    answers = list(answers)
    if judges.safety is not None:
        answers = with_scores(answers, "safety", judges.safety, accelerator, judges.too_long)
    if judges.helpfulness is not None:
        answers = with_scores(answers, "helpfulness", judges.helpfulness, accelerator, judges.too_long)
    if judges.scorer is not None:
        answers = with_gold(answers, judges.scorer)
    conversations = [a.conversation for a in answers]
    refused = _verdicts("refusals", judges.refusals, conversations)
    flagged = [None] * len(answers) if judges.checker is None else _verdicts("checker", judges.checker, conversations)
    return [JudgedAnswer(*row) for row in zip(answers, kinds, refused, flagged, strict=True)]


def _verdicts(field: str, judge: Checker, conversations: Sequence[Conversation]) -> list[Any]:
    verdicts = [bool(verdict) for verdict in judge(conversations)]
    if len(verdicts) != len(conversations):
        raise InputError(f"{field}: gave {len(verdicts)} verdicts on {len(conversations)} conversations; give one each")
    return verdicts


def judged_rows(answers: Sequence[JudgedAnswer]) -> list[dict[str, Any]]:
    """What answers.jsonl adds to each answer."""
    return [{"kind": one.kind, "refused": one.refused, "flagged": one.flagged} for one in answers]
