"""Rollouts: the policy answers prompts, the reward models judge, the gate decides which judgement counts.

Sampling and scoring are dealt out over the processes; every process ends with ALL rollouts, which are small (token
ids and four numbers), so that minibatches and whitening are global without further talk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from accelerate import Accelerator

from rlhf.conversation import Renderer
from rlhf.data.rows import Prompt
from rlhf.ppo.watch import repeated_share
from rlhf.rewards.distributed import answer_scores, score_answers
from rlhf.rewards.gate import GatedReward
from rlhf.rewards.protocol import RewardFunction
from rlhf.sampling.multi_process import sample_distributed
from rlhf.sampling.protocol import Sampler, SamplingParams


@dataclass(frozen=True)
class Rollout:
    """One answer. Scores are raw; `reward` is the gate's choice; answer_ids hold the end token where it came.

    `safety` is None without a safety model; `too_long`: a reward model saw it cut; `no_room`: it is not finished, and
    shorter than it may be: a context ended it.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    finished: bool
    helpfulness: float
    safety: float | None
    reward: float
    used_safety: bool
    text: str = ""
    too_long: bool = False
    no_room: bool = False


@dataclass(frozen=True)
class Environment:
    """What answers and what judges; the referee, if there is one, judges held-out answers and trains nothing."""

    sampler: Sampler
    renderer: Renderer
    reward: GatedReward
    sampling: SamplingParams
    accelerator: Accelerator
    referee: RewardFunction | None = None


def roll_out(
    prompts: Sequence[Prompt], environment: Environment, sampling: SamplingParams, num_samples: int, first_key: int = 0
) -> list[Rollout]:
    """`num_samples` scored answers to each prompt, prompt after prompt, the same list on every process.

    Args:
        first_key: prompt i draws with key first_key + i, so that no iteration repeats another's draws.

    Raises:
        InputError: on every process, where a reward function fails on one; or every answer is empty.
    """
    keys = range(first_key, first_key + len(prompts))
    conversations = [prompt.messages for prompt in prompts]
    drawn = sample_distributed(
        environment.sampler, conversations, num_samples, sampling, environment.accelerator, keys=keys
    )
    asked = [prompt for prompt in prompts for _ in range(num_samples)]
    samples = [sample for answers in drawn for sample in answers]
    scored = score_answers(asked, [s.text for s in samples], environment.reward, environment.accelerator)
    rendered = [tuple(ids) for ids in environment.renderer.prompts(conversations) for _ in range(num_samples)]
    cut = scored.too_long.tolist()
    finished = [environment.reward.counts_as_finished(s.finished, c) for s, c in zip(samples, cut, strict=True)]
    return [
        Rollout(
            prompt_ids,
            sample.token_ids,
            finished[i],
            float(scored.helpfulness[i]),
            None if scored.safety is None else float(scored.safety[i]),
            float(scored.reward[i]),
            bool(scored.used_safety[i]),
            sample.text,
            cut[i],
            not finished[i] and len(sample.token_ids) < sampling.max_new_tokens,
        )
        for i, (prompt_ids, sample) in enumerate(zip(rendered, samples, strict=True))
    ]


def rollout_figures(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over the rollouts of what doesn't need a model; without a safety model none of safety and the gate.

    `too_long_share`, of answers that a reward model saw cut, and `no_room_share`, of answers that a context ended, are
    there where they are not 0.
    """
    safety = [r.safety for r in rollouts if r.safety is not None]
    room = {"too_long_share": fmean(r.too_long for r in rollouts), "no_room_share": fmean(r.no_room for r in rollouts)}
    return {
        "reward": fmean(r.reward for r in rollouts),
        "helpfulness": fmean(r.helpfulness for r in rollouts),
        **({"safety": fmean(safety), "gate_share": fmean(r.used_safety for r in rollouts)} if safety else {}),
        **{name: share for name, share in room.items() if share},
        "length": fmean(len(r.answer_ids) for r in rollouts),
        "finished_share": fmean(r.finished for r in rollouts),
        "repetition": fmean(repeated_share(r.answer_ids) for r in rollouts),
    }


def referee_figures(
    prompts: Sequence[Prompt], rollouts: Sequence[Rollout], environment: Environment
) -> dict[str, float]:
    """The referee's mean score of one answer to each prompt and its standard error; empty without a referee.

    Raises:
        InputError: on every process, where the referee fails on one.
    """
    if environment.referee is None:
        return {}
    texts = [rollout.text for rollout in rollouts]
    scores = answer_scores(prompts, texts, environment.referee, "referee", environment.accelerator).scores.tolist()
    return {"referee": fmean(scores), "referee_error": standard_error(scores)}


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; 0.0 for fewer than two, which say nothing of their spread."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
