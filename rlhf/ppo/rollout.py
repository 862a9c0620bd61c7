"""Rollouts: the policy answers prompts, two reward models judge, the gate decides which judgement counts.

Sampling and scoring are dealt out over the processes; every process ends with ALL rollouts, which are small (token
ids and four numbers), so that minibatches and whitening are global without further talk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from rlhf.conversation import Conversation, Renderer
from rlhf.data.rows import Domain, Prompt
from rlhf.errors import InputError
from rlhf.rewards.gate import gated_rewards
from rlhf.rewards.protocol import RewardFunction
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.protocol import Sampler, SamplingParams

Scores = tuple[float, float, float, bool]
"""Helpfulness, safety, the gate's choice (all raw), and whether that was safety."""


@dataclass(frozen=True)
class Rollout:
    """One answer. Scores are raw; `reward` is the gate's choice; answer_ids hold the end token where it came."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    finished: bool
    helpfulness: float
    safety: float
    reward: float
    used_safety: bool

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Environment:
    """What answers and what judges."""

    sampler: Sampler
    renderer: Renderer
    helpfulness: RewardFunction
    safety: RewardFunction
    sampling: SamplingParams
    accelerator: Accelerator


def prompt_stream(prompts: Sequence[Prompt], seed: int) -> Iterator[Prompt]:
    """Prompts without end: a fresh permutation each time round."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for i in torch.randperm(len(prompts), generator=generator).tolist():
            yield prompts[i]


def roll_out(
    prompts: Sequence[Prompt], environment: Environment, sampling: SamplingParams, num_samples: int, first_key: int = 0
) -> list[Rollout]:
    """`num_samples` scored answers to each prompt, prompt after prompt, the same list on every process.

    Args:
        first_key: prompt i draws with key first_key + i, so that no iteration repeats another's draws.

    Raises:
        InputError: on every process, where a reward function fails on one.
    """
    keys = range(first_key, first_key + len(prompts))
    conversations = [prompt.messages for prompt in prompts]
    drawn = sample_distributed(
        environment.sampler, conversations, num_samples, sampling, environment.accelerator, keys=keys
    )
    pairs = [(prompt, sample) for prompt, samples in zip(prompts, drawn, strict=True) for sample in samples]
    answered: list[Conversation] = [[*p.messages, {"role": "assistant", "content": s.text}] for p, s in pairs]
    scored = _score_distributed(answered, [p.domain for p, _ in pairs], environment)
    rendered = [tuple(ids) for ids in environment.renderer.prompts(conversations) for _ in range(num_samples)]
    return [
        Rollout(prompt_ids, sample.token_ids, sample.finished, *scores)
        for prompt_ids, (_, sample), scores in zip(rendered, pairs, scored, strict=True)
    ]


def _score_distributed(
    conversations: Sequence[Conversation], domains: Sequence[Domain], environment: Environment
) -> list[Scores]:
    """Scores of all conversations on every process, each process doing its part."""
    accelerator = environment.accelerator
    mine = range(accelerator.process_index, len(conversations), accelerator.num_processes)
    scores: list[Scores] = []
    failures: list[str] = []
    try:
        if mine:
            gated = gated_rewards(
                [conversations[i] for i in mine],
                [domains[i] for i in mine],
                environment.helpfulness,
                environment.safety,
            )
            columns = (gated.helpfulness, gated.safety, gated.reward, gated.used_safety)
            scores = list(zip(*(column.tolist() for column in columns), strict=True))
    except InputError as error:
        failures = [str(error)]
    # a failure on one process must end them all, not leave the others waiting
    failures = gather_object(failures)
    if failures:
        raise InputError(failures[0])
    gathered = dict(gather_object(list(zip(mine, scores, strict=True))))
    return [gathered[i] for i in range(len(conversations))]


def rollout_figures(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over the rollouts of what doesn't need a model."""
    return {
        "reward": fmean(r.reward for r in rollouts),
        "helpfulness": fmean(r.helpfulness for r in rollouts),
        "safety": fmean(r.safety for r in rollouts),
        "gate_share": fmean(r.used_safety for r in rollouts),
        "length": fmean(len(r.answer_ids) for r in rollouts),
        "finished_share": fmean(r.finished for r in rollouts),
    }
